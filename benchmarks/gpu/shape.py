"""Shapes of models, and how many operations a token takes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "GH200": 989.0, "A100": 312.0, "L40S": 362.0, "B200": 2250.0}
"""Dense bfloat16 peaks by a part of the device's name, from the makers' data sheets."""


@dataclass(frozen=True)
class Shape:
    """A model of Llama's kind.

    Attributes
    ----------
    name
        What to call it.
    family
        Llama, or Qwen3, whose queries and keys have norms of their own.
    layers, hidden, intermediate, heads, key_value_heads, head_size, vocabulary
        As in its configuration.
    tied
        Whether the output layer has the embeddings' weights.
    """

    name: str
    family: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_size: int
    vocabulary: int
    tied: bool = False

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each linear layer of a block."""
        queries, keys = self.heads * self.head_size, self.key_value_heads * self.head_size
        attention = [(self.hidden, queries), (self.hidden, keys), (self.hidden, keys), (queries, self.hidden)]
        return [*attention, *[(self.hidden, self.intermediate)] * 2, (self.intermediate, self.hidden)]

    @property
    def block_weights(self) -> int:
        """Weights of all blocks' linear layers."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.matrices)

    @property
    def head_weights(self) -> int:
        """Weights of the output layer."""
        return self.hidden * self.vocabulary

    def adapter_weights(self, rank: int) -> int:
        """Return the weights of an adapter of all linear layers but the head."""
        return self.layers * rank * sum(inputs + outputs for inputs, outputs in self.matrices)

    def sliced(self, layers: int) -> Shape:
        """Return a model of its first layers: the same numbers for each layer, read in seconds."""
        return dataclasses.replace(self, name=f"{self.name}-{layers}-layers", layers=layers)


LLAMA_8B = Shape("llama-8b", "Llama", 32, 4096, 14336, 32, 8, 128, 128256)
QWEN3_8B = Shape("qwen3-8b", "Qwen3", 36, 4096, 12288, 32, 8, 128, 151936)
QWEN3_06B = Shape("qwen3-0.6b", "Qwen3", 28, 1024, 3072, 16, 8, 128, 151936, tied=True)
SLICE = LLAMA_8B.sliced(4)
TINY = Shape("tiny", "Llama", 2, 64, 128, 4, 2, 16, 2048)
TINY_QWEN3 = Shape("tiny-qwen3", "Qwen3", 2, 64, 128, 4, 2, 16, 2048, tied=True)
SHAPES = {shape.name: shape for shape in (LLAMA_8B, QWEN3_8B, QWEN3_06B, SLICE, TINY, TINY_QWEN3)}


def operations_per_token(shape: Shape, *, method: str, rank: int, row_tokens: int, learned_share: float) -> float:
    """Return the floating-point operations that one token of a step is worth.

    What has to be computed counts, however often a trainer computes it: forward 2 and the way back to the inputs 2 for
    each frozen weight, 6 for each of the adapter's, causal attention within a row, the output layer for learned tokens
    alone. For DPO the reference's forward pass comes on top.

    Parameters
    ----------
    shape
        The model.
    method
        SFT, DPO.
    rank
        The adapter's rank.
    row_tokens
        Tokens of a row, within which attention reaches.
    learned_share
        Share of the tokens that are learned.
    """
    frozen = shape.block_weights + learned_share * shape.head_weights
    attention = 2 * shape.layers * row_tokens * shape.heads * shape.head_size
    training = 4 * frozen + 6 * shape.adapter_weights(rank) + 3 * attention
    return training if method == "SFT" else training + 2 * frozen + attention


def peak_tflops(device: str) -> float | None:
    """Return the peak of a device in bfloat16, None when its name is not known."""
    names = [name for name in PEAK_TFLOPS if name in device]
    return PEAK_TFLOPS[max(names, key=len)] if names else None


def utilisation(tokens_per_second: float, operations: float, peak: float | None) -> float | None:
    """Return the share of the peak that is used, in percent."""
    return None if peak is None else 100 * tokens_per_second * operations / (peak * 1e12)
