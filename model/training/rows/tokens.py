"""From exported rows to token rows: which tokens a model sees, and which of them it learns.

`RowEncoder` reads the lines, `rendering` makes text of them, `encoding` tokens, and `preferences` cuts pairs. Nothing
here imports torch.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from model import exits
from model.exits import FailureError
from model.training.rows.encoding import IGNORED, Encoded, SpanTokenizer
from model.training.rows.preferences import Pair
from model.training.rows.rendering import Content, Markers, Place, Renderer

__all__ = ["IGNORED", "DigestedLines", "Outcomes", "PreferenceRows", "RowEncoder", "Tally", "TokenRows"]

MAX_LENGTH = "training.maxLength (--max-length)"
TOO_LONG = "dataset.tooLong (--too-long)"

_ROWS_AT_ONCE = 512
_PLACES_KEPT = 5


@dataclass
class Tally:
    """How many rows something happened to, and where the first of them are."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, place: Place) -> None:
        """Count a row."""
        self.count += 1
        if len(self.first) < _PLACES_KEPT:
            self.first.append(place.short)

    def document(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"rows": self.count, "first": self.first}


@dataclass
class Outcomes:
    """What became of the rows that did not stay as they were, and the tokens of the longest, before any cut.

    Left out are rows over the limit when these are to be dropped, rows of which nothing is left to learn within
    the limit, and pairs whose answers are the same tokens, perhaps only after the cut.
    """

    truncated: Tally = field(default_factory=Tally)
    too_long: Tally = field(default_factory=Tally)
    no_learnable_token: Tally = field(default_factory=Tally)
    equal_answers: Tally = field(default_factory=Tally)
    longest: int = 0

    @property
    def dropped(self) -> int:
        """The rows that were left out."""
        return self.too_long.count + self.no_learnable_token.count + self.equal_answers.count

    def document(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "truncated": self.truncated.document(),
            "tooLong": self.too_long.document(),
            "noLearnableToken": self.no_learnable_token.document(),
            "equalAnswers": self.equal_answers.document(),
            "longestRow": self.longest,
        }

    def nothing_left(self, max_length: int) -> FailureError:
        """Return the failure of a dataset of which no row is left."""
        reasons = [
            f"{tally.count} {what} (first {', '.join(tally.first)})"
            for tally, what in (
                (self.too_long, f"longer than {max_length} tokens, and {TOO_LONG} is Drop"),
                (self.no_learnable_token, f"with nothing left to learn within {max_length} tokens"),
                (self.equal_answers, "with chosen and rejected the same tokens"),
            )
            if tally.count
        ]
        remedy = ""
        if self.longest > max_length:
            remedy = f": raise {MAX_LENGTH} from {max_length} to {self.longest}, the tokens of the longest row"
        return FailureError(
            exits.DATASET_INVALID,
            "DatasetInvalid",
            f"none of the dataset's {self.dropped} rows can be trained on; "
            f"{'; '.join(reasons) or 'it has none'}{remedy}",
        )


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
    """Tokenised rows in flat arrays, 8 bytes a token; `offsets[i]` to `offsets[i + 1]` is row i."""

    ids: array[int] = field(default_factory=lambda: array("i"))
    labels: array[int] = field(default_factory=lambda: array("i"))
    offsets: array[int] = field(default_factory=lambda: array("q", [0]))
    outcomes: Outcomes = field(default_factory=Outcomes)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def append(self, ids: Sequence[int], labels: Sequence[int]) -> None:
        """Add a row."""
        self.ids.extend(ids)
        self.labels.extend(labels)
        self.offsets.append(len(self.ids))

    def row(self, index: int) -> tuple[array[int], array[int]]:
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
    """

    def __init__(self, tokenizer: Any, *, max_length: int, too_long: str) -> None:
        markers = Markers(tokenizer)
        self._special_ids = markers.special_ids
        self._renderer = Renderer(tokenizer, markers)
        self._spans = SpanTokenizer(tokenizer, markers, adds_special_tokens=not self._renderer.templated)
        self._max_length = max_length
        self._too_long = too_long

    def encode(self, lines: Iterator[bytes], name: str) -> TokenRows:
        """Encode exported JSON lines of single conversations; `name` is what to call them in messages.

        Raises
        ------
        FailureError
            When a row does not fit the template or, with too_long Fail, the model.
        """
        rows = TokenRows()
        for contents in self._batches(lines, name, pairs=False):
            for encoded in self._spans.encode(self._renderer.conversations(contents, name)):
                self._add(rows, encoded)
        return rows

    def encode_preferences(self, lines: Iterator[bytes], name: str) -> PreferenceRows:
        """Encode exported JSON lines of preference pairs; `name` is what to call them in messages.

        Raises
        ------
        FailureError
            When a pair does not fit the template or, with too_long Fail, the model.
        """
        pairs = PreferenceRows()
        for contents in self._batches(lines, name, pairs=True):
            sides = [side for pair in self._renderer.pairs(contents, name) for side in pair]
            encoded = self._spans.encode(sides)
            for chosen, rejected in zip(encoded[::2], encoded[1::2], strict=True):
                self._add_pair(pairs, Pair.of(chosen, rejected), chosen.place)
        return pairs

    def _batches(self, lines: Iterator[bytes], name: str, *, pairs: bool) -> Iterator[list[Content]]:
        numbered = enumerate(lines, 1)
        while batch := list(islice(numbered, _ROWS_AT_ONCE)):
            yield [_parse(line, number, name, pairs=pairs) for number, line in batch]

    def _add(self, rows: TokenRows, encoded: Encoded) -> None:
        ids, labels = encoded.ids, encoded.labels()
        longer = self._is_longer(rows.outcomes, len(ids), encoded.place)
        if longer and self._too_long == "Drop":
            rows.outcomes.too_long.add(encoded.place)
            return
        ids, labels = ids[: self._max_length], labels[: self._max_length]
        if all(label == IGNORED for label in labels):
            rows.outcomes.no_learnable_token.add(encoded.place)
            return
        if longer:
            rows.outcomes.truncated.add(encoded.place)
        rows.append(ids, labels)

    def _add_pair(self, rows: PreferenceRows, pair: Pair, place: Place) -> None:
        longer = self._is_longer(rows.outcomes, pair.length, place)
        if longer and self._too_long == "Drop":
            rows.outcomes.too_long.add(place)
            return
        pair = pair.cut(self._max_length, self._special_ids) if longer else pair
        if pair.chosen.ids == pair.rejected.ids:
            if self._too_long == "Fail":
                raise place.failure(
                    "chosen and rejected are the same tokens in the base model's chat template, so there is nothing "
                    "to prefer: leave the row out"
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
        if length > self._max_length and self._too_long == "Fail":
            raise place.failure(
                f"has {length} tokens, more than the {self._max_length} of maxLength: raise {MAX_LENGTH} to {length}, "
                f"or set {TOO_LONG} to Truncate or Drop"
            )
        return length > self._max_length


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
