"""The process shell: kopf watches, and every event becomes a key in the work queue. The only file that imports kopf.

kopf's handlers see a change once and forget it when they fail; therefore they decide nothing here. All of them are
coroutines: kopf runs plain functions in threads, and the queue belongs to the event loop. A resync puts every
unfinished run into the queue again, so that a lost event costs a minute at most, and it feeds the liveness probe.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import kopf

from finetune.api import API_VERSION, PLURAL
from finetune.api.registry import TrainerStatus
from finetune.clients.kubernetes import KubernetesClient, KubernetesError, load_configuration
from finetune.clients.registry import RegistryClient, RegistryError

from .core import names
from .core.settings import Settings
from .gather import Gatherer, PodCache
from .reconcile import Reconciler
from .workqueue import Key, WorkQueue

_log = logging.getLogger(__name__)

LIVENESS_ENDPOINT = "http://0.0.0.0:8080/healthz"
MISSED_RESYNCS = 3
"""After so many resync periods without a successful one the process counts as dead."""


class Operator:
    """One operator process: clients, queue, and the loops beside kopf's own.

    Parameters
    ----------
    kubernetes, registry: clients, closed by whoever made them.
    """

    def __init__(self, *, settings: Settings, kubernetes: KubernetesClient, registry: RegistryClient) -> None:
        self._settings = settings
        self._kubernetes = kubernetes
        self._registry = registry
        self._pods = PodCache()
        self._progress: dict[str, TrainerStatus] = {}
        self._training: dict[str, Key] = {}
        self._last_resync: float | None = None
        gatherer = Gatherer(kubernetes=kubernetes, pods=self._pods, progress=self._progress, settings=settings)
        reconciler = Reconciler(kubernetes=kubernetes, registry=registry, gatherer=gatherer, settings=settings)
        self._queue = WorkQueue(work=reconciler.reconcile)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises whatever ends one of the loops, so that Kubernetes restarts us."""
        async with asyncio.TaskGroup() as group:
            loops = [
                group.create_task(self._queue.run(), name="work queue"),
                group.create_task(self._resync_forever(), name="resync"),
                group.create_task(self._poll_progress_forever(), name="progress"),
            ]
            await kopf.operator(
                registry=self._handlers(),
                settings=_kopf_settings(),
                clusterwide=not self._settings.watch_namespaces,
                namespaces=self._settings.watch_namespaces,
                liveness_endpoint=LIVENESS_ENDPOINT if "KUBERNETES_SERVICE_HOST" in os.environ else None,
            )
            for loop in loops:
                loop.cancel()

    def _handlers(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry)
        async def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
            return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

        @kopf.on.event(API_VERSION, PLURAL, registry=registry)
        async def run_changed(body: Mapping[str, Any], type: str | None, **_: Any) -> None:  # noqa: A002 - kopf's word
            self._queue.add(self._note_run(body, gone=type == "DELETED"))

        @kopf.on.event("batch", "v1", "jobs", registry=registry)
        async def job_changed(body: Mapping[str, Any], **_: Any) -> None:
            self._add_owner(body)

        @kopf.on.event("", "v1", "pods", registry=registry)
        async def pod_changed(body: Mapping[str, Any], **_: Any) -> None:
            self._pods.remember(body)
            self._add_owner(body)

        @kopf.on.probe(id="resync", registry=registry, errors=kopf.ErrorsMode.PERMANENT)
        async def resync_age(**_: Any) -> int:
            return self._resync_age()

        return registry

    def _note_run(self, run: Mapping[str, Any], *, gone: bool = False) -> Key:
        """The run's key; remembers whether it is training, for the progress poller."""
        metadata, phase = run["metadata"], (run.get("status") or {}).get("phase")
        key = Key(metadata["namespace"], metadata["name"])
        if phase in ("Exporting", "Training") and not gone:
            self._training[metadata["uid"]] = key
        else:
            self._training.pop(metadata["uid"], None)
        return key

    def _add_owner(self, child: Mapping[str, Any]) -> None:
        run = (child["metadata"].get("labels") or {}).get(names.RUN_LABEL)
        if run:
            self._queue.add(Key(child["metadata"]["namespace"], run))

    def _resync_age(self) -> int:
        """Seconds since the last successful resync. Raises when there has been none for too long."""
        loop = asyncio.get_running_loop()
        age = 0.0 if self._last_resync is None else loop.time() - self._last_resync
        if age > MISSED_RESYNCS * self._settings.resync_seconds:
            raise RuntimeError(f"no resync for {age:.0f} s: the API server does not answer")
        return round(age)

    async def _resync_forever(self) -> None:
        loop = asyncio.get_running_loop()
        self._last_resync = loop.time()
        while True:
            try:
                for namespace in self._settings.watch_namespaces or (None,):
                    async for page in self._kubernetes.list_runs(namespace):
                        for run in page:
                            key = self._note_run(run)
                            if (run.get("status") or {}).get("phase") not in ("Succeeded", "Failed"):
                                self._queue.add(key)
                self._last_resync = loop.time()
            except KubernetesError as error:
                _log.warning("resync failed, trying again: %s", error)
            await asyncio.sleep(self._settings.resync_seconds)

    async def _poll_progress_forever(self) -> None:
        while True:
            await asyncio.sleep(self._settings.progress_seconds)
            training = dict(self._training)
            try:
                posted = await self._registry.latest_progress(training) if training else {}
            except RegistryError as error:
                _log.info("no progress this time: %s", error)
                continue
            changed = [uid for uid, status in posted.items() if self._progress.get(uid) != status]
            self._progress.clear()
            self._progress.update(posted)
            for uid in changed:
                self._queue.add(training[uid])


async def run_operator(settings: Settings) -> None:
    """Run the operator in this process until it is told to stop."""
    async with _clients(settings) as (kubernetes, registry):
        await Operator(settings=settings, kubernetes=kubernetes, registry=registry).run()


@contextlib.asynccontextmanager
async def _clients(settings: Settings) -> AsyncIterator[tuple[KubernetesClient, RegistryClient]]:
    kubernetes = KubernetesClient(configuration=await load_configuration())
    token_file = Path(settings.registry_token_file) if settings.registry_token_file else None
    registry = RegistryClient(base_url=settings.registry_url, token_file=token_file)
    try:
        yield kubernetes, registry
    finally:
        await registry.close()
        await kubernetes.close()


def _kopf_settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.queueing.idle_timeout = 1.0
    settings.networking.request_timeout = 30
    settings.watching.chunk_size = 500
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.connect_timeout = 10
    ours = f"{names.MANAGED_BY_LABEL}={names.MANAGED_BY}"
    settings.watching.label_selectors["batch", "v1", "jobs"] = ours
    settings.watching.label_selectors["", "v1", "pods"] = ours
    return settings
