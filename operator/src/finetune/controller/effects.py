"""Carries out one action of the core, and adds what came of it to the case.

A refusal is no exception here: it is classified, becomes part of the outcome, and the core says what it means.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any, assert_never

from pydantic import ValidationError

from finetune.api.registry import (
    DATASET_CHANGED,
    PARENT_ADAPTER_CHANGED,
    PARENT_ADAPTER_NOT_FOUND,
    AdapterVersion,
    BaseModelReference,
    ParentAdapter,
    RunResult,
)
from finetune.api.registry import Run as RegistryRun
from finetune.api.status import ResumeStatus, TrainingRunStatus
from finetune.api.trainingrun import TrainingRun
from finetune.clients.kubernetes import (
    AlreadyExistsError,
    ConflictError,
    ForbiddenError,
    KubernetesClient,
    KubernetesError,
    NotFoundError,
)
from finetune.clients.registry import RegistryClient, RegistryError, RegistryNotFound, RegistryRefused
from finetune.logs import described

from .core import decide, names
from .core.about import object_of
from .core.case import Case
from .core.manifests import build_claim, build_collect_job, build_job, build_send_job
from .core.mark import mark_of, spec_without_suspend
from .core.messages import Message, message_or_none
from .core.outcome import outcome_of
from .core.policies.jobs import doing
from .core.refusals import Refusal, classify, classify_registry
from .core.settings import Settings
from .core.status import recorded_parent
from .core.storage import output_claim_name
from .core.views import AdapterView, ClaimView, DatasetView, JobView, PodView, job_view, parent_view
from .gather import Gatherer
from .teller import tell_end

_log = logging.getLogger(__name__)


class StaleError(Exception):
    """What the decision was made from is not so any more: look again."""


class Effects:
    """Carries out what the core decides.

    Parameters
    ----------
    kubernetes, registry: where the effects go.
    gatherer: to look again when something turned out to be otherwise.
    now: the clock, in UTC.
    """

    def __init__(
        self,
        *,
        kubernetes: KubernetesClient,
        registry: RegistryClient,
        gatherer: Gatherer,
        settings: Settings,
        now: Callable[[], datetime],
    ) -> None:
        self._kubernetes = kubernetes
        self._registry = registry
        self._gatherer = gatherer
        self._settings = settings
        self._now = now

    async def perform(self, case: Case, action: decide.Action) -> Case:
        """The case after the action. Raises StaleError when its object has changed or gone since it was seen."""
        try:
            return await self._perform(case, action)
        except (ConflictError, NotFoundError) as error:
            if not isinstance(action, decide.Creation):
                raise StaleError(str(error)) from error
            return _with(case, refusal=self._refusal_of(case, action, error))
        except KubernetesError as error:
            return _with(case, refusal=self._refusal_of(case, action, error))
        except RegistryRefused as error:
            about = object_of(case, action)
            return _with(case, refusal=classify_registry(error.status, error.reason, str(error), about=about))
        except RegistryError as error:
            return _with(case, refusal=classify_registry(0, "", str(error), about=object_of(case, action)))

    def _refusal_of(self, case: Case, action: decide.Action, error: KubernetesError) -> Refusal:
        run, did = case.run.metadata, type(action).__name__
        _log.warning("%s/%s: %s refused: %s", run.namespace, run.name, did, described(error))
        refusal = classify(error.said_status, error.message, about=object_of(case, action), doing=doing(case))
        return dataclasses.replace(refusal, retry_after=error.retry_after)

    async def _perform(self, case: Case, action: decide.Action) -> Case:  # noqa: C901, PLR0912 - one line for each action
        match action:
            case decide.RecordRun():
                return await self._record_run(case)
            case decide.FindResume():
                return await self._find_resume(case)
            case decide.CreateClaim():
                return await self._create_claim(case)
            case decide.CreateJob():
                return await self._create_job(case)
            case decide.SuspendJob():
                mark = {"annotations": {names.SUSPENDED_BY_ANNOTATION: case.run.metadata.uid}}
                return await self._patch_job(case, {"metadata": mark, "spec": {"suspend": True}}, unchanged=True)
            case decide.ResumeJob():
                unmark = {"annotations": {names.SUSPENDED_BY_ANNOTATION: None}}
                return await self._patch_job(case, {"metadata": unmark, "spec": {"suspend": False}}, unchanged=True)
            case decide.ClearStartTime():
                return await self._clear_start_time(case)
            case decide.SetDeadline():
                return await self._patch_job(case, {"spec": {"activeDeadlineSeconds": action.seconds}})
            case decide.SetTTL():
                return await self._patch_job(case, {"spec": {"ttlSecondsAfterFinished": action.seconds_after_finish}})
            case decide.SetWorkloadActive():
                return await self._set_workload_active(case, action)
            case decide.DeletePod():
                return await self._delete_pod(case, action)
            case decide.FetchResult():
                return await self._fetch_result(case)
            case decide.CreateCollectJob():
                return await self._create_collect_job(case)
            case decide.CreateSendJob():
                return await self._create_send_job(case)
            case decide.AskStored():
                return await self._ask_stored(case)
            case decide.RegisterAdapter():
                return await self._register_adapter(case)
            case decide.FindClaim():
                return await self._find_claim(case)
            case decide.DeleteClaim():
                return await self._delete_claim(case, action.uid)
            case decide.TellEnd():
                return await self._tell_end(case)
            case decide.MarkFinished():
                return await self._mark_finished(case)
            case decide.DeleteJob():
                return await self._delete_job(case, action)
            case _:
                assert_never(action)

    # The registry

    async def _record_run(self, case: Case) -> Case:
        try:
            recorded = await self._put_run(case)
        except RegistryRefused as error:
            if error.reason in (PARENT_ADAPTER_NOT_FOUND, PARENT_ADAPTER_CHANGED):
                return _with(case, dataset=DatasetView(), parent_missing=str(error))
            unfound = isinstance(error, RegistryNotFound) or error.reason == DATASET_CHANGED
            if unfound and case.run.spec.dataset.registered is not None:
                return _with(case, dataset=DatasetView(missing=str(error)))
            raise
        known = recorded.trainer_status is not None
        dataset = DatasetView(version=recorded.dataset_version, sha256=recorded.dataset_sha256)
        case = _with(case, dataset=dataset, known=known)
        adapter = recorded.adapter or await self._adapter_before_restore(case.run)
        if adapter is not None:  # it was done before its status was lost
            stored = _message_of_adapter(adapter)
            view = dataclasses.replace(_adapter_view(adapter), stored=adapter.stored or None)  # nothing is sent anew
            return _with(case, adapter=view, stored_result=stored, result_asked=True)
        if recorded.parent_adapter is None:
            return case
        return await self._with_parent(case, recorded.parent_adapter)

    async def _adapter_before_restore(self, run: TrainingRun) -> AdapterVersion | None:
        """What a restored run had made under its former uid: the same name and spec, and done."""
        if names.RESTORED_LABEL not in run.metadata.labels:
            return None
        wanted = spec_without_suspend(run.spec.to_dict())
        for former in await self._registry.list_runs(run.metadata.namespace, name=run.metadata.name):
            same = former.name == run.metadata.name and spec_without_suspend(former.spec) == wanted
            if same and former.adapter is not None:
                return former.adapter
        return None

    async def _record_again(self, case: Case) -> None:
        """Tell a registry that lost its database of the run, without a dataset's version that is lost or another now.

        The adapter is registered with the digest of the rows, which needs no registry. A lost parent is waited for:
        what the adapter goes on from must be right.
        """
        try:
            await self._put_run(case)
        except RegistryRefused as error:
            lost = isinstance(error, RegistryNotFound) and error.reason != PARENT_ADAPTER_NOT_FOUND
            if not lost and error.reason != DATASET_CHANGED:
                raise
            await self._put_run(case, pin_dataset=False)

    async def _put_run(self, case: Case, *, pin_dataset: bool = True) -> RegistryRun:
        """Tell the registry of the run; a parent and a dataset that were found before must still be the same."""
        run = case.run
        dataset, parent = run.spec.dataset.registered if pin_dataset else None, run.spec.parent_adapter
        known = recorded_parent(run.status.parent_adapter, case)
        pinned = run.status.dataset if dataset else None
        return await self._registry.put_run(
            run.metadata.namespace,
            run.metadata.uid,
            name=run.metadata.name,
            experiment=run.experiment,
            method=run.spec.method,
            spec=run.spec.to_dict(),
            dataset_name=dataset.name if dataset else None,
            dataset_version=(dataset.version if dataset else None) or (pinned.version if pinned else None),
            dataset_sha256=pinned.source_sha256 if pinned else None,
            parent_adapter_name=parent.name if parent else None,
            parent_adapter_version=known.version if known else parent.version if parent else None,
            parent_adapter_sha256=known.sha256 if known else None,
        )

    async def _with_parent(self, case: Case, adapter: ParentAdapter) -> Case:
        """The parent adapter, and whether the claim that holds it exists."""
        parent = parent_view(
            name=adapter.name,
            version=adapter.version,
            sha256=adapter.sha256,
            uri=adapter.uri,
            base_model=adapter.base_model.name,
        )
        about = f"which holds the parent adapter {parent.name} version {parent.version},"
        missing = await self._claim_missing(case, parent.claim_name, about)
        return _with(case, parent=parent, parent_missing=missing)

    async def _claim_missing(self, case: Case, name: str, about: str) -> str:
        """Why a claim cannot be used; empty when it can."""
        namespace = case.run.metadata.namespace
        claim = await self._kubernetes.get_claim(namespace, name)
        if claim is not None and not claim["metadata"].get("deletionTimestamp"):
            return ""
        what = "not found" if claim is None else "is being deleted"
        return f'PersistentVolumeClaim "{name}", {about} {what} in namespace "{namespace}"'

    async def _fetch_result(self, case: Case) -> Case:
        run = case.run.metadata
        try:
            stored = await self._registry.get_result(run.namespace, run.uid)
        except RegistryNotFound:  # the trainer could not reach the registry, or has not finished
            return _with(case, result_asked=True)
        return _with(case, result_asked=True, stored_result=message_or_none(stored))

    async def _register_adapter(self, case: Case) -> Case:
        run, message = case.run, case.result
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
            if case.outcome.recorded_again:
                raise
            # a registry that lost its database; once it knows the run again, this is decided once more
            await self._record_again(case)
            return _with(case, recorded_again=True)
        return _with(case, adapter=_adapter_view(adapter))

    async def _tell_end(self, case: Case) -> Case:
        """A refusal is final; where there is no answer the run is not marked, so that it is told after a new start."""
        run = case.run.metadata
        try:
            outcome = outcome_of(run, case.run.status)
            if outcome is not None:
                await tell_end(self._registry, case.run, outcome)
        except (RegistryRefused, ValidationError) as error:
            _log.warning("%s/%s: its end cannot be told: %s", run.namespace, run.name, described(error))
        return _with(case, told=True)

    async def _ask_stored(self, case: Case) -> Case:
        run = case.run.metadata
        try:
            known = await self._registry.get_run(run.namespace, run.uid)
        except RegistryNotFound:  # it has lost its database since
            return _with(case, stored=False)
        return _with(case, stored=known.adapter is not None and bool(known.adapter.stored))

    # The children

    async def _find_resume(self, case: Case) -> Case:
        wanted, namespace = case.run.spec.resume_from, case.run.metadata.namespace
        if wanted is None:
            return case
        try:
            document = await self._kubernetes.get_run(namespace, wanted.run)
        except NotFoundError:
            return _with(case, resume_missing=f'TrainingRun "{wanted.run}" not found in namespace "{namespace}"')
        output = TrainingRunStatus.model_validate(document.get("status") or {}).output
        if output is None:
            return _with(case, resume_missing=f'TrainingRun "{wanted.run}" has not started: it has no checkpoint')
        about = f'which holds the checkpoints of TrainingRun "{wanted.run}",'
        if missing := await self._claim_missing(case, output.claim_name, about):
            return _with(case, resume_missing=missing)
        uid = document["metadata"]["uid"]
        resume = ResumeStatus(run=wanted.run, uid=uid, claim_name=output.claim_name, path=output.path)
        return _with(case, resume=resume)

    async def _create_claim(self, case: Case) -> Case:
        try:
            await self._kubernetes.create_claim(case.run.metadata.namespace, build_claim(case.run, case.settings))
        except AlreadyExistsError:
            _log.info("claim %s exists already", output_claim_name(case.run))
        return _seen(case, claim_exists=True)

    async def _find_claim(self, case: Case) -> Case:
        """Only the claim that bears the run's uid is looked at."""
        run, name = case.run.metadata, output_claim_name(case.run)
        try:
            claim = await self._kubernetes.get_claim(run.namespace, name)
            labels = (claim or {}).get("metadata", {}).get("labels") or {}
            if claim is None or labels.get(names.RUN_UID_LABEL) != run.uid:
                return _with(case, claim=ClaimView())
            runs = await self._gatherer.runs_naming(case.run, name)
        except ForbiddenError as error:  # it costs storage, and nothing else
            _log.warning("%s/%s: claim %s is kept: %s", run.namespace, run.name, name, described(error))
            return _with(case, claim=ClaimView())
        stepped = await self._has_trained_unseen(case)
        return _with(case, claim=ClaimView(uid=claim["metadata"]["uid"], runs=runs, stepped=stepped))

    async def _delete_claim(self, case: Case, uid: str) -> Case:
        run, name = case.run.metadata, output_claim_name(case.run)
        try:
            await self._kubernetes.delete_claim(run.namespace, name, uid)
        except ForbiddenError as error:
            _log.warning("%s/%s: claim %s not deleted: %s", run.namespace, run.name, name, described(error))
        return _with(case, claim_deleted=True)

    async def _has_trained_unseen(self, case: Case) -> bool:
        """The registry has heard of steps while the operator was away: there may be a checkpoint."""
        run = case.run.metadata
        try:
            posted = (await self._registry.latest_progress([run.uid])).get(run.uid)
        except RegistryError as error:  # then nobody can say
            _log.warning("%s/%s: its claim is kept: %s", run.namespace, run.name, described(error))
            return True
        return posted is not None and posted.value("step") not in (None, "0")

    async def _create_job(self, case: Case) -> Case:
        run = case.run
        manifest = build_job(run, self._settings, case.outcome.parent, case.outcome.resume)
        try:
            job = await self._kubernetes.create_job(run.metadata.namespace, manifest)
        except AlreadyExistsError:
            # since we looked: it may be ours and complete by now, so nothing of what was seen before it holds
            return dataclasses.replace(case, seen=await self._gatherer.gather(run, self._now()))
        return _seen(case, job=job_view(job))

    async def _patch_job(self, case: Case, patch: dict[str, Any], *, unchanged: bool = False) -> Case:
        """Change the very Job that was seen, and no other of its name.

        `unchanged`: only as it was seen, for somebody else may have suspended or resumed it meanwhile.
        """
        job = case.seen.job
        if job is None:
            return case
        metadata = {**patch.get("metadata", {}), "uid": job.uid}
        if unchanged and job.resource_version:
            metadata["resourceVersion"] = job.resource_version
        changed = await self._kubernetes.patch_job(
            case.run.metadata.namespace, job.name, {**patch, "metadata": metadata}
        )
        return _seen(case, job=job_view(changed))

    async def _clear_start_time(self, case: Case) -> Case:
        job = case.seen.job
        if job is None:
            return case
        patch = {"metadata": {"uid": job.uid}, "status": {"startTime": None}}
        changed = await self._kubernetes.patch_job_status(case.run.metadata.namespace, job.name, patch)
        return _seen(case, job=job_view(changed))

    async def _set_workload_active(self, case: Case, action: decide.SetWorkloadActive) -> Case:
        by = None if action.active else case.run.metadata.uid
        patch = {
            "metadata": {"annotations": {names.SUSPENDED_BY_ANNOTATION: by}},
            "spec": {"active": action.active},
        }
        await self._kubernetes.patch_workload(case.run.metadata.namespace, action.name, patch)
        workload = case.seen.workload
        if workload is None:
            return case
        changed = dataclasses.replace(workload, active=action.active, deactivated_by=by or "")
        return _seen(case, workload=changed)

    async def _delete_pod(self, case: Case, action: decide.DeletePod) -> Case:
        await self._kubernetes.delete_pod(case.run.metadata.namespace, action.name, action.uid)

        def marked(pods: tuple[PodView, ...]) -> tuple[PodView, ...]:
            return tuple(dataclasses.replace(pod, deleted=case.now) if pod.uid == action.uid else pod for pod in pods)

        return _seen(case, pods=marked(case.seen.pods), collect_pods=marked(case.seen.collect_pods))

    async def _create_collect_job(self, case: Case) -> Case:
        manifest = build_collect_job(case.run, self._settings)
        job = await self._create_helper(case, manifest)
        if job is None:
            name = manifest["metadata"]["name"]
            taken = f'Job "{name}" belongs to another object, and the run needs its name to read its result: delete it'
            return _seen(case, name_taken=taken)
        return _seen(case, collect_job=job)

    async def _create_send_job(self, case: Case) -> Case:
        job = await self._create_helper(case, build_send_job(case.run, self._settings))
        return _with(case, stored=False) if job is None else _seen(case, send_job=job)  # None: they stay on the claim

    async def _create_helper(self, case: Case, manifest: dict[str, Any]) -> JobView | None:
        """Create one of the run's small Jobs, or find it; None when somebody else's has its name."""
        namespace = case.run.metadata.namespace
        try:
            return job_view(await self._kubernetes.create_job(namespace, manifest))
        except AlreadyExistsError as error:
            found = await self._kubernetes.get_job(namespace, manifest["metadata"]["name"])
            if found is None:
                raise StaleError(str(error)) from error
            job = job_view(found)
            return job if job.owner_uid == case.run.metadata.uid else None

    async def _delete_job(self, case: Case, action: decide.DeleteJob) -> Case:
        await self._kubernetes.delete_job(case.run.metadata.namespace, action.name, action.uid)
        if case.seen.collect_job is not None and action.uid == case.seen.collect_job.uid:
            return _seen(case, collect_job=None)
        return _seen(case, job=None)

    async def _mark_finished(self, case: Case) -> Case:
        run = case.run
        mark = mark_of(run, run.status)
        try:
            await self._kubernetes.annotate_run(run.metadata.namespace, run.metadata.name, mark, uid=run.metadata.uid)
        except ConflictError:
            raise
        except KubernetesError as error:  # the status has the end; the mark only guards it
            _log.warning(
                "%s/%s: not marked as finished: %s", run.metadata.namespace, run.metadata.name, described(error)
            )
            return _with(case, mark_refused=True)
        metadata = run.metadata.model_copy(update={"annotations": {**run.metadata.annotations, **mark}})
        return dataclasses.replace(case, run=run.model_copy(update={"metadata": metadata}))


def _with(case: Case, **changes: Any) -> Case:
    """The case with more of an outcome."""
    return dataclasses.replace(case, outcome=dataclasses.replace(case.outcome, **changes))


def _seen(case: Case, **changes: Any) -> Case:
    """The case with a child that the operator has just changed."""
    return dataclasses.replace(case, seen=dataclasses.replace(case.seen, **changes))


def _adapter_view(adapter: AdapterVersion) -> AdapterView:
    return AdapterView(
        id=adapter.id,
        name=adapter.name,
        version=adapter.version,
        uri=adapter.uri,
        sha256=adapter.sha256,
        bytes=adapter.bytes,
        stored=adapter.stored,
    )


def _message_of_adapter(adapter: AdapterVersion) -> Message:
    """The trainer's last words, as the registry has kept them with the adapter."""
    values = adapter.model_dump(include=set(RunResult.model_fields), exclude_none=True)
    facts = {"sha256": adapter.sha256, "bytes": adapter.bytes, "files": adapter.files}
    return Message(result=RunResult.model_validate({**values, "adapter": facts}))
