"""Attention that is told where each of several joined rows begins, and computes nothing across their borders.

torch's attention would compute the whole square of the joined sequence and throw most of it away. Here each row is a
call of its own. A row may begin with tokens of the row before it: a pair's answers share their prompt, whose tokens
then go through the model once. Wang and Hegde describe this for DPO on GPUs (https://arxiv.org/abs/2410.20305).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from model.training.loop.layout import Collator, Layout

NAME = "segments"
FULL, SLIDING = "full_attention", "sliding_attention"
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    segments: Sequence[tuple[int, int]] | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each row; without `segments` as torch's attention does.

    Parameters
    ----------
    module, query, key, value, attention_mask
        As transformers calls an attention: (1, heads, tokens, size of a head). The mask is not looked at.
    segments
        For each row its own tokens, and how many it shares with the beginning of the row before it.
    options
        What transformers passes besides: `scaling` and `dropout` count.
    """
    if segments is None:
        output: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return output
    lengths = [length for length, _ in segments]
    # Cut all at once: on the way back that is one copy, where slices would fill a whole sequence with zeros for each.
    cut = [tensor.split(lengths, dim=2) for tensor in (query, key, value)]
    outputs, before = [], [key, value]
    for (length, shared), own, *seen in zip(segments, *cut, strict=True):
        keys, values = seen if not shared else _behind(before, seen, shared)
        attended = scaled_dot_product_attention(
            own,
            keys,
            values,
            attn_mask=_sees(length, shared, query.device) if shared else None,
            dropout_p=options.get("dropout", 0.0),
            scale=options.get("scaling"),
            is_causal=not shared,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        outputs.append(attended.transpose(1, 2))
        before = seen
    return torch.cat(outputs, dim=1), None


def _behind(before: Sequence[torch.Tensor], row: Sequence[torch.Tensor], shared: int) -> list[torch.Tensor]:
    """Return a row's keys and values behind the first ones of the row before it."""
    return [torch.cat([first[:, :, :shared], own], dim=2) for first, own in zip(before, row, strict=True)]


def _sees(length: int, shared: int, device: torch.device) -> torch.Tensor:
    """Return which of the shared and its own tokens each token sees, (length, shared + length)."""
    return torch.ones(length, shared + length, dtype=torch.bool, device=device).tril(diagonal=shared)


def _mask(*, attention_mask: torch.Tensor | None = None, **options: Any) -> torch.Tensor | None:
    """Return torch's mask of padded rows; without padding none is needed, and it would be a whole square."""
    if attention_mask is None:
        return None
    mask: torch.Tensor | None = sdpa_mask(attention_mask=attention_mask, **options)
    return mask


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, _mask)


def uses_segments(model: Any) -> bool:
    """Whether a model's attention is to be told the segments of joined rows."""
    return getattr(model.config.get_text_config(), "_attn_implementation", None) == NAME


def use_segments(model: Any, *, longest_row: int) -> bool:
    """Let a model on a CPU attend by segments; return whether it does, which takes a trial.

    The model must call its attention as transformers' own models do, attend to all that precedes, and give joined rows
    the logits that each gets alone. Otherwise it is left as it was. No random numbers are drawn.

    Parameters
    ----------
    model
        A causal language model, with an adapter or without.
    longest_row
        The tokens of the longest row: a window of attention that is wider changes nothing.
    """
    config = model.config.get_text_config()
    if (
        model.get_input_embeddings().weight.device.type != "cpu"
        or getattr(config, "_attn_implementation", None) != "sdpa"
        or not _sees_all(config, longest_row)
    ):
        return False
    alone = _logits_alone(model)
    model.set_attn_implementation(NAME)
    if uses_segments(model) and _keeps_rows_apart(model, alone):
        return True
    model.set_attn_implementation("sdpa")
    return False


def _sees_all(config: Any, longest_row: int) -> bool:
    """Whether each token of such a row sees all before it in all layers."""
    kinds = set(getattr(config, "layer_types", None) or (FULL,))
    window = getattr(config, "sliding_window", None)
    if getattr(config, "attention_chunk_size", None) or not kinds <= {FULL, SLIDING}:
        return False
    return window is None or window >= longest_row


_TRIAL = ([2, 3, 5, 7, 11], [3, 2, 13, 4], [3, 2, 5])
_SHARED = 2
"""How many tokens the trial's last row shares with the one before it."""


def _logits_alone(model: Any) -> torch.Tensor:
    """Return the logits of the trial's rows, each by itself, without those of the shared tokens."""
    with _evaluating(model):
        first, second, third = (model(torch.tensor([row]), use_cache=False).logits[0] for row in _TRIAL)
    return torch.cat([first, second, third[_SHARED:]])


def _keeps_rows_apart(model: Any, alone: torch.Tensor) -> bool:
    """Whether joined rows, of which one shares tokens with its neighbour, get the logits that they get alone."""
    first, second, third = _TRIAL
    ids = torch.tensor([[*first, *second, *third[_SHARED:]]])
    positions = torch.tensor([[*range(len(first)), *range(len(second)), *range(_SHARED, len(third))]])
    segments = [(len(first), 0), (len(second), 0), (len(third) - _SHARED, _SHARED)]
    try:
        with _evaluating(model):
            joined = model(ids, position_ids=positions, segments=segments, use_cache=False).logits[0]
    except (TypeError, ValueError):  # it takes no segments, or no positions
        return False
    furthest = float((joined - alone).abs().max() / alone.std())
    return furthest < _TOLERANCE.get(joined.dtype, 0.1)


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Without dropout and gradients; afterwards the model is as it was."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def mixes_joined_rows(model: Any) -> str | None:
    """Try whether a model keeps joined rows apart; return in words why not, None when it does.

    A token of the first row is changed, which must change nothing in the second; and the second alone must get the
    logits that it gets behind the first. The model is left as it was and draws no random numbers.
    """
    device = model.get_input_embeddings().weight.device
    first, other, second = ([2, 3, 5, 7, 11], [2, 3, 6, 7, 11], [3, 2, 13, 4])
    join = Collator(0, Layout.JOINED)

    def last_logits(*rows: list[int]) -> torch.Tensor:
        batch = join([{"input_ids": row, "labels": row} for row in rows])
        inputs = {name: batch[name].to(device) for name in ("input_ids", "position_ids")}
        logits: torch.Tensor = model(**inputs, use_cache=False).logits[0, -len(second) :]
        return logits.double()

    try:
        with _evaluating(model):
            joined, changed, alone = last_logits(first, second), last_logits(other, second), last_logits(second)
    except (TypeError, ValueError) as error:
        return f"it takes no positions ({error})"
    spread = float(alone.std())
    if not float((joined - changed).abs().max()) <= 1e-6 * spread:  # nor when it is no number
        return "a row's tokens change what the model says about the next row"
    if not float((joined - alone).abs().max()) <= 0.1 * spread:
        return "a row's logits depend on where in the joined sequence it stands"
    return None
