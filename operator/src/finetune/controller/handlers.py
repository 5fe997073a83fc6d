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
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune.api.status import TrainingRunStatus
from finetune.api.trainingrun import ObjectMeta
from finetune.clients.breaker import Breaker
from finetune.clients.kubernetes import KubernetesClient, load_configuration
from finetune.clients.registry import RegistryClient, RegistryError
from finetune.logs import described

from .core.mark import has_finished
from .core.settings import Settings
from .gather import Gatherer
from .health import PORT, serve_health
from .known import KnownRuns, is_over, key_of, run_of
from .metrics import OperatorMetrics
from .namespaces import Served
from .reconcile import Reconciler
from .teller import Teller
from .transitions import log_transition
from .watch import watch
from .workqueue import Key, Line, WorkQueue

_log = logging.getLogger(__name__)

FRESH_PERIODS = 2
"""What the watches tell of an unfinished run is enough for so many resyncs; then all of it is read again."""

SETTLE_SECONDS = 0.2
"""How long a run waits after an event of its Job or pods: they come in bursts, of which the last one counts."""


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
        self._known = KnownRuns(fresh_seconds=FRESH_PERIODS * settings.resync_seconds)
        kubernetes.on_written = self._known.written
        self._metrics = OperatorMetrics()
        kubernetes.on_answered = self._metrics.kubernetes_answered
        registry.on_answered = self._metrics.registry_answered
        self._stop = asyncio.Event()
        self._teller = Teller(
            kubernetes=kubernetes,
            registry=registry,
            namespaces=settings.watch_namespaces,
            period_seconds=settings.resync_seconds,
        )
        gatherer = Gatherer(kubernetes=kubernetes, known=self._known, settings=settings)
        reconciler = Reconciler(
            kubernetes=kubernetes,
            registry=registry,
            gatherer=gatherer,
            known=self._known,
            settings=settings,
            on_status=self._status_changed,
        )
        self._reconcile = reconciler.reconcile
        self._queue = WorkQueue(work=self._work, told=self._metrics.pass_made)
        self._served = {namespace: self._serve(namespace) for namespace in settings.watch_namespaces or (None,)}
        self._metrics.show(
            runs=self._known.phases,
            queue=self._queue.state,
            namespaces=lambda: Counter(served.state for served in self._served.values()),
            registry_silent=lambda: registry.is_silent,
        )

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises whatever ends one of the loops, so that Kubernetes restarts us."""
        self._catch_signals()
        async with asyncio.TaskGroup() as group:
            loops = [
                group.create_task(self._queue.run(), name="work queue"),
                group.create_task(self._poll_progress_forever(), name="progress"),
                group.create_task(self._teller.run(), name="outcomes"),
                group.create_task(self._watch_authorities(), name="certificate authorities"),
                *(group.create_task(served.run(), name="served namespace") for served in self._served.values()),
            ]
            port = self._settings.health_port or (PORT if "KUBERNETES_SERVICE_HOST" in os.environ else None)
            if port is not None:
                health = serve_health(self._ready, self._metrics.registry, port=port)
                loops.append(group.create_task(health, name="probes and metrics"))
            await self._stop.wait()
            for loop in loops:
                loop.cancel()

    def run_seen(self, run: Mapping[str, Any], *, new: bool, added: bool, gone: bool) -> None:
        """A watch told of a run."""
        if gone:
            self._teller.gone(run["metadata"]["uid"])
        if self._known.run_seen(run, added=added, gone=gone):
            self._queue.add(key_of(run), line_of(run, listed=not new, changed=new and not added and not gone))

    def job_seen(self, job: Mapping[str, Any], *, new: bool, gone: bool) -> None:
        """A watch told of a Job."""
        if self._known.job_seen(job, gone=gone):
            self._add_run_of(job, new=new)

    def pod_seen(self, pod: Mapping[str, Any], *, new: bool, gone: bool) -> None:
        """A watch told of a pod."""
        if self._known.pod_seen(pod, gone=gone):
            self._add_run_of(pod, new=new)

    def _add_run_of(self, child: Mapping[str, Any], *, new: bool) -> None:
        key = run_of(child)
        if key is not None:
            line = Line.ROUTINE if not new else Line.END if is_over(child) else Line.NEWS
            self._queue.add_after(key, SETTLE_SECONDS, line)

    async def _work(self, key: Key) -> float | None:
        """One pass; none where the namespace's list is refused: the first that succeeds adds its runs again."""
        served = self._served.get(key.namespace) or self._served.get(None)
        if served is None or served.refused:
            self._known.doubt(key)
            return None
        return await self._reconcile(key)

    def _serve(self, namespace: str | None) -> Served:
        return Served(
            name=namespace,
            resync=functools.partial(self._resync, namespace),
            watch=functools.partial(self._watch, namespace),
            period_seconds=self._settings.resync_seconds,
        )

    async def _watch(self, namespace: str | None) -> None:
        self._known.doubt_children(namespace)
        await watch(namespace, self, self._catch_signals)

    def _ready(self) -> bool:
        return all(served.listed for served in self._served.values())

    def _status_changed(self, run: ObjectMeta, old: TrainingRunStatus, new: TrainingRunStatus) -> None:
        self._metrics.status_changed(run, old, new)
        self._teller.note(run, new)
        log_transition(run, old, new, datetime.now(UTC))

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)

    async def _resync(self, namespace: str | None) -> None:
        """Put what has changed unheard, or was not read lately, into the queue. Raises KubernetesError."""
        before = self._known.unfinished_in(namespace)
        async for page in self._kubernetes.list_unfinished_runs(namespace):
            for run in page:
                key = key_of(run)
                if before.get(key) == run["metadata"]["uid"]:
                    del before[key]
                changed = self._known.run_seen(run)
                if not has_finished(run) and (changed or self._known.is_stale(key)):
                    self._queue.add(key, Line.ROUTINE if has_phase(run) else Line.BIRTH)
        for key, uid in before.items():
            self._known.missed(key, uid)

    async def _watch_authorities(self) -> None:
        """Start anew once the registry's authorities have changed: new Jobs are given them, too."""
        while self._settings.registry_ca is not None:
            await asyncio.sleep(self._settings.resync_seconds)
            if self._settings.read_authorities() not in (None, self._settings.registry_ca):
                _log.info("the registry's certificate authorities have changed: starting anew")
                self._stop.set()
                return

    async def _poll_progress_forever(self) -> None:
        while True:
            await asyncio.sleep(self._settings.progress_seconds)
            training = self._known.training()
            try:
                posted = await self._registry.latest_progress(training) if training else {}
            except RegistryError as error:
                _log.info("no progress this time: %s", described(error))
                continue
            for key in self._known.posted(training, posted):
                self._queue.add(key, Line.ROUTINE)


