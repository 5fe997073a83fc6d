"""Logits and log-probabilities of the learned tokens alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from model.training.loop.batches import count_rows
from model.training.rows.tokens import IGNORED

NOT_FOR_THE_MODEL = frozenset({"labels", "pair"})


def token_losses(model: Any, batch: dict[str, torch.Tensor], *, reduction: str = "none") -> torch.Tensor:
    """Return the negative log-probability of each learned token, (learned tokens,), or their sum.

    TRL's own head scores every position off CUDA, and on CUDA it needs a C compiler. Here the output layer is shown
    the positions before the learned tokens alone: twice as fast on a CPU, and the same number.

    Parameters
    ----------
    model
        A causal language model.
    batch
        Padded or joined rows, see `batches.Collator`.
    reduction
        none or sum.
    """
    labels = batch["labels"][:, 1:]
    learned = labels != IGNORED
    visible = {name: tensor for name, tensor in batch.items() if name not in NOT_FOR_THE_MODEL}
    with _shown_to_output_layer(model.get_output_embeddings(), learned):
        logits = model(**visible, use_cache=False).logits[0]
    if logits.dtype != torch.float64:
        logits = logits.float()
    return cross_entropy(logits, labels[learned], reduction=reduction)


def sequence_logps(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each row's log-probability of its learned tokens and their number, both (rows,).

    A row's sum is its own: which rows go through the model beside it does not enter.
    """
    counts = learned_counts(batch)
    losses = token_losses(model, batch)
    return -torch.stack([part.sum() for part in losses.split(counts.tolist())]), counts


def learned_counts(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the number of learned tokens of each row, (rows,)."""
    learned = batch["labels"][:, 1:] != IGNORED
    if "position_ids" not in batch:
        return learned.sum(dim=1)
    rows = (batch["position_ids"] == 0).cumsum(dim=1)[:, 1:] - 1
    return torch.bincount(rows[learned], minlength=count_rows(batch))


@contextlib.contextmanager
def _shown_to_output_layer(layer: torch.nn.Module, learned: torch.Tensor) -> Iterator[None]:
    """Show the output layer the positions before the learned tokens only, as one row.

    A hook and not a call of the layer: what models do to their logits afterwards (scale, cap) stays theirs.
    """

    def select(_layer: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (arguments[0][:, :-1][learned][None],)

    hook = layer.register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()
