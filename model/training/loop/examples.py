"""The examples as the collators take them: views of the tokens, which lie in files that are mapped into memory."""

from __future__ import annotations

from typing import Any

from model.training.rows.tokens import PreferenceRows, TokenRows


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
    """

    def __init__(self, pairs: PreferenceRows) -> None:
        self._pairs = pairs
        self.lengths = pairs.lengths

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example: dict[str, Any] = {"pair": index}
        for side, rows in (("chosen", self._pairs.chosen), ("rejected", self._pairs.rejected)):
            example[f"{side}_input_ids"], example[f"{side}_labels"] = rows.row(index)
        return example
