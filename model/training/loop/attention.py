"""Attention that is told where each of several joined rows begins, and computes nothing across their borders.

Attention with a mask would compute the whole square of the joined sequence and throw most of it away. On a CPU each row
is a call of torch's attention of its own; on a GPU all rows are one call of `torch.nn.attention.varlen`. A row may
begin with tokens of the row before it: a pair's answers share their prompt, whose tokens then go through the model
once. Wang and Hegde describe this for DPO (https://arxiv.org/abs/2410.20305).

Which models and devices can do that is not guessed: a trial on the very model decides, see `use_segments`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from model.training.loop.layout import Batch, Collator, Layout, Segments, to_device

NAME = "segments"
PLAIN = "sdpa"
FULL, SLIDING = "full_attention", "sliding_attention"
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_SPECIAL = ("softcap", "s_aux", "position_bias")
"""What models ask of an attention that neither of ours does: capped scores, sinks, biases."""


class Kernel(Protocol):
    """Attention of rows that lie behind each other: `torch.nn.attention.varlen.varlen_attn`, or a stand-in."""

    def __call__(  # noqa: PLR0917 - as torch's takes them
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cu_seq_q: torch.Tensor,
        cu_seq_k: torch.Tensor,
        max_q: int,
        max_k: int,
        **options: Any,
    ) -> torch.Tensor:
        """Return (tokens, heads, size of a head); of a row with fewer queries than keys these are the last ones."""


def varlen_kernel() -> Kernel | None:
    """Return torch's attention of joined rows on a GPU, None where this torch has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    kernel: Kernel | None = None,
    note_window: Callable[[int | None], None] | None = None,
    segments: Segments | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each row; without `segments` as torch's attention does.

    Parameters
    ----------
    module, query, key, value, attention_mask
        As transformers calls an attention: (1, heads, tokens, size of a head). The mask is not looked at.
    kernel
        What takes all rows at once; without it each row is a call of its own.
    note_window
        Is told the model's window.
    segments
        The rows.
    options
        What transformers passes besides: `scaling`, `sliding_window` and `dropout` count.

    Raises
    ------
    ValueError
        When the model asks for something else.
    """
    if segments is None:
        output: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return output
    if asked := [name for name in _SPECIAL if options.get(name) is not None]:
        raise ValueError(f"its attention asks for {', '.join(asked)}")
    window = options.get("sliding_window")
    if note_window is not None:
        note_window(window)
    if kernel is not None:
        return _at_once(kernel, query, key, value, segments, scale=options.get("scaling"), window=window), None
    return _row_by_row(query, key, value, segments, window=window, options=options), None


def _at_once(
    kernel: Kernel,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    *,
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    """Return (1, tokens, heads, size of a head). A row's keys are the shared tokens and its own, by one gather."""
    queries, keys, values = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if segments.places is not None:
        keys, values = keys[segments.places], values[segments.places]
    options: dict[str, Any] = {"scale": scale, "window_size": (-1 if window is None else window - 1, 0)}
    if keys.shape[1] != queries.shape[1]:
        options["enable_gqa"] = True
    return kernel(
        queries, keys, values, segments.queries, segments.keys, segments.longest_own, segments.longest, **options
    )[None]


def _row_by_row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    *,
    window: int | None,
    options: dict[str, Any],
) -> torch.Tensor:
    # Cut all at once: on the way back that is one copy, where slices would fill a whole sequence with zeros for each.
    cut = [tensor.split([own for own, _ in segments.rows], dim=2) for tensor in (query, key, value)]
    outputs, before = [], [key, value]
    for (length, shared), own, *seen in zip(segments.rows, *cut, strict=True):
        keys, values = seen if not shared else _behind(before, seen, shared)
        narrow = window is not None and window < length + shared
        attended = scaled_dot_product_attention(
            own,
            keys,
            values,
            attn_mask=_sees(length, shared, window if narrow else None, query.device) if shared or narrow else None,
            dropout_p=options.get("dropout", 0.0),
            scale=options.get("scaling"),
            is_causal=not (shared or narrow),
            enable_gqa=query.shape[1] != key.shape[1],
        )
        outputs.append(attended.transpose(1, 2))
        before = seen
    return torch.cat(outputs, dim=1)


