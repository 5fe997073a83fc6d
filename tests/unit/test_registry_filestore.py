"""What the store of files promises behind its routes: uploads at once, limits, garbage; on both databases."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from finetune.api.files import InterimRequest, RunFiles
from finetune.api.registry import AdapterFile, RunRequest
from finetune.registry.blobs import BlobStore, open_store
from finetune.registry.blobs.errors import StorageFull, StoreBusy, StoreUnavailable, TooLarge
from finetune.registry.database import Database, parse_url
from finetune.registry.errors import DigestMismatch
from finetune.registry.schema import blobs as blobs_table
from finetune.registry.schema import runs
from finetune.registry.store.common import now
from finetune.registry.store.files import FileLimits, FileStore
from finetune.registry.store.garbage import CLAIM, collect_orphans
from finetune.registry.store.runs import RunStore
from tests.support.adapters import adapter_files, listing
from tests.support.registry import new_uid, run_document

NOW = timedelta(0)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = Database(parse_url(database_url))
    yield opened
    await opened.close()


@pytest.fixture
async def blobs(tmp_path: Path) -> AsyncIterator[BlobStore]:
    opened = open_store(f"file://{tmp_path}/blobs")
    yield opened
    await opened.close()


async def blocks_of(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def recorded(database: Database, uid: str) -> None:
    await RunStore(database).put("ml", uid, RunRequest.model_validate(run_document()), actor="test")


async def sent(store: FileStore, uid: str, files: dict[str, bytes]) -> None:
    await store.announce("ml", uid, RunFiles.model_validate({"files": listing(files)}), actor="test")
    for content in files.values():
        file = await store.awaited("ml", uid, hashlib.sha256(content).hexdigest())
        if file is not None:
            await store.put("ml", uid, file, blocks_of(content), size=len(content), actor="test")


async def stored(blobs: BlobStore) -> set[str]:
    return {blob.sha256 async for blob in blobs.list()}


async def ended(database: Database, uid: str) -> None:
    await database.write(lambda c: c.execute(update(runs).where(runs.c.uid == uid).values(ended=True)))


async def test_garbage_is_what_no_run_needs_and_nobody_touched(database: Database, blobs: BlobStore) -> None:
    store = FileStore(database, blobs)
    needed, given_up = new_uid(), new_uid()
    await recorded(database, needed)
    await recorded(database, given_up)
    await sent(store, needed, adapter_files(salt=1))
    await sent(store, given_up, adapter_files(salt=2))
    everything = await stored(blobs)
    assert len(everything) == 5  # the cards are one file
    assert (await store.collect_garbage(dry_run=False, older_than=NOW)).blobs == 0
    await ended(database, given_up)
    assert (await store.collect_garbage(dry_run=False)).blobs == 0  # younger than a day
    planned = await store.collect_garbage(dry_run=True, older_than=NOW)
    assert planned.blobs == 2
    assert await stored(blobs) == everything
    done = await store.collect_garbage(dry_run=False, older_than=NOW)
    assert (done.blobs, done.bytes) == (planned.blobs, planned.bytes)
    assert await stored(blobs) == {hashlib.sha256(content).hexdigest() for content in adapter_files(salt=1).values()}
    assert (await store.collect_garbage(dry_run=True, older_than=NOW)).blobs == 0


async def test_a_kill_in_the_middle_of_garbage_loses_nothing_and_the_next_time_ends_it(
    database: Database, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileStore(database, blobs)
    first, second = new_uid(), new_uid()
    await recorded(database, first)
    await sent(store, first, adapter_files(salt=1))
    await ended(database, first)
    real = blobs.delete

    async def killed(sha256: str) -> None:
        await real(sha256)
        raise StoreUnavailable(blobs.name, "killed")

    monkeypatch.setattr(blobs, "delete", killed)
    with pytest.raises(StoreUnavailable):
        await store.collect_garbage(dry_run=False, older_than=NOW)
    monkeypatch.undo()
    # The same bytes once more, while some of them are on their way out: refused for the moment, then taken.
    await recorded(database, second)
    with pytest.raises(StoreUnavailable, match="just being removed"):
        await sent(store, second, adapter_files(salt=1))
    await claimed_before(database, CLAIM)
    await store.collect_garbage(dry_run=False, older_than=timedelta(hours=24))
    await sent(store, second, adapter_files(salt=1))
    await store.collect_garbage(dry_run=False, older_than=NOW)
    assert await stored(blobs) == {hashlib.sha256(content).hexdigest() for content in adapter_files(salt=1).values()}


async def claimed_before(database: Database, age: timedelta) -> None:
    """What collectors have marked, they have marked so long ago."""
    change = update(blobs_table).where(blobs_table.c.deleting.is_(True))
    await database.write(lambda c: c.execute(change.values(touched_time=now() - age)))


async def test_what_one_collector_removes_no_other_one_removes_again(
    database: Database, blobs: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one would do it after the same bytes were sent once more: an adapter that is ready, without a file."""
    slow = open_store(f"file://{tmp_path}/blobs")
    begun, goes_on = asyncio.Event(), asyncio.Event()
    real = slow.delete

    async def delete(sha256: str) -> None:
        begun.set()
        await goes_on.wait()
        await real(sha256)

    monkeypatch.setattr(slow, "delete", delete)
    store, card = FileStore(database, blobs), {"README.md": b"card"}
    first, second = new_uid(), new_uid()
    await recorded(database, first)
    await sent(store, first, card)
    await ended(database, first)
    slow_one = asyncio.create_task(FileStore(database, slow).collect_garbage(dry_run=False, older_than=NOW))
    await begun.wait()
    assert (await store.collect_garbage(dry_run=False, older_than=NOW)).blobs == 0
    await recorded(database, second)
    with pytest.raises(StoreUnavailable, match="just being removed"):
        await sent(store, second, card)
    goes_on.set()
    assert (await slow_one).blobs == 1
    await sent(store, second, card)
    assert await stored(blobs) == {hashlib.sha256(b"card").hexdigest()}
    await slow.close()


