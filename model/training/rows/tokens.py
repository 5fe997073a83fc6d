"""From exported rows to token rows: which tokens a model sees, and which of them it learns.

`RowEncoder` reads the lines, `rendering` makes text of them, `encoding` tokens; `preferences` cuts answers, `documents`
whole texts. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from model import exits
from model.exits import FailureError
from model.training.rows.documents import DocumentTokenizer, chunks
from model.training.rows.encoding import IGNORED, Encoded, SpanTokenizer
from model.training.rows.outcomes import (
    Outcomes,
    Place,
    RefusedRowError,
    check_lengths,
    check_refusals,
)
from model.training.rows.preferences import Answered
from model.training.rows.rendering import Rendered, Renderer
from model.training.rows.template import Markers

__all__ = ["IGNORED", "DigestedLines", "PreferenceRows", "RowEncoder", "TokenRows", "method_of", "sequences_of"]

Content = dict[str, Any]

_ROWS_AT_ONCE = 512
_BYTES_AT_ONCE = 2 << 20
"""Of rows that are tokenised together: the tokenizer takes up to a hundred times as much memory."""


@dataclass(frozen=True)
class _Line:
    """What an exported line is as text; with a label, whether the answer is desirable."""

    place: Place
    texts: Sequence[Rendered]
    desirable: bool | None


Encodings = Iterator[tuple[_Line, list[Encoded]]]


class Counted:
    """What rows and pairs say alike about those that did not stay as they were."""

    outcomes: Outcomes

    @property
    def truncated(self) -> int:
        """The examples that were cut."""
        return self.outcomes.truncated.count

    @property
    def dropped(self) -> int:
        """The examples that were left out."""
        return self.outcomes.dropped


@dataclass
class TokenRows(Counted):
    """Tokenised rows in flat arrays, 8 bytes a token; `offsets[i]` to `offsets[i + 1]` is row i.

    `desirable` has a 1 or a 0 for each row with a label (KTO), and nothing otherwise. The arrays lie in memory while
    rows are added, or in files (`model.training.rows.store`).
    """

    ids: array[int] | memoryview[int] = field(default_factory=lambda: array("i"))
    labels: array[int] | memoryview[int] = field(default_factory=lambda: array("i"))
    offsets: array[int] | memoryview[int] = field(default_factory=lambda: array("q", [0]))
    desirable: array[int] | memoryview[int] = field(default_factory=lambda: array("b"))
    outcomes: Outcomes = field(default_factory=Outcomes)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def append(self, ids: Sequence[int], labels: Sequence[int], desirable: bool | None = None) -> None:
        """Add a row; `desirable` where it has a label."""
        assert isinstance(self.ids, array)
        assert isinstance(self.labels, array)
        assert isinstance(self.offsets, array)
        self.ids.extend(array("i", ids))
        self.labels.extend(array("i", labels))
        self.offsets.append(self.offsets[-1] + len(ids))
        if desirable is not None:
            assert isinstance(self.desirable, array)
            self.desirable.append(desirable)

    def row(self, index: int) -> tuple[array[int] | memoryview[int], array[int] | memoryview[int]]:
        """Return the ids and the labels of a row."""
        span = slice(self.offsets[index], self.offsets[index + 1])
        return self.ids[span], self.labels[span]

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each row."""
        return [end - start for start, end in pairwise(self.offsets)]

    def as_dataset(self) -> Any:
        """Return the rows as a `datasets.Dataset` with input_ids and labels, without copying them."""
        import pyarrow
        from datasets import Dataset

        offsets = pyarrow.array(self.offsets, pyarrow.int64())
        columns = {
            name: pyarrow.LargeListArray.from_arrays(
                offsets, pyarrow.Array.from_buffers(pyarrow.int32(), len(values), [None, pyarrow.py_buffer(values)])
            )
            for name, values in (("input_ids", self.ids), ("labels", self.labels))
        }
        return Dataset(pyarrow.table(columns), fingerprint="rows")


