"""Everything that the API server knows of a run's children, as one immutable value.

`gather` reads it. What the watches have told only adds what the API has forgotten: the last words of a pod that was
suspended or evicted and deleted at once. `recall` takes their word for Job and pods, where that is enough to say how a
run goes on. Labels find objects; whose they are, the controller's uid says.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from finetune.api import reasons
from finetune.api.trainingrun import TrainingRun
from finetune.clients.kubernetes import KubernetesClient, KubernetesError, NotFoundError
from finetune.logs import described

from .core import names
from .core.case import Case, awaits_files, is_finished
from .core.seen import Outcome, Seen
from .core.settings import Settings
from .core.storage import claim_names, output_claim_name
from .core.views import (
    JobView,
    PodView,
    ProgressView,
    event_views,
    job_view,
    pod_view,
    workload_view,
)
from .known import KnownRuns
from .workqueue import Key

_log = logging.getLogger(__name__)

Document = Mapping[str, Any]

FIRST_SEEN_SIZE = 4096


class Gatherer:
    """Reads what decisions are made from.

    Parameters
    ----------
    kubernetes: where it is read.
    known: what the watches have told, and the trainers' latest posts; it is told what is read here.
    """

    def __init__(
        self,
        *,
        kubernetes: KubernetesClient,
        known: KnownRuns,
        settings: Settings,
    ) -> None:
        self._kubernetes = kubernetes
        self._known = known
        self._settings = settings
        self._pending: OrderedDict[str, float] = OrderedDict()

    async def gather(self, run: TrainingRun, now: datetime) -> Seen:
        """What there is of the run now, read live. Raises KubernetesError."""
        key, uid = _key_of(run), run.metadata.uid
        if self._known.take_born(key, uid):
            return Seen()  # should somebody else have made its children meanwhile, their names refuse ours
        name, before = names.job_name(run.metadata.name, uid), self._known.pods_of(key)
        document = await self._kubernetes.get_job(key.namespace, name)
        job = job_view(document) if document is not None else None
        ours = job is not None and _is_ours(job, run)
        if is_finished(run.status):  # only what is left to clean up matters; after a restart there are many of these
            self._known.was_read(key, uid, document if ours else None, (), before)
            own = job if ours else None
            sender = await self._get_child(run, names.send_job_name(name)) if awaits_files(run.status) else None
            return Seen(job=own, collect_job=await self._get_collect_job(run), send_job=sender)
        if job is None and run.status.job_name is None:
            self._known.was_read(key, uid, None, (), before)
            return await self._before_job(run)
        if job is not None and not ours:
            taken = f'Job "{name}" belongs to another object, and the run needs its name: delete it'
            if job.uid == run.status.job_uid:
                taken = f'somebody has given Job "{name}" of this run another owner: give the ownerReference back'
            found = await self._list_pods(run)  # of the Job that it had: they are not gone for that
            return Seen(name_taken=taken, pods=self._trainers(run, None, found))
        collect_job: JobView | None = None
        if job is None or job.ended or run.status.phase == reasons.REGISTERING:
            # Before the pods: those of a Job that has ended are then seen as they ended.
            collect_job = await self._get_collect_job(run)
        found = await self._list_pods(run)
        self._known.was_read(key, uid, document, found, before)
        seen = Seen(
            job=job,
            pods=self._trainers(run, job, found),
            collect_job=collect_job,
            collect_pods=_controlled_by(collect_job, found),
            claim_exists=True,
            progress=self._latest_progress(run),
        )
        if seen.trainer_done and collect_job is None and seen.result is None:  # a sidecar keeps the Job from completing
            collect_job = await self._get_collect_job(run)
            collect_pods = _controlled_by(collect_job, await self._list_pods(run)) if collect_job else ()
            seen = dataclasses.replace(seen, collect_job=collect_job, collect_pods=collect_pods)
        seen = await self._with_workload(run, seen, collect_job or job)
        return await self._with_events(Case(run, seen, Outcome(), self._settings, now))

    async def recall(self, run: TrainingRun, now: datetime) -> Seen | None:
        """What the watches have told of a run that goes on; None where that has to be read. Raises KubernetesError."""
        children = self._known.children(_key_of(run), run.metadata.uid)
        if children is None or run.status.phase == reasons.REGISTERING:
            return None
        job = children.job
        if job.ended or job.failing or job.deleting or job.suspended or not _is_ours(job, run):
            return None
        pods = tuple(pod for pod in children.pods if pod.owner_uid == job.uid)
        seen = Seen(job=job, pods=pods, claim_exists=True, progress=self._latest_progress(run))
        if seen.trainer_done:
            return None
        seen = await self._with_workload(run, seen, job)
        return await self._with_events(Case(run, seen, Outcome(), self._settings, now))

    async def runs_naming(self, run: TrainingRun, claim: str) -> tuple[str, ...]:
        """Other runs that name a claim: those that have not ended, and all whose output is there.

        What one that has ended only read from it, nobody misses. Raises KubernetesError.
        """
        namespace, uid = run.metadata.namespace, run.metadata.uid
        found = set()
        for key in self._known.naming(namespace, claim):
            other = self._known.document(key) or await self._read(key)
            if json.dumps(claim) in json.dumps(other):
                found.add((key.name, other["metadata"]["uid"]))
        async for page in self._kubernetes.list_runs_with_output(namespace, claim):
            found |= {(each["metadata"]["name"], each["metadata"]["uid"]) for each in page}
        return tuple(sorted(name for name, other in found if other != uid))

    async def _read(self, key: Key) -> Document:
        """A run as it is; empty where it is gone."""
        try:
            return await self._kubernetes.get_run(key.namespace, key.name)
        except NotFoundError:
            return {}

    async def _with_events(self, case: Case) -> Seen:
        """What was seen, with the Events that say why it waits where nothing else does."""
        seen = dataclasses.replace(case.seen, pending_seconds=self._pending_seconds(case))
        try:
            events = await self._events(dataclasses.replace(case, seen=seen))
        except KubernetesError as error:  # they only say why it waits; all else goes on without them
            run = case.run.metadata
            _log.info("%s/%s: no Events: %s", run.namespace, run.name, described(error))
            return seen
        return dataclasses.replace(seen, events=event_views(events))

    async def _before_job(self, run: TrainingRun) -> Seen:
        if run.spec.output.claim_name is not None:
            return Seen()
        claim = await self._kubernetes.get_claim(run.metadata.namespace, output_claim_name(run))
        return Seen(claim_exists=claim is not None)

    async def _list_pods(self, run: TrainingRun) -> list[Document]:
        found: list[Document] = []
        found += await self._kubernetes.list_pods(run.metadata.namespace, names.run_selector(run.metadata.uid))
        return found

    def _trainers(self, run: TrainingRun, job: JobView | None, found: Sequence[Document]) -> tuple[PodView, ...]:
        """The pods that the training Job controls, whatever their labels say, and those that had last words."""
        job_uid = job.uid if job is not None else run.status.job_uid
        if not job_uid:
            return ()
        heard = self._known.last_words(_key_of(run), run.metadata.uid)
        by_uid = {pod.uid: pod for pod in [*heard, *map(pod_view, found)] if pod.owner_uid == job_uid}
        return tuple(by_uid.values())

    async def _get_collect_job(self, run: TrainingRun) -> JobView | None:
        name = names.collect_job_name(names.job_name(run.metadata.name, run.metadata.uid))
        return await self._get_child(run, name)

    async def _get_child(self, run: TrainingRun, name: str) -> JobView | None:
        document = await self._kubernetes.get_job(run.metadata.namespace, name)
        job = job_view(document) if document else None
        return job if job is not None and job.owner_uid == run.metadata.uid else None

    async def _with_workload(self, run: TrainingRun, seen: Seen, job: JobView | None) -> Seen:
        """Kueue's record of the Job, when somebody else has suspended it or a person wants it to rest."""
        if job is None or job.ended:
            return seen
        if not job.suspended and not run.spec.suspend:
            return seen
        try:
            found = await self._kubernetes.list_workloads(run.metadata.namespace, job.uid)
        except KubernetesError as error:
            return dataclasses.replace(seen, workload_hidden=error.message)
        return dataclasses.replace(seen, workload=workload_view(found[0]) if found else None)

    async def _events(self, case: Case) -> list[dict[str, Any]]:
        """Events of the Job, its newest pod and unbound claims, when what they are about has been pending for a while.

        They are read only where nothing else says why: the API server keeps no index of them.
        """
        job, pod, namespace = case.job, case.pod, case.run.metadata.namespace
        if job is None or not case.seen.pending_seconds or case.seen.pending_seconds < self._settings.pending_seconds:
            return []
        if pod is None or pod.finished:  # an ended pod waits for its successor
            return await self._kubernetes.list_events(namespace, job.uid)
        if pod.unschedulable:
            return [] if pod.awaits_a_node else await self._claim_events(case)
        if not pod.awaits_a_start:
            return []
        return await self._kubernetes.list_events(namespace, pod.uid)

    def _pending_seconds(self, case: Case) -> float:
        """How long the Job or its pod has been pending, by a clock of our own that no other machine's disturbs."""
        job, pod = case.job, case.pod
        if job is None or job.ended or job.suspended or (pod is not None and pod.phase == "Running"):
            return 0.0
        what = pod.uid if pod is not None and not pod.finished else f"{job.uid}/{len(case.attempts)}"
        now = time.monotonic()
        since = self._pending.setdefault(what, now)
        self._pending.move_to_end(what)
        if len(self._pending) > FIRST_SEEN_SIZE:
            self._pending.popitem(last=False)
        return max(now - since, 1e-9)

    async def _claim_events(self, case: Case) -> list[dict[str, Any]]:
        """Events of the run's claims that have no volume yet; each message names its claim."""
        run, parent = case.run, case.seen.job.parent if case.seen.job else None
        found = []
        for name in claim_names(run, parent, run.status.resumed_from):
            claim = await self._kubernetes.get_claim(run.metadata.namespace, name)
            if claim is not None and (claim.get("status") or {}).get("phase") != "Bound":
                events = await self._kubernetes.list_events(run.metadata.namespace, claim["metadata"]["uid"])
                about = f'PersistentVolumeClaim "{name}": '
                found += [{**event, "message": about + (event.get("message") or "")} for event in events]
        return found

    def _latest_progress(self, run: TrainingRun) -> ProgressView | None:
        posted = self._known.progress(_key_of(run), run.metadata.uid)
        if posted is None:
            return None
        return ProgressView(
            metrics={metric.name: metric.value for metric in posted.metrics},
            percent=posted.progress_percentage,
            remaining_seconds=posted.estimated_remaining_seconds,
            time=posted.last_updated_time,
        )


def _is_ours(job: JobView, run: TrainingRun) -> bool:
    """The run's own Job; one that the status knows is ours though somebody has taken its owner away."""
    return job.owner_uid == run.metadata.uid or (not job.owner_uid and job.uid == run.status.job_uid)


def _controlled_by(job: JobView | None, found: Sequence[Document]) -> tuple[PodView, ...]:
    """The pods that a Job controls, whatever their labels say."""
    return tuple(pod for pod in map(pod_view, found) if job is not None and pod.owner_uid == job.uid)


def _key_of(run: TrainingRun) -> Key:
    return Key(run.metadata.namespace, run.metadata.name)
