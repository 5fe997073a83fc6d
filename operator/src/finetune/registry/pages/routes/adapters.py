"""Adapters: the list, one with its versions, and its files."""

from __future__ import annotations

from datetime import UTC, datetime

from starlette.responses import Response
from starlette.routing import BaseRoute

from finetune.api.registry import AdapterVersion
from finetune.registry.errors import NotFound
from finetune.registry.pages.views.adapters import MARKS, alias_rows, rank_of, version_row, version_view
from finetune.registry.pages.views.run import read_result, samples_of, tags_text
from finetune.registry.pages.views.runs import base_path
from finetune.registry.pages.visit import Visit, screen
from finetune.registry.service.files import archive_response


def routes() -> list[BaseRoute]:
    """Routes of adapters."""
    return [
        screen("/{namespace}/adapters", _adapters, verb="list", resource="adapters"),
        screen("/{namespace}/adapters/{name}", _adapter, verb="get", resource="adapters"),
        screen("/{namespace}/adapters/{name}/{version}/archive.tar", _archive, verb="get", resource="adapters"),
    ]


async def _adapters(visit: Visit) -> Response:
    after = visit.query("continue") or None
    found = await visit.services.adapters.newest(visit.namespace, after=after)
    now = datetime.now(UTC)
    path = f"{base_path(visit.namespace)}/adapters"
    return visit.page(
        "adapters.html",
        "adapters",
        rows=[version_row(visit.namespace, each, now) for each in found.items],
        links={
            "newest": path if after else None,
            "older": f"{path}?continue={found.continue_}" if found.continue_ else None,
        },
    )


async def _adapter(visit: Visit) -> Response:
    name, now = visit.path("name"), datetime.now(UTC)
    before = visit.query("continue")
    versions = await visit.services.adapters.versions(
        visit.namespace, name, before=int(before) if before.isdecimal() and len(before) < 10 else None
    )
    chosen = await _chosen(visit, name, versions.items)
    path = f"{base_path(visit.namespace)}/adapters/{name}"
    rank, samples = 16, None
    if await visit.may("get", "trainingruns", chosen.run_uid):
        run = await visit.services.runs.get(visit.namespace, chosen.run_uid)
        rank = rank_of(run.spec)
        try:
            samples = read_result(await visit.services.runs.result(visit.namespace, chosen.run_uid))
        except NotFound:
            samples = None
    view = version_view(visit.namespace, chosen, now, rank=rank)
    return visit.page(
        "adapter.html",
        "adapters",
        name=name,
        path=path,
        rows=[version_row(visit.namespace, each, now) for each in versions.items],
        aliases=alias_rows((await visit.services.states.aliases(visit.namespace, name)).items, now),
        version=view,
        tags=tags_text(view.row.tags),
        marks=MARKS,
        samples=samples_of(samples),
        used_by=await visit.site.queries.users_of_adapter(visit.namespace, name, chosen.version),
        links={
            "newest": path if before else None,
            "older": f"{path}?continue={versions.continue_}" if versions.continue_ else None,
        },
        may_update=await visit.may("update", "adapters", name),
        may_protect=await visit.may("protect", "adapters", name),
        may_delete=await visit.may("delete", "adapters", name),
    )


async def _chosen(visit: Visit, name: str, listed: list[AdapterVersion]) -> AdapterVersion:
    """The version that the address names; else the newest that is offered; else the newest of all."""
    said = visit.query("version")
    if said.isdecimal() and 0 < len(said) < 10:
        return await visit.services.adapters.version(visit.namespace, name, int(said))
    try:
        return await visit.services.adapters.version(visit.namespace, name, None)
    except NotFound:
        if not listed:
            raise
        return listed[0]


async def _archive(visit: Visit) -> Response:
    name, version = visit.path("name"), int(visit.path("version"))
    return await archive_response(visit.services, visit.namespace, name, version)
