"""Datasets' rows in the store: pushed, read, deleted, moved there and back, and what is left when that is cut short."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text, update

from finetune.registry.blobs.errors import BlobMissing, NoStore, StorageFull
from finetune.registry.blobs.folder import FolderStore
from finetune.registry.database import Database, parse_url
from finetune.registry.errors import InvalidRows
from finetune.registry.schema import blobs, compatibility, content_blobs, content_chunks, contents
from finetune.registry.store import garbage
from finetune.registry.store.contents import ABANDONED_AFTER, Contents
from finetune.registry.store.datasets import DatasetStore
from tests.support.registry import pairs

CHUNK = 4096
ROWS = pairs(400)
"""Some thirty chunks."""


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = Database(parse_url(database_url))
    yield opened
    await opened.close()


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "blobs", label="claim registry")


def kept(database: Database, store: FolderStore | None) -> Contents:
    made = Contents(database, store)
    made.chunk_bytes = CHUNK
    return made


async def blocks(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), 1000):
        yield content[start : start + 1000]


async def push(datasets: DatasetStore, content: bytes = ROWS, name: str = "tickets") -> int:
    version, _ = await datasets.add_version("ml", name, blocks(content), actor="me")
    return version.version


async def pulled(datasets: DatasetStore, name: str = "tickets") -> bytes:
    _, found = await datasets.rows("ml", name, None)
    return b"".join([block async for block in found])


async def counted(database: Database, *tables: Any) -> list[int]:
    async with database.reading() as connection:
        return [(await connection.execute(select(func.count()).select_from(each))).scalar_one() for each in tables]


async def held(store: FolderStore) -> int:
    return len([blob async for blob in store.list()])


async def test_rows_are_in_the_store_and_gone_from_it_once_they_are_deleted(
    database: Database, store: FolderStore
) -> None:
    datasets = DatasetStore(database, kept(database, store))
    assert await push(datasets) == 1
    count = -(-len(ROWS) // CHUNK)
    assert await counted(database, content_blobs, blobs, content_chunks) == [count, count, 0]
    assert await held(store) == count
    assert await pulled(datasets) == ROWS
    assert await push(datasets, ROWS[: 2 * CHUNK].rpartition(b"\n")[0] + b"\n", name="part") == 1  # shares a chunk
    await datasets.delete("ml", "tickets", 1, actor="me")
    assert await held(store) == 2
    assert len(await pulled(datasets, "part")) <= 2 * CHUNK
    await datasets.delete("ml", "part", 1, actor="me")
    assert (await held(store), await counted(database, content_blobs, blobs)) == (0, [0, 0])
    assert await push(datasets) == 1  # what was deleted, pushed again, is that version
    assert await pulled(datasets) == ROWS


@pytest.mark.parametrize("in_store", [True, False], ids=["store", "database"])
async def test_a_deletion_that_was_killed_is_finished_later(
    database: Database, store: FolderStore, monkeypatch: pytest.MonkeyPatch, in_store: bool
) -> None:
    datasets = DatasetStore(database, kept(database, store if in_store else None))
    await push(datasets)
    await push(datasets, pairs(3), name="another")

    async def killed(_contents: Contents, _content: int) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(Contents, "empty", killed)
        with pytest.raises(RuntimeError, match="killed"):
            await datasets.delete("ml", "tickets", 1, actor="me")
    assert await datasets.finish_deletions() == 1
    assert await datasets.finish_deletions() == 0
    assert await counted(database, content_blobs, blobs, content_chunks) == ([1, 1, 0] if in_store else [0, 0, 1])
    assert await held(store) == int(in_store)
    assert await pulled(datasets, "another") == pairs(3)


async def test_what_was_refused_or_was_there_already_leaves_nothing(database: Database, store: FolderStore) -> None:
    datasets = DatasetStore(database, kept(database, store))
    await push(datasets)
    before = await held(store), await counted(database, contents, content_blobs, blobs)
    await push(datasets)
    with pytest.raises(InvalidRows, match="line 401"):
        await push(datasets, ROWS + b"oops\n")
    assert (await held(store), await counted(database, contents, content_blobs, blobs)) == before


async def test_uploads_that_were_abandoned_take_their_blobs_with_them(database: Database, store: FolderStore) -> None:
    made = kept(database, store)
    datasets = DatasetStore(database, made)
    await push(datasets)
    content = await made.begin()
    await made.append(content, 0, b"half of it")
    assert await datasets.drop_abandoned() == 0
    old = update(contents).where(contents.c.id == content)
    old = old.values(touched_time=datetime.now(UTC) - ABANDONED_AFTER - timedelta(minutes=1))
    await database.write(lambda connection: connection.execute(old))
    whole = await held(store)
    assert await datasets.drop_abandoned() == 1
    assert await held(store) == whole - 1
    assert await pulled(datasets) == ROWS


async def test_a_collector_of_garbage_leaves_rows_alone(database: Database, store: FolderStore) -> None:
    datasets = DatasetStore(database, kept(database, store))
    await push(datasets)
    found = await garbage.collect(database, store, dry_run=False, older_than=timedelta(seconds=-1))
    assert found.blobs == 0
    assert await pulled(datasets) == ROWS


async def test_what_is_pushed_while_the_same_bytes_are_deleted_stays(
    database: Database, database_url: str, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL's deletion waits for the push's row, and must look once more at what refers to it by then."""
    datasets, other = DatasetStore(database, kept(database, store)), Database(parse_url(database_url))
    rows = pairs(3)  # one chunk
    await push(datasets, rows)
    claimed, goes_on = asyncio.Event(), asyncio.Event()
    real = garbage.claim

    async def slow(*arguments: Any, **words: Any) -> None:
        await real(*arguments, **words)
        claimed.set()
        await goes_on.wait()

    monkeypatch.setattr(garbage, "claim", slow)
    pushing = asyncio.create_task(push(DatasetStore(other, kept(other, store)), rows, name="copy"))
    await claimed.wait()
    deleting = asyncio.create_task(datasets.delete("ml", "tickets", 1, actor="me"))
    async with asyncio.timeout(60):
        while not database.is_sqlite and not await _waits_for_a_lock(database):  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
        goes_on.set()
        await asyncio.gather(pushing, deleting)
    assert await pulled(datasets, "copy") == rows
    await other.close()


