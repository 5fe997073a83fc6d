"""What training takes of a machine's memory, by the model's shape. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LIBRARY_BYTES = 1000 << 20
"""torch, transformers, TRL and peft, imported."""
OPTIMIZER_BYTES = 12
"""The gradient and Adam's two moments, each in float32."""
LOGITS_CHUNK_BYTES = {False: 128 << 20, True: 1 << 30}
"""What logits take at most on a CPU and, True, on a GPU: they are made a chunk at a time, see `head`."""
FLOAT32_BYTES = 4
CPU_MICRO_BATCH_TOKENS = 2048
GPU_MICRO_BATCH_TOKENS = 16384


_HIDDEN = ("hidden_size", "n_embd", "d_model")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_INNER = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
_EXPERTS = ("num_experts_per_tok", "moe_top_k")
"""What families of models call the same thing."""


def activation_bytes_per_token(
    config: Mapping[str, Any], *, item_bytes: int, rank: int, dropout: bool, checkpointing: bool
) -> int:
    """Return what a token holds at most on its way through the model and back, without the logits.

    That is what the forward pass leaves behind for the backward pass, counted for Llama's kind of layers, and what
    the backward pass of the last layer takes beside it.

    Parameters
    ----------
    config
        The configuration of the language model, as in its file.
    item_bytes
        Size of a number of the base model.
    rank
        The adapter's, on all linear layers.
    dropout
        Whether the adapter has dropout.
    checkpointing
        Whether one layer at a time is computed anew on the way back.
    """
    hidden, layers = _value(config, _HIDDEN), _value(config, _LAYERS)
    inner = _value(config, _INNER) or 4 * hidden
    if experts := _value(config, _EXPERTS):
        inner = experts * (_value(config, ("moe_intermediate_size",)) or inner)
    heads = _value(config, _HEADS) or 1
    size = _value(config, ("head_dim",)) or hidden // heads
    queries, keys = heads * size, (_value(config, _KEY_VALUE_HEADS) or heads) * size
    inputs = 2 * hidden + queries + inner
    """Of queries, keys and values together, of the output, of gate and up, and of down."""
    attention = 2 * queries + 2 * keys
    feed_forward = 3 * inner  # gate, what its activation makes of it, and up
    values = inputs + attention + feed_forward + 7 * rank
    layer = values * item_bytes + 2 * hidden * FLOAT32_BYTES + (inputs if dropout else 0)
    back = 3 * inner * item_bytes
    if checkpointing:
        return layer + back + layers * hidden * item_bytes
    return layers * layer + back


def logits_bytes(vocabulary: int, tokens: int, *, item_bytes: int, chunk_bytes: int | None) -> int:
    """Return what the logits of some tokens take, with their probabilities and gradient.

    Parameters
    ----------
    vocabulary
        Its words.
    tokens
        How many are learned.
    item_bytes
        Size of a number of the base model.
    chunk_bytes
        To which they are kept, see `head`; None when all are made at once, by the model.
    """
    if chunk_bytes is None:
        return tokens * vocabulary * 3 * FLOAT32_BYTES
    return min(tokens * vocabulary * logit_bytes(item_bytes), chunk_bytes)


def logit_bytes(item_bytes: int) -> int:
    """Return what a logit takes in `head`: in float32 and, on the way there and back, in the base model's type."""
    return item_bytes if item_bytes >= FLOAT32_BYTES else FLOAT32_BYTES + item_bytes


def choose_micro_batch_size(batch_size: int, longest: int, *, cuda: bool) -> int:
    """Return how many of the longest rows go through the model at once, from their tokens."""
    return max(1, min(batch_size, (GPU_MICRO_BATCH_TOKENS if cuda else CPU_MICRO_BATCH_TOKENS) // longest))


def _value(config: Mapping[str, Any], names: Sequence[str]) -> int:
    """Return what the configuration holds under one of the names, the greatest where it differs between layers."""
    held = next((config[name] for name in names if config.get(name)), 0)
    return int(max(held) if isinstance(held, list | tuple) else held)
