"""Everything that is known about a run's children, read live, as one immutable observation.

An index of a watch may hold objects that are long gone, so whether the Job exists is always asked. The pod cache only
adds what the API has forgotten: the last words of a pod that was suspended or evicted and deleted at once.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from finetune.api.registry import TrainerStatus
from finetune.api.trainingrun import TrainingRun
from finetune.clients.kubernetes import KubernetesClient
from finetune.clients.registry import RegistryClient, RegistryError, RegistryNotFound

from .core import names
from .core.messages import Message, message_of
from .core.observe import EventView, JobView, Observation, PodView, ProgressView, event_views, job_view, pod_view
from .core.settings import Settings
from .core.status import is_finished
from .core.storage import claim_names, output_claim_name

Document = Mapping[str, Any]

POD_CACHE_SIZE = 4096


class PodCache:
    """The last seen state of pods, bounded; losing an entry never changes how a run ends."""

    def __init__(self, size: int = POD_CACHE_SIZE) -> None:
        self._pods: OrderedDict[str, tuple[str, PodView]] = OrderedDict()
        self._size = size

    def remember(self, pod: Document) -> None:
        """Keep the state of a training pod, and forget the oldest one when there are too many."""
        uid, labels = pod["metadata"]["uid"], pod["metadata"].get("labels") or {}
        if labels.get(names.ROLE_LABEL) != names.ROLE_TRAIN:
            return
        self._pods[uid] = (labels.get(names.RUN_UID_LABEL, ""), pod_view(pod))
        self._pods.move_to_end(uid)
        if len(self._pods) > self._size:
            self._pods.popitem(last=False)

    def of_run(self, run_uid: str) -> list[PodView]:
        """The ended pods of a run that were seen, whether they still exist or not."""
        return [pod for owner, pod in self._pods.values() if owner == run_uid and pod.finished]


class Gatherer:
    """Reads what decisions are made from.

    Parameters
    ----------
    kubernetes, registry: the two places that know something.
    pods: last words of pods that the API has forgotten.
    progress: the latest posts of the trainers by run uid, filled by the poller.
    """

    def __init__(
        self,
        *,
        kubernetes: KubernetesClient,
        registry: RegistryClient,
        pods: PodCache,
        progress: Mapping[str, TrainerStatus],
        settings: Settings,
    ) -> None:
        self._kubernetes = kubernetes
        self._registry = registry
        self._pods = pods
        self._progress = progress
        self._settings = settings

    async def gather(self, run: TrainingRun, now: datetime) -> Observation:
        """One observation. Raises KubernetesError; the registry's silence is part of what is observed."""
        namespace, uid = run.metadata.namespace, run.metadata.uid
        name = names.job_name(run.metadata.name, uid)
        document = await self._kubernetes.get_job(namespace, name)
        job = job_view(document) if document is not None else None
        if is_finished(run.status):  # only what is left to clean up matters; after a restart there are many of these
            ours = job if job is not None and job.owner_uid == uid else None
            return Observation(job=ours, collect_job=await self._get_collect_job(run))
        if job is None and run.status.job_name is None:
            return await self._before_job(run)
        if job is not None and job.owner_uid != uid:
            return Observation(name_taken=f'Job "{name}" belongs to another object and is not gone yet')
        # Before the pods: those of a Job that has ended are then seen as they ended.
        collect_job = await self._get_collect_job(run) if job is None or job.complete else None
        pods, collect_pods = await self._list_pods(run)
        seen = Observation(
            job=job,
            pods=pods,
            collect_pods=collect_pods,
            claim_exists=True,
            progress=self._latest_progress(uid),
        )
        if job is None or job.complete:
            return await self._with_result(run, dataclasses.replace(seen, collect_job=collect_job))
        events = await self._pending_events(run, seen, now)
        return dataclasses.replace(seen, events=events)

    async def _before_job(self, run: TrainingRun) -> Observation:
        if run.spec.output.claim_name is not None:
            return Observation()
        claim = await self._kubernetes.get_claim(run.metadata.namespace, output_claim_name(run))
        return Observation(claim_exists=claim is not None)

    async def _list_pods(self, run: TrainingRun) -> tuple[tuple[PodView, ...], tuple[PodView, ...]]:
        """The run's pods, of the training Job and of the collect Job."""
        found = await self._kubernetes.list_pods(run.metadata.namespace, names.run_selector(run.metadata.uid))
        collecting = [pod for pod in found if pod["metadata"]["labels"].get(names.ROLE_LABEL) == names.ROLE_COLLECT]
        training = {pod["metadata"]["uid"]: pod_view(pod) for pod in found if pod not in collecting}
        for pod in self._pods.of_run(run.metadata.uid):
            training.setdefault(pod.uid, pod)
        return tuple(training.values()), tuple(pod_view(pod) for pod in collecting)

    async def _with_result(self, run: TrainingRun, seen: Observation) -> Observation:
        """The result from where it still is, once the training has ended or its Job is gone."""
        if seen.result is None:
            try:
                stored = await self._registry.get_result(run.metadata.namespace, run.metadata.uid)
                seen = dataclasses.replace(seen, stored_result=_message_or_none(stored))
            except RegistryNotFound:
                pass  # the trainer could not reach the registry; the claim still has the document
            except RegistryError as error:
                return dataclasses.replace(seen, registry_error=str(error))
        return seen

    async def _get_collect_job(self, run: TrainingRun) -> JobView | None:
        name = names.collect_job_name(names.job_name(run.metadata.name, run.metadata.uid))
        document = await self._kubernetes.get_job(run.metadata.namespace, name)
        return job_view(document) if document else None

    async def _pending_events(self, run: TrainingRun, seen: Observation, now: datetime) -> tuple[EventView, ...]:
        """Events of the Job, its newest pod and unbound claims, when one of them has been pending for a while."""
        pod, job = seen.newest_pod, seen.job
        if job is None or job.ended or (pod is not None and pod.phase == "Running"):
            return ()
        since = pod.created if pod else job.started or job.created
        if (now - since).total_seconds() < self._settings.pending_seconds:
            return ()
        uids = [job.uid, *([pod.uid] if pod and not pod.finished else [])]  # an ended pod waits for its successor
        found = [event for uid in uids for event in await self._kubernetes.list_events(run.metadata.namespace, uid)]
        if pod is not None and "unbound" in pod.unschedulable:
            found += await self._claim_events(run, job)
        return event_views(found)

    async def _claim_events(self, run: TrainingRun, job: JobView) -> list[dict[str, Any]]:
        """Events of the run's claims that have no volume yet; each message names its claim."""
        found = []
        for name in claim_names(run, job.parent):
            claim = await self._kubernetes.get_claim(run.metadata.namespace, name)
            if claim is not None and (claim.get("status") or {}).get("phase") != "Bound":
                events = await self._kubernetes.list_events(run.metadata.namespace, claim["metadata"]["uid"])
                about = f'PersistentVolumeClaim "{name}": '
                found += [{**event, "message": about + (event.get("message") or "")} for event in events]
        return found

    def _latest_progress(self, uid: str) -> ProgressView | None:
        posted = self._progress.get(uid)
        if posted is None:
            return None
        return ProgressView(
            metrics={metric.name: metric.value for metric in posted.metrics},
            percent=posted.progress_percentage,
            remaining_seconds=posted.estimated_remaining_seconds,
            time=posted.last_updated_time,
        )


def _message_or_none(document: Document) -> Message | None:
    try:
        return message_of(document)
    except ValidationError:
        return None
