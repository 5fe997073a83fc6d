"""`finetune datasets`: the datasets of the registry."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .output import document, facts, painted, printable, table
from .session import Session, UsageError

if TYPE_CHECKING:
    from finetune.clients.people import PeopleClient
    from finetune.clients.registry import DatasetVersion

COLUMNS = ("NAME", "VERSION", "ROWS", "BYTES", "SHAPE", "SHA256", "CREATED")
SHOWN_ROWS = 5
SHOWN_CHARACTERS = 160


async def push(session: Session, arguments: argparse.Namespace) -> str:
    """Store a file of JSON lines as a new version of a dataset."""
    file: Path = arguments.file
    file.open("rb").close()  # what cannot be read fails here: the client would take it for a lost connection
    version, created = await (await session.registry()).push_dataset(session.namespace, arguments.name, file)
    if arguments.output in {"json", "yaml"}:
        return document(_plain(version), arguments.output)
    if arguments.output == "name":
        return f"{version.name}@{version.version}"
    done = "stored as" if created else "unchanged: it already is"
    return f"{done} {version.name} version {version.version} ({version.rows} rows, {version.shape})"


async def list_datasets(session: Session, arguments: argparse.Namespace) -> str:
    """The datasets of a namespace, or the versions of one."""
    registry = await session.registry()
    if arguments.name is None:
        items = await registry.list_datasets(session.namespace)
    else:
        items = await registry.list_dataset_versions(session.namespace, arguments.name)
    if arguments.output == "name":
        return "\n".join(f"{item.name}@{item.version}" for item in items)
    if arguments.output in {"json", "yaml"}:
        return document([_plain(item) for item in items], arguments.output)
    return table(COLUMNS, map(_row, items))


async def show(session: Session, arguments: argparse.Namespace) -> str:
    """One version of a dataset, with its first rows in the wide form."""
    registry, (name, version) = await session.registry(), arguments.dataset
    item = await registry.get_dataset_version(session.namespace, name, version)
    if arguments.output in {"json", "yaml"}:
        return document(_plain(item), arguments.output)
    if arguments.output == "name":
        return f"{item.name}@{item.version}"
    known = facts(dict(zip(COLUMNS, _row(item), strict=True)))
    if arguments.output != "wide":
        return known
    rows = registry.rows(session.namespace, name, item.version)
    return "\n".join([known, "", *map(_short, await _first(rows))])


async def delete(session: Session, arguments: argparse.Namespace) -> str:
    """Delete the rows of a version."""
    name, version = arguments.dataset
    await (await session.registry()).delete_dataset(session.namespace, name, version)
    return f"deleted the rows of {name} version {version}"


async def diff(session: Session, arguments: argparse.Namespace) -> str:
    """How many rows two versions do not share, and the first of them; the rows' order does not count."""
    registry, (name, old), new = await session.registry(), arguments.dataset, arguments.other
    if old is None:
        raise UsageError(f"say which version to compare with: {name}@1")
    newest = await registry.get_dataset_version(session.namespace, name, new)
    before = await registry.count_rows(session.namespace, name, old)
    after = await registry.count_rows(session.namespace, name, newest.version)
    added, removed = after - before, before - after
    counts = {"added": added.total(), "removed": removed.total(), "same": (before & after).total()}
    if arguments.output in {"json", "yaml"}:
        return document({"name": name, "from": old, "to": newest.version, **counts}, arguments.output)
    change = f"+{counts['added']} -{counts['removed']} rows, {counts['same']} the same"
    lines = [f"{name}@{old} -> {name}@{newest.version}: {change}"]
    for sign, colour, version, wanted in (("-", "red", old, removed), ("+", "green", newest.version, added)):
        found = await _rows_of(registry, session.namespace, name, version, wanted)
        lines += [painted(f"{sign} {_short(row)}", colour) for row in found]
        if (more := wanted.total() - len(found)) > 0:
            lines.append(f"{sign} ... and {more} more")
    return "\n".join(lines)


def _row(item: DatasetVersion) -> Sequence[object]:
    created = f"{item.created_time:%Y-%m-%d %H:%M:%SZ}"
    return (item.name, item.version, item.rows, item.bytes, item.shape, item.sha256[:12], created)


def _plain(item: DatasetVersion) -> dict[str, object]:
    return item.model_dump(mode="json", by_alias=True, exclude_none=True)


def _short(row: bytes) -> str:
    text = printable(row.decode(errors="replace"))
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"


async def _first(rows: AsyncIterator[bytes]) -> list[bytes]:
    """The first rows that are shown."""
    found: list[bytes] = []
    async for row in rows:
        found.append(row)
        if len(found) == SHOWN_ROWS:
            break
    return found


async def _rows_of(
    registry: PeopleClient, namespace: str, name: str, version: int, wanted: Counter[bytes]
) -> list[bytes]:
    """The first rows of a version that are among those that are wanted."""
    from finetune.clients.people import row_digest

    left, found = Counter(wanted), list[bytes]()
    if not left:
        return found
    async for row in registry.rows(namespace, name, version):
        digest = row_digest(row)
        if left[digest] > 0:
            left[digest] -= 1
            found.append(row)
            if len(found) == SHOWN_ROWS:
                break
    return found
