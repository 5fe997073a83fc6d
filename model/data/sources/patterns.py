"""Names of files: globs, the split that a name speaks of, and what is near to a name that is not there."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from model.data.keys import SPLIT_WORDS

WILDCARDS = "*?["
SHOWN = 10

_SHARD = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*\.[^/]+")
_WORD = re.compile(r"[a-z]+")


def has_wildcard(path: str) -> bool:
    """Tell whether a path is a glob."""
    return any(mark in path for mark in WILDCARDS)


def fixed_folder(pattern: str) -> str:
    """Return the folder above the first wildcard of a glob, with its slash; empty for none."""
    first = min((pattern.find(mark) for mark in WILDCARDS if mark in pattern), default=len(pattern))
    return pattern[: pattern.rfind("/", 0, first) + 1]


def glob_regex(pattern: str) -> re.Pattern[str]:
    """Translate a glob: `*` and `?` stay within a folder, `**` goes through any number of them."""
    parts = []
    for piece in re.findall(r"\*\*/|\*\*|\*|\?|\[[^\]]*\]|.", pattern, re.DOTALL):
        if piece == "**/":
            parts.append("(?:.*/)?")
        elif piece == "**":
            parts.append(".*")
        elif piece == "*":
            parts.append("[^/]*")
        elif piece == "?":
            parts.append("[^/]")
        elif piece.startswith("[") and len(piece) > 2:
            inner = piece[1:-1].replace("\\", "\\\\")
            parts.append(f"[^{inner[1:]}]" if inner[0] in "!^" else f"[{inner}]")
        else:
            parts.append(re.escape(piece))
    try:
        return re.compile("".join(parts), re.DOTALL)
    except re.error:  # a range such as [z-a] matches nothing; so does this
        return re.compile(r"(?!)")


def splits(paths: Iterable[str]) -> dict[str, list[str]]:
    """Sort files by the split that their paths speak of, by the hub's rules.

    Shards such as `data/train-00000-of-00002.parquet` count before words in folders' names, and these before words
    in files' names; where nothing speaks of a split, all files are `train`.
    """
    there = sorted(paths)
    for rule in (_shard_split, _folder_split, _name_split):
        found: dict[str, list[str]] = {}
        for path in there:
            if (split := rule(path)) is not None:
                found.setdefault(split, []).append(path)
        if found:
            return found
    return {"train": there}


def _shard_split(path: str) -> str | None:
    shard = _SHARD.fullmatch(path)
    return SPLIT_WORDS.get(shard[1], shard[1]) if shard else None


def _folder_split(path: str) -> str | None:
    return next(filter(None, map(_word_split, path.split("/")[:-1])), None)


def _name_split(path: str) -> str | None:
    return _word_split(path.rsplit("/", 1)[-1])


def _word_split(name: str) -> str | None:
    return next((SPLIT_WORDS[word] for word in _WORD.findall(name.lower()) if word in SPLIT_WORDS), None)


def neighbours(name: str, there: Sequence[str]) -> str:
    """Say what is there in place of a name: the nearest, or the first few."""
    if near := difflib.get_close_matches(name, there, n=1):
        return f"did you mean {near[0]}?"
    more = f" and {len(there) - SHOWN} more" if len(there) > SHOWN else ""
    return f"there is {', '.join(sorted(there)[:SHOWN]) or 'nothing'}{more}"


def labels(paths: Sequence[str]) -> list[str]:
    """Return short names that tell several files apart: without the folders that all share. Empty for a single one."""
    if len(paths) < 2:
        return [""] * len(paths)
    folders = [path.split("/")[:-1] for path in paths]
    common = 0
    while all(len(folder) > common and folder[common] == folders[0][common] for folder in folders):
        common += 1
    return ["/".join(path.split("/")[common:]) for path in paths]
