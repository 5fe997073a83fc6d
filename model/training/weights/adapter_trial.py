"""Whether a model's adapted layers may use fewer operations, and which share an input: tried on the model itself.

A few tokens go through the model as peft computes it and as `adapter_layers` does; of each kind of group the gradients
are compared, too. The adapter gets random weights meanwhile, for a new one adds nothing and would hide what is wrong.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from model import gpus
from model.training.weights import adapter_layers, trial
from model.training.weights.adapter_layers import FusedLayer


def fuse(model: Any, *, join: bool = True) -> None:
    """Let a causal language model's plain LoRA layers use fewer operations, if it gives peft's numbers then.

    Layers that share an input are joined; if that changes the numbers, each is left by itself; if that does, too, all
    stay peft's. No random numbers of the training are drawn, and no weight is changed.

    Parameters
    ----------
    model
        With its adapter, which may be new.
    join
        Whether layers may be joined.
    """
    layers = adapter_layers.fusible_layers(model)
    if not layers:
        return
    with trial.evaluating(model), _shaken(layers):
        logits, groups = _observed(model, layers)
        kinds = _one_of_each_kind(groups)
        expected = [_gradients([layer for layer, _ in group], group[0][1]) for group in kinds]
        called = [layer for group in groups for layer, _ in group]
        joined, single = [[layer for layer, _ in group] for group in groups], [[layer] for layer in called]
        for candidate in (joined, single) if join else (single,):
            made = adapter_layers.fuse(candidate)
            good = _same(model, logits, kinds, expected)
            for group in made:
                group.forget()
            if good:
                return
        adapter_layers.undo(called)


def _same(
    model: Any,
    logits: torch.Tensor,
    kinds: Sequence[Sequence[tuple[Any, torch.Tensor]]],
    expected: Sequence[Sequence[torch.Tensor]],
) -> bool:
    """Whether the fused layers give the model's logits and the gradients of each kind of group."""
    try:
        found = [_gradients([layer for layer, _ in group], group[0][1]) for group in kinds]
        with torch.no_grad():
            return trial.close([trial.logits(model)], [logits]) and all(map(trial.close, found, expected))
    except RuntimeError as error:  # a product that the device does not know, say
        if gpus.out_of_memory(error):
            raise
        return False


def description(model: Any) -> dict[str, int]:
    """Return for the log how many adapted layers are fused, and how many of those share their input's product."""
    from peft.tuners.lora.layer import LoraLayer

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    fused = [layer for layer in layers if isinstance(layer, FusedLayer)]
    joined = sum(len(layer.group.layers) > 1 for layer in fused)
    return {"fused": len(fused), "joined": joined, "peft": len(layers) - len(fused)}


@contextlib.contextmanager
def _shaken(layers: Sequence[Any]) -> Iterator[None]:
    """Let the adapters' B be random within."""
    ups = [layer.lora_B[name].weight for layer in layers for name in layer.active_adapters if name in layer.lora_B]
    before = [up.detach().clone() for up in ups]
    try:
        with torch.no_grad():
            for up in ups:
                up.normal_(std=0.02, generator=torch.Generator(up.device).manual_seed(1))
        yield
    finally:
        with torch.no_grad():
            for up, values in zip(ups, before, strict=True):
                up.copy_(values)


def _observed(model: Any, layers: Sequence[Any]) -> tuple[torch.Tensor, list[list[tuple[Any, torch.Tensor]]]]:
    """Return the logits, and the layers with their inputs as they were called, those with the same input together."""
    groups: list[list[tuple[Any, torch.Tensor]]] = []

    def note(layer: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        if groups and groups[-1][0][1] is arguments[0]:
            groups[-1].append((layer, arguments[0]))
        else:
            groups.append([(layer, arguments[0])])

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        with torch.no_grad():
            logits = trial.logits(model)
    finally:
        for hook in hooks:
            hook.remove()
    seen = [layer for group in groups for layer, _ in group]
    if len({id(layer) for layer in seen}) < len(seen):  # one that is called twice waits for none
        groups = [[pair] for pair in {id(pair[0]): pair for group in groups for pair in group}.values()]
    return logits, groups


def _one_of_each_kind(
    groups: Sequence[list[tuple[Any, torch.Tensor]]],
) -> list[list[tuple[Any, torch.Tensor]]]:
    """Return a group for each sequence of shapes and types of layers."""
    found: dict[tuple[Any, ...], list[tuple[Any, torch.Tensor]]] = {}
    for group in groups:
        kind = [
            (type(layer), layer.in_features, layer.out_features, getattr(layer.base_layer, "bias", None) is None)
            for layer, _ in group
        ]
        found.setdefault(tuple(kind), group)
    return list(found.values())


def _gradients(layers: Sequence[Any], x: torch.Tensor) -> list[torch.Tensor]:
    """Return the gradients of the input and of the adapters, of a sum that weighs each output otherwise."""
    x = x.detach().clone().requires_grad_()
    weights = [
        side[name].weight
        for layer in layers
        for name in layer.active_adapters
        for side in (layer.lora_A, layer.lora_B)
        if name in side and side[name].weight.requires_grad
    ]
    with torch.enable_grad():
        outputs = [layer(x) for layer in layers]
        given = [torch.linspace(-1, 2, o.numel(), dtype=o.dtype, device=o.device).view(o.shape) for o in outputs]
        return list(torch.autograd.grad(outputs, [x, *weights], given))
