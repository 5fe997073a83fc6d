"""What training takes of a machine's memory, by the model's shape. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LIBRARY_BYTES = 900 << 20
"""torch, transformers, TRL and peft, imported, and what a first step leaves there: 820 MiB were seen."""
HEAP = 1.2
"""What a process holds on a CPU for each byte of a step's tensors: gaps stay between them. 1.1 to 1.4 were seen."""
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
_GROUPS = 7
"""Products with A that are kept, of rank numbers each: of q, k, v, o, gate, up and down."""


@dataclass(frozen=True)
class Passes:
    """What tokens hold at most on their way through the model and back, in bytes.

    Counted are Llama's layers with an adapter on all linear ones, on a CPU. At the end of the forward pass all that is
    kept for the way back is there, and the output layer's part beside it; then that is gone, and the backward pass of
    the last layer begins.

    Attributes
    ----------
    kept
        What a token leaves behind in the forward pass.
    back
        What it takes at once in the backward pass.
    head
        What it takes between them, without its logits.
    logit
        What the logits of a token take.
    chunk
        What logits take at most, for they are made a chunk at a time; None where the model makes all at once.
    """

    kept: int
    back: int
    head: int
    logit: int
    chunk: int | None

    @classmethod
    def of(
        cls,
        config: Mapping[str, Any],
        *,
        item_bytes: int,
        rank: int,
        dropout: bool,
        checkpointing: bool,
        chunk: int | None,
    ) -> Passes:
        """Return the passes through a language model.

        Parameters
        ----------
        config
            Its configuration, as in its file.
        item_bytes
            Size of a number of the base model.
        rank
            The adapter's.
        dropout
            Whether the adapter has dropout.
        checkpointing
            Whether one layer at a time is computed anew on the way back.
        chunk
            See `Passes`.
        """
        hidden, layers = _value(config, _HIDDEN), _value(config, _LAYERS)
        inner = _value(config, _INNER) or 4 * hidden
        if experts := _value(config, _EXPERTS):
            inner = experts * (_value(config, ("moe_intermediate_size",)) or inner)
        heads = _value(config, _HEADS) or 1
        size = _value(config, ("head_dim",)) or hidden // heads
        queries, keys = heads * size, (_value(config, _KEY_VALUE_HEADS) or heads) * size
        inputs = hidden + queries + hidden + inner  # of q/k/v, which share one, of o, gate/up and down
        attention = 2 * queries + 2 * keys  # what it attends with, and what it gives
        feed_forward = 3 * inner  # gate, its activation, and up
        values = inputs + attention + feed_forward + _GROUPS * rank
        # A norm computes in float32 whatever the type, and a dropout mask has a byte for each input.
        layer = values * item_bytes + 2 * hidden * FLOAT32_BYTES + (inputs if dropout else 0)
        return cls(
            kept=layers * (hidden * item_bytes if checkpointing else layer),
            back=2 * inner * item_bytes + (layer if checkpointing else 0),
            head=hidden * (FLOAT32_BYTES + item_bytes),
            logit=_value(config, ("vocab_size",)) * (3 * FLOAT32_BYTES if chunk is None else logit_bytes(item_bytes)),
            chunk=chunk,
        )

    def activations(self, tokens: int) -> int:
        """Return the bytes of so many tokens without logits."""
        return tokens * (self.kept + self.back)

    def logits(self, tokens: int) -> int:
        """Return what their logits add to that, when all of the tokens are learned."""
        whole = tokens * self.logit
        made = whole if self.chunk is None else min(whole, self.chunk)
        return max(0, made + tokens * (self.head - self.back))

    def total(self, tokens: int) -> int:
        """Return the bytes of so many tokens."""
        return self.activations(tokens) + self.logits(tokens)


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
