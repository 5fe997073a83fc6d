"""Files on a mounted volume or ConfigMap."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model import exits
from model.data.readers import bounded_lines, json_lines
from model.data.records import Record
from model.data.sources.base import does_not_exist
from model.exits import FailureError


@dataclass(frozen=True)
class FileSource:
    """A JSON-lines file on a mounted volume or ConfigMap."""

    kind: str
    path: Path
    version: int | None = None

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    def description(self) -> dict[str, Any]:
        """Return the kind of volume and the path on it."""
        return {"type": self.kind, "path": str(self.path)}

    def records(self) -> Iterator[Record]:
        """Yield the file's rows."""
        yield from json_lines(self.lines())

    def lines(self) -> Iterator[bytes]:
        """Yield the file's lines."""
        try:
            with self.path.open("rb") as file:
                yield from bounded_lines(file)
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> Exception:
        missing = {
            errno.ENOENT: "does not exist",
            errno.ENOTDIR: "does not exist",
            errno.EISDIR: "is a directory, not a JSON-lines file",
        }
        if error.errno in missing:
            return does_not_exist(f"{self.path} {missing[error.errno]}{self._neighbours()}")
        known = exits.storage_failure(error)
        return known or FailureError(exits.UNAVAILABLE, "DatasetUnavailable", f"cannot read {self.path}: {error}")

    def _neighbours(self) -> str:
        folder = self.path if self.path.is_dir() else self.path.parent
        if not folder.is_dir():
            return ""
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
        return f"; {folder} holds {', '.join(names[:10]) or 'nothing'}"
