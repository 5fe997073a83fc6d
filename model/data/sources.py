"""Where a dataset's lines come from. A source yields raw lines; everything else is the export's business."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from model import exits
from model.data.formats import MAX_LINE_BYTES
from model.exits import FailureError
from model.registry import RegistryRefusedError, RegistryUnavailableError, RunRegistry, retry


class SourceInterruptedError(Exception):
    """The source broke off; what was read so far is worthless, reading from the start may succeed."""


class Source(Protocol):
    """A dataset's lines and what is known about them."""

    @property
    def name(self) -> str:
        """What to call the dataset in messages."""

    @property
    def version(self) -> int | None:
        """The dataset's version in the registry, None for other sources."""

    def description(self) -> dict[str, Any]:
        """Return what identifies the source in the manifest."""

    def lines(self) -> Iterator[bytes]:
        """Yield the lines from the first on, each cut off after `MAX_LINE_BYTES` + 1 bytes.

        Raises
        ------
        SourceInterruptedError
            When the source broke off.
        FailureError
            When it is not there or refuses.
        """


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
            text = f"{self.path} {missing[error.errno]}{self._neighbours()}"
            return FailureError(exits.DOES_NOT_EXIST, "DatasetUnavailable", text)
        known = exits.storage_failure(error)
        return known or FailureError(exits.UNAVAILABLE, "DatasetUnavailable", f"cannot read {self.path}: {error}")

    def _neighbours(self) -> str:
        folder = self.path if self.path.is_dir() else self.path.parent
        if not folder.is_dir():
            return ""
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
        return f"; {folder} holds {', '.join(names[:10]) or 'nothing'}"


@dataclass
class RegistrySource:
    """The dataset version that the registry has recorded for the run."""

    registry: RunRegistry
    _metadata: dict[str, Any] | None = field(default=None, init=False)

    @property
    def metadata(self) -> dict[str, Any]:
        """The dataset version's name, version, rows, bytes and sha256, asked for once."""
        if self._metadata is None:
            try:
                self._metadata = retry(self.registry.dataset, warn=_warn)
            except RegistryUnavailableError as error:
                raise FailureError(
                    exits.UNAVAILABLE, "DatasetUnavailable", f"the registry is unavailable: {error}"
                ) from error
            except RegistryRefusedError as error:
                raise self._refusal(error) from error
        return self._metadata

    @property
    def name(self) -> str:
        """The dataset's name and version."""
        return f"dataset {self.metadata['name']} version {self.metadata['version']}"

    @property
    def version(self) -> int | None:
        """The dataset's version."""
        version: int = self.metadata["version"]
        return version

    def description(self) -> dict[str, Any]:
        """Return the name, version and digest that the registry gave."""
        return {"type": "registry", **{key: self.metadata.get(key) for key in ("name", "version", "sha256")}}

    def lines(self) -> Iterator[bytes]:
        """Yield the version's lines, and check at the end that nothing was cut off or changed."""
        import hashlib

        digest = hashlib.sha256()
        try:
            for line in self.registry.dataset_rows():
                digest.update(line)
                yield line
        except RegistryUnavailableError as error:
            raise SourceInterruptedError(f"the registry is unavailable: {error}") from error
        except RegistryRefusedError as error:
            raise self._refusal(error) from error
        if digest.hexdigest() != self.metadata["sha256"]:
            raise SourceInterruptedError(f"{self.name} arrived with another SHA-256 than the registry names")

    def _refusal(self, error: RegistryRefusedError) -> FailureError:
        where = f"the registry at {self.registry.url} answered {error.status}: {error.message}"
        if error.status in (401, 403):
            return FailureError(exits.ACCESS_DENIED, "AccessDenied", where)
        if error.status == 404:
            return FailureError(exits.DOES_NOT_EXIST, "DatasetUnavailable", where)
        return FailureError(exits.INVALID_CONFIGURATION, "InvalidSpec", where)


def bounded_lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield a file's lines without ever holding more than `MAX_LINE_BYTES` + 1 bytes of one."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        yield line
        while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES + 1)


def _warn(text: str) -> None:
    import sys

    print(text, file=sys.stderr, flush=True)
