"""The products of LoRA's layers: base and adapters of all layers that share an input, in the type of that input.

peft keeps A and B in float32 and computes `W x + scale * B A dropout(x)` with an operation for each sign: on a base in
bfloat16 the input is cast to float32 for each layer, and both products are float32's. Here A and B are cast once a
step, the matrix products themselves add the adapter's part to the base's output, forwards and backwards, and layers
that share an input (queries, keys and values; gate and up) share one product with all of their A, and one dropout mask.
The weights and their gradients stay in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.optim.optimizer import register_optimizer_step_post_hook

_LEVELS = 1 << 16
"""Dropout's probability is rounded to a multiple of one over this."""


@dataclass(frozen=True)
class Matrices:
    """The matrices of layers that share an input, in the input's type, as the products take them.

    Attributes
    ----------
    weights, biases
        Each layer's base, frozen. No weight where the base computes its output itself, as quantized ones do.
    down
        All layers' A, one below the other, (ranks, inputs).
    ups
        Each layer's scale * B, (outputs, rank).
    scales
        Those scales.
    """

    weights: Sequence[torch.Tensor | None]
    biases: Sequence[torch.Tensor | None]
    down: torch.Tensor
    ups: Sequence[torch.Tensor]
    scales: Sequence[float]


class Casts:
    """A and B of some layers in another type; made anew when they have changed, once a step that is."""

    _steps = 0
    """Steps of any optimizer: fused ones write past torch's count of a tensor's versions."""

    @classmethod
    def watch_optimizers(cls) -> None:
        """Hear of the steps of all optimizers from now on."""
        if cls._steps:
            return
        cls._steps = 1

        def count(*_: Any) -> None:
            cls._steps += 1

        register_optimizer_step_post_hook(count)

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._down: torch.Tensor | None = None
        self._ups: list[torch.Tensor] = []

    def of(
        self, downs: Sequence[torch.Tensor], ups: Sequence[torch.Tensor], scales: Sequence[float], dtype: torch.dtype
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return all A, (ranks, inputs), and each scale * B, (outputs, rank)."""
        versions = ((weight.data_ptr(), weight._version) for weight in (*downs, *ups))  # noqa: SLF001 - as torch counts
        key = (self._steps, dtype, *scales, *versions)
        if self._down is None or key != self._key:
            with torch.no_grad():
                self._down = torch.cat([down.to(dtype) for down in downs])
                self._ups = [(up * scale).to(dtype) for up, scale in zip(ups, scales, strict=True)]
            self._key = key
        return self._down, self._ups


def multiply(
    x: torch.Tensor,
    matrices: Matrices,
    *,
    keep: torch.Tensor | None,
    outputs: Sequence[torch.Tensor | None],
    downs: Sequence[torch.Tensor],
    ups: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, ...]:
    """Return each layer's `W x + b + scale * B A (keep * x)`, (..., outputs); W and b are frozen.

    Parameters
    ----------
    x
        The layers' input, (..., inputs).
    matrices
        What is multiplied.
    keep
        0 or 1 for each element of x in uint8, None for all.
    outputs
        `W x + b` of the layers whose base computes that itself.
    downs, ups
        The weights that are trained, which get gradients in their own type.
    """
    found: tuple[torch.Tensor, ...] = _Adapted.apply(x, keep, matrices, *outputs, *downs, *ups)
    return found


class _Adapted(torch.autograd.Function):
    """x, the mask and the products with A, (tokens, ranks), are all that is kept for the way back."""

    @staticmethod
    def forward(
        context: Any, x: torch.Tensor, keep: torch.Tensor | None, matrices: Matrices, *tensors: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        count = len(matrices.ups)
        inner = _masked(x, keep).flatten(0, -2) @ matrices.down.t()
        outputs = []
        for index, part in enumerate(inner.split([up.shape[1] for up in matrices.ups], dim=1)):
            weight, base, up = matrices.weights[index], tensors[index], matrices.ups[index]
            if weight is not None:
                output = torch.nn.functional.linear(x, weight, matrices.biases[index])
                output.view(-1, output.shape[-1]).addmm_(part, up.t())
            else:
                assert base is not None
                output = torch.addmm(base.flatten(0, -2), part, up.t()).view(base.shape)
            outputs.append(output)
        context.save_for_backward(x, keep, inner)
        context.matrices = matrices
        context.types = [tensor.dtype for tensor in tensors[count:] if tensor is not None]
        return tuple(outputs)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        x, keep, inner = context.saved_tensors
        matrices: Matrices = context.matrices
        count, ranks = len(matrices.ups), [up.shape[1] for up in matrices.ups]
        of_x, _, _, *of_tensors = context.needs_input_grad
        flat = [gradient.flatten(0, -2) for gradient in gradients]
        of_parts = [gradient @ up for gradient, up in zip(flat, matrices.ups, strict=True)]
        of_inner = of_parts[0] if count == 1 else torch.cat(of_parts, dim=1)
        of_bases = [gradients[index] if of_tensors[index] else None for index in range(count)]
        of_downs: Sequence[torch.Tensor | None] = [None] * count
        of_ups: list[torch.Tensor | None] = [None] * count
        if any(of_tensors[count:]):
            of_down = _precise(of_inner.t(), _masked(x, keep).flatten(0, -2))
            of_downs = [part.to(dtype) for part, dtype in zip(of_down.split(ranks), context.types, strict=False)]
            of_ups = [
                _precise(gradient.t(), part).mul_(scale).to(dtype)
                for gradient, part, scale, dtype in zip(
                    flat, inner.split(ranks, dim=1), matrices.scales, context.types[count:], strict=True
                )
            ]
        found = _of_input(x, keep, matrices, flat, of_inner) if of_x else None
        return found, None, None, *of_bases, *of_downs, *of_ups


def _of_input(
    x: torch.Tensor,
    keep: torch.Tensor | None,
    matrices: Matrices,
    gradients: Sequence[torch.Tensor],
    of_inner: torch.Tensor,
) -> torch.Tensor:
    """Return the gradient of the input: each product adds to what the ones before it have made."""
    found: torch.Tensor | None = None
    for gradient, weight in zip(gradients, matrices.weights, strict=True):
        if weight is not None:
            found = gradient @ weight if found is None else found.addmm_(gradient, weight)
    if found is not None and keep is None:
        return found.addmm_(of_inner, matrices.down).view(x.shape)
    own = of_inner @ matrices.down
    if keep is not None:
        own = _masked(own, keep.flatten(0, -2))
    return (own if found is None else found.add_(own)).view(x.shape)


def _precise(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return a product in float32 where its factors have fewer bits; on a CPU it is rounded to theirs before."""
    if first.dtype in (torch.float32, torch.float64):
        return first @ second
    if first.device.type == "cuda":
        return torch.mm(first, second, out_dtype=torch.float32)
    return (first @ second).float()


def dropout_mask(x: torch.Tensor, share: float) -> tuple[torch.Tensor | None, float]:
    """Return which elements dropout keeps, as 0 and 1 in x's shape, and the share that it keeps on average.

    On most CPUs torch draws a random number for each element, one after the other; here one draw decides about four.
    """
    dropped = round(share * _LEVELS)
    if not dropped:
        return None, 1.0
    kept_share = 1 - dropped / _LEVELS
    if x.device.type != "cpu":
        return torch.empty(x.shape, dtype=torch.uint8, device=x.device).bernoulli_(kept_share), kept_share
    count = x.numel()
    draws = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(1 << 63), None)
    levels = draws.view(torch.int16)[:count].view(x.shape)
    keep = torch.ge(levels, dropped - _LEVELS // 2, out=torch.empty(x.shape, dtype=torch.uint8))
    return keep, kept_share


def _masked(x: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    if keep is None:
        return x
    return keep.to(x.dtype).mul_(x) if x.device.type == "cpu" else x * keep
