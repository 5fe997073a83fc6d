"""A dataset repository of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from model.data.records import Record
from model.data.sources.base import invalid_spec


@dataclass
class HubSource:
    """The data files of one split of a dataset repository."""

    repository: str
    revision: str | None = None
    split: str = "train"
    version: int | None = None

    @property
    def name(self) -> str:
        """The repository's name."""
        return self.repository

    def description(self) -> dict[str, Any]:
        """Return the repository, the commit and the split."""
        return {"type": "hub", "repository": self.repository, "split": self.split}

    def records(self) -> Iterator[Record]:
        """Yield the rows of the split's files."""
        raise invalid_spec("--source=hub is not built in yet")
