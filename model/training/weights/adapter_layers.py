"""LoRA's layers with peft's numbers in fewer passes over memory, see `adapter_products`.

Which layers share an input is found by `adapter_trial`, and that the numbers are peft's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora.layer import Linear

from model.training.weights.adapter_products import Casts, Matrices, dropout_mask, multiply


class FusedLayer:
    """What an adapted layer has before peft's own class: base and adapter in one operation where that is possible."""

    group: Group
    training: bool
    base_layer: torch.nn.Module
    multiplies_base = True
    """Whether the base's product is made here, with its weight."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the base layer's output with the adapter's, (..., outputs)."""
        name = None if args or kwargs else self.plain_adapter(x)
        if name is None:
            output: torch.Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]
            return output
        return self.group.output(self, x, name)

    def plain_adapter(self: Any, x: torch.Tensor) -> str | None:
        """Return the adapter's name when it is a single plain one whose products can be made in x's type."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        name: str = self.active_adapters[0]
        if name not in self.lora_A or name in self.lora_variant or self.lora_bias[name]:
            return None
        if x.ndim < 2 or not x.is_floating_point() or torch.is_autocast_enabled(x.device.type):
            return None
        weight = self.base_layer.weight
        return None if weight.requires_grad or (self.multiplies_base and weight.dtype != x.dtype) else name


class FusedLinear(FusedLayer, Linear):
    """peft's adapted linear layer on a base whose weights are plain numbers."""


class Group:
    """Layers that get the same input, one after the other: the first computes the outputs of all.

    Parameters
    ----------
    layers
        In the order in which the model calls them.
    waiting
        Where all groups of a model keep outputs that have not been asked for.
    """

    def __init__(self, layers: Sequence[Any], waiting: _Waiting) -> None:
        self.layers = list(layers)
        self._casts: dict[tuple[str, Any], Casts] = {}
        self._waiting = waiting

    def output(self, layer: Any, x: torch.Tensor, name: str) -> torch.Tensor:
        """Return a layer's output, with those of the others or by itself when it is called out of turn."""
        if len(self.layers) == 1:
            return _outputs([layer], x, name, self.casts(name))[0]
        held = self._waiting.take(layer, x)
        if held is not None:
            return held
        if layer is self.layers[0] and all(other.plain_adapter(x) == name for other in self.layers[1:]):
            first, *others = _outputs(self.layers, x, name, self.casts(name))
            self._waiting.put(x, dict(zip(self.layers[1:], others, strict=True)))
            return first
        return _outputs([layer], x, name, self.casts(name, layer))[0]

    def casts(self, name: str, layer: Any = None) -> Casts:
        """Return what an adapter's weights are in another type: of one layer, or of all together."""
        return self._casts.setdefault((name, layer), Casts())

    def forget(self) -> None:
        """Hold nothing that was computed."""
        self._waiting.put(None, {})
        self._casts.clear()


class _Waiting:
    """Outputs that were computed with another layer's, until they are asked for with the same input.

    Of one group only: a recomputation that ends early asks for none of them, and they would stay for each.
    """

    def __init__(self) -> None:
        self._input: torch.Tensor | None = None
        self._outputs: dict[Any, torch.Tensor] = {}
        self._with_gradient = False

    def put(self, x: torch.Tensor | None, outputs: dict[Any, torch.Tensor]) -> None:
        self._input, self._outputs, self._with_gradient = x, outputs, torch.is_grad_enabled()

    def take(self, layer: Any, x: torch.Tensor) -> torch.Tensor | None:
        if self._input is not x or self._with_gradient != torch.is_grad_enabled():
            return None
        output = self._outputs.pop(layer, None)
        if not self._outputs:
            self._input = None
        return output


def _outputs(layers: Sequence[Any], x: torch.Tensor, name: str, casts: Casts) -> tuple[torch.Tensor, ...]:
    dropout = layers[0].lora_dropout[name]
    share = dropout.p if layers[0].training and isinstance(dropout, torch.nn.Dropout) else 0.0
    keep, kept_share = dropout_mask(x, share)
    downs = [layer.lora_A[name].weight for layer in layers]
    ups = [layer.lora_B[name].weight for layer in layers]
    scales = [layer.scaling[name] / kept_share for layer in layers]
    down, scaled_ups = casts.of(downs, ups, scales, x.dtype)
    own = [layer.multiplies_base for layer in layers]
    matrices = Matrices(
        weights=[layer.base_layer.weight if mine else None for layer, mine in zip(layers, own, strict=True)],
        biases=[layer.base_layer.bias if mine else None for layer, mine in zip(layers, own, strict=True)],
        down=down,
        ups=scaled_ups,
        scales=scales,
    )
    outputs = [None if mine else layer.base_layer(x) for layer, mine in zip(layers, own, strict=True)]
    return multiply(x, matrices, keep=keep, outputs=outputs, downs=downs, ups=ups)


def fusible_layers(model: torch.nn.Module) -> list[Any]:
    """Return a model's plain LoRA layers, on plain or bitsandbytes' weights, that are peft's own so far.

    Variants (DoRA) and bases of any other kind are left to peft.
    """
    kinds = _kinds()
    return [
        module
        for module in model.modules()
        if type(module) in kinds
        and not module.lora_variant
        and (type(module) is not Linear or type(module.base_layer) is torch.nn.Linear)
    ]


def fuse(groups: Sequence[Sequence[Any]]) -> list[Group]:
    """Let layers, those of a group with one another, use fewer operations; the last order counts."""
    Casts.watch_optimizers()
    kinds, waiting, made = _kinds(), _Waiting(), []
    for layers in groups:
        group = Group(layers, waiting)
        for layer in layers:
            layer.__class__ = kinds.get(type(layer), type(layer))
            layer.group = group
        made.append(group)
    return made


def undo(layers: Sequence[Any]) -> None:
    """Make layers peft's own again."""
    plain = {fused: kind for kind, fused in _kinds().items()}
    for layer in layers:
        layer.__class__ = plain.get(type(layer), type(layer))
        layer.__dict__.pop("group", None)


def _kinds() -> dict[type, type]:
    """Return peft's classes with ours for each; bitsandbytes' only where it is imported anyhow, which takes long."""
    kinds: dict[type, type] = {Linear: FusedLinear}
    if sys.modules.get("bitsandbytes") is not None:
        from model.training.weights.quantized_layers import KINDS

        kinds |= KINDS
    return kinds
