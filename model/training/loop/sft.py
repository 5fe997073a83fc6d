"""Supervised fine-tuning with LoRA: TRL's trainer with a loss that is computed from the learned positions alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from trl import SFTConfig, SFTTrainer

from model.training.loop.arguments import common_arguments
from model.training.loop.examples import Examples
from model.training.loop.layout import Batch
from model.training.loop.parts import TrainerParts
from model.training.loop.scoring import token_losses
from model.training.loop.trainer import TrainingLoop
from model.training.rows.tokens import TokenRows
from model.training.weights.adapters import in_float32, new_adapter


class SupervisedTrainer(TrainingLoop, SFTTrainer):
    """TRL's trainer with token-weighted losses, whole checkpoints and JSON-lines progress.

    Parameters
    ----------
    model, tokenizer
        The base model, to which a new adapter is added, or the base model with its parent adapter; its tokenizer.
    rows, held_out
        Rows to train on, and those to evaluate on.
    parts
        Everything else.
    """

    def __init__(self, model: Any, tokenizer: Any, rows: TokenRows, held_out: TokenRows, parts: TrainerParts) -> None:
        with in_float32(model):
            super().__init__(
                model=model,
                args=SFTConfig(
                    **common_arguments(parts),
                    max_length=None,
                    packing=False,
                    dataset_kwargs={"skip_prepare_dataset": True},
                ),
                train_dataset=rows.as_dataset(),
                processing_class=tokenizer,
                data_collator=parts.collator,
                peft_config=new_adapter(parts.settings, model) if parts.settings.parent_adapter is None else None,
            )
        self.start(parts, Examples(rows), Examples(held_out))

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the sum of the learned tokens' losses over `num_items_in_batch`."""
        items = sum(inputs["shape"].learned) if num_items_in_batch is None else num_items_in_batch
        loss = token_losses(model, inputs, reduction="sum") / items
        return (loss, None) if return_outputs else loss

    def measure(self, batch: Batch) -> Mapping[str, Any]:
        """Return the summed loss and the number of the learned tokens."""
        return {"loss": token_losses(self.model, batch, reduction="sum"), "tokens": sum(batch["shape"].learned)}

    def mean_loss(self, sums: Mapping[str, float]) -> float:
        """Return the mean loss of a learned token."""
        return sums["loss"] / sums["tokens"]

    def base_loss(self, sums: Mapping[str, float], *, stop_when_interrupted: bool = False) -> float:
        """Return the base model's loss over the held-out rows, which a run measures once; NaN when SIGTERM came."""
        del sums
        if self.run_state.base_evaluation_loss is None:
            with self.model.disable_adapter():
                base = self.held_out_sums(stop_when_interrupted=stop_when_interrupted)
            if not base:
                return math.nan
            self.run_state.base_evaluation_loss = self.mean_loss(base)
        return self.run_state.base_evaluation_loss
