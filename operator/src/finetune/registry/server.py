"""The registry as a process: check the settings, migrate, serve until SIGTERM."""

from __future__ import annotations

import ipaddress
import logging
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Literal

from .access import Access, KubernetesAccess, OpenAccess
from .blobs import check_store_url, open_store, store_beside
from .database import parse_url
from .migrate import migrate
from .store.files import FileLimits

log = logging.getLogger(__name__)

GRACEFUL_SECONDS = 4
"""How long requests under way get after SIGTERM: with what else ends, the process is gone within five seconds."""


class InvalidSettings(ValueError):  # noqa: N818 - reads as the condition that it is
    """The settings contradict each other."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an administrator chooses.

    `database_url` as in `parse_url`; `auth` is `none` (loopback only) or `kubernetes`; `operator_user` is the user
    that may write, like `system:serviceaccount:finetune:operator`. `store` is where the files of adapters are kept, as
    in `open_store`; by default a folder beside an SQLite database, and nowhere with PostgreSQL;
    `store_label` says in messages what that is. `file_bytes`, `run_bytes`, `namespace_bytes`, `namespace_quotas`,
    `line_bytes`, `line_values`, `interim_days` and `presigned` are as in `FileLimits`, `keep_versions` as in
    `create_app`. `proxy_user` is the account of an authenticating proxy before the pages.
    `tls_certificate` and `tls_key` are PEM files, for HTTPS; they are read again when they change.
    """

    database_url: str
    host: str = "127.0.0.1"
    port: int = 8080
    auth: Literal["none", "kubernetes"] = "none"
    operator_user: str | None = None
    store: str | None = None
    store_label: str | None = None
    file_bytes: int = FileLimits().file_bytes
    run_bytes: int = FileLimits().run_bytes
    namespace_bytes: int | None = None
    namespace_quotas: Mapping[str, int] = field(default_factory=dict)
    keep_versions: int | None = None
    interim_days: int = FileLimits().interim_after.days
    presigned: bool = FileLimits().presigned
    line_bytes: int = FileLimits().line_bytes
    line_values: int = FileLimits().line_values
    proxy_user: str | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None

    def store_url(self) -> str | None:
        """Where files are kept; None: nowhere."""
        url = parse_url(self.database_url)
        if self.store or url.get_backend_name() != "sqlite" or url.database is None:
            return self.store
        return store_beside(url.database)

    def check(self) -> None:
        """Raises `InvalidSettings`, `InvalidDatabaseURL` or `InvalidStoreURL`."""
        store = self.store_url()
        if store is not None:
            check_store_url(store)
        if not 0 < self.file_bytes <= self.run_bytes:
            raise InvalidSettings("--max-file-bytes must be more than 0, and --max-run-bytes at least as much")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise InvalidSettings("--tls-certificate and --tls-key belong together: give both, or neither for HTTP")
        if any(each is not None and each < 1 for each in (self.namespace_bytes, self.keep_versions)):
            raise InvalidSettings("--namespace-bytes and --keep-versions must be more than 0; without them all is kept")
        if self.interim_days < 0:
            raise InvalidSettings("--keep-interim-days must not be less than 0")
        if self.line_bytes < 1 or self.line_values < 1:
            raise InvalidSettings("--max-line-bytes and --max-line-values must be more than 0")
        if self.auth == "none" and not is_loopback(self.host):
            raise InvalidSettings(
                f"--auth=none lets everybody in, so it listens on loopback only, not on {self.host}: "
                "use --host=127.0.0.1, or --auth=kubernetes"
            )
        if self.auth == "kubernetes" and not self.operator_user:
            raise InvalidSettings(
                "--auth=kubernetes needs --operator-user=system:serviceaccount:<namespace>:<name>: "
                "the user that may record runs and register adapters"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(settings: Settings) -> None:
    """Migrate the database, then serve until SIGTERM or SIGINT; requests under way are finished first."""
    import uvicorn

    from .service.app import create_app
    from .tls import RenewingServer

    settings.check()
    # uvicorn raises the signal that stopped it once more when it is done: then this ends the process, with 0.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
    url = parse_url(settings.database_url)
    before, after = migrate(url)
    log.info("database %s has schema %s (was: %s)", url.render_as_string(), after, before or "empty")

    async def access() -> Access:
        return await _access(settings)

    store = settings.store_url()
    app = create_app(
        database_url=url,
        access=access,
        store=None if store is None else open_store(store, label=settings.store_label),
        limits=FileLimits(
            file_bytes=settings.file_bytes,
            run_bytes=settings.run_bytes,
            namespace_bytes=settings.namespace_bytes,
            namespace_quotas=settings.namespace_quotas,
            line_bytes=settings.line_bytes,
            line_values=settings.line_values,
            interim_after=timedelta(days=settings.interim_days),
            presigned=settings.presigned,
        ),
        keep_versions=settings.keep_versions,
        proxy_user=settings.proxy_user,
    )
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_config=None,  # its loggers go where all others go
        proxy_headers=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
    )
    server = RenewingServer(config)
    app.state.is_stopping = lambda: server.should_exit  # live pages end their streams then
    server.run()


async def _access(settings: Settings) -> Access:
    if settings.auth == "none" or settings.operator_user is None:
        return OpenAccess()
    from finetune.clients.kubernetes import load_configuration

    from .reviews import KubernetesReviews

    reviews = KubernetesReviews(await load_configuration())
    return KubernetesAccess(reviews, operator_user=settings.operator_user)
