"""The examples as the collators take them: views of the tokens, which lie in files that are mapped into memory."""

from __future__ import annotations

from typing import Any

from model.training.rows.tokens import IGNORED, PreferenceRows, TokenRows

_PAIRS_AT_ONCE = 4096


class Examples:
    """Rows of an SFT or KTO run.

    Parameters
    ----------
    rows
        Their tokens; with labels each example has its number, `row`, and `desirable`.
    """

    def __init__(self, rows: TokenRows) -> None:
        self._rows = rows
        self.lengths = rows.lengths

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids, labels = self._rows.row(index)
        example: dict[str, Any] = {"input_ids": ids, "labels": labels}
        if len(self._rows.desirable):
            example |= {"row": index, "desirable": bool(self._rows.desirable[index])}
        return example


class PairExamples:
    """Pairs of a DPO run, each with its number.

    Parameters
    ----------
    pairs
        Their tokens.
    joined
        Whether they go through the model as one sequence.
    """

    def __init__(self, pairs: PreferenceRows, *, joined: bool) -> None:
        self._pairs = pairs
        self.lengths = positions(pairs, joined=joined)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example: dict[str, Any] = {"pair": index}
        for side, rows in (("chosen", self._pairs.chosen), ("rejected", self._pairs.rejected)):
            example[f"{side}_input_ids"], example[f"{side}_labels"] = rows.row(index)
        return example


def positions(examples: TokenRows | PreferenceRows, *, joined: bool) -> list[int]:
    """Return how many positions of a forward pass each example takes, however many tokens it has.

    The rows of a pair are both filled up to the longer one; where rows are joined, they share their prompt.
    """
    if isinstance(examples, TokenRows):
        return examples.lengths
    pairs = zip(examples.chosen.lengths, examples.rejected.lengths, strict=True)
    if not joined:
        return [2 * max(pair) for pair in pairs]
    return [sum(pair) - prompt for pair, prompt in zip(pairs, _prompt_lengths(examples.chosen), strict=True)]


def _prompt_lengths(rows: TokenRows) -> list[int]:
    """Return how many tokens precede the first learned one of each row."""
    import numpy

    labels, offsets = numpy.frombuffer(rows.labels, numpy.int32), numpy.frombuffer(rows.offsets, numpy.int64)
    found: list[int] = []
    for first in range(0, len(rows), _PAIRS_AT_ONCE):  # a mask of all labels would be as large as they are
        borders = offsets[first : first + _PAIRS_AT_ONCE + 1]
        learned = numpy.flatnonzero(labels[borders[0] : borders[-1]] != IGNORED) + borders[0]
        found += (numpy.append(learned, borders[-1])[numpy.searchsorted(learned, borders[:-1])] - borders[:-1]).tolist()
    return found