@dataclass
class PreferenceRows(Counted):
    """Tokenised preference pairs: row i of `chosen` and row i of `rejected` are whole sequences with the same prompt.

    Labels are on the answers alone.
    """

    chosen: TokenRows = field(default_factory=TokenRows)
    rejected: TokenRows = field(default_factory=TokenRows)
    outcomes: Outcomes = field(default_factory=Outcomes)

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each pair: those of the chosen and those of the rejected sequence."""
        return [a + b for a, b in zip(self.chosen.lengths, self.rejected.lengths, strict=True)]


def sequences_of(examples: TokenRows | PreferenceRows) -> list[TokenRows]:
    """Return the sequences of which the examples are made: rows, or the chosen and the rejected of pairs."""
    return [examples] if isinstance(examples, TokenRows) else [examples.chosen, examples.rejected]


class RowEncoder:
    """Makes tokens of exported rows, with labels on what the assistant says.

    Parameters
    ----------
    tokenizer
        The base model's `PreTrainedTokenizerBase`.
    max_length
        Tokens per sequence.
    too_long
        Truncate, Drop or Fail: what to do with a longer row.
    drops_refused
        Whether rows that cannot be used are left out; else they fail the run.
    moment
        What chat templates take for now; this one when left out.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_length: int,
        too_long: str,
        drops_refused: bool = False,
        moment: datetime | None = None,
    ) -> None:
        markers = Markers(tokenizer)
        self._special_ids = markers.special_ids
        self._renderer = Renderer(tokenizer, markers, moment or datetime.now().astimezone())
        self._spans = SpanTokenizer(tokenizer, markers, adds_special_tokens=not self._renderer.templated)
        self._tokenizer, self._markers = tokenizer, markers
        self._max_length = max_length
        self._too_long = too_long
        self._drops_refused = drops_refused

    @cached_property
    def _documents(self) -> DocumentTokenizer:
        return DocumentTokenizer(self._tokenizer, self._markers)

    def encode(self, lines: Iterable[bytes], name: str, *, method: str = "SFT") -> TokenRows:
        """Encode exported JSON lines of texts, of conversations or, for KTO, of labelled answers.

        `name` is what to call them in messages.

        Raises
        ------
        FailureError
            When rows do not fit the template or, with too_long Fail, the model.
        """
        rows = TokenRows()
        self.add(rows, lines, name, method=method)
        self.check([rows.outcomes])
        return rows

    def encode_preferences(self, lines: Iterable[bytes], name: str) -> PreferenceRows:
        """Encode exported JSON lines of preference pairs; `name` is what to call them in messages.

        Raises
        ------
        FailureError
            When pairs do not fit the template or, with too_long Fail, the model.
        """
        pairs = PreferenceRows()
        self.add(pairs, lines, name, method="DPO")
        self.check([pairs.outcomes])
        return pairs

    def add(self, rows: TokenRows | PreferenceRows, lines: Iterable[bytes], name: str, *, method: str) -> None:
        """Add what becomes of a method's exported lines to the rows; what cannot be used is noted in their outcomes.

        Raises
        ------
        FailureError
            When the lines are not what the export writes for this method.
        """
        for line, encodings in self._encoded(lines, name, rows.outcomes, method):
            if isinstance(rows, PreferenceRows):
                try:
                    self._add_pair(rows, Answered.of(*encodings), line.place)
                except RefusedRowError as error:
                    rows.outcomes.refuse(error)
            elif line.desirable is not None:
                self._add_labelled(rows, Answered.of(*encodings), line.place, desirable=line.desirable)
            else:
                for encoded in encodings:
                    self._add(rows, encoded)

    def check(self, found: Sequence[Outcomes]) -> None:
        """Refuse rows that cannot be used, unless these are to be dropped, and rows that are to fail for their length.

        Raises
        ------
        FailureError
            When there are such rows; all are told at once.
        """
        if not self._drops_refused:
            check_refusals(found)
        check_lengths(found)

    def _encoded(self, lines: Iterable[bytes], name: str, outcomes: Outcomes, method: str) -> Encodings:
        """Yield what each line has become: while some rows are tokenised, the next are rendered."""
        before = None
        for contents in _batches(lines, name, method):
            tokenizer = self._documents if "text" in contents[0] else self._spans
            rendered = list(self._rendered(contents, name, outcomes, method))
            texts = [text for line in rendered for text in line.texts]
            tokens = tokenizer.begin(texts)
            if before is not None:
                yield from self._finished(*before, outcomes)
            before = tokenizer, rendered, texts, tokens
        if before is not None:
            yield from self._finished(*before, outcomes)

    def _rendered(self, contents: list[Content], name: str, outcomes: Outcomes, method: str) -> Iterator[_Line]:
        for content in contents:
            place = Place.of(content, name)
            try:
                yield _Line(place, self._texts(content, place, outcomes, method), content.get("label"))
            except RefusedRowError as error:
                outcomes.refuse(error)

    def _texts(self, content: Content, place: Place, outcomes: Outcomes, method: str) -> Sequence[Rendered]:
        if method == "DPO":
            return self._renderer.pair(content, place, outcomes)
        if method == "KTO":
            return self._renderer.answer(content, place, outcomes)
        if "text" in content:
            return self._documents.render(content["text"], place, outcomes)
        return self._renderer.conversation(content, place, outcomes)

    def _finished(
        self,
        tokenizer: SpanTokenizer | DocumentTokenizer,
        lines: list[_Line],
        texts: list[Rendered],
        tokens: Any,
        outcomes: Outcomes,
    ) -> Encodings:
        encoded = iter(tokenizer.finish(texts, tokens))
        for line in lines:
            found = [next(encoded) for _ in line.texts]
            if error := next((one for one in found if isinstance(one, RefusedRowError)), None):
                outcomes.refuse(error)
            else:
                yield line, [one for one in found if isinstance(one, Encoded)]

    def _add(self, rows: TokenRows, encoded: Encoded) -> None:
        if (longer := self._is_longer(rows.outcomes, len(encoded.ids), encoded.place)) and self._too_long != "Truncate":
            return
        if not encoded.learns_within(self._max_length):
            rows.outcomes.no_learnable_token.add(encoded.place)
            return
        if longer and encoded.document:
            rows.outcomes.chunked.add(encoded.place)
            for ids in chunks(encoded.ids, self._max_length):
                rows.append(ids, [IGNORED, *ids[1:]])
                rows.outcomes.chunked_rows += 1
            return
        if longer:
            rows.outcomes.truncated.add(encoded.place)
        rows.append(encoded.ids[: self._max_length], encoded.labels()[: self._max_length])

    def _add_labelled(self, rows: TokenRows, answered: Answered, place: Place, *, desirable: bool) -> None:
        if (longer := self._is_longer(rows.outcomes, answered.length, place)) and self._too_long != "Truncate":
            return
        answered = answered.cut(self._max_length, self._special_ids) if longer else answered
        if not answered.learns:
            rows.outcomes.no_learnable_token.add(place)
            return
        if longer:
            rows.outcomes.truncated.add(place)
        rows.append(*answered.sequences()[0], desirable)

    def _add_pair(self, rows: PreferenceRows, pair: Answered, place: Place) -> None:
        if (longer := self._is_longer(rows.outcomes, pair.length, place)) and self._too_long != "Truncate":
            return
        pair = pair.cut(self._max_length, self._special_ids) if longer else pair
        if pair.answers[0].ids == pair.answers[1].ids:
            if self._too_long == "Fail":
                raise RefusedRowError(
                    place,
                    "chosen and rejected are the same tokens in the base model's chat template, so there is nothing "
                    "to prefer: leave the row out",
                )
            rows.outcomes.equal_answers.add(place)
            return
        if not pair.learns:
            rows.outcomes.no_learnable_token.add(place)
            return
        if longer:
            rows.outcomes.truncated.add(place)
        chosen, rejected = pair.sequences()
        rows.chosen.append(*chosen)
        rows.rejected.append(*rejected)

    def _is_longer(self, outcomes: Outcomes, length: int, place: Place) -> bool:
        outcomes.longest = max(outcomes.longest, length)
        if length <= self._max_length:
            return False
        if self._too_long == "Drop":
            outcomes.too_long.add(place)
        elif self._too_long == "Fail":
            text = f"has {length} tokens, more than the {self._max_length} of maxLength"
            outcomes.over_limit.add(RefusedRowError(place, text))
        return True


