"""The result of a query."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from model.data.records import Record
from model.data.sources.base import invalid_spec


@dataclass(frozen=True)
class SqlSource:
    """The rows that a query returns."""

    url: str
    query: str
    version: int | None = None

    @property
    def name(self) -> str:
        """What to call the rows in messages."""
        return "query"

    def description(self) -> dict[str, Any]:
        """Return the query and the database."""
        return {"type": "sql", "query": self.query}

    def records(self) -> Iterator[Record]:
        """Yield the query's rows."""
        raise invalid_spec("--source=sql is not built in yet")