def line_of(run: Mapping[str, Any], *, listed: bool, changed: bool) -> Line:
    """The line of a run that a watch tells of; after a start the unfinished ones do not wait behind all of history."""
    if changed:
        return Line.WISH
    if has_finished(run):
        return Line.ROUTINE if listed else Line.NEWS
    return Line.NEWS if has_phase(run) else Line.BIRTH


def has_phase(run: Mapping[str, Any]) -> bool:
    """Whether a run was looked at before."""
    return bool((run.get("status") or {}).get("phase"))


async def run_operator(settings: Settings) -> None:
    """Run the operator in this process until it is told to stop."""
    async with _clients(settings) as (kubernetes, registry):
        await Operator(settings=settings, kubernetes=kubernetes, registry=registry).run()


@contextlib.asynccontextmanager
async def _clients(settings: Settings) -> AsyncIterator[tuple[KubernetesClient, RegistryClient]]:
    kubernetes = KubernetesClient(configuration=await load_configuration())
    token_file = Path(settings.registry_token_file) if settings.registry_token_file else None
    tls = ssl.create_default_context(cadata=settings.registry_ca) if settings.registry_ca else None
    registry = RegistryClient(base_url=settings.registry_url, token_file=token_file, ssl=tls, breaker=Breaker())
    try:
        yield kubernetes, registry
    finally:
        await registry.close()
        await kubernetes.close()
