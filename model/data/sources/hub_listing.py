"""What a dataset repository held when the hub was last asked, kept in the hub's cache for when it is out of reach."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
import urllib.parse
from pathlib import Path

_COMMIT = re.compile(r"[0-9a-f]{40}")


def remember(folder: Path, revision: str | None, commit: str, paths: list[str]) -> None:
    """Keep a revision's commit and files in a repository's folder; a cache that cannot be written is left."""
    with contextlib.suppress(OSError):
        for name in {revision or "main", commit}:
            path = _path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
                json.dump({"commit": commit, "files": paths}, file)
            Path(file.name).replace(path)


def recall(folder: Path, revision: str | None) -> tuple[str, list[str]] | None:
    """Return a revision's commit and files; None when the cache does not know it.

    Of a cache that other tools have filled, the files that are there count.
    """
    name = revision or "main"
    try:
        document = json.loads(_path(folder, name).read_text(encoding="utf-8"))
        return str(document["commit"]), [str(path) for path in document["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    reference = folder / "refs" / name
    commit = reference.read_text().strip() if reference.is_file() else name
    snapshot = folder / "snapshots" / commit
    if not _COMMIT.fullmatch(commit) or not snapshot.is_dir():
        return None
    return commit, sorted(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file())


def _path(folder: Path, name: str) -> Path:
    return folder / "listings" / f"{urllib.parse.quote(name, safe='')}.json"
