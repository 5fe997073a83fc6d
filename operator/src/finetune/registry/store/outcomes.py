"""What became of runs, as the operator tells it: at each change of phase, in any order, as often as it likes."""

from __future__ import annotations

import math
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from finetune.api.registry import DELETED, OutcomeRequest, RunOutcome, UnfinishedRun, UnfinishedRuns
from finetune.registry.database import Database
from finetune.registry.schema import runs

from .common import PAGE_SIZE, record, run_missing

FORGOTTEN_KEY = "~"
"""Begins the keys of namespaces that are gone; no namespace of a cluster is called so."""


class OutcomeStore:
    """Stores outcomes, and tells of which runs none is known."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, namespace: str, uid: str, request: OutcomeRequest, *, actor: str) -> RunOutcome:
        """Store what the operator says; returns what is known now, which may be newer. Raises `NotFound`.

        See `replaces` for what an old, a repeated or a late word changes.
        """

        async def transaction(connection: AsyncConnection) -> RunOutcome:
            query = select(runs).where(runs.c.uid == uid, runs.c.namespace == namespace)
            row = (await connection.execute(query.with_for_update(key_share=True))).first()
            if row is None:
                raise run_missing(namespace, uid)
            known = outcome_of(row)
            if not replaces(known, row.status_version or 0, request):
                assert known is not None  # there is no older word than none
                return known
            changes = _columns(request)
            if request.phase == DELETED:  # the rest is what was known of it
                changes = {name: value for name, value in changes.items() if value is not None}
            changes["status_version"] = request.version or row.status_version
            change = update(runs).where(runs.c.id == row.id).values(**changes).returning(runs)
            stored = outcome_of((await connection.execute(change)).one())
            assert stored is not None  # it has a phase now
            if request.ended and stored != known:  # it is told again, by whoever does not know whether it was
                await record(
                    connection,
                    actor=actor,
                    action="EndRun",
                    namespace=namespace,
                    subject=row.name,
                    details={"uid": uid, "phase": request.phase, "reason": request.reason},
                )
            return stored

        return await self._database.write(transaction)

    async def unfinished(self, *, after: int | None = None) -> UnfinishedRuns:
        """A page of the runs of all namespaces that have not ended, oldest first."""
        columns = (runs.c.id, runs.c.namespace, runs.c.name, runs.c.uid, runs.c.phase)
        query = select(*columns).where(runs.c.ended.is_(False), ~runs.c.namespace.startswith(FORGOTTEN_KEY))
        if after is not None:
            query = query.where(runs.c.id > after)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query.order_by(runs.c.id).limit(PAGE_SIZE + 1))).all()
        page = rows[:PAGE_SIZE]
        items = [UnfinishedRun(namespace=row.namespace, name=row.name, uid=row.uid, phase=row.phase) for row in page]
        return UnfinishedRuns(items=items, continue_=str(page[-1].id) if len(rows) > PAGE_SIZE else None)


def replaces(known: RunOutcome | None, version: int, said: OutcomeRequest) -> bool:
    """Whether what is said takes the place of what is known, which was said of an object of `version`.

    An end is final; only another end may replace it, for a cluster that was restored to an earlier state goes on to one
    of its own. That an object is gone is not said by an object: a newer word than the last of it shows that it is not
    so. Otherwise the newer object is right; one whose version is not known is taken for the newest.
    """
    if known is None:
        return True
    if said.phase == DELETED:
        return not known.ended
    if known.ended:
        return said.ended or (known.phase == DELETED and said.version > version)
    return said.ended or said.version == 0 or said.version >= version


def outcome_of(row: Any) -> RunOutcome | None:
    """The outcome in a row of `runs`; None before the operator has said anything."""
    if row.phase is None:
        return None
    return RunOutcome(
        phase=row.phase,
        reason=row.reason,
        message=row.message,
        hint=row.hint,
        row=row.failed_row,
        attempts=row.attempts,
        gpu_seconds=row.gpu_seconds,
        resumed_from_step=row.resumed_from_step,
        start_time=row.started_time,
        completion_time=row.finished_time,
        evaluation_loss=_text(row.evaluation_loss),
        base_evaluation_loss=_text(row.base_evaluation_loss),
        ended=row.ended,
    )


def _columns(said: OutcomeRequest) -> dict[str, Any]:
    return {
        "phase": said.phase,
        "reason": said.reason,
        "message": said.message,
        "hint": said.hint,
        "failed_row": said.row,
        "attempts": said.attempts,
        "gpu_seconds": said.gpu_seconds,
        "resumed_from_step": said.resumed_from_step,
        "started_time": said.start_time,
        "finished_time": said.completion_time,
        "evaluation_loss": _number(said.evaluation_loss),
        "base_evaluation_loss": _number(said.base_evaluation_loss),
        "ended": said.ended,
    }


def _number(text: str | None) -> float | None:
    value = None if text is None else float(text)
    return value if value is not None and math.isfinite(value) else None


def _text(value: float | None) -> str | None:
    return None if value is None else repr(value)
