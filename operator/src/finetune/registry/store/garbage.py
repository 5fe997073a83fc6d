"""Blobs by their rows: claimed before the store gets them, marked before it loses them.

A blob has its row before it has its object, and loses its object before its row. So whatever is killed, every object
has a row, and a row without an object is only one that was never said to be stored. A row of `run_files` or of
`content_blobs` keeps its blob: garbage is what no such row names, and what nobody has touched for a day.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from time import monotonic
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, exists, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from finetune.registry.blobs import BlobStore
from finetune.registry.blobs.errors import StoreBusy
from finetune.registry.database import Database
from finetune.registry.schema import adapter_versions, blobs, content_blobs, interim_adapters, run_files, runs

from .common import insert_missing, now
from .interim_rows import is_interim

GARBAGE_AFTER = timedelta(hours=24)
INTERIM_AFTER = timedelta(days=30)
"""How long the interim adapters of a run are kept that has ended without a stored one, from when its last was made."""
EVER = datetime(1, 1, 1, tzinfo=UTC)
LEFTOVERS_AFTER = timedelta(hours=24)
GARBAGE_BATCH = 500
CLAIM = timedelta(minutes=10)
"""How long marked garbage is its collector's: one that was killed, or stands still, leaves it to others after that."""


@dataclass(frozen=True, kw_only=True)
class Before:
    """Before when something must have been touched, or made, to be garbage."""

    files: datetime
    interim: datetime


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """What was, or would be, removed."""

    blobs: int
    bytes: int
    leftovers: int = 0


async def claim(connection: AsyncConnection, sha256: str, *, size: int, store: BlobStore) -> None:
    """Give a blob its row, before the store gets it. Raises `StoreBusy` while it is being removed."""
    values = {"bytes": size, "touched_time": now(), "stored": False, "deleting": False}
    if await insert_missing(connection, blobs, {"sha256": sha256, **values}):
        return
    this = update(blobs).where(blobs.c.sha256 == sha256)
    kept = this.where(blobs.c.deleting.is_(False)).values(touched_time=now())
    left = this.where(_left(now())).values(touched_time=now(), stored=False, deleting=False)
    if not (await connection.execute(kept)).rowcount and not (await connection.execute(left)).rowcount:
        raise StoreBusy(store.name, sha256)


async def note_lost(database: Database, store: BlobStore, digests: Iterable[str]) -> None:
    """Find out which of these blobs the store has lost that are said to be there, so that they are taken again.

    Raises the errors of the store.
    """
    said = select(blobs.c.sha256).where(blobs.c.sha256.in_(set(digests)), blobs.c.stored.is_(True))
    async with database.reading() as connection:
        known = (await connection.execute(said)).scalars().all()
    lost = [digest for digest in known if not await store.has(digest)]
    if not lost:
        return

    async def transaction(connection: AsyncConnection) -> None:
        await connection.execute(update(blobs).where(blobs.c.sha256.in_(lost)).values(stored=False))
        await connection.execute(update(run_files).where(run_files.c.sha256.in_(lost)).values(held=False))

    await database.write(transaction)


async def note_stored(connection: AsyncConnection, sha256: str, *, size: int, store: BlobStore) -> None:
    """The store has a blob that was claimed. Raises `StoreBusy` where a collector has taken the claim meanwhile."""
    change = update(blobs).where(blobs.c.sha256 == sha256, blobs.c.deleting.is_(False))
    if not (await connection.execute(change.values(bytes=size, stored=True, touched_time=now()))).rowcount:
        raise StoreBusy(store.name, sha256)


async def collect(
    database: Database,
    store: BlobStore,
    *,
    dry_run: bool,
    older_than: timedelta = GARBAGE_AFTER,
    interim_after: timedelta | None = INTERIM_AFTER,
) -> Garbage:
    """Remove the blobs that nothing needs, and what cut uploads left; with `dry_run` only count them.

    Ended runs without an adapter give up what they have sent of one, and after a while their interim adapters, unless
    that is None. Raises the errors of the store: what is removed by then stays removed, the rest is for the next time.
    """
    before = Before(files=now() - older_than, interim=EVER if interim_after is None else now() - interim_after)
    if dry_run:
        async with database.reading() as connection:
            query = select(func.count(), func.coalesce(func.sum(blobs.c.bytes), 0)).where(_removable(before))
            count, size = (await connection.execute(query)).one()
        return Garbage(blobs=count, bytes=int(size))
    await database.write(lambda connection: _give_up(connection, before))
    count, size = await _remove(database, store, lambda: _removable(before))
    leftovers = await store.sweep(now() - LEFTOVERS_AFTER)
    return Garbage(blobs=count, bytes=size, leftovers=leftovers)


async def collect_orphans(
    database: Database, store: BlobStore, *, dry_run: bool, older_than: timedelta = GARBAGE_AFTER
) -> Garbage:
    """Remove the blobs of which no row knows, or only count them.

    Not done every hour: to a registry that has lost its database all blobs are such, until a backup is restored.
    Raises the errors of the store.
    """
    before, count, size = now() - older_than, 0, 0
    async for blob in store.list():
        if blob.time >= before or await _is_known(database, blob.sha256):
            continue
        if not dry_run:
            mine = now()
            if not await database.write(partial(_claim_orphan, sha256=blob.sha256, size=blob.bytes, mine=mine)):
                continue  # somebody is sending these bytes
            await store.delete(blob.sha256)
            await database.write(partial(_forget, sha256=blob.sha256, mine=mine))
        count, size = count + 1, size + blob.bytes
    return Garbage(blobs=count, bytes=size)


