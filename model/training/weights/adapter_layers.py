"""LoRA's layers on a CPU: peft's numbers in fewer passes over memory, and dropout from fewer random numbers.

peft computes `W x + scale * B A dropout(x)` with an operation for each sign. Here the matrix product itself adds the
adapter's part to the base's output, forwards and backwards. torch draws a random number for each element that dropout
looks at, on most CPUs one after the other; here one draw decides about four elements.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch.autograd.function import once_differentiable

_LEVELS = 1 << 16
"""Dropout's probability is rounded to a multiple of one over this."""


class FusedLinear(Linear):
    """peft's adapted linear layer, base and adapter in one operation where that is possible."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the base layer's output with the adapter's, (..., outputs)."""
        name = self._fusible(x) if not (args or kwargs) else None
        if name is None:
            return super().forward(x, *args, **kwargs)
        dropout = self.lora_dropout[name]
        share = dropout.p if self.training and isinstance(dropout, torch.nn.Dropout) else 0.0
        base, down, up = self.base_layer, self.lora_A[name].weight, self.lora_B[name].weight
        keep, kept_share = _keep(x, share)
        return _Adapted.apply(x, base.weight, base.bias, down, up, self.scaling[name] / kept_share, keep)

    def _fusible(self, x: torch.Tensor) -> str | None:
        """Return the adapter's name when it is a single plain one in the type of the base, on the CPU."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        name: str = self.active_adapters[0]
        if name not in self.lora_A or name in self.lora_variant or self.lora_bias[name]:
            return None
        weights = (self.base_layer.weight, self.lora_A[name].weight, self.lora_B[name].weight)
        if x.device.type != "cpu" or x.ndim < 2 or any(weight.dtype != x.dtype for weight in weights):
            return None
        return None if weights[0].requires_grad or torch.is_autocast_enabled("cpu") else name


class _Adapted(torch.autograd.Function):
    """`W x + b + scale * B A (keep * x)`; W and b are frozen.

    `keep` is 0 or 1 for each element of x in uint8, None for all. It and x are all that is kept for the way back.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - torch passes them on by position
        context: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
        keep: torch.Tensor | None,
    ) -> torch.Tensor:
        output = torch.nn.functional.linear(x, weight, bias)
        inner = _masked(x, keep).flatten(0, -2) @ down.t()
        output.view(-1, output.shape[-1]).addmm_(inner, up.t(), alpha=scale)
        context.save_for_backward(x, weight, down, up, inner, keep)
        context.scale = scale
        return output

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, down, up, inner, keep = context.saved_tensors
        flat = gradient.flatten(0, -2)
        of_inner = (flat @ up).mul_(context.scale)
        of_down = of_inner.t() @ _masked(x, keep).flatten(0, -2)
        of_up = (flat.t() @ inner).mul_(context.scale)
        of_x = None
        if context.needs_input_grad[0]:
            of_x = flat @ weight
            if keep is None:
                of_x.addmm_(of_inner, down)
            else:
                of_x.add_(_masked(of_inner @ down, keep.flatten(0, -2)))
            of_x = of_x.view(x.shape)
        return of_x, None, None, of_down, of_up, None, None


def fuse(model: torch.nn.Module) -> None:
    """Let a model's plain LoRA layers on unquantised weights use fewer operations; others are left alone."""
    for module in model.modules():
        if type(module) is Linear and type(module.base_layer) is torch.nn.Linear:
            module.__class__ = FusedLinear


def _keep(x: torch.Tensor, share: float) -> tuple[torch.Tensor | None, float]:
    """Return which elements dropout keeps, as 0 and 1 in x's shape, and the share that it keeps on average."""
    dropped = round(share * _LEVELS)
    if not dropped:
        return None, 1.0
    count = x.numel()
    draws = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(1 << 63), None)
    levels = draws.view(torch.int16)[:count].view(x.shape)
    keep = torch.ge(levels, dropped - _LEVELS // 2, out=torch.empty(x.shape, dtype=torch.uint8))
    return keep, 1 - dropped / _LEVELS


def _masked(x: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    return x if keep is None else keep.to(x.dtype).mul_(x)
