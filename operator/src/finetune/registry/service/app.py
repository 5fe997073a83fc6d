"""The application: routes, failures, health, and what runs beside the requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version

from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from sqlalchemy import URL, text
from sqlalchemy.exc import SQLAlchemyError

from finetune.api.registry import ErrorDocument
from finetune.metrics import page
from finetune.registry.access import Access
from finetune.registry.blobs import BlobStore
from finetune.registry.database import Database
from finetune.registry.errors import Unavailable
from finetune.registry.limits import PostLimits
from finetune.registry.metrics import RegistryMetrics
from finetune.registry.migrate import head, is_new_enough
from finetune.registry.pages.mount import mount_pages
from finetune.registry.store.adapters import AdapterStore
from finetune.registry.store.contents import Contents
from finetune.registry.store.datasets import DatasetStore
from finetune.registry.store.files import FileLimits, FileStore
from finetune.registry.store.interim import InterimStore
from finetune.registry.store.listing import RunLists
from finetune.registry.store.namespaces import NamespaceStore
from finetune.registry.store.outcomes import OutcomeStore
from finetune.registry.store.points import PointStore
from finetune.registry.store.runs import RunStore
from finetune.registry.store.states import AdapterStates

from . import adapters, audit, datasets, files, interim, runs
from .cleaning import clean_forever
from .common import Services, services_of
from .description import describe_documents
from .failures import add_failure_handlers
from .local import LocalOnly
from .observed import Observed

log = logging.getLogger(__name__)


def create_app(
    *,
    database_url: URL,
    access: Callable[[], Awaitable[Access]],
    store: BlobStore | None = None,
    limits: FileLimits | None = None,
    keep_versions: int | None = None,
    proxy_user: str | None = None,
) -> FastAPI:
    """The registry over a migrated database. `access` is called once, in the event loop that serves.

    Without a `store` it keeps no files of adapters. Of each adapter the `keep_versions` newest versions and those with
    an alias are kept; None: all. `proxy_user` is the account of an authenticating proxy before the
    pages, whose headers say who is asking.
    """
    metrics = RegistryMetrics()
    chosen = limits or FileLimits()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        database = Database(database_url)
        metrics.show(database)
        services = Services(
            database=database,
            metrics=metrics,
            access=await access(),
            datasets=DatasetStore(database, Contents(database, store), chosen),
            namespaces=NamespaceStore(database),
            limits=PostLimits(),
            runs=RunStore(database),
            outcomes=OutcomeStore(database),
            lists=RunLists(database),
            points=PointStore(database),
            adapters=AdapterStore(database),
            states=AdapterStates(database),
            files=FileStore(database, store, chosen),
            interim=InterimStore(database),
        )
        app.state.services = services
        cleaner = asyncio.create_task(clean_forever(services, keep_versions=keep_versions))
        try:
            yield
        finally:
            cleaner.cancel()
            with suppress(asyncio.CancelledError):
                await cleaner
            await services.access.close()
            await services.files.close()
            await database.close()

    app = FastAPI(
        title="finetune registry",
        summary="Datasets, runs and adapters",
        version=version("finetune-operator"),
        lifespan=lifespan,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        responses={"4XX": {"model": ErrorDocument}, "5XX": {"model": ErrorDocument}},
    )
    for module in (datasets, runs, adapters, files, interim, audit):
        app.include_router(module.router)
    for router in (runs.series_router, runs.operator_router):
        app.include_router(router)
    app.add_api_route("/healthz", _healthz, tags=["health"])
    app.add_api_route("/readyz", _readyz, tags=["health"])
    app.add_api_route("/metrics", _metrics, tags=["health"], response_class=PlainTextResponse)
    mount_pages(app, proxy_user=proxy_user)
    add_failure_handlers(app)
    app.add_middleware(LocalOnly)
    app.add_middleware(Observed, metrics=metrics)
    describe_documents(app)
    return app


async def _healthz() -> dict[str, str]:
    """The process serves requests."""
    return {"status": "ok"}


async def _metrics(request: Request) -> Response:
    """What is counted, for Prometheus; it holds no names and no contents."""
    metrics = services_of(request).metrics
    await metrics.measure()
    body, content_type = page(metrics.registry, request.headers.get("accept", ""))
    return Response(body, headers={"Content-Type": content_type})


async def _readyz(request: Request) -> dict[str, str]:
    """The database answers and has this registry's schema."""
    try:
        async with services_of(request).database.reading() as connection:
            found = (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar_one()
            fits = found == head() or await connection.run_sync(is_new_enough)
    except SQLAlchemyError as error:
        log.warning("not ready: the database does not answer: %s", getattr(error, "orig", error))
        raise Unavailable("the database does not answer", hint="the registry's log says more") from error
    if not fits:
        raise Unavailable(
            f"the database has schema {found}, this registry needs {head()}", hint="run: finetune registry migrate"
        )
    return {"status": "ready", "schema": found}