async def _is_known(database: Database, sha256: str) -> bool:
    async with database.reading() as connection:
        query = select(exists().where(blobs.c.sha256 == sha256))
        return bool((await connection.execute(query)).scalar_one())


async def _claim_orphan(connection: AsyncConnection, *, sha256: str, size: int, mine: datetime) -> bool:
    values = {"sha256": sha256, "bytes": size, "touched_time": mine, "stored": True, "deleting": True}
    return await insert_missing(connection, blobs, values)


async def release(database: Database, store: BlobStore, digests: Sequence[str]) -> None:
    """Remove those of these blobs that nothing needs any more, at once: somebody has deleted what they belonged to.

    Whoever needs one has its row in the transaction that claims the blob; one that is still being sent is left to the
    next collector, as is what could not be removed. Raises the errors of the store.
    """
    ordered = sorted(set(digests))
    for start in range(0, len(ordered), GARBAGE_BATCH):
        some = ordered[start : start + GARBAGE_BATCH]
        await _remove(database, store, partial(_unneeded, some))


def _unneeded(digests: Sequence[str]) -> ColumnElement[bool]:
    return and_(blobs.c.sha256.in_(digests), blobs.c.stored.is_(True), blobs.c.deleting.is_(False), ~_named())


async def _remove(database: Database, store: BlobStore, wanted: Callable[[], ColumnElement[bool]]) -> tuple[int, int]:
    count = size = 0
    while True:
        until = monotonic() + CLAIM.total_seconds() / 2
        mine = now()
        marked = await database.write(partial(_mark, wanted=wanted(), mine=mine))
        if not marked:
            return count, size
        for row in marked:
            if monotonic() > until:
                return count, size  # the rest of a store that is so slow is for the next time
            await store.delete(row.sha256)
            await database.write(partial(_forget, sha256=row.sha256, mine=mine))
            count, size = count + 1, size + row.bytes


async def _mark(connection: AsyncConnection, *, wanted: ColumnElement[bool], mine: datetime) -> list[Any]:
    """Some garbage, marked so that nobody refers to it any more; also what an earlier time has marked and left."""
    some = select(blobs.c.sha256).where(wanted).order_by(blobs.c.sha256).limit(GARBAGE_BATCH)
    digests = (await connection.execute(some.with_for_update(of=blobs))).scalars().all()
    # Asked once more of each row, now that it is locked: who was faster has touched it, or refers to it by now. In the
    # statement that had to wait PostgreSQL would not see that.
    query = update(blobs).where(blobs.c.sha256.in_(digests), wanted).values(deleting=True, touched_time=mine)
    return list((await connection.execute(query.returning(blobs.c.sha256, blobs.c.bytes))).all())


async def _forget(connection: AsyncConnection, *, sha256: str, mine: datetime) -> None:
    row = and_(blobs.c.sha256 == sha256, blobs.c.deleting.is_(True), blobs.c.touched_time == mine)
    await connection.execute(delete(blobs).where(row))


def _removable(before: Before) -> ColumnElement[bool]:
    garbage = and_(blobs.c.touched_time < before.files, ~_named(before))
    return or_(_left(now()), and_(blobs.c.deleting.is_(False), garbage))


def _left(time: datetime) -> ColumnElement[bool]:
    """What a collector has marked and not removed for so long that it is not at it any more."""
    return and_(blobs.c.deleting.is_(True), blobs.c.touched_time < time - CLAIM)


def _named(before: Before | None = None) -> ColumnElement[bool]:
    """Blobs that something needs; with `before` without what runs have given up."""
    sent = exists().where(run_files.c.sha256 == blobs.c.sha256)
    if before is not None:
        sent = exists().where(run_files.c.sha256 == blobs.c.sha256, ~_given_up(before))
    return or_(sent, exists().where(content_blobs.c.sha256 == blobs.c.sha256))


def _given_up(before: Before) -> ColumnElement[bool]:
    """Rows of `run_files` whose run has ended without an adapter, or without one in the store for the interim ones."""
    ended = and_(runs.c.id == run_files.c.run_id, runs.c.ended.is_(True))
    registered = exists().where(adapter_versions.c.run_id == run_files.c.run_id)
    finished = and_(~is_interim, ~registered, exists().where(ended, runs.c.created_time < before.files))
    younger = exists().where(
        interim_adapters.c.run_id == run_files.c.run_id, interim_adapters.c.created_time >= before.interim
    )
    return or_(finished, and_(is_interim, ~younger, exists().where(ended)))


async def _give_up(connection: AsyncConnection, before: Before) -> None:
    await connection.execute(delete(run_files).where(_given_up(before)))
    left = exists().where(run_files.c.run_id == interim_adapters.c.run_id, is_interim)
    await connection.execute(delete(interim_adapters).where(~left))
