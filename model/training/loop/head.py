"""The losses that the output layer leads to, a chunk of positions at a time.

The layer is frozen. So a chunk's logits give its losses and at once the gradient of its hidden states, `(softmax -
target) W`, and are gone before the next chunk's are made: the memory is a chunk's, whatever the vocabulary and the
number of tokens, and nothing but the gradient, in the size of the hidden states, is kept for the way back. Each
position has a loss of its own, so that this serves any method: what a loss is worth comes with the way back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, linear

from model import gpus
from model.training.loop.footprint import FLOAT32_BYTES, LOGITS_CHUNK_BYTES, logit_bytes
from model.training.weights import trial

CHUNK_BYTES = {"cpu": LOGITS_CHUNK_BYTES[False]}
OTHER_CHUNK_BYTES = LOGITS_CHUNK_BYTES[True]
"""What the logits of a chunk may take: less would only mean that the layer's weights are read more often."""


CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""What Gemma, RecurrentGemma and xLSTM call it. The trial's logits may be too small for a cap to show in bfloat16."""


@dataclass(frozen=True)
class Logits:
    """What a model makes of its output layer's results: `cap * tanh(scale * x / cap)`.

    Attributes
    ----------
    scale
        Cohere's `logit_scale`, one over Granite's `logits_scaling`.
    cap
        Gemma's `final_logit_softcapping` (`CAPS` has its other names), None without one.
    """

    scale: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, config: Any) -> Logits:
        """Return what a language model's configuration says."""
        scale = float(getattr(config, "logit_scale", None) or 1.0)
        divisor = float(getattr(config, "logits_scaling", None) or 1.0)
        return cls(scale / divisor, next((cap for name in CAPS if (cap := getattr(config, name, None))), None))