def _behind(before: Sequence[torch.Tensor], row: Sequence[torch.Tensor], shared: int) -> list[torch.Tensor]:
    """Return a row's keys and values behind the first ones of the row before it."""
    return [torch.cat([first[:, :, :shared], own], dim=2) for first, own in zip(before, row, strict=True)]


def _sees(length: int, shared: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Return which of the shared and its own tokens each token sees, (length, shared + length)."""
    sees = torch.ones(length, shared + length, dtype=torch.bool, device=device).tril(diagonal=shared)
    return sees if window is None else sees.triu(diagonal=shared - window + 1)


AttentionMaskInterface.register(NAME, sdpa_mask)


def uses_segments(model: Any) -> bool:
    """Whether a model's attention is to be told the segments of joined rows."""
    return getattr(model.config.get_text_config(), "_attn_implementation", None) == NAME


def name_of(model: Any) -> str:
    """Return for the log how a model attends: RowByRow, VarLen (all rows at once), or transformers' name of it."""
    if uses_segments(model):
        return "RowByRow" if _device(model).type == "cpu" else "VarLen"
    return str(getattr(model.config.get_text_config(), "_attn_implementation", None))


def inputs_of(batch: Batch) -> dict[str, Any]:
    """Return what of a batch goes to the model."""
    inputs: dict[str, Any] = {name: batch[name] for name in ("input_ids", "position_ids", "segments") if name in batch}
    if "segments" in batch:
        # Ours looks at no mask. transformers takes one of four dimensions as it is; without any it looks for borders
        # in the positions, and waits for the device to say whether there are some.
        inputs["attention_mask"] = batch["input_ids"].new_ones((1, 1, 1, 1), dtype=torch.bool)
    return inputs


def use_segments(model: Any, *, longest_row: int, kernel: Kernel | None = None) -> str | None:
    """Let a model attend by segments; return in words why it cannot, None when it does, which takes a trial.

    The model must call its attention as transformers' own models do, attend to all that precedes or to a window of it,
    and give joined rows the logits that each gets alone; on a GPU also the gradients. Otherwise it is left as it was.
    No random numbers are drawn.

    Parameters
    ----------
    model
        A causal language model, with an adapter or without, on the device that it is trained on.
    longest_row
        The tokens of the longest row: a window of attention that is wider changes nothing.
    kernel
        What attends to all rows at once; left out, torch's on a GPU, and row by row on a CPU.
    """
    config = model.config.get_text_config()
    if (own := getattr(config, "_attn_implementation", None)) != PLAIN:
        return f"its attention is {own}, not {PLAIN}"
    on_gpu = _device(model).type != "cpu"
    kernel = varlen_kernel() if on_gpu and kernel is None else kernel
    if on_gpu and kernel is None:
        return "this version of torch has no attention for joined rows"
    if kernel is not None and getattr(config, "attention_dropout", None):
        return "its attention has dropout, and that for joined rows has none"
    windows: list[int | None] = []
    AttentionInterface.register(NAME, functools.partial(attend, kernel=kernel, note_window=windows.append))
    try:
        reason = _compare(model, gradients=kernel is not None) or _narrower(config, windows, longest_row)
    except (TypeError, ValueError, RuntimeError) as error:  # it takes no segments, or the kernel refuses
        reason = (str(error) or type(error).__name__).splitlines()[0]
    AttentionInterface.register(NAME, functools.partial(attend, kernel=kernel))
    if reason is not None:
        model.set_attn_implementation(PLAIN)
    return reason


def _device(model: Any) -> torch.device:
    device: torch.device = model.get_input_embeddings().weight.device
    return device


def _narrower(config: Any, told: Sequence[int | None], longest_row: int) -> str | None:
    """Return in what a layer would see further than the model has it; a short trial cannot show that.

    Parameters
    ----------
    config
        The language model's.
    told
        The window that each layer has asked for.
    longest_row
        Its tokens: what is wider changes nothing.
    """
    kinds = getattr(config, "layer_types", None) or ()
    window = getattr(config, "sliding_window", None)
    if strange := set(kinds) - {FULL, SLIDING}:
        return f"it has layers of the kind {', '.join(sorted(strange))}"
    if (getattr(config, "attention_chunk_size", None) or longest_row) < longest_row:
        return "it attends within chunks that are shorter than the longest row"
    if window is None or window >= longest_row:
        return None
    wanted = [window if kind == SLIDING else None for kind in kinds] or [window] * len(told)
    return None if list(told) == wanted else "it does not tell its attention how far a layer sees"


_TRIAL = ([2, 3, 5, 7, 11], [3, 2, 13, 4], [3, 2, 5])
_SHARED = 2
"""How many tokens the trial's last row shares with the one before it."""


def _compare(model: Any, *, gradients: bool) -> str | None:
    """Return what joined rows, of which one shares tokens with its neighbour, get otherwise than alone."""
    rows = [list(row) for row in _TRIAL]
    alone = [_outcome(model, [row], shared=0, gradients=gradients) for row in rows]
    model.set_attn_implementation(NAME)
    if not uses_segments(model):
        return "its attention cannot be exchanged"
    logits, slopes = _outcome(model, rows, shared=_SHARED, gradients=gradients)
    expected = torch.cat([*(found for found, _ in alone[:-1]), alone[-1][0][_SHARED:]])
    if not _alike(logits, expected):
        return "its logits of a row depend on the rows that are joined with it"
    if slopes is not None and not _alike(slopes[: len(rows[0])], alone[0][1]):
        return "its gradients of a row depend on the rows that are joined with it"
    return None


def _alike(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether the vector of each token is as expected, up to what the type rounds; false when it is no number.

    What all of a vector's numbers have in common is left out: of logits it says nothing, and may be most of them.
    """
    away, size = (
        (vectors - vectors.mean(dim=-1, keepdim=True)).norm(dim=-1)
        for vectors in (found.double() - expected.double(), expected.double())
    )
    return bool((away <= _TOLERANCE.get(found.dtype, 0.15) * size).all())


def _outcome(model: Any, rows: list[list[int]], *, shared: int, gradients: bool) -> tuple[Any, Any]:
    """Return the logits of each row's own tokens, and the gradient of a weighted sum of them to the embeddings.

    The last row shares that many tokens with the one before it. Joined are rows only where there are several.
    """
    layout = Layout.SEGMENTED if len(rows) > 1 else Layout.PADDED
    listed: list[dict[str, Any]] = [{"input_ids": row, "labels": row} for row in rows]
    listed[-1]["shared"] = shared
    batch = to_device(Collator(0, layout)(listed), _device(model))
    with _evaluating(model, gradients=gradients), _embeddings(model) as embedded:
        logits = model(**inputs_of(batch), use_cache=False).logits[0]
        if not gradients:
            return logits, None
        weights = torch.arange(logits.numel(), device=logits.device).cos().view(logits.shape)
        return logits.detach(), torch.autograd.grad((logits * weights).sum(), embedded[0])[0][0]


@contextlib.contextmanager
def _embeddings(model: Any) -> Iterator[list[torch.Tensor]]:
    """Collect what the embeddings give, which asks for gradients where any are recorded."""
    seen: list[torch.Tensor] = []

    def note(_module: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        seen.append(output.detach().requires_grad_(torch.is_grad_enabled()))
        return seen[-1]

    hook = model.get_input_embeddings().register_forward_hook(note)
    try:
        yield seen
    finally:
        hook.remove()


@contextlib.contextmanager
def _evaluating(model: Any, *, gradients: bool) -> Iterator[None]:
    """Without dropout; afterwards the model is as it was."""
    training = model.training
    model.eval()
    try:
        with torch.set_grad_enabled(gradients):
            yield
    finally:
        model.train(training)


def sees_what_follows(model: Any) -> bool:
    """Whether a token's logits depend on the tokens behind it: then padding behind rows would not be without effect.

    The model is left as it was and draws no random numbers. One that gives no numbers is left to the training, which
    says for which rows.
    """
    first, other = [2, 3, 5, 7, 11], [2, 3, 5, 13, 4]
    (logits, _), (others, _) = (_outcome(model, [row], shared=0, gradients=False) for row in (first, other))
    return bool(logits.isfinite().all()) and not _alike(others[:3], logits[:3])
