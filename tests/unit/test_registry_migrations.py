"""What any earlier registry has stored is there after the migration to the newest schema; on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import JSON, Column, LargeBinary, MetaData, Table, create_engine, func, insert, select
from sqlalchemy.engine import Connection

from finetune.api.files import InterimRequest
from finetune.registry import migrate as migrations
from finetune.registry.blobs import open_store
from finetune.registry.database import Database, parse_url
from finetune.registry.migrate import head, migrate
from finetune.registry.store.files import FileStore
from finetune.registry.store.interim import InterimStore
from finetune.registry.store.listing import RunLists
from tests.support.adapters import adapter_files, listing

REVISIONS = [each.revision for each in ScriptDirectory.from_config(migrations.alembic_config()).walk_revisions()][::-1]
REMADE = {"alembic_version", "compatibility", "metrics", "metric_points"}
"""Tables whose rows a migration makes itself."""
UID = "00000000-0000-4000-8000-000000000001"
KNOWN = {
    "uid": UID,
    "namespace": "ml",
    "metric_names": [],
    "method": "SFT",
    "sha256": "a" * 64,
    "dataset": {"rows": 1, "sha256": "a" * 64},
}


def value_of(column: Column[Any]) -> Any:
    """Something that a column of an older schema takes."""
    if column.name in KNOWN:
        return KNOWN[column.name]
    if isinstance(column.type, JSON):
        return {}
    if isinstance(column.type, LargeBinary):
        return b"x"
    kind = column.type.python_type
    return datetime.now(UTC).replace(tzinfo=None) if kind is datetime else 0 if kind is bool else kind(1)


def fill(connection: Connection) -> dict[str, int]:
    """Put a row into every table; gives how many rows each has."""
    found = MetaData()
    found.reflect(connection)
    for table in found.sorted_tables:
        if table.name not in REMADE:
            values = {column.name: value_of(column) for column in table.columns if not column.nullable}
            connection.execute(insert(table).values(values))
    return dict(counts(connection, found.sorted_tables))


def counts(connection: Connection, tables: list[Table]) -> Iterator[tuple[str, int]]:
    for table in tables:
        yield table.name, connection.execute(select(func.count()).select_from(table)).scalar_one()


@pytest.mark.parametrize("revision", REVISIONS[:-1])
async def test_rows_of_every_earlier_schema_stay(empty_database_url: str, revision: str, tmp_path: Any) -> None:
    url = parse_url(empty_database_url)
    engine = create_engine(url.set(drivername=url.drivername.replace("aiosqlite", "pysqlite")))
    with engine.begin() as connection:
        config = migrations.alembic_config()
        config.attributes["connection"] = connection
        migrations.command.upgrade(config, revision)
        before = fill(connection)
    assert migrate(url) == (revision, head())
    after = MetaData()
    with engine.connect() as connection:
        after.reflect(connection)
        now = dict(counts(connection, after.sorted_tables))
    engine.dispose()
    assert {name: now.get(name) for name in before if name not in REMADE} == {
        name: count for name, count in before.items() if name not in REMADE
    }
    database, store = Database(url), open_store(f"file://{tmp_path}/blobs")
    try:
        run = await RunLists(database).find("ml", UID)
        assert run.spec == {}
        if run.outcome is None or not run.outcome.ended:
            return
        assert (await InterimStore(database).of_run("ml", UID)).items == []
        request = InterimRequest.model_validate({"evaluationLoss": "1.5", "files": listing(adapter_files())})
        with pytest.raises(Exception, match="has ended"):
            await FileStore(database, store).announce_interim("ml", UID, 1, request)
    finally:
        await database.close()
        await store.close()
