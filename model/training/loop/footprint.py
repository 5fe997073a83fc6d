"""What training takes of a machine's memory, by the model's shape. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LIBRARY_BYTES = 1000 << 20
"""torch, transformers, TRL and peft, imported."""
OPTIMIZER_BYTES = 12
"""The gradient and Adam's two moments, each in float32."""
ACTIVATIONS_HIDDEN, ACTIVATIONS_INNER, ACTIVATIONS_DROPOUT_HIDDEN = 14, 4, 5
"""Values kept per token and layer, in units of the hidden and the inner size: measured on Llama's layers."""
LOGITS_BYTES = 8
"""Per token and word of the vocabulary: the logits and their gradient, in float32."""
CPU_MICRO_BATCH_ROWS = 8
CPU_MICRO_BATCH_TOKENS = 2048
GPU_MICRO_BATCH_TOKENS = 16384


def activation_bytes_per_token(
    config: Mapping[str, Any], *, item_bytes: int, dropout: bool, checkpointing: bool
) -> int:
    """Return what a token leaves behind in the forward pass for the backward pass, without the logits.

    Parameters
    ----------
    config
        The configuration of the language model.
    item_bytes
        Size of a number of the base model.
    dropout
        Whether the adapter has dropout.
    checkpointing
        Whether one layer at a time is computed anew on the way back.
    """
    hidden, layers = int(config.get("hidden_size", 0)), int(config.get("num_hidden_layers", 0))
    inner = int(config.get("intermediate_size", 4 * hidden))
    values = ACTIVATIONS_HIDDEN * hidden + ACTIVATIONS_INNER * inner
    if dropout:
        values += ACTIVATIONS_DROPOUT_HIDDEN * hidden + inner
    if checkpointing:
        return round((values + layers * hidden) * item_bytes)
    return round(layers * values * item_bytes)


def choose_micro_batch_size(batch_size: int, longest: int, *, cuda: bool) -> int:
    """Return how many rows go through the model at once, from the longest row's tokens."""
    if cuda:
        return max(1, min(batch_size, GPU_MICRO_BATCH_TOKENS // longest))
    return max(1, min(batch_size, CPU_MICRO_BATCH_ROWS, CPU_MICRO_BATCH_TOKENS // longest))
