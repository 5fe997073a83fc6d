"""A row seen through the column mapping, and the settings by which all rows of a dataset are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from model.data import keys
from model.data.texts import as_turns

_MAX_COLUMNS = 4096
"""Names that are remembered: rows may each have others."""


@dataclass
class Reading:
    """How rows are read, and what was noticed about those that are right.

    Parameters
    ----------
    columns
        Canonical field to the source's name, where the two differ.
    ignored
        Columns that are as good as not there.
    merge
        Whether turns of one role that follow upon each other become one.
    method
        SFT, DPO or KTO.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    merge: bool = False
    method: str = "SFT"
    notes: Counter[str] = field(default_factory=Counter)
    """What people should know, with the number of rows that it is true of."""
    _rules: dict[str, keys.Rule | None] = field(default_factory=dict)

    def rule(self, column: str) -> keys.Rule | None:
        """Return what becomes of a column that is no text to learn; None when nothing does."""
        if column not in self._rules:
            if len(self._rules) >= _MAX_COLUMNS:
                self._rules.clear()
            self._rules[column] = self._find_rule(column)
        return self._rules[column]

    def _find_rule(self, column: str) -> keys.Rule | None:
        mapped = [field for field, name in self.columns.items() if name == column]
        rule = keys.column_rule(mapped[0] if mapped else column)
        if rule is None or (mapped and mapped[0] != rule.names[0]):
            return None
        taken = rule.names[0] in self.columns and not mapped
        return None if taken else rule


class Fields:
    """The fields of one row under their canonical names.

    Parameters
    ----------
    value
        The row as its source gave it.
    reading
        How to read it.
    """

    __slots__ = ("_columns", "reading", "value")

    def __init__(self, value: Mapping[str, Any], reading: Reading) -> None:
        ignored = reading.ignored
        self.value = {key: held for key, held in value.items() if key not in ignored} if ignored else value
        self.reading = reading
        self._columns = reading.columns

    def name(self, field: str) -> str:
        """Return what the source calls a field."""
        return self._columns.get(field, field)

    def get(self, field: str) -> Any:
        """Return a field's value, None when it is null or not there."""
        value = self.value.get(self._columns.get(field, field))
        return None if value != value else value  # noqa: PLR0124 - NaN, which tables' tools write for null

    def has(self, field: str) -> bool:
        """Whether the field is there and not null."""
        return self.get(field) is not None

    def has_turns(self, field: str) -> bool:
        """Whether the field is a list of objects, or holds turns as JSON."""
        value = as_turns(self.get(field))
        return isinstance(value, list) and (not value or isinstance(value[0], Mapping))

    def note(self, text: str) -> None:
        """Count something that is true of this row."""
        self.reading.notes[text] += 1
