"""The rows as tokens, made once: files beside the exported rows that every process and every attempt maps into memory.

    dataset/tokens/manifest.json          what they were made of and when, digests, figures; its presence means whole
    dataset/tokens/chat_template.jinja    with which they were made, if with one
    dataset/tokens/train-ids.bin ...      the arrays of `TokenRows`, as they are in memory

The directory gets its name when all of it is on the disk. Templates may write the day: the moment of rendering is kept,
and whoever has to make the tokens again, for another template or another length, takes the same one.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import shutil
from array import array
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal

from model.files import RunDirectory, publish_directory, write_json
from model.training.rows.report import Figures
from model.training.rows.tokens import PreferenceRows, TokenRows, sequences_of

Rows = TokenRows | PreferenceRows

SCHEMA_VERSION = 1
"""Version of the files and of what is learned of a row: with another one, tokens are made anew."""

_TYPES: dict[str, Literal["i", "q", "b"]] = {"ids": "i", "labels": "i", "offsets": "q", "desirable": "b"}
_BUFFER_TOKENS = 1 << 20
TEMPLATE = "chat_template.jinja"
"""Name of the file with the chat template, which is there when the tokenizer has one."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of a run.

    Parameters
    ----------
    rows, held_out
        What to train on, and what to evaluate on.
    figures
        What the rows are like.
    moment
        When they were rendered, as the chat template saw it.
    sha256
        Digest of all tokens.
    largest
        The largest token.
    """

    rows: Rows
    held_out: Rows
    figures: Figures
    moment: datetime
    sha256: str
    largest: int


def tokens_directory(directory: RunDirectory) -> Path:
    """Return where a run's tokens lie."""
    return directory.dataset / "tokens"


def key_of(tokenizer: Any, **settings: Any) -> dict[str, Any]:
    """Return what decides which tokens rows become: the tokenizer, its chat template, and the settings given."""
    return {
        "schemaVersion": SCHEMA_VERSION,
        "tokenizer": digest_of_tokenizer(tokenizer),
        "chatTemplate": _digest(tokenizer.chat_template),
        **settings,
    }


def digest_of_tokenizer(tokenizer: Any) -> str:
    """Return a digest of what a tokenizer makes of a text."""
    named = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    added = {index: repr(token) for index, token in sorted(tokenizer.added_tokens_decoder.items())}
    if tokenizer.is_fast:
        inner = tokenizer.backend_tokenizer.to_str()
    else:
        inner = json.dumps([type(tokenizer).__name__, tokenizer.get_vocab(), tokenizer.init_kwargs], default=str)
    return _digest([inner, named, {str(index): text for index, text in added.items()}, tokenizer.split_special_tokens])


def kept_key(directory: Path) -> dict[str, Any] | None:
    """Return what the tokens in a directory were made of, None when there are none."""
    document = _manifest(directory)
    return None if document is None else dict(document["key"])


def kept_moment(directory: Path) -> datetime | None:
    """Return when the tokens in a directory were rendered, None when there are none."""
    document = _manifest(directory)
    return None if document is None else datetime.fromisoformat(document["renderedTime"])


def kept_template(directory: Path) -> str | None:
    """Return the chat template that the tokens in a directory were made with, None when there are none, or it is."""
    try:
        return (directory / TEMPLATE).read_bytes().decode()  # its line ends as they are
    except OSError:
        return None


def is_row_for_row(directory: Path) -> bool:
    """Whether each exported line to train on became one row, in the same order."""
    document = _manifest(directory)
    if document is None:
        return False
    outcomes = Figures.read(document["figures"]).training.outcomes
    return outcomes.dropped == outcomes.split_rows == outcomes.chunked_rows == 0


def read(directory: Path, key: Mapping[str, Any], *, whole: bool) -> Tokens | None:
    """Map the tokens in a directory into memory.

    Parameters
    ----------
    directory
        What `Writer` made.
    key
        What they must have been made of.
    whole
        Whether to hold them against their digest: all of them are read.

    Returns
    -------
    None when there are none, others, or not what was written.
    """
    document = _manifest(directory)
    if document is None or document["key"] != dict(key):
        return None
    try:
        rows, held_out = (_mapped(directory, document, side) for side in ("train", "evaluation"))
    except (OSError, ValueError, KeyError):
        return None
    figures = Figures.read(document["figures"])
    rows.outcomes, held_out.outcomes = figures.training.outcomes, figures.held_out.outcomes
    if whole and _digest_of(rows, held_out) != document["sha256"]:
        return None
    moment = datetime.fromisoformat(document["renderedTime"])
    return Tokens(rows, held_out, figures, moment, document["sha256"], document["largest"])


def _manifest(directory: Path) -> dict[str, Any] | None:
    try:
        document = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
        return document if {"key", "files", "figures", "renderedTime", "sha256", "largest"} <= set(document) else None
    except (OSError, ValueError, TypeError):
        return None