async def test_what_a_killed_collector_has_left_can_be_sent_again(
    database: Database, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, card = FileStore(database, blobs), {"README.md": b"card"}
    first, second = new_uid(), new_uid()
    await recorded(database, first)
    await sent(store, first, card)
    await ended(database, first)

    async def killed(sha256: str) -> None:
        raise StoreUnavailable(blobs.name, sha256)

    with monkeypatch.context() as patched:
        patched.setattr(blobs, "delete", killed)
        with pytest.raises(StoreUnavailable):
            await store.collect_garbage(dry_run=False, older_than=NOW)
    await claimed_before(database, CLAIM)
    await recorded(database, second)
    await sent(store, second, card)
    assert (await store.collect_garbage(dry_run=False, older_than=NOW)).blobs == 0
    assert await stored(blobs) == {hashlib.sha256(b"card").hexdigest()}


async def test_limits_per_file_and_per_run(database: Database, blobs: BlobStore, uid: str) -> None:
    store = FileStore(database, blobs, FileLimits(file_bytes=100, run_bytes=150))
    await recorded(database, uid)

    async def announced(*sizes: int) -> None:
        files = [
            AdapterFile(path=f"m{number}.safetensors", bytes=size, sha256="0" * 64) for number, size in enumerate(sizes)
        ]
        await store.announce("ml", uid, RunFiles(files=files), actor="test")

    await announced(100, 50)
    with pytest.raises(TooLarge, match="101 bytes"):
        await announced(101)
    with pytest.raises(TooLarge, match="151 bytes"):
        await announced(100, 51)


async def test_a_size_that_is_not_the_digests_cannot_be_announced_into_a_version(
    database: Database, blobs: BlobStore
) -> None:
    store = FileStore(database, blobs)
    uid, liar = new_uid(), new_uid()
    await recorded(database, uid)
    await recorded(database, liar)
    await sent(store, uid, {"README.md": b"card"})
    digest = hashlib.sha256(b"card").hexdigest()
    lie = RunFiles(files=[AdapterFile(path="README.md", bytes=5, sha256=digest)])
    assert (await store.announce("ml", liar, lie, actor="test")).missing == [digest]
    file = await store.awaited("ml", liar, digest)
    assert file is not None
    with pytest.raises(DigestMismatch):
        await store.put("ml", liar, file, blocks_of(b"card"), size=5, actor="test")
    assert await stored(blobs) == {digest}


async def test_uploads_of_the_same_bytes_at_once_are_one_blob(database: Database, blobs: BlobStore) -> None:
    store = FileStore(database, blobs)
    uids = [new_uid() for _ in range(12)]
    for uid in uids:
        await recorded(database, uid)
    await asyncio.gather(*(sent(store, uid, adapter_files(salt=1)) for uid in uids))
    assert await stored(blobs) == {hashlib.sha256(content).hexdigest() for content in adapter_files(salt=1).values()}


@pytest.mark.parametrize("collected", [False, True], ids=["replaced", "collected"])
async def test_bytes_that_are_given_up_while_they_come_are_known_or_sent_again(
    database: Database, blobs: BlobStore, uid: str, *, collected: bool
) -> None:
    store = FileStore(database, blobs)
    await recorded(database, uid)
    card, other = {"README.md": b"card"}, {"README.md": b"other"}
    digest = hashlib.sha256(b"card").hexdigest()

    async def evaluated(step: int, files: dict[str, bytes]) -> None:
        request = InterimRequest.model_validate({"evaluationLoss": "1", "files": listing(files)})
        await store.announce_interim("ml", uid, step, request)

    async def slow() -> AsyncIterator[bytes]:
        yield b"ca"
        await evaluated(2, other)  # takes the place of what has not come whole
        if collected:
            await store.collect_garbage(dry_run=False, older_than=NOW)
        await evaluated(3, card)
        yield b"rd"

    await evaluated(1, card)
    file = await store.awaited("ml", uid, digest)
    assert file is not None
    if collected:
        with pytest.raises(StoreBusy):
            await store.put("ml", uid, file, slow(), size=4, actor="test")
        file = await store.awaited("ml", uid, digest)
        assert file is not None
        await store.put("ml", uid, file, blocks_of(b"card"), size=4, actor="test")
    else:
        await store.put("ml", uid, file, slow(), size=4, actor="test")
    assert await store.awaited("ml", uid, digest) is None
    assert (await collect_orphans(database, blobs, dry_run=True, older_than=NOW)).blobs == 0
    assert await stored(blobs) == {digest}


async def test_a_full_store_still_deletes(
    database: Database, tmp_path: Path, uid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs: Any = open_store(f"file://{tmp_path}/blobs")
    store = FileStore(database, blobs)
    await recorded(database, uid)
    await sent(store, uid, adapter_files(salt=1))
    monkeypatch.setattr("finetune.registry.blobs.folder.RESERVE_SHARE", 1.0)
    monkeypatch.setattr("finetune.registry.blobs.folder.RESERVE_BYTES", 2**60)
    with pytest.raises(StorageFull, match="kept for the database"):
        await sent(store, uid, adapter_files(salt=2))
    await ended(database, uid)
    await store.collect_garbage(dry_run=False, older_than=NOW)
    assert await stored(blobs) == set()
    await blobs.close()
