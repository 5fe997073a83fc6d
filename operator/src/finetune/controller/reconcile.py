"""One pass for one run: gather, decide, act, and write the status at most once.

The pass starts from nothing but the run's name, so it does not matter which event woke it, whether one was missed, or
where the previous pass was killed. Decisions are in `core`; this module only carries them out.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from finetune.api import reasons
from finetune.api.registry import PARENT_ADAPTER_CHANGED, PARENT_ADAPTER_NOT_FOUND, ParentAdapter
from finetune.api.status import TrainingRunStatus
from finetune.api.trainingrun import TrainingRun
from finetune.clients.kubernetes import (
    AlreadyExistsError,
    ConflictError,
    ForbiddenError,
    KubernetesClient,
    KubernetesError,
    NotFoundError,
)
from finetune.clients.registry import (
    BaseModelReference,
    RegistryClient,
    RegistryError,
    RegistryNotFound,
    RegistryRefused,
    Run,
)

from .core import decide, names
from .core.events import build_event, events_between
from .core.failures import Case, Failure, failure_of
from .core.manifests import build_claim, build_collect_job, build_job
from .core.observe import AdapterView, DatasetView, Observation, job_view, parent_view
from .core.settings import Settings
from .core.status import is_finished, next_status, recorded_parent, restamp
from .core.storage import output_claim_name
from .gather import Gatherer
from .workqueue import Key

_log = logging.getLogger(__name__)

MAXIMUM_ACTIONS = 10
"""More actions than any run needs in one pass: reaching it is a bug, and it must not become a busy loop."""
WAITING_SECONDS = 5.0
"""Seconds until a run that waits for something is looked at again."""


class Reconciler:
    """Carries out what the core decides.

    Parameters
    ----------
    kubernetes, registry: where the effects go.
    gatherer: where the observation comes from.
    now: the clock, in UTC.
    """

    def __init__(
        self,
        *,
        kubernetes: KubernetesClient,
        registry: RegistryClient,
        gatherer: Gatherer,
        settings: Settings,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._kubernetes = kubernetes
        self._registry = registry
        self._gatherer = gatherer
        self._settings = settings
        self._now = now
        self._perform: dict[type[decide.Action], Callable[[TrainingRun, Observation, Any], Awaitable[Observation]]] = {
            decide.RecordRun: self._record_run,
            decide.CreateClaim: self._create_claim,
            decide.CreateJob: self._create_job,
            decide.SuspendJob: self._suspend_job,
            decide.ResumeJob: self._resume_job,
            decide.CreateCollectJob: self._create_collect_job,
            decide.RegisterAdapter: self._register_adapter,
            decide.DeleteJob: self._delete_job,
            decide.SetTTL: self._set_ttl,
        }

    async def reconcile(self, key: Key) -> float | None:
        """Bring one run a step further; returns seconds until it must be looked at again, or None.

        Raises KubernetesError when the API server does not play along; the queue tries again.
        """
        try:
            document = await self._kubernetes.get_run(key.namespace, key.name)
        except NotFoundError:
            await self._delete_orphans(key)
            return None
        if document["metadata"].get("deletionTimestamp"):
            return None  # its children go with it; nobody reads the status any more
        run = TrainingRun.from_object(document)
        case, failure = await self._act(run)
        status = self._status_of(case, failure)
        if status == run.status:
            return self._due(case, failure)
        try:
            await self._kubernetes.replace_run_status({**document, "status": status.to_dict()})
        except (ConflictError, NotFoundError):
            return 0.0  # somebody changed the run since it was read: start again from what it is now
        await self._emit_events(run, status)
        if is_finished(status) and not is_finished(run.status):
            _log.info("%s: %s after %s attempts", key, status.phase, status.attempts)
            return 0.0  # the Job is taken care of once the final status is stored
        return self._due(case, failure)

    async def _act(self, run: TrainingRun) -> tuple[Case, Failure | None]:
        """Perform one action after the other until none is left."""
        seen = await self._gatherer.gather(run, self._now())
        for _ in range(MAXIMUM_ACTIONS):
            case = decide.case_of(run, seen, self._settings, self._now())
            action = decide.next_action(case)
            if action is None:
                return case, None if is_finished(run.status) else failure_of(case)
            _log.info("%s/%s: %s", run.metadata.namespace, run.metadata.name, action)
            try:
                seen = await self._perform[type(action)](run, seen, action)
            except KubernetesError as error:
                if not isinstance(action, decide.Creation):
                    raise  # a running or finished Job is not given up because it cannot be changed just now
                if isinstance(error, ForbiddenError):
                    seen = dataclasses.replace(seen, refused=str(error))
                elif error.status == 422:
                    case = decide.case_of(run, seen, self._settings, self._now())
                    return case, Failure(reasons.INVALID_SPEC, str(error))
                else:
                    raise
            except RegistryError as error:
                seen = dataclasses.replace(seen, registry_error=str(error))
        raise RuntimeError(
            f"{run.metadata.namespace}/{run.metadata.name}: still {action} after {MAXIMUM_ACTIONS} actions"
        )

    def _status_of(self, case: Case, failure: Failure | None) -> TrainingRunStatus:
        status = case.run.status
        if is_finished(status):
            return restamp(status, case.run.metadata.generation)
        return next_status(case, failure)

    def _due(self, case: Case, failure: Failure | None) -> float | None:
        """Watches wake a run when its Job or pods change; what nobody watches is asked for again and again."""
        if failure is not None or is_finished(case.run.status):
            return None
        pod = case.seen.newest_pod
        pending = case.seen.job is not None and (pod is None or pod.phase != "Running") and not case.run.spec.suspend
        return WAITING_SECONDS if case.problem is not None or pending else None

    async def _emit_events(self, run: TrainingRun, status: TrainingRunStatus) -> None:
        for draft in events_between(run.status, status):
            try:
                await self._kubernetes.create_event(run.metadata.namespace, build_event(run, draft, self._now()))
            except KubernetesError as error:
                _log.warning("event %s not emitted: %s", draft.reason, error)

    async def _delete_orphans(self, key: Key) -> None:
        """Jobs whose run is gone; Kubernetes deletes them by their owner, this is for those it missed."""
        selector = f"{names.MANAGED_BY_LABEL}={names.MANAGED_BY},{names.RUN_LABEL}={key.name}"
        jobs = await self._kubernetes.list_jobs(key.namespace, selector)
        orphans = [job["metadata"]["name"] for job in jobs if not job["metadata"].get("deletionTimestamp")]
        if not orphans:
            return
        try:
            await self._kubernetes.get_run(key.namespace, key.name)  # created again by now, and perhaps with its Job?
        except NotFoundError:
            for name in orphans:
                await self._kubernetes.delete_job(key.namespace, name)

    async def _record_run(self, run: TrainingRun, seen: Observation, action: decide.RecordRun) -> Observation:
        del action
        try:
            recorded = await self._put_run(run, seen)
        except RegistryRefused as error:
            if error.reason in (PARENT_ADAPTER_NOT_FOUND, PARENT_ADAPTER_CHANGED):
                return dataclasses.replace(seen, dataset=DatasetView(), parent_missing=str(error))
            if isinstance(error, RegistryNotFound):
                return dataclasses.replace(seen, dataset=DatasetView(missing=str(error)))
            raise
        seen = dataclasses.replace(seen, dataset=DatasetView(version=recorded.dataset_version))
        if recorded.parent_adapter is None:
            return seen
        return await self._with_parent(run, seen, recorded.parent_adapter)

    async def _put_run(self, run: TrainingRun, seen: Observation) -> Run:
        """Tell the registry of the run; a parent that was found before must still be the same one."""
        dataset, parent = run.spec.dataset.registry, run.spec.parent_adapter
        known = recorded_parent(run.status.parent_adapter, seen)
        return await self._registry.put_run(
            run.metadata.namespace,
            run.metadata.uid,
            name=run.metadata.name,
            experiment=run.experiment,
            method=run.spec.method,
            spec=run.spec.to_dict(),
            dataset_name=dataset.name if dataset else None,
            dataset_version=dataset.version if dataset else None,
            parent_adapter_name=parent.name if parent else None,
            parent_adapter_version=known.version if known else parent.version if parent else None,
            parent_adapter_sha256=known.sha256 if known else None,
        )

    async def _with_parent(self, run: TrainingRun, seen: Observation, adapter: ParentAdapter) -> Observation:
        """The parent adapter, and whether the claim that holds it exists."""
        parent = parent_view(
            name=adapter.name,
            version=adapter.version,
            sha256=adapter.sha256,
            uri=adapter.uri,
            base_model=adapter.base_model.name,
        )
        claim = await self._kubernetes.get_claim(run.metadata.namespace, parent.claim_name)
        if claim is not None and not claim["metadata"].get("deletionTimestamp"):
            return dataclasses.replace(seen, parent=parent)
        missing = (
            f'PersistentVolumeClaim "{parent.claim_name}", which holds the parent adapter {parent.name} version '
            f"{parent.version}, {'not found' if claim is None else 'is being deleted'} in namespace "
            f'"{run.metadata.namespace}"'
        )
        return dataclasses.replace(seen, parent=parent, parent_missing=missing)

    async def _create_claim(self, run: TrainingRun, seen: Observation, action: decide.CreateClaim) -> Observation:
        del action
        try:
            await self._kubernetes.create_claim(run.metadata.namespace, build_claim(run))
        except AlreadyExistsError:
            _log.info("claim %s exists already", output_claim_name(run))
        return dataclasses.replace(seen, claim_exists=True)

    async def _create_job(self, run: TrainingRun, seen: Observation, action: decide.CreateJob) -> Observation:
        del action
        try:
            job = await self._kubernetes.create_job(run.metadata.namespace, build_job(run, self._settings, seen.parent))
        except AlreadyExistsError:
            # since we looked: it may be ours and complete by now, so nothing of what was seen before it holds
            again = await self._gatherer.gather(run, self._now())
            return dataclasses.replace(again, dataset=seen.dataset, parent=seen.parent)
        return dataclasses.replace(seen, job=job_view(job))

    async def _suspend_job(self, run: TrainingRun, seen: Observation, action: decide.SuspendJob) -> Observation:
        annotations = {names.ACTIVE_SECONDS_ANNOTATION: str(action.active_seconds)}
        return await self._patch_job(run, seen, {"metadata": {"annotations": annotations}, "spec": {"suspend": True}})

    async def _resume_job(self, run: TrainingRun, seen: Observation, action: decide.ResumeJob) -> Observation:
        spec: dict[str, Any] = {"suspend": False}
        if action.active_deadline_seconds is not None:
            spec["activeDeadlineSeconds"] = action.active_deadline_seconds
        return await self._patch_job(run, seen, {"spec": spec})

    async def _set_ttl(self, run: TrainingRun, seen: Observation, action: decide.SetTTL) -> Observation:
        return await self._patch_job(run, seen, {"spec": {"ttlSecondsAfterFinished": action.seconds_after_finish}})

    async def _patch_job(self, run: TrainingRun, seen: Observation, patch: dict[str, Any]) -> Observation:
        name = names.job_name(run.metadata.name, run.metadata.uid)
        job = await self._kubernetes.patch_job(run.metadata.namespace, name, patch)
        return dataclasses.replace(seen, job=job_view(job))

    async def _create_collect_job(
        self, run: TrainingRun, seen: Observation, action: decide.CreateCollectJob
    ) -> Observation:
        del action
        manifest = build_collect_job(run, self._settings)
        try:
            job = await self._kubernetes.create_job(run.metadata.namespace, manifest)
        except AlreadyExistsError:
            found = await self._kubernetes.get_job(run.metadata.namespace, manifest["metadata"]["name"])
            if found is None:
                raise
            job = found
        return dataclasses.replace(seen, collect_job=job_view(job))

    async def _delete_job(self, run: TrainingRun, seen: Observation, action: decide.DeleteJob) -> Observation:
        await self._kubernetes.delete_job(run.metadata.namespace, action.name)
        if seen.collect_job is not None and action.name == seen.collect_job.name:
            return dataclasses.replace(seen, collect_job=None)
        return dataclasses.replace(seen, job=None)

    async def _register_adapter(
        self, run: TrainingRun, seen: Observation, action: decide.RegisterAdapter
    ) -> Observation:
        del action
        message = seen.result
        if message is None or message.result is None:
            raise ValueError("an adapter is registered only when there is a result")
        said = message.base_model
        base = BaseModelReference(
            name=said.name if said else run.spec.base_model.display_name,
            revision=said.revision if said else None,
        )
        dataset = message.dataset.model_dump(by_alias=True, exclude_none=True) if message.dataset else {}
        try:
            adapter = await self._registry.put_adapter(
                run.metadata.namespace,
                run.metadata.uid,
                adapter_name=run.adapter_name,
                claim_name=output_claim_name(run),
                base_model=base,
                dataset=dataset,
                result=message.result.model_dump(by_alias=True, exclude_none=True),
            )
        except RegistryNotFound:
            # a registry that lost its database: record the run anew; then this is decided once more
            await self._put_run(run, seen)
            return seen
        except (RegistryRefused, ValidationError) as error:
            return dataclasses.replace(seen, registry_refused=str(error))
        view = AdapterView(
            id=adapter.id,
            name=adapter.name,
            version=adapter.version,
            uri=adapter.uri,
            sha256=adapter.sha256,
            bytes=adapter.bytes,
        )
        return dataclasses.replace(seen, adapter=view)
