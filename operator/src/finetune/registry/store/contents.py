"""The bytes of datasets: chunks, compressed, each a blob of the store; rows of the database where there is no store.

A content appears with the version that it is attached to. Until then its chunks go in one after the other, by short
transactions, because a slow upload must not keep others from writing; one that stands still for an hour is abandoned.
What a chunk needs of the store is claimed in the transaction that refers to it, see `garbage`.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import delete, exists, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from finetune.logs import described
from finetune.registry.blobs import BlobStore
from finetune.registry.blobs.errors import NoStore, StorageFull
from finetune.registry.blobs.folder import room
from finetune.registry.database import Database
from finetune.registry.errors import Conflict, RegistryFault
from finetune.registry.metrics import sqlite_folder
from finetune.registry.schema import compatibility, content_blobs, content_chunks, contents

from . import garbage
from .common import now

log = logging.getLogger(__name__)

CHUNK_BYTES = 1024 * 1024
STORED_CHUNK_BYTES = 4 * CHUNK_BYTES
"""Of a chunk in the store, before compression: each costs a flushed file or a request."""
WRITE_AHEAD_BYTES = 16 * 1024 * 1024
"""What is written twice for a while: to SQLite's write-ahead log, and from there to its file."""
ABANDONED_AFTER = timedelta(hours=1)
DROPPED_AT_ONCE = 64
MOVED_AT_ONCE = 500
OLDEST_CODE = "0006"
"""The oldest registry that finds rows in the store."""
OLDER_CODE = "0003"
"""The oldest one that can work with the rest of the schema."""


Before = Callable[[AsyncConnection], Awaitable[None]]
"""What is to be seen to in the transaction that refers to a new blob."""


