"""What lies between the sources and the checks: one decoded record at a time, and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Problem:
    """What is wrong with one field of a row; an empty field means the row as a whole.

    Parameters
    ----------
    field
        Name of the field, with the way into it: `messages[2].content`.
    text
        What is wrong with it.
    kind
        One camelCase word under which the problem is counted.
    """

    field: str
    text: str
    kind: str = "unreadable"

    def __str__(self) -> str:
        return printable(f"{self.field}: {self.text}" if self.field else self.text)


class InvalidRowError(Exception):
    """A row that cannot be used; `problems` names every field to blame."""

    def __init__(self, problems: list[Problem]) -> None:
        if not problems:
            raise ValueError("a row is refused with at least one problem")
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


@dataclass(frozen=True)
class Record:
    """One row as its source gave it.

    Parameters
    ----------
    number
        1-based row in its file, table or query result: what a person would count. In a JSON-lines file it is the line.
    value
        The decoded row, a mapping when all is well; an `InvalidRowError` when it could not be decoded.
    file
        The file's name when the source has several, else empty.
    """

    number: int
    value: Any
    file: str = ""


def printable(text: str) -> str:
    """Return the text on one line, with everything that a terminal or an encoder would stumble over escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
