"""The route of the audit trail."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from finetune.api.audit import AuditEntries
from finetune.api.registry import Time
from finetune.registry.store.audit import AuditFilter, AuditLog
from finetune.registry.store.common import PAGE_SIZE

from .common import NamespacePath, RowAfter, ServicesOf, page_number, people

router = APIRouter(prefix="/api/v1/namespaces/{namespace}/audit", tags=["audit"])

Words = Annotated[str | None, Query(max_length=512, pattern=r"^[^\x00]*$")]


@router.get("", dependencies=[people("list", "audit")])
async def list_audit(
    *,
    namespace: NamespacePath,
    services: ServicesOf,
    actor: Words = None,
    action: Words = None,
    subject: Words = None,
    since: Annotated[Time | None, Query(description="not before this time")] = None,
    until: Annotated[Time | None, Query(description="before this time")] = None,
    limit: Annotated[int, Query(ge=1, le=PAGE_SIZE)] = PAGE_SIZE,
    before: RowAfter = None,
) -> AuditEntries:
    """Who did what in a namespace, newest first. Needs `list` on `audit`: of the chart's roles admin has it."""
    wanted = AuditFilter(namespace=namespace, actor=actor, action=action, subject=subject, since=since, until=until)
    return await AuditLog(services.database).page(wanted, before=page_number(before), limit=limit)
