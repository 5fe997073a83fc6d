"""Files on a mounted volume or ConfigMap: one, a glob, or a folder's."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from model import exits
from model.data.readers import DataFile, has_data_extension, read
from model.data.records import Record
from model.data.sources import metadata, patterns
from model.data.sources.base import SourceInterruptedError, does_not_exist, invalid_spec
from model.exits import FailureError


@dataclass(frozen=True)
class FileSource:
    """The files that a path on a volume names.

    Parameters
    ----------
    kind
        `volume` or `configMap`; the path of a ConfigMap's key is taken as it is.
    path
        A file, a folder whose data files are read, or a glob where `**` stands for any number of folders.
    passed_over
        Files among these that hold no rows but describe them, once they were looked for.
    """

    kind: str
    path: Path
    version: int | None = None
    passed_over: list[str] = field(default_factory=list, compare=False)

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    def request(self) -> dict[str, Any]:
        """Return the kind of volume and the path on it."""
        return {"type": self.kind, "path": str(self.path)}

    def description(self) -> dict[str, Any]:
        """Return the kind of volume and the path on it."""
        return self.request()

    def records(self) -> Iterator[Record]:
        """Yield the rows of all files, in the order of their names."""
        try:
            files = self.files()
            for path, label in zip(files, patterns.labels([str(path) for path in files]), strict=True):
                yield from self._file_records(path, label)
            if self.files() != files:
                raise SourceInterruptedError(f"the files of {self.path} changed while they were read")
        except OSError as error:
            raise self._failure(error) from error

    def files(self) -> list[Path]:
        """Return the files to read, sorted.

        Raises
        ------
        FailureError
            When there is none, or a folder holds files of several splits.
        """
        if self.path.is_dir():
            return self._folder_files()
        if self.path.exists() or self.kind == "configMap" or not patterns.has_wildcard(str(self.path)):
            return [self.path]
        if files := self._matches():
            return files
        raise does_not_exist(f"no file matches {self.path}: {self._nearest()}")

    def _matches(self) -> list[Path]:
        pattern = str(self.path)
        folder = Path(patterns.fixed_folder(pattern) or ".")
        if not folder.is_dir():
            return []
        deep = "/" in pattern.removeprefix(patterns.fixed_folder(pattern)) or "**" in pattern
        paths = folder.rglob("*") if deep else folder.iterdir()
        regex = patterns.glob_regex(pattern)
        found = [path for path in paths if regex.fullmatch(str(path)) and not path.is_dir()]
        files = sorted(path for path in found if not _is_hidden(path.relative_to(folder)))
        return self._with_rows(files) or files

    def _with_rows(self, files: list[Path]) -> list[Path]:
        """Leave out files that only describe others, and remember them."""
        kept: list[Path] = metadata.without_metadata(files, str, _head)
        self.passed_over[:] = sorted(path.name for path in set(files) - set(kept))
        return kept

    def _folder_files(self) -> list[Path]:
        entries = sorted(entry for entry in self.path.iterdir() if not entry.name.startswith("."))
        named = [entry for entry in entries if has_data_extension(entry.name) and not entry.is_dir()]
        folders = [f"{entry.name}/" for entry in entries if entry.is_dir() and _holds_data(entry)]
        if not (files := self._with_rows(named)):
            glob = f"{folders[0]}*" if folders else "*.jsonl"
            text = f"{self.path} is a directory without data files: name a file, or a glob such as {self.path}/{glob}"
            raise does_not_exist(f"{text}; {patterns.neighbours('', [entry.name for entry in entries])}")
        unread = [entry.name for entry in entries if metadata.may_hold_rows(entry.name) and not entry.is_dir()]
        self.passed_over[:] = sorted([*self.passed_over, *unread, *folders])
        splits = patterns.splits(path.name for path in files)
        if len(splits) > 1:
            raise invalid_spec(
                f"{self.path} holds files of several splits ({', '.join(sorted(splits))}): name the files to train on, "
                f"for example {self.path}/{min(splits.get('train') or next(iter(splits.values())))}"
            )
        return files

    def _file_records(self, path: Path, label: str) -> Iterator[Record]:
        before = path.stat()
        yield from read(DataFile(label or path.name, partial(open_file, path), label))
        after = path.stat()
        if stat.S_ISREG(before.st_mode) and _identity(before) != _identity(after):
            raise SourceInterruptedError(f"{path} changed while it was read")

    def _failure(self, error: OSError) -> Exception:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            missing = Path(error.filename or self.path)
            if missing.is_symlink():
                return does_not_exist(f"{missing} is a link to {missing.readlink()}, which does not exist")
            if missing != self.path:
                return SourceInterruptedError(f"{missing} went away while {self.path} was read")
            return does_not_exist(f"{missing} does not exist: {self._nearest()}")
        if error.errno == errno.ELOOP:
            return does_not_exist(f"{error.filename or self.path} is a link that leads back to itself: name the file")
        known = exits.storage_failure(error)
        text = f"cannot read {error.filename or self.path}: {error.strerror or error}"
        return known or FailureError(exits.UNAVAILABLE, "DatasetUnavailable", text)

    def _nearest(self) -> str:
        folder = self.path.parent
        while not folder.is_dir():
            folder = folder.parent
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
        missing = self.path.relative_to(folder).parts[0]
        return f"{patterns.neighbours(missing, names)} (in {folder})"


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading, unbuffered."""
    return path.open("rb", buffering=0)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(metadata.HEAD_BYTES + 1)


def _holds_data(folder: Path) -> bool:
    try:
        return any(has_data_extension(entry.name) and not entry.name.startswith(".") for entry in folder.iterdir())
    except OSError:
        return False  # what cannot be read is not missed


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns
