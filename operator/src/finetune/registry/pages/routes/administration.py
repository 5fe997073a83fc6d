"""For those who may see every namespace: what is kept, and who did what."""

from __future__ import annotations

import re

from starlette.responses import Response
from starlette.routing import BaseRoute

from finetune.api.registry import NAMESPACE_PATTERN
from finetune.registry.pages.views.administration import entry, page_address
from finetune.registry.pages.visit import Visit, screen

ENTRIES = 100


def routes() -> list[BaseRoute]:
    """Routes of the administration. Without a namespace in the path, the right is asked for all of them."""
    return [
        screen("/-/administration", _storage, verb="list", resource="trainingruns"),
        screen("/-/audit", _audit, verb="list", resource="audit"),
    ]


async def _storage(visit: Visit) -> Response:
    queries = visit.site.queries
    return visit.page(
        "administration.html",
        "administration",
        rows=await queries.storage(),
        totals=await queries.store_totals(),
        former=await queries.former_namespaces(),
        viewers=visit.site.hub.viewers,
    )


async def _audit(visit: Visit) -> Response:
    said, before = visit.query("namespace"), visit.query("continue")
    namespace = said if re.fullmatch(NAMESPACE_PATTERN, said) else None
    found = await visit.site.queries.audit(
        namespace=namespace,
        before=int(before) if before.isdecimal() and len(before) < 18 else None,
        limit=ENTRIES,
    )
    shown = found[:ENTRIES]
    return visit.page(
        "audit.html",
        "audit",
        entries=[entry(row) for row in shown],
        wanted=namespace or "",
        links={
            "newest": page_address(namespace, None) if before else None,
            "older": page_address(namespace, shown[-1].id) if len(found) > ENTRIES else None,
        },
    )
