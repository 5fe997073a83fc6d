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
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune.api.registry import TrainerStatus
from finetune.api.status import TrainingRunStatus
from finetune.api.trainingrun import ObjectMeta
from finetune.clients.breaker import Breaker
from finetune.clients.kubernetes import KubernetesClient, load_configuration
from finetune.clients.registry import RegistryClient, RegistryError
from finetune.logs import described

from .core.mark import has_finished
from .core.settings import Settings
from .gather import Gatherer, PodCache
from .health import PORT, serve_health
from .known import Echoes, KnownRuns, job_needs_a_pass, run_needs_a_pass, run_of
from .metrics import OperatorMetrics
from .namespaces import Served
from .reconcile import Reconciler
from .transitions import log_transition
from .watch import watch
from .workqueue import Key, WorkQueue

_log = logging.getLogger(__name__)

REVISIT_PERIODS = 2
"""An unfinished run of which nothing is heard is looked at again after so many resyncs."""
PROGRESS_SECONDS = 60.0
"""How old the progress in a status may be while it does not move by a percent."""


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
        self._progress_told: dict[str, tuple[TrainerStatus, float]] = {}
        self._known = KnownRuns()
        self._echoes = Echoes()
        self._worked: dict[Key, float] = {}
        kubernetes.on_written = self._echoes.note
        self._metrics = OperatorMetrics()
        kubernetes.on_answered = self._metrics.kubernetes_answered
        registry.on_answered = self._metrics.registry_answered
        self._stop = asyncio.Event()
        gatherer = Gatherer(kubernetes=kubernetes, pods=self._pods, progress=self._progress, settings=settings)
        reconciler = Reconciler(
            kubernetes=kubernetes,
            registry=registry,
            gatherer=gatherer,
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
                *(group.create_task(served.run(), name="served namespace") for served in self._served.values()),
            ]
            port = self._settings.health_port or (PORT if "KUBERNETES_SERVICE_HOST" in os.environ else None)
            if port is not None:
                health = serve_health(self._ready, self._metrics.registry, port=port)
                loops.append(group.create_task(health, name="probes and metrics"))
            await self._stop.wait()
            for loop in loops:
                loop.cancel()

    def run_seen(self, run: Mapping[str, Any], *, new: bool, gone: bool) -> None:
        """A watch told of a run."""
        finished = has_finished(run)
        key = self._known.note(run, gone=gone, finished=finished)
        if gone:
            self._worked.pop(key, None)
        if self._echoes.is_own(run) or not run_needs_a_pass(run):
            return
        # After a start the unfinished ones do not wait behind all of history.
        self._queue.add(key, urgent=new or not finished)

    def job_seen(self, job: Mapping[str, Any], *, new: bool) -> None:
        """A watch told of a Job."""
        key = run_of(job)
        if key is None or self._echoes.is_own(job):
            return
        if job_needs_a_pass(job, unfinished=self._known.is_unfinished(key)):
            self._queue.add(key, urgent=new)

    def pod_seen(self, pod: Mapping[str, Any], *, new: bool) -> None:
        """A watch told of a pod; those of a run that has ended are the Job's business."""
        self._pods.remember(pod)
        key = run_of(pod)
        if key is not None and self._known.is_unfinished(key):
            self._queue.add(key, urgent=new)

    async def _work(self, key: Key) -> float | None:
        """One pass; none where the namespace's list is refused: the first that succeeds adds its runs again."""
        served = self._served.get(key.namespace) or self._served.get(None)
        if served is None or served.refused:
            self._worked.pop(key, None)
            return None
        self._worked[key] = asyncio.get_running_loop().time()
        due = await self._reconcile(key)
        if due is None and not self._known.is_unfinished(key):
            self._worked.pop(key, None)
        return due

    def _serve(self, namespace: str | None) -> Served:
        return Served(
            name=namespace,
            resync=functools.partial(self._resync, namespace),
            watch=functools.partial(watch, namespace, self, self._catch_signals),
            period_seconds=self._settings.resync_seconds,
        )

    def _ready(self) -> bool:
        return all(served.listed for served in self._served.values())

    def _status_changed(self, run: ObjectMeta, old: TrainingRunStatus, new: TrainingRunStatus) -> None:
        self._metrics.status_changed(run, old, new)
        log_transition(run, old, new, datetime.now(UTC))

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)

    async def _resync(self, namespace: str | None) -> None:
        """Put what is unfinished and was not looked at lately into the queue. Raises KubernetesError."""
        before = self._known.unfinished_in(namespace)
        lately = asyncio.get_running_loop().time() - REVISIT_PERIODS * self._settings.resync_seconds
        async for page in self._kubernetes.list_unfinished_runs(namespace):
            for run in page:
                finished, metadata = has_finished(run), run["metadata"]
                key = self._known.note(run, gone=False, finished=finished)
                if finished:
                    continue
                seen = before.pop(key, None) == (metadata["uid"], metadata["resourceVersion"])
                if not seen or self._worked.get(key, lately) <= lately:
                    self._queue.add(key, urgent=False)
        for key, (uid, _) in before.items():  # its end was missed
            self._known.missed(key, uid)
            self._worked.pop(key, None)

    async def _poll_progress_forever(self) -> None:
        while True:
            await asyncio.sleep(self._settings.progress_seconds)
            training = dict(self._known.training)
            try:
                posted = await self._registry.latest_progress(training) if training else {}
            except RegistryError as error:
                _log.info("no progress this time: %s", described(error))
                continue
            self._progress.clear()
            self._progress.update(posted)
            now = asyncio.get_running_loop().time()
            kept = {uid: self._progress_told[uid] for uid in posted if uid in self._progress_told}
            fresh = {uid: (each, now) for uid, each in posted.items() if is_worth_writing(each, kept.get(uid), now)}
            self._progress_told = kept | fresh
            for uid in fresh:
                self._queue.add(training[uid], urgent=False)


def is_worth_writing(posted: TrainerStatus, told: tuple[TrainerStatus, float] | None, now: float) -> bool:
    """Whether a run's status should have this progress: it moved by a percent, or has changed and a minute has passed.

    The registry has all of it, and each write of a status goes to everybody who watches.
    """
    if told is None:
        return True
    before, since = told
    if posted == before:
        return False
    return posted.progress_percentage != before.progress_percentage or now - since >= PROGRESS_SECONDS


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