@dataclass
class _FileRows(TokenRows):
    """Rows that go to files while they are added; in memory is only what has not been written yet."""

    files: dict[str, BinaryIO] = field(default_factory=dict)
    written: int = 0
    """Rows that are in the files."""

    def __len__(self) -> int:
        return self.written + super().__len__()

    def append(self, ids: Any, labels: Any, desirable: bool | None = None) -> None:
        super().append(ids, labels, desirable)
        if len(self.ids) >= _BUFFER_TOKENS:
            self.flush()

    def flush(self) -> None:
        """Write what is in memory."""
        self.files["ids"].write(self.ids)
        self.files["labels"].write(self.labels)
        self.files["offsets"].write(memoryview(self.offsets)[1:])
        self.files["desirable"].write(self.desirable)
        self.written += len(self.offsets) - 1
        self.ids, self.labels, self.offsets = array("i"), array("i"), array("q", self.offsets[-1:])
        self.desirable = array("b")


class Writer:
    """Makes a directory of tokens: rows are added to `rows` and `held_out`, and `publish` gives it its name.

    What a killed one has left is removed first; nobody else may write at the same time.

    Parameters
    ----------
    directory
        Its name.
    pairs
        Whether the rows are preference pairs.
    """

    def __init__(self, directory: Path, *, pairs: bool) -> None:
        self._directory = directory
        self._temporary = directory.with_name(directory.name + ".tmp")
        for left in (self._temporary, *directory.parent.glob(f"{directory.name}.*.tmp")):
            shutil.rmtree(left, ignore_errors=True)
        self._temporary.mkdir(parents=True)
        self._stack = ExitStack()
        self.rows, self.held_out = (self._side(side, pairs=pairs) for side in ("train", "evaluation"))

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def publish(self, key: Mapping[str, Any], moment: datetime, template: Any = None) -> None:
        """Bring everything to the disk and give it its name, in place of what has that name.

        Parameters
        ----------
        key
            What the tokens were made of.
        moment
            When they were rendered.
        template
            The tokenizer's chat template; several by name are not kept.
        """
        sequences = [part for side in (self.rows, self.held_out) for part in sequences_of(side)]
        sizes: dict[str, int] = {}
        for part in sequences:
            assert isinstance(part, _FileRows)
            part.flush()
            for file in part.files.values():
                file.flush()
                sizes[Path(file.name).name] = file.tell()
        document = {"files": sizes, "pairs": isinstance(self.rows, PreferenceRows)}
        rows, held_out = (_mapped(self._temporary, document, side) for side in ("train", "evaluation"))
        rows.outcomes, held_out.outcomes = self.rows.outcomes, self.held_out.outcomes
        document |= {
            "key": dict(key),
            "renderedTime": moment.isoformat(timespec="seconds"),
            "largest": max(map(_largest, _not_empty(rows, held_out)), default=0),
            "sha256": _digest_of(rows, held_out),
            "figures": Figures.of(rows, held_out).document(),
        }
        if isinstance(template, str):
            (self._temporary / TEMPLATE).write_bytes(template.encode())
        write_json(self._temporary / "manifest.json", document)
        publish_directory(self._temporary, self._directory)

    def _side(self, side: str, *, pairs: bool) -> Rows:
        if not pairs:
            return self._files(side)
        return PreferenceRows(self._files(f"{side}-chosen"), self._files(f"{side}-rejected"))

    def _files(self, name: str) -> _FileRows:
        rows = _FileRows()
        for kind in _TYPES:
            path = self._temporary / f"{name}-{kind}.bin"
            rows.files[kind] = self._stack.enter_context(path.open("wb"))
        rows.files["offsets"].write(rows.offsets)
        return rows


def _mapped(directory: Path, document: Mapping[str, Any], side: str) -> Rows:
    if not document["pairs"]:
        return _mapped_rows(directory, document["files"], side)
    chosen, rejected = (_mapped_rows(directory, document["files"], f"{side}-{name}") for name in ("chosen", "rejected"))
    return PreferenceRows(chosen, rejected)


def _mapped_rows(directory: Path, sizes: Mapping[str, int], name: str) -> TokenRows:
    """Return the rows of which the arrays lie in files; the files stay readable when they are removed."""
    views = {}
    for kind, code in _TYPES.items():
        file_name = f"{name}-{kind}.bin"
        if kind == "desirable" and file_name not in sizes:  # made before there were labels
            continue
        with (directory / file_name).open("rb") as file:
            size = file.seek(0, 2)
            if size != sizes[file_name]:
                raise ValueError(f"{file_name} has {size} bytes, not {sizes[file_name]}")
            held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        views[kind] = memoryview(held).cast(code)
    rows = TokenRows(views["ids"], views["labels"], views["offsets"])
    rows.desirable = views.get("desirable", rows.desirable)
    return rows


def _digest_of(rows: Rows, held_out: Rows) -> str:
    digest = hashlib.sha256()
    for part in _not_empty(rows, held_out):
        for values in (part.ids, part.labels, part.offsets, part.desirable):
            digest.update(values)
    return digest.hexdigest()


def _not_empty(*sides: Rows) -> list[TokenRows]:
    return [part for side in sides for part in sequences_of(side) if len(part)]


def _largest(rows: TokenRows) -> int:
    import numpy

    return int(numpy.frombuffer(rows.ids, numpy.int32).max())


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
