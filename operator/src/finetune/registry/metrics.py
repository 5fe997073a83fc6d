"""The registry's metrics: counted by the service, and read off the database when asked for.

No series has the name of a namespace, a dataset or a person: requests are counted by the route's template.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from prometheus_client import Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import QueuePool

from finetune.metrics import SECONDS_OF_A_CALL, bounded, code_label, new_registry

from .database import Database
from .schema import blobs

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})
MEASURE_SECONDS = 2.0
"""How long a scrape waits for the size of the database; then it is left out."""
MEASURE_AGAIN_SECONDS = 30.0
"""PostgreSQL looks at every file of the database for it."""


class RegistryMetrics:
    """Everything that is counted. One object for each application; `registry` is what `/metrics` shows."""

    def __init__(self) -> None:
        self.registry = new_registry("registry")
        self._requests = Counter(
            "finetune_registry_requests", "Answered requests.", ["route", "method", "code"], registry=self.registry
        )
        self._seconds = Histogram(
            "finetune_registry_request_duration_seconds",
            "One request, with all of its body and of its answer.",
            ["route", "method"],
            buckets=SECONDS_OF_A_CALL,
            registry=self.registry,
        )
        self._rows = self._counter("uploaded_rows", "Rows of new versions of datasets.")
        self._bytes = self._counter("uploaded_bytes", "Bytes of new versions of datasets.")
        self._points = self._counter("points", "Points of progress that were taken.")
        self._database: DatabaseMetrics | None = None

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"finetune_registry_{name}", text, registry=self.registry)

    def show(self, database: Database) -> None:
        """Show this database's pool and size in every scrape."""
        self._database = DatabaseMetrics(database)
        self.registry.register(self._database)

    async def measure(self) -> None:
        """See how large the database is, before a scrape."""
        if self._database is not None:
            await self._database.measure()

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """A request has ended; `route` is one of the templates, of which there are a few, `method` its label."""
        self._requests.labels(route, method, code_label(status)).inc()
        self._seconds.labels(route, method).observe(seconds)

    def uploaded(self, *, rows: int, size: int) -> None:
        """A new version of a dataset was stored."""
        self._rows.inc(rows)
        self._bytes.inc(size)

    def points_written(self, count: int) -> None:
        """So many points of a run's progress were taken."""
        self._points.inc(count)


class Sizes(NamedTuple):
    """How many bytes there are."""

    database: int
    store: int
    """Of the files of adapters, by what the database knows of them."""


class DatabaseMetrics(Collector):
    """Gauges of a database: its pool at the moment of the scrape, and its size as `measure` saw it last."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sizes: Sizes | None = None
        self._measured = float("-inf")

    async def measure(self) -> None:
        """See how large it all is, unless that was seen lately. A database that does not answer has no size."""
        if time.monotonic() - self._measured < MEASURE_AGAIN_SECONDS:
            return
        self._measured = time.monotonic()
        try:
            async with asyncio.timeout(MEASURE_SECONDS):
                self._sizes = await sizes_of(self._database)
        except (SQLAlchemyError, OSError, TimeoutError):
            self._sizes = None

    def collect(self) -> Iterator[Metric]:
        """The gauges."""
        pool = self._database.engine.pool
        if isinstance(pool, QueuePool):
            yield _gauge("pool_connections_in_use", "Connections that requests hold.", pool.checkedout())
            yield _gauge("pool_connections", "Connections that may be open at once.", self._database.pool_limit)
        if self._sizes is not None:
            yield _gauge("database_bytes", "Size of the database.", self._sizes.database)
            yield _gauge(
                "store_bytes", "Size of the adapters' files and datasets' rows in the store.", self._sizes.store
            )
        folder = sqlite_folder(self._database)
        if folder is not None:
            usage = shutil.disk_usage(folder)
            yield _gauge("volume_free_bytes", "Free space on the volume of the SQLite database.", usage.free)
            yield _gauge("volume_bytes", "Size of the volume of the SQLite database.", usage.total)


def method_label(method: str) -> str:
    """The label of an HTTP method: servers let any word pass."""
    return bounded(method, METHODS)


async def sizes_of(database: Database) -> Sizes:
    """How large database and store are: SQLite's file with what is not in it yet, PostgreSQL by its own word."""
    stored = select(func.coalesce(func.sum(blobs.c.bytes), 0)).where(blobs.c.stored)
    async with database.reading() as connection:
        store = int((await connection.execute(stored)).scalar_one())
        if not database.is_sqlite:
            own = await connection.execute(text("SELECT pg_database_size(current_database())"))
            return Sizes(int(own.scalar_one()), store)
    path = Path(database.url.database or "")
    files = (path, path.with_name(f"{path.name}-wal"))
    return Sizes(sum(each.stat().st_size for each in files if each.exists()), store)


def sqlite_folder(database: Database) -> Path | None:
    """The folder of an SQLite database; none for PostgreSQL, whose disk is another machine's."""
    return Path(database.url.database or ".").absolute().parent if database.is_sqlite else None


def _gauge(name: str, description: str, value: float) -> Metric:
    return GaugeMetricFamily(f"finetune_registry_{name}", description, value=value)