def losses(model: Any, targets: torch.Tensor, places: torch.Tensor, forward: Callable[[], Any]) -> torch.Tensor:
    """Return the negative log-probability of each target, (targets,), in float32 at least.

    Parameters
    ----------
    model
        A causal language model.
    targets
        Tokens that are predicted, (targets,).
    places
        The places in the flattened batch that predict them, (targets,).
    forward
        Sends the batch through the model and returns its output.
    """
    layer, how = model.get_output_embeddings(), in_chunks(model)
    if how is None:
        with _given(layer, lambda hidden: hidden.flatten(0, 1)[places][None]):
            return cross_entropy(_precise(forward().logits[0]), targets, reduction="none")
    seen: list[torch.Tensor] = []

    def take(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(hidden.flatten(0, 1)[places])
        return hidden[:, :0]

    with _given(layer, take):
        forward()
    return _losses(seen[0], targets, layer, how)


_tried: WeakKeyDictionary[torch.nn.Module, Logits | None] = WeakKeyDictionary()


def in_chunks(model: Any) -> Logits | None:
    """Return how a model makes its logits when that can be done in chunks, None when it must be left to the model.

    A trial decides, once: the losses and the gradient of a few tokens must be those of the model's own logits.
    """
    layer = model.get_output_embeddings()
    if layer not in _tried:
        _tried[layer] = _try(model, layer)
    return _tried[layer]


def description(model: Any) -> str:
    """Return for the log how the losses are computed: Chunked, or Whole, from all logits at once."""
    return "Whole" if in_chunks(model) is None else "Chunked"


def _try(model: Any, layer: torch.nn.Module) -> Logits | None:
    if type(layer) is not torch.nn.Linear or layer.weight.requires_grad:
        return None
    how, seen = Logits.of(model.config.get_text_config()), []

    def take(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(hidden.detach().requires_grad_())
        return seen[0]

    with trial.evaluating(model), torch.enable_grad():
        with _given(layer, take):
            logits = _precise(trial.logits(model)[0])
        targets = torch.tensor(trial.TOKENS, device=logits.device)
        plain = cross_entropy(logits, targets, reduction="none")
        try:
            with torch.no_grad(), _given(layer, lambda hidden: hidden[:, :0]):
                trial.logits(model)  # which has to go well without any position
            found = _losses(seen[0][0], targets, layer, how, at_once=3)
        except (RuntimeError, ValueError, IndexError) as error:
            if gpus.out_of_memory(error):
                raise
            return None
        weights = torch.linspace(-1, 2, len(targets), dtype=found.dtype, device=found.device)
        gradients = [torch.autograd.grad(loss, seen[0], weights)[0] for loss in (found, plain)]
    kind = seen[0].dtype  # by which differences are judged
    return how if trial.close([found.to(kind), gradients[0]], [plain.to(kind), gradients[1]]) else None


def _losses(
    hidden: torch.Tensor, targets: torch.Tensor, layer: Any, how: Logits, *, at_once: int | None = None
) -> torch.Tensor:
    if at_once is None:
        room = CHUNK_BYTES.get(hidden.device.type, OTHER_CHUNK_BYTES)
        each = logit_bytes(hidden.element_size()) + (0 if how.cap is None else FLOAT32_BYTES)
        most = max(1, room // (layer.weight.shape[0] * each))
        at_once = -(-len(targets) // max(1, -(-len(targets) // most)))  # chunks of nearly the same size
    found: torch.Tensor = _Chunked.apply(hidden, targets, layer.weight, layer.bias, how, max(1, at_once))
    return found


class _Chunked(torch.autograd.Function):
    """The losses of (positions, hidden) hidden states, (positions,)."""

    @staticmethod
    def forward(  # noqa: PLR0917 - torch passes them on by position
        context: Any,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        how: Logits,
        at_once: int,
    ) -> torch.Tensor:
        of_hidden = torch.empty_like(hidden) if context.needs_input_grad[0] else None
        found = []
        for start in range(0, len(targets), at_once):
            part = slice(start, start + at_once)
            into = None if of_hidden is None else of_hidden[part]
            found.append(_chunk(hidden[part], targets[part, None], weight, bias, how, into))
        if of_hidden is not None:
            context.save_for_backward(of_hidden.mul_(how.scale) if how.scale != 1 else of_hidden)
        return torch.cat(found) if found else _precise(hidden.new_empty(0))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (of_hidden,) = context.saved_tensors
        return (of_hidden * gradient[:, None]).to(of_hidden.dtype), None, None, None, None, None


def _chunk(  # noqa: PLR0917 - as `_Chunked` has them
    hidden: torch.Tensor,
    targets: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    how: Logits,
    of_hidden: torch.Tensor | None,
) -> torch.Tensor:
    """Return the losses of a chunk, (positions,), and write their gradient, if wanted, to `of_hidden`.

    A function of its own, so that its logits are gone before the next chunk's are made.
    """
    logits, slope = _scaled(linear(hidden, weight, bias), how, with_slope=of_hidden is not None)
    picked = logits.gather(1, targets)
    highest = logits.amax(dim=1, keepdim=True)
    total = logits.sub_(highest).exp_().sum(dim=1, keepdim=True)
    if of_hidden is not None:
        of_logits = logits.div_(total)  # the probabilities
        of_logits.scatter_add_(1, targets, torch.full_like(picked, -1.0))
        if slope is not None:
            of_logits.mul_(slope)
        torch.mm(of_logits.to(weight.dtype), weight, out=of_hidden)
    return (total.log() + highest - picked)[:, 0]


def _scaled(logits: torch.Tensor, how: Logits, *, with_slope: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return what becomes of the layer's results, in their own memory, and how steep the cap is, None without one."""
    logits = _precise(logits)
    if how.scale != 1:
        logits.mul_(how.scale)
    if how.cap is None:
        return logits, None
    logits.div_(how.cap).tanh_()
    slope = logits.square().neg_().add_(1) if with_slope else None
    return logits.mul_(how.cap), slope


def _precise(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in float32, or in float64 if it is that."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


@contextlib.contextmanager
def _given(layer: torch.nn.Module, choose: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Give the output layer what `choose` makes of the hidden states, (1 or rows, positions, hidden).

    A hook and not a call of the layer: what models do before it stays theirs.
    """
    hook = layer.register_forward_pre_hook(lambda _layer, arguments: (choose(arguments[0]),))
    try:
        yield
    finally:
        hook.remove()
