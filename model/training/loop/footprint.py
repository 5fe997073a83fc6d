"""What training takes of a machine's memory, by the model's shape. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LIBRARY_BYTES = 1000 << 20
"""torch, transformers, TRL and peft, imported."""
OPTIMIZER_BYTES = 12
"""The gradient and Adam's two moments, each in float32."""
ACTIVATIONS_HIDDEN, ACTIVATIONS_INNER, ACTIVATIONS_DROPOUT_HIDDEN = 14, 4, 5
"""Values kept per token and layer, in units of the hidden and the inner size: measured on Llama's layers."""
LOGITS_BYTES = 12
"""Per token and word of the vocabulary: the logits, their logarithms and the gradient, in float32."""
LOGITS_CHUNK_BYTES = {False: 128 << 20, True: 1 << 30}
"""What they take at most on a CPU and, True, on a GPU: they are made a chunk at a time, see `head`."""
CPU_MICRO_BATCH_TOKENS = 2048
GPU_MICRO_BATCH_TOKENS = 16384


_HIDDEN = ("hidden_size", "n_embd", "d_model")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_INNER = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff")
_EXPERTS = ("num_experts_per_tok", "moe_top_k")
"""What families of models call the same thing."""


def activation_bytes_per_token(
    config: Mapping[str, Any], *, item_bytes: int, dropout: bool, checkpointing: bool
) -> int:
    """Return what a token leaves behind in the forward pass for the backward pass, without the logits.

    Parameters
    ----------
    config
        The configuration of the language model, as in its file.
    item_bytes
        Size of a number of the base model.
    dropout
        Whether the adapter has dropout.
    checkpointing
        Whether one layer at a time is computed anew on the way back.
    """
    hidden, layers = _value(config, _HIDDEN), _value(config, _LAYERS)
    inner = _value(config, _INNER) or 4 * hidden
    if experts := _value(config, _EXPERTS):
        inner = experts * (_value(config, ("moe_intermediate_size",)) or inner)
    values = ACTIVATIONS_HIDDEN * hidden + ACTIVATIONS_INNER * inner
    if dropout:
        values += ACTIVATIONS_DROPOUT_HIDDEN * hidden + inner
    if checkpointing:
        return round((values + layers * hidden) * item_bytes)
    return round(layers * values * item_bytes)


def choose_micro_batch_size(batch_size: int, longest: int, *, cuda: bool) -> int:
    """Return how many of the longest rows go through the model at once, from their tokens."""
    return max(1, min(batch_size, (GPU_MICRO_BATCH_TOKENS if cuda else CPU_MICRO_BATCH_TOKENS) // longest))


def _value(config: Mapping[str, Any], names: Sequence[str]) -> int:
    """Return what the configuration holds under one of the names, the greatest where it differs between layers."""
    held = next((config[name] for name in names if config.get(name)), 0)
    return int(max(held) if isinstance(held, list | tuple) else held)
