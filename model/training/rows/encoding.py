"""From text to tokens, and which positions are learned.

A position is found by tokenising what precedes it. Tokenizers cut their added tokens out of a text before anything
else, so what precedes means from the last of these on: a few tokens, most of them the same in every row, instead of
the whole conversation again for each of its turns.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

from model import exits
from model.exits import FailureError
from model.training.rows.beginnings import Beginnings
from model.training.rows.outcomes import Place, RefusedRowError
from model.training.rows.rendering import Rendered, Span
from model.training.rows.template import Markers, common_prefix_length

IGNORED = -100
"""Label of a token that is seen but not learned."""

_REMEMBERED_CHARACTERS = 64
_REMEMBERED_TAILS = 1024


@dataclass(frozen=True)
class Encoded:
    """One conversation as tokens; `learned` are spans of positions, in order.

    A `document` is learned as it stands, and goes on in another row where it is too long.
    """

    ids: list[int]
    learned: list[Span]
    place: Place
    document: bool = False

    def learns_within(self, length: int) -> bool:
        """Whether anything of the first `length` tokens is learned; the first one never is."""
        return any(max(start, 1) < min(end, length) for start, end in self.learned)

    def labels(self) -> list[int]:
        """Return the ids where they are learned, IGNORED elsewhere and at the first, before which nothing stands."""
        labels = [IGNORED] * len(self.ids)
        for start, end in self.learned:
            labels[max(start, 1) : end] = self.ids[max(start, 1) : end]
        return labels


class SpanTokenizer:
    """Tokenises rendered conversations and finds their learned spans among the tokens.

    Parameters
    ----------
    tokenizer
        The base model's `PreTrainedTokenizerBase`.
    markers
        Its added tokens.
    adds_special_tokens
        Whether the tokenizer puts in the begin and end tokens; a chat template writes them itself.
    """

    def __init__(self, tokenizer: Any, markers: Markers, *, adds_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._markers = markers
        self._marker_texts = {index: text for text, index in markers.ids.items()}
        self._adds_special_tokens = adds_special_tokens
        self._backend = _without_offsets(tokenizer)
        cuts = self._backend is not None and not adds_special_tokens and not tokenizer.split_special_tokens
        self._beginnings = Beginnings(tokenizer, self._tokenize) if cuts else None
        self._remembered: dict[str, list[int]] = {}
        self._thread = ThreadPoolExecutor(1, "tokenizer")
        # Read at each call. The image says false, so that libraries that fork do not warn; here nobody forks.
        os.environ["TOKENIZERS_PARALLELISM"] = "true"

    def begin(self, rows: Sequence[Rendered]) -> Future[list[list[int]]]:
        """Begin to tokenise rows, on all cores, while others are rendered; `finish` takes what this returns."""
        texts = [row.text for row in rows]
        if self._backend is not None:
            return self._thread.submit(self._tokenize_rows, texts)
        done: Future[list[list[int]]] = Future()  # a tokenizer written in Python is used by one thread alone
        done.set_result(self._tokenize(texts))
        return done

    def finish(self, rows: Sequence[Rendered], tokens: Future[list[list[int]]]) -> list[Encoded | RefusedRowError]:
        """Return the tokens of each row, or why it cannot be used.

        Raises
        ------
        FailureError
            When no row can be: there is no end token.
        """
        whole = tokens.result()
        borders = [self._borders(row, ids) for row, ids in zip(rows, whole, strict=True)]
        tails = self._tails({tail for row in borders for _, tail in row if tail})
        encoded: list[Encoded | RefusedRowError] = []
        for row, ids, its in zip(rows, whole, borders, strict=True):
            positions = []
            merged = False
            for number, (at, text) in enumerate(its):
                tail = tails[text] if text else []
                common = common_prefix_length(tail, ids[at : at + len(tail)])
                merged = merged or (number % 2 == 0 and common < len(tail))
                positions.append(at + common)
            try:
                encoded.append(self._encoded(row, *((merged and self._in_pieces(row, ids)) or (ids, positions))))
            except RefusedRowError as error:
                encoded.append(error)
        return encoded

    def _encoded(self, row: Rendered, ids: list[int], borders: list[int]) -> Encoded:
        learned = list(zip(borders[::2], borders[1::2], strict=True))
        if not row.closed and ids[-1:] and ids[-1] not in self._markers.special_ids:
            ids = [*ids, self.end_of_text()]
            learned[-1] = (learned[-1][0], len(ids))
        elif row.closed and not all(start < end and ids[end - 1] in self._marker_texts for start, end in learned):
            raise RefusedRowError(
                row.place,
                "the base model's tokenizer does not keep the end token of the assistant's turn in one piece, so a "
                "model trained with it would never stop: use a base model whose tokenizer and chat template agree",
            )
        return Encoded(ids, learned, row.place)

    def _borders(self, row: Rendered, ids: list[int]) -> list[tuple[int, str]]:
        """Return for both ends of each learned span a position that is known, and the text from there to the end."""
        known = [(at, token) for at, token in enumerate(ids) if token in self._marker_texts]
        found: list[re.Match[str]] = []
        if known:
            found = list(_pattern(frozenset(self._marker_texts[token] for _, token in known)).finditer(row.text))
        if [token for _, token in known] != [self._markers.ids[match.group()] for match in found]:
            known, found = [], []  # as with a begin token that the tokenizer adds: then from the start of the text
        begins = [match.start() for match in found]
        borders = []
        for end in (end for span in row.learned for end in span):
            last = bisect_left(begins, end) - 1
            if end == len(row.text):
                borders.append((len(ids), ""))
            elif last >= 0 and found[last].end() == end:
                borders.append((known[last][0] + 1, ""))
            elif last >= 0 and found[last].end() < end:
                borders.append((known[last][0], row.text[begins[last] : end]))
            else:
                borders.append((0, row.text[:end]))
        return borders

    def _in_pieces(self, row: Rendered, whole: list[int]) -> tuple[list[int], list[int]] | None:
        """Return a row's tokens and the borders of its spans, where a token of the whole goes over a turn's beginning.

        Inference tokenises the prompt alone, and what the model writes begins with a token of its own. None without a
        chat template, which does not say where a prompt ends, and for a tokenizer that writes pieces otherwise.
        """
        if self._adds_special_tokens:
            return None
        cuts = [0, *(end for span in row.learned for end in span)]
        pieces = self._tokenize([row.text[start:end] for start, end in pairwise(cuts)])
        ids = [token for piece in pieces for token in piece]
        shown, wanted = (
            self._tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            for tokens in (ids, whole)
        )
        return (ids, list(accumulate(map(len, pieces)))) if shown == wanted else None

    def _tails(self, texts: set[str]) -> dict[str, list[int]]:
        new = [text for text in texts if text not in self._remembered]
        tokenized = dict(zip(new, self._tokenize(new), strict=True))
        answer = tokenized | {text: self._remembered[text] for text in texts if text in self._remembered}
        if len(self._remembered) < _REMEMBERED_TAILS:
            self._remembered |= {text: ids for text, ids in tokenized.items() if len(text) <= _REMEMBERED_CHARACTERS}
        return answer

    def _tokenize_rows(self, texts: list[str]) -> list[list[int]]:
        beginning, first = self._beginnings.of(texts) if self._beginnings is not None else ("", [])
        if not first:
            return self._tokenize(texts)
        return [first + rest for rest in self._tokenize([text[len(beginning) :] for text in texts])]

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        if self._backend is not None:
            encodings = self._backend.encode_batch_fast(texts, add_special_tokens=self._adds_special_tokens)
            return [encoding.ids for encoding in encodings]
        ids: list[list[int]] = self._tokenizer(
            texts, add_special_tokens=self._adds_special_tokens, return_attention_mask=False, verbose=False
        )["input_ids"]
        return ids

    def end_of_text(self) -> int:
        """Return the tokenizer's end token.

        Raises
        ------
        FailureError
            When it has none.
        """
        token = self._tokenizer.eos_token_id
        if token is None:
            raise FailureError(
                exits.DOES_NOT_EXIST,
                "BaseModelUnavailable",
                "the base model's tokenizer has no end token (eos_token), and its chat template writes none: a model "
                "trained with it would never stop; set eos_token in its tokenizer_config.json",
            )
        identifier: int = token
        return identifier


def _without_offsets(tokenizer: Any) -> Any:
    """Return the fast tokenizer's inner one, which can leave out the positions in the text that are not asked for.

    None for a tokenizer written in Python.
    """
    if not tokenizer.is_fast:
        return None
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    return backend


@lru_cache(maxsize=256)
def _pattern(texts: frozenset[str]) -> re.Pattern[str]:
    """Return a pattern for markers that prefers the longest, as tokenizers do."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))))
