"""The adapter of each evaluation, for the registry: what training waits for, and what it does not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from model.training.output.interim import Interim


def offer(trainer: Any, step: int, loss: float, sums: Mapping[str, float]) -> None:
    """Let the registry have the adapter as it is now; training waits for the copy in the host's memory alone.

    The first time the base model is measured, too, in which all processes take part; the run's end needs that anyway.
    """
    sender = trainer.interim_sender
    if trainer.parts.settings.registry_url is None:
        return
    base = trainer.base_loss(sums, stop_when_interrupted=True)
    if sender is None or not sender.wants:
        return
    losses = {"evaluationLoss": loss} | ({"baseEvaluationLoss": base} if math.isfinite(base) else {})
    if trainer.run_state.last_steps:
        losses["trainLoss"] = trainer.run_state.final_loss()
    try:
        write = sender.copy(trainer.model)
    except Exception as error:  # noqa: BLE001 - whatever it is, the training goes on
        message = f"the adapter cannot be copied for the registry: {error!r}"
        trainer.parts.log.emit("warning", step=step, message=message)
    else:
        sender.offer(Interim(step, losses, write))
