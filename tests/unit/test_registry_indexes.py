"""Every list is answered by an index: nothing is read through, and nothing sorted, that grows with the registry."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event

from finetune.registry.database import Database, parse_url
from finetune.registry.store.adapters import AdapterStore
from finetune.registry.store.audit import AuditFilter, AuditLog
from finetune.registry.store.contents import Contents
from finetune.registry.store.datasets import DatasetStore
from finetune.registry.store.listing import SORTS, RunFilter, RunLists
from finetune.registry.store.outcomes import OutcomeStore
from tests.support.schema import provide_schema


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    url = f"sqlite:///{tmp_path}/registry.db"
    provide_schema(url)
    opened = Database(parse_url(url))
    yield opened
    await opened.close()


class Plans:
    """The plans of all pages that were asked for, in SQLite's words."""

    def __init__(self, database: Database) -> None:
        self.steps: list[str] = []
        event.listen(database.engine.sync_engine, "before_cursor_execute", self._explain)

    def _explain(
        self, _connection: Connection, cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool
    ) -> None:
        if statement.startswith("SELECT") and " LIMIT " in statement.replace(
            "\n", " "
        ):  # what belongs to a page is few
            cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            self.steps += [row[3] for row in cursor.fetchall()]

    def slow(self) -> list[str]:
        """Steps that read a whole table, or sort what they have read."""
        scans = [step for step in self.steps if step.startswith("SCAN ") and " USING " not in step]
        return scans + [step for step in self.steps if "TEMP B-TREE" in step]


@pytest.mark.parametrize("sort", [f"{sign}{name}" for name in SORTS for sign in ("", "-")])
async def test_runs_in_any_order(database: Database, sort: str) -> None:
    plans = Plans(database)
    await RunLists(database).page("ml", RunFilter(sort=sort), limit=20)
    assert plans.steps
    assert plans.slow() == []


async def test_everything_else_that_is_listed(database: Database) -> None:
    plans = Plans(database)
    datasets, adapters = DatasetStore(database, Contents(database, None)), AdapterStore(database)
    await datasets.newest("ml", after="a")
    await adapters.newest("ml", after="a")
    for wanted in (AuditFilter(), AuditFilter(namespace="ml"), AuditFilter(namespace="ml", subject="tickets")):
        await AuditLog(database).page(wanted, before=7)
    await OutcomeStore(database).unfinished(after=None)
    assert plans.steps
    assert plans.slow() == []