class Contents:
    """Keeps contents. Every method that writes raises the store's errors, and `StorageFull`."""

    def __init__(self, database: Database, store: BlobStore | None) -> None:
        self._database = database
        self._store = store
        self.chunk_bytes = CHUNK_BYTES if store is None else STORED_CHUNK_BYTES
        """How much of an upload becomes one chunk."""

    async def begin(self) -> int:
        """A new content, attached to nothing yet."""

        async def transaction(connection: AsyncConnection) -> int:
            values = {"touched_time": now(), "attached": False}
            if self._store is not None:
                await _refuse_older(connection)
            return int(
                (await connection.execute(insert(contents).values(**values).returning(contents.c.id))).scalar_one()
            )

        return await self._database.write(transaction)

    async def append(self, content: int, number: int, chunk: bytes) -> None:
        """Add the next chunk. Raises `Conflict` when the upload was given up meanwhile."""
        data = await asyncio.to_thread(zlib.compress, chunk, 1)

        async def touched(connection: AsyncConnection) -> None:
            await touch(connection, content, attached=False)

        if self._store is not None:
            await self._put(self._store, content, number, data, before=touched)
            return
        self._refuse_full()

        async def transaction(connection: AsyncConnection) -> None:
            await touched(connection)
            await connection.execute(insert(content_chunks).values(content_id=content, number=number, data=data))

        await self._database.write(transaction)

    async def _put(self, store: BlobStore, content: int, number: int, data: bytes, *, before: Before) -> None:
        """Make a chunk a blob: row and reference come first, then the object, then the word that it is there."""
        sha256 = hashlib.sha256(data).hexdigest()

        async def begin(connection: AsyncConnection) -> None:
            await before(connection)
            await garbage.claim(connection, sha256, size=len(data), store=store)
            mine = and_content(content_blobs, content, number)
            await connection.execute(delete(content_blobs).where(mine))  # of a move that was cut
            row = {"content_id": content, "number": number, "sha256": sha256, "bytes": len(data)}
            await connection.execute(insert(content_blobs).values(**row))

        async def end(connection: AsyncConnection) -> None:
            await garbage.note_stored(connection, sha256, size=len(data), store=store)
            await connection.execute(delete(content_chunks).where(and_content(content_chunks, content, number)))

        await self._database.write(begin)
        await store.put(sha256, _once(data), size=len(data))
        await self._database.write(end)

    def _refuse_full(self) -> None:
        """On a full disk nothing can be deleted any more, nor any run's progress be taken. Raises `StorageFull`."""
        folder = sqlite_folder(self._database)
        if folder is None:
            return
        free, reserve = room(folder)
        if free < reserve + WRITE_AHEAD_BYTES:
            raise StorageFull(str(folder), f"{free} bytes are free, of which {reserve} are kept for deleting")

    async def check(self, content: int) -> None:
        """See that the store has what a content begins with, before an answer has begun. Raises `BlobMissing`."""
        data, sha256 = await self._chunk(content, 0)
        if data is None and sha256 is not None and self._store is not None:
            async for _ in await self._store.read(sha256, length=1):
                pass

    async def is_whole(self, content: int) -> bool:
        """Whether the store has all chunks that a content has there."""
        if self._store is None:
            return True
        async with self._database.reading() as connection:
            digests = await _digests(connection, content)
        return all([await self._store.has(digest) for digest in dict.fromkeys(digests)])

    async def read(self, content: int) -> AsyncIterator[bytes]:
        """The bytes of a content, chunk by chunk."""
        number = 0
        while True:
            data = await self._data(*await self._chunk(content, number))
            if data is None:
                return
            yield await asyncio.to_thread(zlib.decompress, data)
            number += 1

    async def _chunk(self, content: int, number: int) -> tuple[bytes | None, str | None]:
        """What the database has of a chunk: its bytes, else its blob."""
        # One short transaction per chunk: a slow reader must hold neither a connection nor a snapshot.
        async with self._database.reading() as connection:
            query = select(content_chunks.c.data).where(and_content(content_chunks, content, number))
            data = (await connection.execute(query)).scalar_one_or_none()
            if data is not None:
                return data, None
            named = select(content_blobs.c.sha256).where(and_content(content_blobs, content, number))
            return None, (await connection.execute(named)).scalar_one_or_none()

    async def _data(self, data: bytes | None, sha256: str | None) -> bytes | None:
        if sha256 is None:
            return data
        if self._store is None:
            raise NoStore
        return b"".join([block async for block in await self._store.read(sha256)])

    async def drop(self, content: int) -> None:
        """Forget a content that was not attached."""

        async def transaction(connection: AsyncConnection) -> list[str]:
            digests = await _digests(connection, content)
            this = delete(contents).where(contents.c.id == content, contents.c.attached.is_(False))
            return digests if (await connection.execute(this)).rowcount else []

        await self._release(await self._database.write(transaction))

    async def empty(self, content: int) -> None:
        """Delete the bytes of a content."""

        async def transaction(connection: AsyncConnection) -> list[str]:
            digests = await _digests(connection, content)
            await connection.execute(delete(content_blobs).where(content_blobs.c.content_id == content))
            return digests

        await self._release(await self._database.write(transaction))
        while await self._database.write(partial(_drop_chunks, content=content)):
            pass

    async def drop_abandoned(self) -> int:
        """Remove the chunks of uploads that a crash has cut short; returns how many uploads there were."""

        async def transaction(connection: AsyncConnection) -> tuple[int, list[str]]:
            old = contents.c.attached.is_(False) & (contents.c.touched_time < now() - ABANDONED_AFTER)
            query = (
                select(content_blobs.c.sha256).join(contents, contents.c.id == content_blobs.c.content_id).where(old)
            )
            digests = list((await connection.execute(query)).scalars())
            return (await connection.execute(delete(contents).where(old))).rowcount, digests

        count, digests = await self._database.write(transaction)
        await self._release(digests)
        return count

    async def _release(self, digests: Sequence[str]) -> None:
        if self._store is None:
            return
        try:
            await garbage.release(self._database, self._store, digests)
        except RegistryFault as error:  # it is deleted; the bytes go with the next garbage
            log.warning("deleted rows are still in the store %s: %s", self._store.name, described(error))

    async def move_into_store(self) -> int:
        """Move the chunks that are rows of the database into the store; returns how many there were.

        Each is read from where it is, at any moment. May be killed, and be done by several registries at once.
        """
        if self._store is None:
            raise NoStore
        moved = 0
        while rows := await self._first(content_chunks):
            for content, number in rows:
                async with self._database.reading() as connection:
                    query = select(content_chunks.c.data).where(and_content(content_chunks, content, number))
                    data = (await connection.execute(query)).scalar_one_or_none()
                with suppress(_GoneError):
                    if data is not None:  # else another one was faster
                        await self._put(self._store, content, number, data, before=partial(_moved, content, number))
                        moved += 1
        return moved

    async def move_into_database(self) -> int:
        """The way back, before an older registry is put in this one's place; returns how many chunks there were."""
        if self._store is None:
            raise NoStore
        moved = 0
        while rows := await self._first(content_blobs):
            for content, number in rows:
                _, sha256 = await self._chunk(content, number)
                data = await self._data(None, sha256)
                if sha256 is None or data is None:
                    continue
                move = partial(_into_database, content=content, number=number, data=data)
                moved += await self._database.write(move)
                await self._release([sha256])
        await self._database.write(_admit_older)
        return moved

    async def _first(self, table: Any) -> Sequence[Any]:
        kept = exists().where(contents.c.id == table.c.content_id, contents.c.attached.is_(True))
        query = select(table.c.content_id, table.c.number).where(kept)
        async with self._database.reading() as connection:
            found = await connection.execute(query.order_by(table.c.content_id, table.c.number).limit(MOVED_AT_ONCE))
            return [tuple(row) for row in found]


