"""What of the forward pass is kept for the way back, and what is computed again there, layer by layer.

Recomputing saves memory and costs half as much again as the rest of the work: with LoRA the way back has no gradients
of weights to compute. So no more of it is done than the memory asks for (`fitting.on_gpu`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from transformers.modeling_layers import GradientCheckpointingLayer


class Recompute(StrEnum):
    """Which layers are computed again on the way back."""

    NONE = "None"
    HALF = "EverySecondLayer"
    ALL = "AllLayers"


def choices(setting: str, model: Any, *, cuda: bool) -> list[Recompute]:
    """Return what may be done, the fastest first.

    Parameters
    ----------
    setting
        Auto, Enabled or Disabled, as gradientCheckpointing says.
    model
        Which model's layers these are.
    cuda
        Whether it is trained on a GPU: on a CPU, Auto recomputes nothing.
    """
    if setting == "Enabled":
        return [Recompute.ALL]
    if setting == "Disabled" or not cuda:
        return [Recompute.NONE]
    by_layer = any(isinstance(module, GradientCheckpointingLayer) for module in model.modules())
    return [Recompute.NONE, *([Recompute.HALF] if by_layer else []), Recompute.ALL]


def use(model: Any, choice: Recompute) -> None:
    """Let a model's layers be computed again as chosen."""
    if choice is Recompute.NONE:
        if model.is_activation_checkpointing:
            model.activation_checkpointing_disable()
        return
    model.activation_checkpointing_enable({"use_reentrant": False}, every_n_layers=2 if choice is Recompute.HALF else 1)
