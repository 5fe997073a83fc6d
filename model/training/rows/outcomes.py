"""What became of the rows that did not go into the run as they are, and where they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from model import exits
from model.data.checks import SHOWN_PROBLEMS, SHOWN_REPETITIONS
from model.exits import FailureError

MAX_LENGTH = "training.maxLength (--max-length)"
TOO_LONG = "dataset.tooLong (--too-long)"
INVALID_ROWS = "dataset.invalidRows (--invalid-rows)"

_PLACES_KEPT = 5


@dataclass(frozen=True)
class Place:
    """Where a row comes from.

    Parameters
    ----------
    name
        What to call the dataset when it is a single file.
    file
        The source's file, None when there is only one.
    row
        1-based row of that file.
    """

    name: str
    file: str | None
    row: int

    @classmethod
    def of(cls, content: Mapping[str, Any], name: str) -> Place:
        """Return the place that the export wrote into the row."""
        return cls(name, content.get("file"), content["row"])

    def __str__(self) -> str:
        return f"{self.file or self.name} row {self.row}"

    @property
    def short(self) -> str:
        """The place, without the dataset's name."""
        return f"{self.file} row {self.row}" if self.file else f"row {self.row}"

    def failure(self, text: str) -> FailureError:
        """Return the failure that this row causes."""
        return FailureError(exits.DATASET_INVALID, "DatasetInvalid", f"{self}: {text}", row=self.row)


class RefusedRowError(Exception):
    """A row that cannot be trained on with this base model, as its template or tokenizer has shown."""

    def __init__(self, place: Place, text: str) -> None:
        super().__init__(f"{place}: {text}")
        self.place = place
        self.text = text


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

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Tally:
        """Return what `document` was made of."""
        return cls(document["rows"], list(document["first"]))


@dataclass
class Told:
    """A refusal as it is shown, and further rows with the same words."""

    place: Place
    text: str
    count: int = 1
    others: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        if self.count == 1:
            return f"{self.place}: {self.text}"
        more = self.count - 1 - len(self.others)
        rows = f"row{'s' if self.count > 2 else ''} {', '.join(map(str, self.others))}"
        return f"{self.place}: {self.text} (also {rows}{f' and {more} more' if more else ''})"


@dataclass
class Refusals:
    """Rows that cannot be trained on: all counted, the first told, those with the same words together."""

    count: int = 0
    _told: dict[tuple[str | None, str], Told] = field(default_factory=dict)

    def add(self, error: RefusedRowError) -> None:
        """Count a row."""
        self.count += 1
        key = (error.place.file, error.text)
        if (told := self._told.get(key)) is None:
            if len(self._told) < SHOWN_PROBLEMS:
                self._told[key] = Told(error.place, error.text)
            return
        told.count += 1
        if len(told.others) < SHOWN_REPETITIONS:
            told.others.append(error.place.row)

    @property
    def told(self) -> list[Told]:
        """The first refusals, each with its rows."""
        return list(self._told.values())