def and_content(table: Any, content: int, number: int) -> Any:
    """The condition that finds a chunk."""
    return (table.c.content_id == content) & (table.c.number == number)


async def touch(connection: AsyncConnection, content: int, *, attached: bool) -> None:
    """Say that an upload goes on, or that it is attached to a version. Raises `Conflict` when it was given up."""
    query = update(contents).where(contents.c.id == content)
    result = await connection.execute(query.values(attached=attached, touched_time=now()))
    if result.rowcount != 1:
        raise Conflict(
            "the upload stood still for an hour and was given up",
            hint="upload again; check the connection when it stops again",
        )


async def _digests(connection: AsyncConnection, content: int) -> list[str]:
    query = select(content_blobs.c.sha256).where(content_blobs.c.content_id == content)
    return list((await connection.execute(query)).scalars())


async def _drop_chunks(connection: AsyncConnection, *, content: int) -> bool:
    """Delete some chunks of a content; whether there were any. A long deletion would keep others from writing."""
    chunk = content_chunks.c
    some = select(chunk.number).where(chunk.content_id == content).order_by(chunk.number).limit(DROPPED_AT_ONCE)
    query = delete(content_chunks).where(chunk.content_id == content, chunk.number.in_(some))
    return (await connection.execute(query)).rowcount > 0


async def _moved(content: int, number: int, connection: AsyncConnection) -> None:
    """See that a chunk is still there to be moved. Raises `_GoneError`."""
    query = select(content_chunks.c.number).where(and_content(content_chunks, content, number)).with_for_update()
    if (await connection.execute(query)).first() is None:
        raise _GoneError
    await _refuse_older(connection)


async def _into_database(connection: AsyncConnection, *, content: int, number: int, data: bytes) -> bool:
    mine = and_content(content_blobs, content, number)
    if not (await connection.execute(delete(content_blobs).where(mine))).rowcount:
        return False  # deleted meanwhile, or moved by another one
    await connection.execute(insert(content_chunks).values(content_id=content, number=number, data=data))
    return True


async def _refuse_older(connection: AsyncConnection) -> None:
    older = compatibility.c.oldest_code < OLDEST_CODE
    await connection.execute(update(compatibility).where(older).values(oldest_code=OLDEST_CODE))


async def _admit_older(connection: AsyncConnection) -> None:
    mine = compatibility.c.oldest_code == OLDEST_CODE
    await connection.execute(update(compatibility).where(mine).values(oldest_code=OLDER_CODE))


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


class _GoneError(Exception):
    """There is nothing to move any more."""
