"""The audit trail, read: who did what to which thing, and when. It holds names and digests, and no contents."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import and_, or_, select

from finetune.api.audit import AuditEntries, AuditEntry
from finetune.registry.database import Database
from finetune.registry.schema import audit

from .common import PAGE_SIZE, fields


@dataclass(frozen=True, kw_only=True)
class AuditFilter:
    """Which entries. Everything that is given must fit."""

    namespace: str | None = None
    """Its name, or the key of a former one; None: all."""
    actor: str | None = None
    action: str | None = None
    subject: str | None = None
    """What it was done to: a name with its versions and aliases, `name/version`, `name@alias`, a run's name."""
    since: datetime | None = None
    until: datetime | None = None


class AuditLog:
    """Gives back the audit trail."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, wanted: AuditFilter, *, before: int | None = None, limit: int = PAGE_SIZE) -> AuditEntries:
        """A page of entries, newest first; `before` is where the page before ended."""
        query = select(audit)
        for name in ("namespace", "actor", "action"):
            value = getattr(wanted, name)
            if value is not None:
                query = query.where(audit.c[name] == value)
        if wanted.subject is not None:
            parts = (audit.c.subject.startswith(f"{wanted.subject}{mark}", autoescape=True) for mark in "/@")
            query = query.where(or_(audit.c.subject == wanted.subject, *parts))
        if wanted.since is not None:
            query = query.where(audit.c.time >= wanted.since)
        if wanted.until is not None:
            query = query.where(audit.c.time < wanted.until)
        if before is not None:
            last = select(audit.c.time).where(audit.c.id == before).scalar_subquery()
            query = query.where(or_(audit.c.time < last, and_(audit.c.time == last, audit.c.id < before)))
        query = query.order_by(audit.c.time.desc(), audit.c.id.desc()).limit(limit + 1)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        items = [AuditEntry.model_validate(fields(row)) for row in rows[:limit]]
        return AuditEntries(items=items, continue_=str(rows[limit - 1].id) if len(rows) > limit else None)
