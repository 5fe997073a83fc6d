"""The schema, its migrations, and what the databases themselves refuse."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, delete, insert, inspect, select, text, update
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request

from finetune.api.registry import RunRequest, StatusPost
from finetune.registry import migrate as migrations
from finetune.registry.blobs.errors import StorageFull
from finetune.registry.database import Database, InvalidDatabaseURL, parse_url
from finetune.registry.errors import InvalidRows
from finetune.registry.migrate import UnknownRevision, head, migrate
from finetune.registry.schema import audit, content_chunks, contents, metadata
from finetune.registry.service import failures
from finetune.registry.store.adapters import AdapterStore
from finetune.registry.store.contents import Contents
from finetune.registry.store.datasets import DatasetStore
from finetune.registry.store.listing import RunLists
from finetune.registry.store.outcomes import OutcomeStore
from finetune.registry.store.points import PointStore
from finetune.registry.store.runs import RunStore
from tests.support.registry import pairs, serving


def sync_engine(database_url: str) -> Any:
    url = parse_url(database_url)
    return create_engine(url.set(drivername=url.drivername.replace("aiosqlite", "pysqlite")))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(parse_url(database_url))
    yield database
    await database.close()


def test_the_migrations_make_what_the_code_expects(empty_database_url: str) -> None:
    assert migrate(parse_url(empty_database_url)) == (None, head())
    engine = sync_engine(empty_database_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences = compare_metadata(context, metadata)
        # What Alembic does not compare.
        found = inspect(connection)
        checks = {(table, check["name"]) for table in metadata.tables for check in found.get_check_constraints(table)}
        uniques = {
            (table, tuple(unique["column_names"]))
            for table in metadata.tables
            for unique in found.get_unique_constraints(table)
        }
    engine.dispose()
    assert differences == []
    assert checks == {
        ("dataset_versions", "ck_dataset_versions_version_positive"),
        ("adapter_versions", "ck_adapter_versions_version_positive"),
    }
    assert ("adapter_versions", ("run_id",)) in uniques
    assert ("adapter_versions", ("adapter_id", "version")) in uniques
    assert ("dataset_versions", ("dataset_id", "version")) in uniques


def test_a_second_migration_does_nothing(empty_database_url: str) -> None:
    migrate(parse_url(empty_database_url))
    assert migrate(parse_url(empty_database_url)) == (head(), head())


def test_registries_that_start_together_migrate_once(empty_database_url: str) -> None:
    results: list[tuple[str | None, str]] = []
    threads = [
        threading.Thread(target=lambda: results.append(migrate(parse_url(empty_database_url)))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(before or "" for before, _ in results) == ["", *[head()] * 5]


async def test_what_an_older_registry_stored_is_there_after_the_migration(empty_database_url: str) -> None:
    engine = sync_engine(empty_database_url)
    with engine.begin() as connection:
        config = migrations.alembic_config()
        config.attributes["connection"] = connection
        migrations.command.upgrade(config, "0001")
        time = "2026-01-01 00:00:00"
        adapter = (
            "INSERT INTO adapter_versions VALUES (1, 'id', 1, 1, 1, 'claim', 'base', NULL, 'd', "
            f"""'{{"rows": 1, "sha256": "{"d" * 64}"}}', 's', 1, '1.5', NULL, NULL, 5, NULL, 0, '{time}')"""
        )
        spec = '{"baseModel": {"hub": {"repository": "org/m"}}}'
        points = [(name, step, step) for name in ("loss", "totalSteps") for step in range(1, 5001)]
        points += [("loss", 5, 6000), ("loss", None, 6001)]  # a step that was made again, and one that nobody named
        values = ", ".join(
            f"(1, '{name}', '2026-01-01 {timedelta(seconds=second)!s:0>8}', {step or 'NULL'}, "
            f"{9.5 if second == 6000 else -3.0 if second == 77 else 2.0 + step % 3 if step else 2.0})"
            for name, step, second in points
        )
        for statement in (
            f"INSERT INTO experiments VALUES (1, 'ml', 'e', '{time}')",
            f"INSERT INTO runs VALUES (1, 'uid', 'ml', 'r', 1, 'SFT', NULL, '{spec}', '{time}')",
            f"INSERT INTO runs VALUES (2, 'uid-2', 'ml', 'r-2', 1, 'SFT', NULL, '{{}}', '{time}')",
            f"INSERT INTO metric_points VALUES {values}",
            f"INSERT INTO run_progress VALUES (1, '{{}}', '{time}')",
            f"INSERT INTO adapters VALUES (1, 'ml', 'a', 1, '{time}')",
            adapter,
        ):
            connection.exec_driver_sql(statement)
    engine.dispose()
    assert migrate(parse_url(empty_database_url)) == ("0001", head())
    database = Database(parse_url(empty_database_url))
    try:
        found = await AdapterStore(database).version("ml", "a", None)
        run = await RunLists(database).find("ml", "r")
        assert (await OutcomeStore(database).unfinished()).items[0].uid == "uid-2"
        (curve,) = (await PointStore(database).series("ml", ["uid"], ["loss", "totalSteps"], points=2000)).items
        post = StatusPost.model_validate({"trainerStatus": {}, "attempt": 1, "startStep": 5000})
        assert await PointStore(database).add("ml", "uid-2", post) is None
    finally:
        await database.close()
    assert (found.final_loss, found.steps, found.reward_accuracy, found.parent) == ("1.5", 5, None, None)
    assert run.outcome is not None
    assert (run.outcome.phase, run.outcome.ended, run.base_model, run.metrics) == ("Succeeded", True, "org/m", ["loss"])
    assert 990 <= len(curve.steps) <= 1000
    assert (curve.steps[0], curve.steps[-1], curve.seconds[-1]) == (1, 5000, 5000)
    assert dict(zip(curve.steps, curve.values, strict=True))[5] == 9.5
    assert dict(zip(curve.steps, curve.values, strict=True))[77] == -3.0


def test_a_migration_that_fails_changes_nothing(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def upgrade_and_fail(config: Any, revision: str) -> None:
        real_upgrade(config, revision)
        raise RuntimeError("the power went out")

    real_upgrade = migrations.command.upgrade
    monkeypatch.setattr(migrations.command, "upgrade", upgrade_and_fail)
    with pytest.raises(RuntimeError, match="power"):
        migrate(parse_url(empty_database_url))
    engine = sync_engine(empty_database_url)
    assert inspect(engine).get_table_names() == []
    engine.dispose()
    monkeypatch.undo()
    assert migrate(parse_url(empty_database_url)) == (None, head())


def test_a_newer_database_is_left_alone(database_url: str) -> None:
    engine = sync_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        connection.execute(text("UPDATE compatibility SET oldest_code = '9998'"))
    engine.dispose()
    with pytest.raises(UnknownRevision, match="9999, which is newer than this registry"):
        migrate(parse_url(database_url))


async def test_a_release_can_be_taken_back(database_url: str) -> None:
    """The database is newer, and says that this registry can work with it."""
    engine = sync_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    assert migrate(parse_url(database_url)) == ("9999", "9999")
    with serving(database_url) as url:
        async with httpx.AsyncClient() as http:
            ready = await http.get(f"{url}/readyz")
            listed = await http.get(f"{url}/api/v1/namespaces/ml/runs")
    assert (ready.status_code, ready.json()["schema"], listed.status_code) == (200, "9999", 200)


async def test_the_audit_trail_only_grows(database: Database) -> None:
    request = RunRequest(name="run-1", experiment="support", method="SFT", spec={})
    await RunStore(database).put("ml", "some-uid", request, actor="system:serviceaccount:finetune:operator")
    async with database.reading() as connection:
        row = (await connection.execute(select(audit))).one()
    assert (row.actor, row.action) == ("system:serviceaccount:finetune:operator", "CreateRun")
    assert (row.namespace, row.subject, row.details["uid"]) == ("ml", "run-1", "some-uid")
    assert abs(datetime.now(UTC) - row.time) < timedelta(minutes=1)
    for statement in (update(audit).values(actor="nobody"), delete(audit)):

        async def change(connection: AsyncConnection, statement: Any = statement) -> None:
            await connection.execute(statement)

        with pytest.raises(DatabaseError, match="append-only"):
            await database.write(change)


async def one_block(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def test_uploads_that_were_refused_or_known_leave_nothing(database: Database) -> None:
    store = DatasetStore(database, Contents(database, None))
    for content in (pairs(2), pairs(2), pairs(2) + b"oops"):
        with suppress(InvalidRows):
            await store.add_version("ml", "tickets", one_block(content), actor="me")
    async with database.reading() as connection:
        attached = (await connection.execute(select(contents.c.attached))).scalars().all()
        chunks = (await connection.execute(select(content_chunks.c.content_id))).scalars().all()
    assert (attached, len(chunks)) == ([True], 1)


async def test_two_registries_over_one_database_wait_for_each_other(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.registry.database.ATTEMPTS", 1)  # nobody loses: nobody has to start again
    other = Database(parse_url(database_url))
    stores = [RunStore(database), RunStore(other)]
    request = RunRequest(name="run-1", experiment="support", method="SFT", spec={})
    try:
        puts = (stores[index % 2].put("ml", f"uid-{index}", request, actor="operator") for index in range(24))
        answers = await asyncio.gather(*puts)
    finally:
        await other.close()
    assert [created for _, created in answers] == [True] * 24


async def test_rows_leave_a_disk_the_room_that_deleting_needs(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload that fills it would stop all runs' progress, and could not even be removed."""
    store = DatasetStore(database, Contents(database, None))
    await store.add_version("ml", "first", one_block(pairs(3)), actor="test")
    monkeypatch.setattr("finetune.registry.blobs.folder.RESERVE_SHARE", 1.0)
    monkeypatch.setattr("finetune.registry.blobs.folder.RESERVE_BYTES", 2**60)
    if database.is_sqlite:
        with pytest.raises(StorageFull, match="are kept for deleting"):
            await store.add_version("ml", "second", one_block(pairs(3)), actor="test")
        await store.delete("ml", "first", 1, actor="test")
    else:  # its disk is another machine's
        await store.add_version("ml", "second", one_block(pairs(3)), actor="test")


