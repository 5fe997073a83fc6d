"""Which files of a dataset repository are which split of which configuration."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from model.data.sources import patterns

_CONVERTED = re.compile(r"(?P<configuration>[^/]+)/(?:partial-)?(?P<split>[^/]+)/\d{4,}\.\w+")


def converted_configurations(paths: Iterable[str]) -> dict[str, Mapping[str, Any]]:
    """Return the configurations that folders stand for, as on the branch of converted Parquet.

    It has no card, but one folder for each configuration, in it one for each split, and in these numbered files. None
    when a file lies elsewhere.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        if (match := _CONVERTED.fullmatch(path)) is None:
            return {}
        entry = found.setdefault(match["configuration"], {"data_files": []})
        files = {"split": match["split"], "path": path.rpartition("/")[0] + "/*"}
        if files not in entry["data_files"]:
            entry["data_files"].append(files)
    return dict(found)


def configured_splits(configuration: Mapping[str, Any], paths: Sequence[str]) -> dict[str, list[str]]:
    """Return the files of each split by what the card says, or by their names when it says nothing."""
    folder = str(configuration.get("data_dir") or "").strip("/")
    within = [path for path in paths if not folder or path.startswith(f"{folder}/")]
    data_files = configuration.get("data_files")
    if not data_files:
        return patterns.splits(within) if within else {}
    entries = data_files if isinstance(data_files, list) else [data_files]
    found: dict[str, list[str]] = {}
    for entry in entries:
        named = isinstance(entry, dict)
        split = str(entry.get("split", "train")) if named else "train"
        globs = entry.get("path", []) if named else entry
        for glob in [globs] if isinstance(globs, str) else globs:
            regex = patterns.glob_regex(f"{folder}/{glob}" if folder else str(glob))
            matching = [path for path in within if regex.fullmatch(path)]
            found.setdefault(split, []).extend(path for path in matching if path not in found.get(split, []))
    return {split: sorted(files) for split, files in found.items() if files}
