"""Where a run's files lie on its claim, and how they are written: whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
"""Version of `manifest.json` and `training_config.json`."""

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class RunDirectory:
    """The directory of one run, `<claim>/<experiment>/<run uid>`."""

    path: Path

    @property
    def dataset(self) -> Path:
        """Directory of the exported rows."""
        return self.path / "dataset"

    @property
    def train_rows(self) -> Path:
        """JSON lines to train on."""
        return self.dataset / "train.jsonl"

    @property
    def evaluation_rows(self) -> Path:
        """JSON lines held out from training."""
        return self.dataset / "evaluation.jsonl"

    @property
    def manifest(self) -> Path:
        """Written last by the export: its presence means that the rows are complete."""
        return self.dataset / "manifest.json"

    @property
    def report(self) -> Path:
        """What the export found out about the dataset, also when it refused it."""
        return self.dataset / "report.json"

    @property
    def checkpoints(self) -> Path:
        """Directory of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """Directory of the finished adapter."""
        return self.path / "adapter"

    @property
    def metrics(self) -> Path:
        """The progress lines of all attempts."""
        return self.path / "metrics.jsonl"

    @property
    def trained(self) -> Path:
        """What the trainer had done before it began with the sample answers; gone when the run is done."""
        return self.path / "trained.json"

    @property
    def training_config(self) -> Path:
        """Written last by the trainer: its presence means that the run is done."""
        return self.path / "training_config.json"


@dataclass(frozen=True)
class FileDigest:
    """One file of a directory: its path relative to it, size and SHA-256."""

    path: str
    bytes: int
    sha256: str

    def document(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"path": self.path, "bytes": self.bytes, "sha256": self.sha256}


def fsync_path(path: Path) -> None:
    """Make the file's or directory's content survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document atomically, see `write_text`.

    What is not UTF-8 in a file's name becomes an escape, and the same again when the document is read.
    """
    write_text(path, json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text atomically: readers see the old file or the new one, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_path(path.parent)


def publish_directory(temporary: Path, final: Path) -> None:
    """Give a finished directory its name, after every file of it has reached the disk.

    An older directory of that name gives way to it. Should it not be ours to remove, it stays beside it under another.
    """
    for file in temporary.rglob("*"):
        if file.is_file():
            fsync_path(file)
    fsync_path(temporary)
    older = final.with_name(f"{final.name}.{os.getpid()}.tmp")
    shutil.rmtree(older, ignore_errors=True)  # of a killed process with our number: numbers come again in a pod
    if replaced := final.exists():
        final.rename(older)
    temporary.rename(final)
    fsync_path(final.parent)
    if replaced:
        shutil.rmtree(older, ignore_errors=True)


def sha256_of_files(paths: Iterable[Path]) -> str:
    """Hex SHA-256 of the files' contents, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def digest_directory(directory: Path) -> list[FileDigest]:
    """Digest every file below the directory, sorted by path (by bytes, as in the C locale)."""
    return [
        FileDigest(str(path.relative_to(directory)), path.stat().st_size, sha256_of_files([path]))
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    ]


def combined_digest(files: Iterable[FileDigest]) -> str:
    """Hex SHA-256 of the lines that `sha256sum` prints for the files, sorted by path."""
    lines = "".join(f"{file.sha256}  {file.path}\n" for file in sorted(files, key=lambda file: file.path))
    return hashlib.sha256(lines.encode()).hexdigest()