@pytest.mark.parametrize("words", ["database or disk is full", "no such table"])
async def test_a_full_disk_of_the_database_is_called_so(words: str) -> None:
    answer = await failures._database(
        Request({"type": "http"}), OperationalError("x", None, sqlite3.OperationalError(words))
    )
    full = "full" in words
    assert answer.status_code == (507 if full else 503)
    assert (b"StorageFull" in answer.body) is full


async def test_what_a_crash_left_of_uploads_is_removed(database: Database) -> None:
    store = DatasetStore(database, Contents(database, None))
    await store.add_version("ml", "tickets", one_block(pairs(2)), actor="me")
    now = datetime.now(UTC)

    async def leave(connection: AsyncConnection) -> None:
        for age in (timedelta(hours=2), timedelta(minutes=5)):
            await connection.execute(insert(contents).values(touched_time=now - age, attached=False))

    await database.write(leave)
    assert await store.drop_abandoned() == 1
    async with database.reading() as connection:
        attached = (await connection.execute(select(contents.c.attached))).scalars().all()
    assert sorted(attached) == [False, True]
    assert b"".join([block async for block in (await store.rows("ml", "tickets", 1))[1]]) == pairs(2)


@pytest.mark.parametrize(
    ("text_url", "driver"),
    [
        ("sqlite:////data/registry.db", "sqlite+aiosqlite"),
        ("postgresql://u:p@db:5432/registry", "postgresql+psycopg"),
        ("postgres://u:p@db/registry", "postgresql+psycopg"),
        ("postgresql+psycopg2://u:p@db/registry", "postgresql+psycopg"),
    ],
)
def test_a_url_names_the_database_not_the_driver(text_url: str, driver: str) -> None:
    assert parse_url(text_url).drivername == driver


@pytest.mark.parametrize("text_url", ["", "registry.db", "mysql://db/registry", "sqlite://", "sqlite:///:memory:"])
def test_other_urls_are_refused_with_an_example(text_url: str) -> None:
    with pytest.raises(InvalidDatabaseURL, match="postgresql://user:password@host/name"):
        parse_url(text_url)


def test_a_password_is_not_in_the_complaint() -> None:
    with pytest.raises(InvalidDatabaseURL) as caught:
        parse_url("mysql://user:secret@db/registry")
    assert "secret" not in str(caught.value)


async def test_times_without_a_zone_are_refused(database: Database) -> None:
    async def store(connection: AsyncConnection) -> None:
        await connection.execute(insert(contents).values(touched_time=datetime(2026, 1, 1), attached=False))  # noqa: DTZ001 - the point

    with pytest.raises(Exception, match="without a zone"):
        await database.write(store)


def test_a_missing_folder_of_a_sqlite_file_is_made(tmp_path: Path) -> None:
    migrate(parse_url(f"sqlite:///{tmp_path}/a/b/registry.db"))
    assert (tmp_path / "a" / "b" / "registry.db").is_file()