class DigestedLines:
    """The lines of some files, digested on the way, so that rows changed after the export are noticed."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def read(self, path: Path) -> Iterator[bytes]:
        """Yield the file's lines."""
        with path.open("rb") as file:
            for line in file:
                self._digest.update(line)
                yield line

    def sha256(self) -> str:
        """Return the hex SHA-256 of all lines read so far."""
        return self._digest.hexdigest()


def _batches(lines: Iterable[bytes], name: str, method: str) -> Iterator[list[Content]]:
    batch: list[Content] = []
    size = 0
    for number, line in enumerate(lines, 1):
        batch.append(_parse(line, number, name, method))
        size += len(line)
        if len(batch) == _ROWS_AT_ONCE or size >= _BYTES_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


_NEEDED = {
    "SFT": "prompt and completion, or messages, or text",
    "DPO": "prompt, chosen and rejected",
    "KTO": "prompt, completion and label",
}


def method_of(keys: Collection[str]) -> str | None:
    """Return the method that a line with these keys was exported for; None when it is no exported line."""
    if {"prompt", "chosen", "rejected"} <= set(keys):
        return "DPO"
    if {"prompt", "completion", "label"} <= set(keys):
        return "KTO"
    return "SFT" if "messages" in keys or "text" in keys or {"prompt", "completion"} <= set(keys) else None


def _parse(line: bytes, number: int, name: str, method: str) -> Content:
    """Return a line's row after a look at its shape."""
    try:
        content: Content = json.loads(line)
        other = method_of(content.keys()) if "row" in content else None
    except (ValueError, AttributeError, TypeError):
        other = None
    if other is None:
        raise FailureError(
            exits.DATASET_INVALID,
            "DatasetInvalid",
            f"{name} exported line {number} is not what python -m model.data.export writes: export the dataset again",
        )
    if other != method:
        raise Place.of(content, name).failure(
            f"method {method} needs {_NEEDED[method]}; these rows are for {other}: set method (--method) to {other}, "
            "or map the fields with dataset.columns (--column)"
        )
    return content
