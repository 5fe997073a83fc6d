"""Objects of an S3 bucket."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from model.data.records import Record
from model.data.sources.base import invalid_spec


@dataclass
class ObjectStoreSource:
    """The objects that a URI names: one, or all that match a glob."""

    uri: str
    endpoint: str | None = None
    version: int | None = None

    @property
    def name(self) -> str:
        """The URI."""
        return self.uri

    def description(self) -> dict[str, Any]:
        """Return the URI."""
        return {"type": "objectStore", "uri": self.uri}

    def records(self) -> Iterator[Record]:
        """Yield the rows of the objects."""
        raise invalid_spec("--source=objectStore is not built in yet")
