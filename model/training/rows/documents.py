"""Texts that are learned as they stand (continued pre-training): from exported rows to tokens.

A document is what the tokenizer makes of the text by itself, behind the begin token where the tokenizer writes one, and
one end token. No chat template has a part in it. Every token is learned but the very first, before which nothing
stands: that is the begin token where there is one.

A document longer than the limit becomes several rows. Each goes on with the last token of the one before, which is seen
there and not learned again: so each token is learned once, as in one long row, but for what lies too far back to be
seen. Nothing is put between the rows, neither begin nor end token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from model.training.rows.encoding import Encoded, SpanTokenizer
from model.training.rows.outcomes import Outcomes, Place
from model.training.rows.rendering import Rendered, begins_by_itself
from model.training.rows.template import Markers


class DocumentTokenizer:
    """Tokenises texts that are learned as they stand; used as `SpanTokenizer` is.

    Parameters
    ----------
    tokenizer
        The base model's `PreTrainedTokenizerBase`.
    markers
        Its added tokens.
    """

    def __init__(self, tokenizer: Any, markers: Markers) -> None:
        self._spans = SpanTokenizer(tokenizer, markers, adds_special_tokens=True)
        self._marks = markers.named
        begin = tokenizer.bos_token
        self._doubled_begin = begin if begin and begins_by_itself(tokenizer) else ""

    def render(self, text: str, place: Place, outcomes: Outcomes) -> list[Rendered]:
        """Return the text as it is tokenised; special tokens in it are counted, for the model sees them as such."""
        text = text.removeprefix(self._doubled_begin)
        if any(mark in text for mark in self._marks):
            outcomes.special_tokens.add(place)
        return [Rendered(text, ((0, len(text)),), place, closed=False)]

    def begin(self, rows: Sequence[Rendered]) -> Future[list[list[int]]]:
        """Begin to tokenise texts, on all cores."""
        return self._spans.begin(rows)

    def finish(self, rows: Sequence[Rendered], tokens: Future[list[list[int]]]) -> list[Encoded]:
        """Return the tokens of each text, with the end token.

        Raises
        ------
        FailureError
            When there is no end token.
        """
        end = self._spans.end_of_text()
        closed = ([*ids, end] if ids[-1:] != [end] else ids for ids in tokens.result())
        return [Encoded(ids, [(0, len(ids))], row.place, document=True) for row, ids in zip(rows, closed, strict=True)]


def chunks(ids: Sequence[int], max_length: int) -> Iterator[Sequence[int]]:
    """Yield a document's rows: of at most `max_length` tokens, each beginning with the last token of the one before."""
    for start in range(0, max(1, len(ids) - 1), max_length - 1):
        yield ids[start : start + max_length]