@dataclass
class Outcomes:
    """What became of the rows that did not stay as they were, and the tokens of the longest, before any cut.

    Left out are rows over the limit when these are to be dropped, rows of which nothing is left to learn within
    the limit, pairs whose answers are the same tokens, perhaps only after the cut, and rows that were refused.
    """

    truncated: Tally = field(default_factory=Tally)
    too_long: Tally = field(default_factory=Tally)
    no_learnable_token: Tally = field(default_factory=Tally)
    equal_answers: Tally = field(default_factory=Tally)
    refused: Tally = field(default_factory=Tally)
    chunked: Tally = field(default_factory=Tally)
    """Texts of which several rows were made, for they are longer than one may be."""
    split: Tally = field(default_factory=Tally)
    """Conversations of which several rows were made, for the template rewrites earlier turns."""
    system_folded: Tally = field(default_factory=Tally)
    """Rows whose system turn went into the first user's, for the template has no such role."""
    special_tokens: Tally = field(default_factory=Tally)
    """Rows with special tokens or turn headers within their texts."""
    chunked_rows: int = 0
    """The rows that were made of texts that are longer than one."""
    split_rows: int = 0
    """The rows that were made of conversations that were split."""
    longest: int = 0
    refusals: Refusals = field(default_factory=Refusals)
    """What was refused, in words."""
    over_limit: Refusals = field(default_factory=Refusals)
    """Rows over the limit, in words, when these are to fail the run."""
    _reasons: list[str] = field(default_factory=list)

    @property
    def reasons(self) -> list[str]:
        """Why the first of the refused rows were, each with its row."""
        return [str(told) for told in self.refusals.told] or self._reasons

    @property
    def dropped(self) -> int:
        """The rows that were left out."""
        left_out = (self.too_long, self.no_learnable_token, self.equal_answers, self.refused)
        return sum(tally.count for tally in left_out)

    def refuse(self, error: RefusedRowError) -> None:
        """Count a row that cannot be trained on."""
        self.refused.add(error.place)
        self.refusals.add(error)

    def document(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {name: getattr(self, key).document() for key, name in _TALLIES.items()} | {
            "chunkedRows": self.chunked_rows,
            "splitRows": self.split_rows,
            "longestRow": self.longest,
            "reasons": self.reasons,
        }

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Outcomes:
        """Return what `document` was made of."""
        found = cls(
            chunked_rows=document.get("chunkedRows", 0),  # tokens that were made before there were texts have none
            split_rows=document["splitRows"],
            longest=document["longestRow"],
            _reasons=list(document["reasons"]),
        )
        for key, name in _TALLIES.items():
            if name in document:
                setattr(found, key, Tally.read(document[name]))
        return found

    def nothing_left(self, max_length: int) -> FailureError:
        """Return the failure of a dataset of which no row is left."""
        reasons = [
            f"{tally.count} {what} (first {', '.join(tally.first)})"
            for tally, what in (
                (self.too_long, f"longer than {max_length} tokens, and {TOO_LONG} is Drop"),
                (self.no_learnable_token, f"with nothing left to learn within {max_length} tokens"),
                (self.equal_answers, "with chosen and rejected the same tokens"),
                (self.refused, f"refused: {''.join(self.reasons[:1])}"),
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


_TALLIES = {
    "truncated": "truncated",
    "too_long": "tooLong",
    "no_learnable_token": "noLearnableToken",
    "equal_answers": "equalAnswers",
    "refused": "refused",
    "chunked": "chunked",
    "split": "split",
    "system_folded": "systemFolded",
    "special_tokens": "specialTokens",
}


def check_refusals(found: Sequence[Outcomes]) -> None:
    """Refuse a dataset with rows that cannot be trained on, naming them all at once.

    Raises
    ------
    FailureError
        When there is such a row. One alone is told as it is, several with their number.
    """
    _raise(
        [outcomes.refusals for outcomes in found],
        "{count} rows cannot be trained on with this base model",
        f"{INVALID_ROWS} Drop leaves {{them}} out",
    )


def check_lengths(found: Sequence[Outcomes]) -> None:
    """Refuse a dataset with rows over the limit, for runs that are to fail with these.

    Raises
    ------
    FailureError
        When there is such a row.
    """
    longest = max((outcomes.longest for outcomes in found), default=0)
    _raise(
        [outcomes.over_limit for outcomes in found],
        "{count} rows are too long",
        f"raise {MAX_LENGTH} to {longest}, or set {TOO_LONG} to Truncate or Drop",
    )


def _raise(found: Sequence[Refusals], several: str, remedy: str) -> None:
    count = sum(refusals.count for refusals in found)
    if not count:
        return
    told = [told for refusals in found for told in refusals.told][:SHOWN_PROBLEMS]
    message = "; ".join(map(str, told))
    if count > 1:
        hidden = count - sum(one.count for one in told)
        more = f"; and {hidden} more" if hidden else ""
        message = f"{several.format(count=count)}: {message}{more}"
    message += f": {remedy}" if "{" not in remedy else f" ({remedy.format(them='it' if count == 1 else 'them')})"
    raise FailureError(exits.DATASET_INVALID, "DatasetInvalid", message, row=told[0].place.row)
