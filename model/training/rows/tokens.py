"""From exported rows to token rows: which tokens a model sees, and which of them it learns.

`RowEncoder` reads the lines, `rendering` makes text of them, `encoding` tokens, and `preferences` cuts pairs. Nothing
here imports torch.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from model import exits
from model.exits import FailureError
from model.training.rows.encoding import IGNORED, Encoded, SpanTokenizer
from model.training.rows.outcomes import (
    Outcomes,
    Place,
    RefusedRowError,
    check_lengths,
    check_refusals,
)
from model.training.rows.preferences import Pair
from model.training.rows.rendering import Rendered, Renderer
from model.training.rows.template import Markers

__all__ = ["IGNORED", "DigestedLines", "PreferenceRows", "RowEncoder", "TokenRows", "sequences_of"]

Content = dict[str, Any]
Encodings = Iterator[tuple[Place, list[Encoded]]]

_ROWS_AT_ONCE = 512


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

    The arrays lie in memory while rows are added, or in files (`model.training.rows.store`).
    """

    ids: array[int] | memoryview[int] = field(default_factory=lambda: array("i"))
    labels: array[int] | memoryview[int] = field(default_factory=lambda: array("i"))
    offsets: array[int] | memoryview[int] = field(default_factory=lambda: array("q", [0]))
    outcomes: Outcomes = field(default_factory=Outcomes)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def append(self, ids: Sequence[int], labels: Sequence[int]) -> None:
        """Add a row."""
        assert isinstance(self.ids, array)
        assert isinstance(self.labels, array)
        assert isinstance(self.offsets, array)
        self.ids.extend(array("i", ids))
        self.labels.extend(array("i", labels))
        self.offsets.append(self.offsets[-1] + len(ids))

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
        self._max_length = max_length
        self._too_long = too_long
        self._drops_refused = drops_refused

    def encode(self, lines: Iterable[bytes], name: str) -> TokenRows:
        """Encode exported JSON lines of single conversations; `name` is what to call them in messages.

        Raises
        ------
        FailureError
            When rows do not fit the template or, with too_long Fail, the model.
        """
        rows = TokenRows()
        self.add(rows, lines, name)
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
        self.add(pairs, lines, name)
        self.check([pairs.outcomes])
        return pairs

    def add(self, rows: TokenRows | PreferenceRows, lines: Iterable[bytes], name: str) -> None:
        """Add what becomes of exported lines to the rows; those that cannot be used are noted in their outcomes.

        Raises
        ------
        FailureError
            When the lines are not what the export writes for this method.
        """
        if isinstance(rows, TokenRows):
            for _, encodings in self._encoded(lines, name, rows.outcomes, pairs=False):
                for encoded in encodings:
                    self._add(rows, encoded)
            return
        for place, (chosen, rejected) in self._encoded(lines, name, rows.outcomes, pairs=True):
            try:
                self._add_pair(rows, Pair.of(chosen, rejected), place)
            except RefusedRowError as error:
                rows.outcomes.refuse(error)

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

    def _encoded(self, lines: Iterable[bytes], name: str, outcomes: Outcomes, *, pairs: bool) -> Encodings:
        """Yield what each line has become: while some rows are tokenised, the next are rendered."""
        before = None
        for contents in _batches(lines, name, pairs=pairs):
            rendered = list(self._rendered(contents, name, outcomes, pairs=pairs))
            texts = [text for _, its in rendered for text in its]
            tokens = self._spans.begin(texts)
            if before is not None:
                yield from self._finished(*before, outcomes)
            before = rendered, texts, tokens
        if before is not None:
            yield from self._finished(*before, outcomes)

    def _rendered(
        self, contents: list[Content], name: str, outcomes: Outcomes, *, pairs: bool
    ) -> Iterator[tuple[Place, Sequence[Rendered]]]:
        render = self._renderer.pair if pairs else self._renderer.conversation
        for content in contents:
            place = Place.of(content, name)
            try:
                yield place, render(content, place, outcomes)
            except RefusedRowError as error:
                outcomes.refuse(error)

    def _finished(
        self, rendered: list[tuple[Place, Sequence[Rendered]]], texts: list[Rendered], tokens: Any, outcomes: Outcomes
    ) -> Encodings:
        encoded = iter(self._spans.finish(texts, tokens))
        for place, its in rendered:
            found = [next(encoded) for _ in its]
            if error := next((one for one in found if isinstance(one, RefusedRowError)), None):
                outcomes.refuse(error)
            else:
                yield place, [one for one in found if isinstance(one, Encoded)]

    def _add(self, rows: TokenRows, encoded: Encoded) -> None:
        if (longer := self._is_longer(rows.outcomes, len(encoded.ids), encoded.place)) and self._too_long != "Truncate":
            return
        if not encoded.learns_within(self._max_length):
            rows.outcomes.no_learnable_token.add(encoded.place)
            return
        if longer:
            rows.outcomes.truncated.add(encoded.place)
        rows.append(encoded.ids[: self._max_length], encoded.labels()[: self._max_length])

    def _add_pair(self, rows: PreferenceRows, pair: Pair, place: Place) -> None:
        if (longer := self._is_longer(rows.outcomes, pair.length, place)) and self._too_long != "Truncate":
            return
        pair = pair.cut(self._max_length, self._special_ids) if longer else pair
        if pair.chosen.ids == pair.rejected.ids:
            if self._too_long == "Fail":
                raise RefusedRowError(
                    place,
                    "chosen and rejected are the same tokens in the base model's chat template, so there is nothing "
                    "to prefer: leave the row out",
                )
            rows.outcomes.equal_answers.add(place)
            return
        if not (pair.chosen.learns and pair.rejected.learns):
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


def _batches(lines: Iterable[bytes], name: str, *, pairs: bool) -> Iterator[list[Content]]:
    numbered = enumerate(lines, 1)
    while batch := list(islice(numbered, _ROWS_AT_ONCE)):
        yield [_parse(line, number, name, pairs=pairs) for number, line in batch]


def _parse(line: bytes, number: int, name: str, *, pairs: bool) -> Content:
    """Return a line's row after a look at its shape."""
    try:
        content: Content = json.loads(line)
        keys = content.keys()
        is_pair = {"prompt", "chosen", "rejected"} <= keys
        is_single = "messages" in keys or {"prompt", "completion"} <= keys
        whole = "row" in keys and (is_pair or is_single)
    except (ValueError, AttributeError):
        whole = False
    if not whole:
        raise FailureError(
            exits.DATASET_INVALID,
            "DatasetInvalid",
            f"{name} exported line {number} is not what python -m model.data.export writes: export the dataset again",
        )
    if not (is_pair if pairs else is_single):
        method, other = ("DPO", "SFT") if pairs else ("SFT", "DPO")
        wanted = "prompt, chosen and rejected" if pairs else "prompt and completion, or messages"
        raise Place.of(content, name).failure(
            f"method {method} needs {wanted}; these rows are for {other}: set method (--method) to {other}, or map the "
            "fields with dataset.columns (--column)"
        )
    return content
