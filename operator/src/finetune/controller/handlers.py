"""The process shell: every event of a run or its children becomes a key in the work queue.

Nothing is decided here. A resync puts every unfinished run into the queue again, so that a lost event costs a minute at
most. Each namespace is served on its own, see `namespaces`; the queue is shared.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from finetune.api import conditions
from finetune.api.registry import TrainerStatus
from finetune.clients.breaker import Breaker
from finetune.clients.kubernetes import KubernetesClient, load_configuration
from finetune.clients.registry import RegistryClient, RegistryError

from .core import names
from .core.settings import Settings
from .gather import Gatherer, PodCache
from .health import serve_health
from .namespaces import Served
from .reconcile import Reconciler
from .watch import watch
from .workqueue import Key, WorkQueue

_log = logging.getLogger(__name__)


class Operator:
    """One operator process: clients, queue, and the loops that feed it. It is the watches' listener.

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
        self._stop = asyncio.Event()
        gatherer = Gatherer(kubernetes=kubernetes, pods=self._pods, progress=self._progress, settings=settings)
        reconciler = Reconciler(kubernetes=kubernetes, registry=registry, gatherer=gatherer, settings=settings)
        self._reconcile = reconciler.reconcile
        self._queue = WorkQueue(work=self._work)
        self._served = {namespace: self._serve(namespace) for namespace in settings.watch_namespaces or (None,)}

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises whatever ends one of the loops, so that Kubernetes restarts us."""
        self._catch_signals()
        async with asyncio.TaskGroup() as group:
            loops = [
                group.create_task(self._queue.run(), name="work queue"),
                group.create_task(self._poll_progress_forever(), name="progress"),
                *(group.create_task(served.run(), name="served namespace") for served in self._served.values()),
            ]
            if "KUBERNETES_SERVICE_HOST" in os.environ:
                loops.append(group.create_task(serve_health(self._ready), name="probes"))
            await self._stop.wait()
            for loop in loops:
                loop.cancel()

    def run_seen(self, run: Mapping[str, Any], *, new: bool, gone: bool) -> None:
        """A watch told of a run."""
        # After a start the unfinished ones do not wait behind all of history.
        self._queue.add(self._note_run(run, gone=gone), urgent=new or not _is_finished(run))

    def job_seen(self, job: Mapping[str, Any], *, new: bool) -> None:
        """A watch told of a Job."""
        self._add_owner(job, urgent=new)

    def pod_seen(self, pod: Mapping[str, Any], *, new: bool) -> None:
        """A watch told of a pod."""
        self._add_owner(pod, urgent=new)
        self._pods.remember(pod)

    async def _work(self, key: Key) -> float | None:
        """One pass; none where the namespace's list is refused: the first that succeeds adds its runs again."""
        served = self._served.get(key.namespace) or self._served.get(None)
        return None if served is None or served.refused else await self._reconcile(key)

    def _serve(self, namespace: str | None) -> Served:
        return Served(
            name=namespace,
            resync=functools.partial(self._resync, namespace),
            watch=functools.partial(watch, namespace, self, self._catch_signals),
            period_seconds=self._settings.resync_seconds,
        )

    def _ready(self) -> bool:
        return all(served.answered for served in self._served.values())

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)

    def _note_run(self, run: Mapping[str, Any], *, gone: bool = False) -> Key:
        """The run's key; remembers whether it is training, for the progress poller."""
        metadata, phase = run["metadata"], (run.get("status") or {}).get("phase")
        key = Key(metadata["namespace"], metadata["name"])
        if phase in ("Exporting", "Training") and not gone:
            self._training[metadata["uid"]] = key
        else:
            self._training.pop(metadata["uid"], None)
        return key

    def _add_owner(self, child: Mapping[str, Any], *, urgent: bool) -> None:
        run = (child["metadata"].get("labels") or {}).get(names.RUN_LABEL)
        if run:
            self._queue.add(Key(child["metadata"]["namespace"], run), urgent=urgent)

    async def _resync(self, namespace: str | None) -> None:
        """Put what is unfinished into the queue. Raises KubernetesError."""
        known = {uid for uid, key in self._training.items() if namespace in (None, key.namespace)}
        async for page in self._kubernetes.list_runs(namespace):
            for run in page:
                known.discard(run["metadata"]["uid"])
                key = self._note_run(run)
                if not _is_finished(run):
                    self._queue.add(key, urgent=False)
        for uid in known:  # its end was missed
            self._training.pop(uid, None)

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
                self._queue.add(training[uid], urgent=False)


def _is_finished(run: Mapping[str, Any]) -> bool:
    """`core.case.is_finished` for a document that is not worth reading as a whole."""
    found = (run.get("status") or {}).get("conditions") or []
    return any(each.get("type") == conditions.FINISHED and each.get("status") == "True" for each in found)


async def run_operator(settings: Settings) -> None:
    """Run the operator in this process until it is told to stop."""
    async with _clients(settings) as (kubernetes, registry):
        await Operator(settings=settings, kubernetes=kubernetes, registry=registry).run()


@contextlib.asynccontextmanager
async def _clients(settings: Settings) -> AsyncIterator[tuple[KubernetesClient, RegistryClient]]:
    kubernetes = KubernetesClient(configuration=await load_configuration())
    token_file = Path(settings.registry_token_file) if settings.registry_token_file else None
    registry = RegistryClient(base_url=settings.registry_url, token_file=token_file, breaker=Breaker())
    try:
        yield kubernetes, registry
    finally:
        await registry.close()
        await kubernetes.close()
