"""What the rows of a batch begin with alike, tokenised once: most templates write the same system turn into each row.

A tokenizer cuts its special tokens out of a text before anything else, and looks at each stretch between them by
itself. So a text may be cut before such a token: the tokens of both parts are those of the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from model.training.rows.template import common_prefix_length

_REMEMBERED = 64
_ROWS_AT_LEAST = 16
"""With fewer nothing is gained: what they begin with is tokenised once more, and one of them for a trial."""


class Beginnings:
    """Finds what texts begin with alike, and remembers the tokens of that.

    Parameters
    ----------
    tokenizer
        The base model's.
    tokenize
        Returns the tokens of each text.
    """

    def __init__(self, tokenizer: Any, tokenize: Callable[[list[str]], list[list[int]]]) -> None:
        added = tokenizer.added_tokens_decoder.values()
        self._markers = [token.content for token in added if token.content.strip()]
        # Others take white space before them along, look at the letter there, or are found in normalized text.
        kinds = (token for token in added if not (token.lstrip or token.single_word or token.normalized))
        self._borders = [token.content for token in kinds if token.content.strip()]
        self._tokenize = tokenize
        self._tokens: dict[tuple[str, str], list[int]] = {}

    def of(self, texts: Sequence[str]) -> tuple[str, list[int]]:
        """Return what all texts begin with, up to a special token, and its tokens; nothing when there is no such."""
        if len(texts) < _ROWS_AT_LEAST:
            return "", []
        first, last = min(texts), max(texts)  # in order: what these two share, all between them do
        shared = first[: common_prefix_length(first, last)]
        at, border = max(((shared.rfind(border), border) for border in self._borders), default=(-1, ""))
        if at <= 0:
            return "", []
        beginning = shared[:at]
        if (beginning, border) not in self._tokens:
            if len(self._tokens) == _REMEMBERED:
                return "", []
            self._tokens[beginning, border] = self._tried(beginning, border, texts[0])
        tokens = self._tokens[beginning, border]
        return (beginning, tokens) if tokens else ("", [])

    def _tried(self, beginning: str, border: str, text: str) -> list[int]:
        """Return the tokens of a beginning, none when a text must not be cut there."""
        if any(border in marker[1:] for marker in self._markers):
            return []  # it may be a part of another marker in one of the texts
        first, rest, whole = self._tokenize([beginning, text[len(beginning) :], text])
        return first if first + rest == whole else []
