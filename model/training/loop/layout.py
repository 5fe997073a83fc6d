"""How rows are laid out for one pass through the model, and where the learned tokens are in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import torch

from model.training.rows.tokens import IGNORED

Batch = dict[str, torch.Tensor]
NOT_OF_TOKENS = frozenset({"segments", "pair", "row", "desirable"})
"""Tensors with a value for each row or example and not for each token."""


class Layout(StrEnum):
    """What becomes of the rows of a micro-batch."""

    PADDED = "Padded"
    """Each is filled up to the longest."""
    JOINED = "Joined"
    """One sequence. Attention sees from the positions where a row begins."""
    SEGMENTED = "Segmented"
    """One sequence, in which a pair's answers share their prompt. Attention is told the rows: `attention.attend`."""


class Collator:
    """Lays rows out for one forward pass.

    Padding is told by length, never by the token: many tokenizers pad with the end token, which must be learned.
    Joined rows keep their own positions.

    Parameters
    ----------
    pad_token_id
        What stands in the padding; it is never looked at.
    layout
        How.
    """

    def __init__(self, pad_token_id: int, layout: Layout) -> None:
        self._pad_token_id = pad_token_id
        self.layout = layout

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Batch:
        """Return input_ids and labels, each (rows, tokens), and attention_mask, or position_ids and segments.

        segments, (rows, 2), has each row's own tokens and how many tokens it shares with the beginning of the row
        before it: `row["shared"]`, 0 when absent.
        """
        return self._pad(rows) if self.layout is Layout.PADDED or not rows else self._join(rows)

    def _pad(self, rows: Sequence[dict[str, Any]]) -> Batch:
        width = max((len(row["input_ids"]) for row in rows), default=1)
        batch = {
            "input_ids": torch.full((len(rows), width), self._pad_token_id),
            "labels": torch.full((len(rows), width), IGNORED),
            "attention_mask": torch.zeros((len(rows), width), dtype=torch.long),
        }
        for index, row in enumerate(rows):
            length = len(row["input_ids"])
            batch["input_ids"][index, :length] = torch.tensor(row["input_ids"])
            batch["labels"][index, :length] = torch.tensor(row["labels"])
            batch["attention_mask"][index, :length] = 1
        return batch

    @staticmethod
    def _join(rows: Sequence[dict[str, Any]]) -> Batch:
        ids, labels, positions, segments = [], [], [], []
        for row in rows:
            shared, length = row.get("shared", 0), len(row["input_ids"])
            # A row's first token is never learned: what precedes it here is another row.
            own = row["labels"][shared:] if shared else [IGNORED, *row["labels"][1:]]
            ids.append(torch.tensor(row["input_ids"][shared:]))
            labels.append(torch.tensor(own))
            positions.append(torch.arange(shared, length))
            segments.append((length - shared, shared))
        return {
            "input_ids": torch.cat(ids)[None],
            "labels": torch.cat(labels)[None],
            "position_ids": torch.cat(positions)[None],
            "segments": torch.tensor(segments),
        }


class PairCollator:
    """Lays out pairs: each one's chosen row and, right behind it, its rejected row, and the pairs' numbers."""

    def __init__(self, rows: Collator) -> None:
        self._rows = rows

    def __call__(self, pairs: Sequence[dict[str, Any]]) -> Batch:
        """Return what `Collator` does for both rows of each pair, and pair, (pairs,)."""
        rows = [
            {"input_ids": pair[f"{side}_input_ids"], "labels": pair[f"{side}_labels"]}
            for pair in pairs
            for side in ("chosen", "rejected")
        ]
        if self._rows.layout is Layout.SEGMENTED:
            for chosen, rejected in zip(rows[::2], rows[1::2], strict=True):
                rejected["shared"] = shared_prompt(chosen, rejected)
        return self._rows(rows) | {"pair": torch.tensor([pair["pair"] for pair in pairs])}


class LabelCollator:
    """Lays out rows with labels, and their numbers."""

    def __init__(self, rows: Collator) -> None:
        self._rows = rows

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Batch:
        """Return what `Collator` does for the rows; row and desirable, each (rows,)."""
        return self._rows(rows) | {
            "row": torch.tensor([row["row"] for row in rows], dtype=torch.long),
            "desirable": torch.tensor([row["desirable"] for row in rows], dtype=torch.bool),
        }


def shared_prompt(chosen: dict[str, Any], rejected: dict[str, Any]) -> int:
    """Return how many tokens two rows begin with alike before one of them has a learned token."""
    count = 0
    for one, other, label, other_label in zip(
        chosen["input_ids"], rejected["input_ids"], chosen["labels"], rejected["labels"], strict=False
    ):
        if one != other or not label == other_label == IGNORED:
            break
        count += 1
    return count


def count_rows(batch: Batch) -> int:
    """Return the number of rows in a batch."""
    return len(batch["segments"] if "segments" in batch else batch["input_ids"])


def count_tokens(batch: Batch) -> int:
    """Return the number of tokens of a batch's rows: no padding, and a shared prompt in each row that it begins."""
    return int(batch["segments" if "segments" in batch else "attention_mask"].sum())


def learned_counts(batch: Batch) -> torch.Tensor:
    """Return the number of learned tokens of each row, (rows,)."""
    if "segments" not in batch:
        return (batch["labels"][:, 1:] != IGNORED).sum(dim=1)
    learned = batch["labels"][0] != IGNORED
    return torch.stack([row.sum() for row in learned.split(batch["segments"][:, 0].tolist())])


def learned_tokens(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the learned tokens, row by row, and the places in the flattened batch that predict them, both (learned,).

    A token is predicted in the place before it; a row's first one that follows a shared prompt at the prompt's end.
    """
    labels = batch["labels"]
    predicting = torch.arange(-1, labels.numel() - 1, device=labels.device)
    start = before = 0
    for length, shared in batch["segments"].tolist() if "segments" in batch else ():
        if shared:
            predicting[start] = before + shared - 1
        start, before = start + length, start
    learned = labels != IGNORED
    learned[:, 0] = False
    return labels[learned], predicting[learned.flatten()]


def split(batch: Batch, parts: int, *, rows_per_example: int = 1) -> list[Batch]:
    """Cut a batch between examples into at most `parts` parts of nearly the same number of examples.

    Parameters
    ----------
    batch
        Rows that are laid out.
    parts
        How many parts to make at most.
    rows_per_example
        Rows that stay together: 2 for pairs.
    """
    rows = count_rows(batch)
    size = math.ceil(rows // rows_per_example / parts) * rows_per_example
    lengths = batch["segments"][:, 0].tolist() if "segments" in batch else None

    def cut(name: str, tensor: torch.Tensor, first: int) -> torch.Tensor:
        last = min(first + size, rows)
        if name == "pair":
            return tensor[first // rows_per_example : last // rows_per_example]
        if lengths is None or name in NOT_OF_TOKENS:
            return tensor[first:last]
        return tensor[:, sum(lengths[:first]) : sum(lengths[:last])]

    return [{name: cut(name, tensor, first) for name, tensor in batch.items()} for first in range(0, rows, size)]
