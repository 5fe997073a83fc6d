"""Supervised fine-tuning with LoRA: TRL's trainer with a loss that is computed from the learned positions alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from model.training.config import TrainSettings
from model.training.rows import IGNORED, TokenRows
from model.training.trainer import TrainerParts, TrainingLoop, common_arguments


class SupervisedTrainer(TrainingLoop, SFTTrainer):
    """TRL's trainer with token-weighted losses, whole checkpoints and JSON-lines progress.

    Parameters
    ----------
    model, tokenizer
        The base model, to which TRL adds the adapter, and its tokenizer.
    rows, held_out
        Rows to train on, and those to evaluate on.
    parts
        Everything else.
    """

    def __init__(self, model: Any, tokenizer: Any, rows: TokenRows, held_out: TokenRows, parts: TrainerParts) -> None:
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
            peft_config=lora_config(parts.settings),
        )
        self.start(parts, held_out)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the sum of the learned tokens' losses over `num_items_in_batch`.

        TRL's own head scores every position off CUDA, and on CUDA it needs a C compiler. Here the output layer is
        shown the learned positions alone: twice as fast on a CPU, and the same number.
        """
        labels = inputs["labels"][:, 1:]
        learned = labels != IGNORED
        with _shown_to_output_layer(model.get_output_embeddings(), learned):
            visible = {name: tensor for name, tensor in inputs.items() if name != "labels"}
            logits = model(**visible, use_cache=False).logits[0]
        if logits.dtype != torch.float64:
            logits = logits.float()
        total = torch.nn.functional.cross_entropy(logits, labels[learned], reduction="sum")
        loss = total / (learned.sum() if num_items_in_batch is None else num_items_in_batch)
        return (loss, None) if return_outputs else loss

    def measure(self, batch: dict[str, torch.Tensor]) -> dict[str, float]:
        """Return the summed loss and the number of the learned tokens."""
        loss = float(self.compute_loss(self.model, batch, num_items_in_batch=1))
        return {"loss": loss, "tokens": int((batch["labels"][:, 1:] != IGNORED).sum())}

    def mean_loss(self, sums: Mapping[str, float]) -> float:
        """Return the mean loss of a learned token."""
        return sums["loss"] / sums["tokens"]


def lora_config(settings: TrainSettings) -> LoraConfig:
    """Return the shape of a new adapter."""
    modules = settings.lora_target_modules
    assert settings.lora_dropout_percent is not None  # the settings are resolved
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout_percent / 100,
        target_modules="all-linear" if modules == ["all-linear"] else modules,
        use_rslora=settings.lora_variant == "RSLoRA",
        use_dora=settings.lora_variant == "DoRA",
    )


@contextlib.contextmanager
def _shown_to_output_layer(layer: torch.nn.Module, learned: torch.Tensor) -> Iterator[None]:
    """Show the output layer the positions before the learned tokens only, as one row.

    A hook and not a call of the layer: what models do to their logits afterwards (scale, cap) stays theirs.
    """

    def select(_layer: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (arguments[0][:, :-1][learned][None],)

    hook = layer.register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()
