"""Which files of a folder hold rows: not those in which tools keep what they know about the rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from typing import Any

from model.data.forms import CANONICAL_FIELDS
from model.data.readers import bare_name
from model.data.shapes import LIKELY_NAMES

HEAD_BYTES = 64 << 10
"""Of a file that may be metadata: one that is longer is none."""

_NAMES = {
    "adapter_config.json", "config.json", "croissant.json", "dataset_dict.json", "dataset_info.json",
    "dataset_infos.json", "datapackage.json", "generation_config.json", "package.json", "state.json",
    "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip
_ROW_FIELDS = frozenset(CANONICAL_FIELDS) | LIKELY_NAMES


_UNREAD = (
    ".bz2", ".xz", ".lz4", ".zip", ".7z", ".tar", ".tgz", ".rar", ".xlsx", ".xls", ".ods", ".orc", ".avro", ".pkl",
    ".sqlite", ".tfrecord",
)  # fmt: skip


def may_hold_rows(name: str) -> bool:
    """Whether a file that is not read may hold rows all the same, so that leaving it out must be said."""
    return bare_name(name).endswith(_UNREAD) and not named_so(name)


def named_so(path: str) -> bool:
    """Whether a file's name, or that of a folder above it, says that it holds no rows.

    Hidden files, those of Spark (`_SUCCESS`, `_metadata`), check sums, cards and programs, and what the hub's tools
    write beside the data.
    """
    parts = PurePosixPath(path).parts
    hidden = any(part.startswith((".", "__")) for part in parts) or parts[-1].startswith("_")
    return hidden or parts[-1] in _NAMES or path.endswith((".crc", ".md", ".py", ".txt", ".yaml", ".yml"))


def without_metadata(paths: Iterable[Any], name: Callable[[Any], str], head: Callable[[Any], bytes]) -> list[Any]:
    """Return the files that hold rows, as far as names and a look at small JSON files tell.

    Where that would leave none, only names count: one object a file may be what the rows are.

    Parameters
    ----------
    paths
        Files, in any form.
    name
        Gives a file's name.
    head
        Gives a file's first `HEAD_BYTES` + 1 bytes.
    """
    named = [path for path in paths if not named_so(name(path).rsplit("/", 1)[-1])]
    single = [path for path in named if name(path).lower().endswith(".json")]
    if len(named) < 2 or not single:
        return named
    described = [path for path in single if is_description(head(path))]
    return [path for path in named if path not in described] or named


def is_description(content: bytes) -> bool:
    """Whether a file's content is one JSON object that has no field of a row."""
    if len(content) > HEAD_BYTES or not content.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
        return False
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return False  # several objects, or none
    return isinstance(value, dict) and not any(str(key).lower() in _ROW_FIELDS for key in value)
