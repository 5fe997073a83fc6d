"""The watches on one namespace, or on all of them, until one of them ends. The only file that imports kopf.

kopf's handlers see a change once and forget it when they fail; therefore they decide nothing here, they only tell the
listener. All of them are coroutines: kopf runs plain functions in threads, and the queue belongs to the event loop.

`kopf.operator()` is not used: when it ends it cancels every younger task of the event loop, other namespaces' watches
and our own work included, and it takes the process's signals. Its parts are public, and they are enough.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import kopf

from finetune.api import API_VERSION, PLURAL
from finetune.clients.kubernetes import USER_AGENT
from finetune.logs import described

from .core import names
from .namespaces import WatchEndedError

RETRIES_SECONDS = (1, 2, 5, 10)
"""How long kopf waits between its tries of one request; then the watches end, and whoever started them decides."""
STOP_SECONDS = 3.0


class Listener(Protocol):
    """Who is told what the watches see. An object is `new` when something happened, not when it was merely listed."""

    def run_seen(self, run: Mapping[str, Any], *, new: bool, added: bool, gone: bool) -> None:
        """A TrainingRun; `added` if it was made just now."""

    def job_seen(self, job: Mapping[str, Any], *, new: bool, gone: bool) -> None:
        """A Job of ours."""

    def pod_seen(self, pod: Mapping[str, Any], *, new: bool, gone: bool) -> None:
        """A pod of ours."""


async def watch(namespace: str | None, listener: Listener, keep_signals: Callable[[], None]) -> None:
    """Watch one namespace, or all if it is None, until cancelled. Raises WatchEndedError.

    `keep_signals` sets our own signal handlers again, because kopf sets its own when it starts.
    """
    tasks = await kopf.spawn_tasks(
        registry=handlers(listener),
        settings=_settings(),
        clusterwide=namespace is None,
        namespaces=[] if namespace is None else [namespace],
    )
    keep_signals()  # nothing ran since kopf took them
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        stopped, _ = await asyncio.wait(tasks, timeout=STOP_SECONDS)
        errors = [error for task in stopped if not task.cancelled() and (error := task.exception()) is not None]
    causes = [error for task in ended if not task.cancelled() and (error := task.exception()) is not None] or errors
    raise WatchEndedError("; ".join(described(cause) for cause in causes) or "no reason given")


def handlers(listener: Listener) -> kopf.OperatorRegistry:
    """What kopf calls."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return _named(kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs))

    @kopf.on.event(API_VERSION, PLURAL, registry=registry)
    async def run_changed(event: Mapping[str, Any], **_: Any) -> None:
        kind = event["type"]
        listener.run_seen(event["object"], new=kind is not None, added=kind == "ADDED", gone=kind == "DELETED")

    @kopf.on.event("batch", "v1", "jobs", registry=registry)
    async def job_changed(event: Mapping[str, Any], **_: Any) -> None:
        listener.job_seen(event["object"], new=event["type"] is not None, gone=event["type"] == "DELETED")

    @kopf.on.event("", "v1", "pods", registry=registry)
    async def pod_changed(event: Mapping[str, Any], **_: Any) -> None:
        listener.pod_seen(event["object"], new=event["type"] is not None, gone=event["type"] == "DELETED")

    return registry


def quiet_logs() -> None:
    """Let kopf not log every event of every object, nor what `WatchEndedError` says already."""
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    logging.getLogger("kopf.activities").setLevel(logging.WARNING)
    for logger in ("kopf._cogs.clients", "kopf._core.reactor", "kopf._core.engines"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)


class _NamedConnection(kopf.ConnectionInfo):
    """A connection with our own user agent instead of kopf's."""

    def as_http_headers(self) -> dict[str, str]:
        return {**super().as_http_headers(), "User-Agent": USER_AGENT}


def _named(found: kopf.ConnectionInfo | None) -> kopf.ConnectionInfo | None:
    if found is None:
        return None
    return _NamedConnection(**{field.name: getattr(found, field.name) for field in dataclasses.fields(found)})


class _NoDiffs(kopf.DiffBaseStorage):
    """For objects whose changes nobody asks for: kopf would copy each of them deeply, several times an event."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        """Nothing of the object."""
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        """Nothing was stored."""
        return None

    def store(self, **_: Any) -> None:
        """Nothing is."""


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.process.ultimate_exiting_timeout = None  # it kills the process some time after any watches were stopped
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.persistence.diffbase_storage = _NoDiffs()
    settings.queueing.idle_timeout = 1.0
    settings.networking.request_timeout = 30
    settings.networking.error_backoffs = RETRIES_SECONDS
    settings.watching.chunk_size = 500
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.connect_timeout = 10
    ours = f"{names.MANAGED_BY_LABEL}={names.MANAGED_BY}"
    settings.watching.label_selectors["batch", "v1", "jobs"] = ours
    settings.watching.label_selectors["", "v1", "pods"] = ours
    return settings