async def _waits_for_a_lock(database: Database) -> bool:
    async with database.reading() as connection:
        waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        return (await connection.execute(text(waiting))).first() is not None


async def test_a_full_store_refuses_rows_and_lets_them_be_deleted(
    database: Database, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = DatasetStore(database, kept(database, store))
    await push(datasets)
    monkeypatch.setattr("finetune.registry.blobs.folder.RESERVE_SHARE", 1.0)
    monkeypatch.setattr("finetune.registry.blobs.folder.RESERVE_BYTES", 2**60)
    with pytest.raises(StorageFull, match="claim registry") as refused:
        await push(datasets, pairs(3), name="more")
    assert "finetune datasets delete" in refused.value.hint
    await datasets.delete("ml", "tickets", 1, actor="me")
    assert await held(store) == 0


async def test_a_lost_blob_is_told_before_the_answer_begins(database: Database, store: FolderStore) -> None:
    datasets = DatasetStore(database, kept(database, store))
    await push(datasets)
    for blob in [each async for each in store.list()]:
        await store.delete(blob.sha256)
    with pytest.raises(BlobMissing):
        await datasets.rows("ml", "tickets", None)


async def oldest(database: Database) -> str:
    async with database.reading() as connection:
        return str((await connection.execute(select(compatibility.c.oldest_code))).scalar_one())


async def test_rows_move_into_the_store_and_back_and_are_read_all_the_while(
    database: Database, store: FolderStore
) -> None:
    before = DatasetStore(database, kept(database, None))
    await push(before)
    await push(before, pairs(3), name="gone")
    await before.delete("ml", "gone", 1, actor="me")
    assert await oldest(database) == "0003"  # a registry of the release before can be put back
    count = -(-len(ROWS) // CHUNK)

    after = kept(database, store)
    datasets = DatasetStore(database, after)
    reader = asyncio.create_task(pulled(datasets))
    assert await after.move_into_store() == count
    assert await reader == await pulled(datasets) == ROWS
    assert await counted(database, content_chunks, content_blobs) == [0, count]
    assert await after.move_into_store() == 0
    assert await oldest(database) == "0006"

    assert await after.move_into_database() == count
    assert await pulled(before) == ROWS
    assert (await held(store), await counted(database, content_chunks, content_blobs)) == (0, [count, 0])
    assert await oldest(database) == "0003"
    with pytest.raises(NoStore):
        await kept(database, None).move_into_store()


async def test_a_move_that_is_cut_anywhere_goes_on(
    database: Database, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await push(DatasetStore(database, kept(database, None)))
    datasets = DatasetStore(database, moving := kept(database, store))
    real, calls = FolderStore.put, 0

    async def put(self: FolderStore, sha256: str, blocks: AsyncIterator[bytes], *, size: int) -> None:
        nonlocal calls
        calls += 1
        if calls % 3 == 1:  # before the object is there
            raise ConnectionError
        await real(self, sha256, blocks, size=size)
        if calls % 3 == 2:  # before its row says so
            raise ConnectionError

    monkeypatch.setattr(FolderStore, "put", put)
    while True:
        assert await pulled(datasets) == ROWS
        with suppress(ConnectionError):
            await moving.move_into_store()
            break
    assert await pulled(datasets) == ROWS
    assert (await counted(database, content_chunks))[0] == 0
    assert await held(store) == (await counted(database, blobs))[0]


async def test_two_registries_move_rows_at_once(database: Database, database_url: str, store: FolderStore) -> None:
    await push(DatasetStore(database, kept(database, None)))
    other = Database(parse_url(database_url))
    try:
        moved = await asyncio.gather(*(kept(each, store).move_into_store() for each in (database, other)))
    finally:
        await other.close()
    assert sum(moved) >= -(-len(ROWS) // CHUNK)
    assert await pulled(DatasetStore(database, kept(database, store))) == ROWS
    assert (await counted(database, content_chunks))[0] == 0


async def test_a_chunk_in_the_store_is_what_it_was_in_the_database(database: Database, store: FolderStore) -> None:
    """So that a dataset which is moved keeps its bytes, whatever library compresses the next one."""
    await push(DatasetStore(database, kept(database, None)), pairs(3))
    async with database.reading() as connection:
        data = (await connection.execute(select(content_chunks.c.data))).scalar_one()
    await kept(database, store).move_into_store()
    (blob,) = [each async for each in store.list()]
    assert b"".join([block async for block in await store.read(blob.sha256)]) == data
    assert zlib.decompress(data) == pairs(3)
