"""Datasets: the list, and one with its versions, rows and differences."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from starlette.responses import Response
from starlette.routing import BaseRoute

from finetune.api.registry import DatasetVersion
from finetune.registry.errors import RegistryFault
from finetune.registry.pages.text import age
from finetune.registry.pages.views.datasets import (
    DIFFERED_BYTES,
    LOOKED_AT_BYTES,
    ROWS_SHOWN,
    difference,
    lengths_of,
    lines_of,
    rows_at,
)
from finetune.registry.pages.views.runs import base_path
from finetune.registry.pages.visit import Visit, screen

MOST_DIFFERENCES = 1000


def routes() -> list[BaseRoute]:
    """Routes of datasets."""
    return [
        screen("/{namespace}/datasets", _datasets, verb="list", resource="datasets"),
        screen("/{namespace}/datasets/{name}", _dataset, verb="get", resource="datasets"),
    ]


async def _datasets(visit: Visit) -> Response:
    after = visit.query("continue") or None
    found = await visit.services.datasets.newest(visit.namespace, after=after)
    path = f"{base_path(visit.namespace)}/datasets"
    return visit.page(
        "datasets.html",
        "datasets",
        rows=[_row(path, each) for each in found.items],
        links={
            "newest": path if after else None,
            "older": f"{path}?continue={found.continue_}" if found.continue_ else None,
        },
    )


def _row(path: str, version: DatasetVersion) -> dict[str, Any]:
    return {
        "name": version.name,
        "version": version.version,
        "href": f"{path}/{version.name}?version={version.version}",
        "rows": version.rows,
        "bytes": version.bytes,
        "shape": version.shape,
        "sha256": version.sha256,
        "age": age(version.created_time, datetime.now(UTC)),
    }


async def _dataset(visit: Visit) -> Response:
    name = visit.path("name")
    versions = await visit.services.datasets.versions(visit.namespace, name)
    wanted = _number(visit.query("version"))
    version, blocks = await visit.services.datasets.rows(visit.namespace, name, wanted)
    may_read = await visit.may("get", "datasets/rows", name)
    lines = [line async for line in lines_of(blocks, LOOKED_AT_BYTES)] if may_read else []
    first = _number(visit.query("row")) or 1
    path = f"{base_path(visit.namespace)}/datasets"
    shown = rows_at(lines, first, version.shape)
    last = shown[-1].number if shown else 0
    here = f"{path}/{name}?version={version.version}"
    may_see_runs = await visit.may("list", "trainingruns")
    used_by = await visit.site.queries.runs_of_dataset(visit.namespace, name, version.version) if may_see_runs else []
    return visit.page(
        "dataset.html",
        "datasets",
        name=name,
        path=f"{path}/{name}",
        version=_row(path, version),
        rows=[_row(path, each) for each in versions.items],
        runs=await visit.site.queries.runs_of_versions(visit.namespace, name),
        shown=shown,
        first=first,
        lengths=lengths_of(lines, is_all=version.bytes <= LOOKED_AT_BYTES),
        links={
            "newest": f"{here}&row={max(1, first - ROWS_SHOWN)}" if first > 1 else None,
            "older": f"{here}&row={last + 1}" if shown and last < len(lines) else None,
        },
        against=await _against(visit, name, version) if may_read else None,
        may_read=may_read,
        used_by=used_by,
        used_by_unfinished=[run.name for run in used_by if not run.ended],
        may_delete=await visit.may("delete", "datasets", name),
    )


async def _against(visit: Visit, name: str, version: DatasetVersion) -> dict[str, Any] | None:
    """What differs from the version that the address asks to compare with."""
    other = _number(visit.query("against"))
    if other is None:
        return None
    before, old = await visit.services.datasets.rows(visit.namespace, name, other)
    if max(before.bytes, version.bytes) > DIFFERED_BYTES:
        return {"version": other, "difference": None, "limit": DIFFERED_BYTES}
    _, new = await visit.services.datasets.rows(visit.namespace, name, version.version)
    return {"version": other, "difference": await difference(old, new), "limit": DIFFERED_BYTES}


async def rows_between(visit: Visit, name: str, old: int, new: int) -> str:
    """How many rows two versions do not share, in words; empty where that cannot be told, or only by long reading.

    Versions never change, so they are counted once.
    """
    datasets, kept = visit.services.datasets, visit.site.differences
    try:
        if not await visit.may("get", "datasets/rows", name):
            return ""
        versions = [await datasets.version(visit.namespace, name, number) for number in (old, new)]
        if max(version.bytes for version in versions) > LOOKED_AT_BYTES:
            return ""
        key = (versions[0].sha256, versions[1].sha256)
        if key not in kept:
            (_, before), (_, after) = [await datasets.rows(visit.namespace, name, number) for number in (old, new)]
            found = await difference(before, after)
            if len(kept) >= MOST_DIFFERENCES:
                kept.clear()
            kept[key] = f"+{found.added:,} −{found.removed:,} rows"  # noqa: RUF001 - a true minus
    except RegistryFault:  # deleted, or the store does not answer: the rest of the page is there
        return ""
    return kept[key]


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() and text.isascii() and 0 < len(text) < 10 and int(text) else None
