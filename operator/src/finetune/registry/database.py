"""Connections and transactions: what differs between SQLite and PostgreSQL ends here.

SQLite takes one writer at a time. Writers of this process queue in memory, where waiting costs nothing
and is fair, and take SQLite's lock with BEGIN IMMEDIATE, so that a transaction that reads and then writes
never has to start again. PostgreSQL runs at READ COMMITTED; transactions that hand out numbers lock the
row that counts them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, event, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from finetune.logs import described

log = logging.getLogger(__name__)

BUSY_TIMEOUT_MILLISECONDS = 30_000
ATTEMPTS = 5
POOL_SIZE = 10
"""Connections to PostgreSQL that are kept open."""
# PostgreSQL: serialization failure, deadlock. SQLite says "locked" in words.
RETRIED_SQLSTATES = frozenset({"40001", "40P01"})
EXAMPLES = "write sqlite:////path/registry.db or postgresql://user:password@host/name"

T = TypeVar("T")
Transaction = Callable[[AsyncConnection], Awaitable[T]]


class InvalidDatabaseURL(ValueError):  # noqa: N818 - reads as the condition that it is
    """The database URL names no supported database."""


def parse_url(text: str) -> URL:
    """The URL with the driver that this registry uses.

    Accepts `sqlite:///relative.db`, `sqlite:////absolute.db`, `postgresql://user:password@host/name` and
    `postgres://...`. Raises `InvalidDatabaseURL`.
    """
    try:
        url = make_url(text)
    except ArgumentError:
        raise InvalidDatabaseURL(f"the database URL is not a URL: {EXAMPLES}") from None
    backend = url.drivername.split("+")[0]
    if backend == "sqlite":
        if not url.database or url.database == ":memory:":
            raise InvalidDatabaseURL(f"SQLite needs a file: {EXAMPLES}")
        return url.set(drivername="sqlite+aiosqlite")
    if backend in {"postgresql", "postgres"}:
        return url.set(drivername="postgresql+psycopg")
    raise InvalidDatabaseURL(f"database {backend!r} is not supported: {EXAMPLES}")


def prepare_sqlite(connection: Any, _entry: ConnectionPoolEntry) -> None:
    """Set up a new SQLite connection: our own transactions, every commit on disk before it is answered."""
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MILLISECONDS}")
    cursor.execute("PRAGMA synchronous=FULL")  # the journal is write-ahead since the first migration
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def begin_sqlite(connection: Connection) -> None:
    """Start the transaction that SQLAlchemy believes to have started."""
    write = connection.get_execution_options().get("finetune_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


class Database:
    """A pool of connections to one database. Create it in the event loop that uses it; close it at the end."""

    def __init__(self, url: URL) -> None:
        self.url = url
        self.is_sqlite = url.get_backend_name() == "sqlite"
        self.pool_limit = 8 if self.is_sqlite else 2 * POOL_SIZE
        """Connections that may be open at once."""
        self._write_queue = asyncio.Lock()
        self.engine = self._create_engine()

    def _create_engine(self) -> AsyncEngine:
        common: dict[str, Any] = {"hide_parameters": True}  # errors are logged, and values are somebody's rows
        if not self.is_sqlite:
            url = self.url.update_query_dict({"connect_timeout": "10", **self.url.query})
            overflow = self.pool_limit - POOL_SIZE
            return create_async_engine(
                url, pool_size=POOL_SIZE, max_overflow=overflow, pool_timeout=20, pool_pre_ping=True, **common
            )
        if self.url.database:
            Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_async_engine(self.url, pool_size=self.pool_limit, max_overflow=0, pool_timeout=30, **common)
        event.listen(engine.sync_engine, "connect", prepare_sqlite)
        event.listen(engine.sync_engine, "begin", begin_sqlite)
        return engine

    async def close(self) -> None:
        """Close all connections."""
        await self.engine.dispose()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A connection in a transaction that only reads."""
        async with self.engine.connect() as connection, connection.begin():
            yield connection

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[AsyncConnection]:
        async with AsyncExitStack() as stack:
            if self.is_sqlite:
                await stack.enter_async_context(self._write_queue)
            connection = await stack.enter_async_context(self.engine.connect())
            await connection.execution_options(finetune_write=True)
            await stack.enter_async_context(connection.begin())
            yield connection

    async def write(self, transaction: Transaction[T]) -> T:
        """Run `transaction` and commit; again, from the start, when it lost against another one.

        A unique constraint that fails is such a loss too: the other transaction has made the row that
        this one did not see, and will see now.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                async with self._writing() as connection:
                    return await transaction(connection)
            except (OperationalError, IntegrityError) as error:
                if attempt == ATTEMPTS or not _lost_a_race(error):
                    raise
                log.info("transaction lost a race, attempt %d of %d: %s", attempt, ATTEMPTS, described(error))
            # A short pause lets the winner finish; with several replicas its length must differ between them.
            await asyncio.sleep(0.02 * attempt)
        raise AssertionError("unreachable: the last attempt returns or raises")


def _lost_a_race(error: OperationalError | IntegrityError) -> bool:
    if isinstance(error, IntegrityError):
        return True
    return getattr(error.orig, "sqlstate", None) in RETRIED_SQLSTATES or "database is locked" in str(error.orig)
