"""The API's documents about a run's children, as immutable values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from finetune.api.status import ResumeStatus

from .messages import Message, parse_message
from .names import (
    COLLECT_CONTAINER,
    EXPORT_CONTAINER,
    OUTPUT_MOUNT,
    PARENT_ADAPTER_MOUNT,
    PARENT_NAME_FLAG,
    PARENT_SHA256_FLAG,
    QUEUE_LABEL,
    RESUME_FLAG,
    RESUME_MOUNT,
    RESUME_RUN_FLAG,
    SUSPENDED_BY_ANNOTATION,
    TRAINER_CONTAINER,
)

Document = Mapping[str, Any]


MAXIMUM_DIGITS = 15
"""Of a step that is believed: more would not fit every reader of JSON."""


def whole_number(text: str | None) -> int | None:
    """A number that a pod has posted, if it is one."""
    fits = text is not None and text.isascii() and text.isdecimal() and len(text) <= MAXIMUM_DIGITS
    return int(text) if text is not None and fits else None


def parse_time(value: str | None) -> datetime | None:
    """An API time such as `2026-11-24T06:00:00Z` (or with fractions of a second) as an aware datetime."""
    return datetime.fromisoformat(value) if value else None


@dataclass(frozen=True)
class ContainerView:
    """The state of one container: waiting, running or terminated."""

    name: str = ""
    init: bool = False
    sidecar: bool = False
    """An init container that goes on beside the others (`restartPolicy: Always`); Kubernetes stops it by itself."""
    image: str = ""
    ready: bool = False
    waiting_reason: str = ""
    waiting_message: str = ""
    running_since: datetime | None = None
    exit_code: int | None = None
    exit_reason: str = ""
    finished: datetime | None = None
    message: Message = field(default_factory=Message)

    @property
    def succeeded(self) -> bool:
        """It ended with exit code 0."""
        return self.exit_code == 0

    @property
    def failed(self) -> bool:
        """It ended with another exit code."""
        return self.exit_code not in (None, 0)

    @property
    def started(self) -> bool:
        """It runs or has ended."""
        return self.running_since is not None or self.exit_code is not None


OWN_CONTAINERS = frozenset({EXPORT_CONTAINER, TRAINER_CONTAINER, COLLECT_CONTAINER})


@dataclass(frozen=True)
class PodView:
    """One pod of the training Job or of the collect Job."""

    name: str
    uid: str
    phase: str
    created: datetime
    owner_uid: str = ""
    """The object that controls it."""
    node: str = ""
    scheduled: datetime | None = None
    unschedulable: str = ""
    """The scheduler's message while it finds no node."""
    disrupted: str = ""
    """Why the pod was or is being evicted (the reason of `DisruptionTarget`)."""
    disrupted_at: datetime | None = None
    unheard: bool = False
    """The pod is not ready though its containers are: its node does not report."""
    deleted: datetime | None = None
    """When its deletion is or was due; grace period included."""
    reason: str = ""
    message: str = ""
    """The kubelet's words for `reason`."""
    containers: tuple[ContainerView, ...] = ()
    """All containers that have a status, in the order in which they start."""

    def container(self, *names: str) -> ContainerView:
        """The first container of one of these names; one without a state when there is none."""
        return next((each for each in self.containers if each.name in names), ContainerView())

    @property
    def export(self) -> ContainerView:
        """The container that brings the rows."""
        return self.container(EXPORT_CONTAINER)

    @property
    def trainer(self) -> ContainerView:
        """The container that trains; in the collect Job the one that reads."""
        return self.container(TRAINER_CONTAINER, COLLECT_CONTAINER)

    @property
    def injected(self) -> tuple[ContainerView, ...]:
        """Containers that somebody else put into the pod: a mesh, a secret store, a log shipper."""
        return tuple(each for each in self.containers if each.name not in OWN_CONTAINERS)

    @property
    def finished(self) -> bool:
        """The pod has ended, well or badly."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def lives_on(self) -> tuple[ContainerView, ...]:
        """Injected containers that keep the pod alive: Kubernetes waits for their end, also where they cannot start."""
        return tuple(each for each in self.injected if each.exit_code is None and not each.init)

    @property
    def awaits_a_start(self) -> bool:
        """The trainer has not started, and nothing runs now that must end before it."""
        return not self.trainer.started and not any(
            each.running_since is not None for each in self.containers if each.init and not each.sidecar
        )

    @property
    def awaits_a_node(self) -> bool:
        """The scheduler says itself why it finds no node; of claims without a volume only their Events tell more."""
        return bool(self.unschedulable) and "unbound" not in self.unschedulable

    @property
    def over_its_limit(self) -> bool:
        """It was evicted for what it used of the node's disk or of shared memory: its own doing, no disruption."""
        return self.reason == "Evicted" and not self.disrupted

    @property
    def last_words(self) -> ContainerView | None:
        """The container of ours that decided how the pod ended; None when none has."""
        if self.trainer.exit_code is not None:
            return self.trainer
        return self.export if self.export.failed else None

    @property
    def culprit(self) -> ContainerView | None:
        """The injected container that failed the pod, when none of ours did."""
        if self.last_words is not None and self.last_words.failed:
            return None
        return next((each for each in self.injected if each.failed), None)


@dataclass(frozen=True)
class ParentView:
    """The adapter version that the run goes on from."""

    name: str
    version: int
    sha256: str
    claim_name: str = ""
    """The claim that holds it; empty when it was read from a Job that finds it on the output claim."""
    path: str = ""
    """The adapter's folder, from the root of the claim."""
    base_model: str = ""
    """What it was trained on; empty when it was read from the Job, which exists only if that was right."""


@dataclass(frozen=True)
class JobView:
    """A Job of the run."""

    name: str
    uid: str
    owner_uid: str
    created: datetime
    resource_version: str = ""
    suspended: bool = False
    """What `spec.suspend` says."""
    suspended_at: datetime | None = None
    """Since when the Job controller holds it suspended; None until it has seen `spec.suspend`."""
    suspended_by: str = ""
    """The uid of the run whose operator suspended it; empty when it is active, or somebody else did."""
    queue: str = ""
    """The queue that its label names, whoever put it there."""
    active_deadline_seconds: int | None = None
    started: datetime | None = None
    """Start of the active time that its deadline is compared with."""
    deleting: bool = False
    """Somebody has deleted it, and something holds it up."""
    failing: bool = False
    """It has failed for good, and its pods are being stopped."""
    complete: bool = False
    failed: bool = False
    finished: datetime | None = None
    reason: str = ""
    message: str = ""
    ttl_set: bool = False
    parent: ParentView | None = None
    """The parent adapter that its trainer was told of."""
    resumed_from: ResumeStatus | None = None
    """The run whose checkpoints its trainer was told of."""

    @property
    def ended(self) -> bool:
        """Complete or failed, all pods ended."""
        return self.complete or self.failed


@dataclass(frozen=True)
class EventView:
    """A Kubernetes Event about the Job or one of its pods."""

    reason: str
    message: str
    time: datetime | None = None
    warning: bool = False


@dataclass(frozen=True)
class WorkloadView:
    """Kueue's record of the Job: whether it may run, and why not."""

    name: str
    active: bool = True
    """False: somebody has deactivated it, and it gets no quota."""
    deactivated_by: str = ""
    """The uid of the run whose operator did that."""
    queue: str = ""
    """The LocalQueue that it names; empty when nothing named one."""
    reason: str = ""
    """Why it was evicted, or what it waits for; in Kueue's words, as is the message."""
    message: str = ""


@dataclass(frozen=True)
class ClaimView:
    """The output claim that the operator has made for a run, and what speaks against deleting it."""

    uid: str = ""
    """Empty where there is none with the run's uid, or where we may not look."""
    runs: tuple[str, ...] = ()
    """Other runs that name it."""
    stepped: bool = False
    """The registry has heard of steps while the operator was away, or cannot say: there may be a checkpoint."""

    @property
    def is_unused(self) -> bool:
        """It is there, and nothing that anybody would miss is on it."""
        return bool(self.uid) and not self.runs and not self.stepped


@dataclass(frozen=True)
class DatasetView:
    """What the registry said when it was told of the run."""

    version: int | None = None
    """The version of `spec.dataset.registry` that is pinned for the run."""
    sha256: str | None = None
    """Of its rows, as they were uploaded."""
    missing: str = ""
    """Why there is no such dataset; empty when there is."""


@dataclass(frozen=True)
class AdapterView:
    """The adapter version that the registry has given the run."""

    id: str
    name: str
    version: int
    uri: str
    sha256: str
    bytes: int
    stored: bool | None = None
    """Whether the registry's store has the files; None: it has no store."""


@dataclass(frozen=True)
class ProgressView:
    """The trainer's latest post to the registry."""

    metrics: Mapping[str, str]
    percent: int | None
    remaining_seconds: int | None
    time: datetime | None


def job_view(job: Document) -> JobView:
    """A `batch/v1` Job as JobView."""
    metadata, status = job["metadata"], job.get("status") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or () if c.get("status") == "True"}
    end = conditions.get("Complete") or conditions.get("Failed") or {}
    annotations, labels = metadata.get("annotations") or {}, metadata.get("labels") or {}
    return JobView(
        name=metadata["name"],
        uid=metadata["uid"],
        owner_uid=_owner_uid(metadata),
        created=_required_time(metadata["creationTimestamp"]),
        resource_version=metadata.get("resourceVersion", ""),
        suspended=bool(job["spec"].get("suspend")),
        suspended_at=parse_time(conditions.get("Suspended", {}).get("lastTransitionTime")),
        suspended_by=annotations.get(SUSPENDED_BY_ANNOTATION, ""),
        queue=labels.get(QUEUE_LABEL, ""),
        active_deadline_seconds=job["spec"].get("activeDeadlineSeconds"),
        started=parse_time(status.get("startTime")),
        deleting=bool(metadata.get("deletionTimestamp")),
        failing="FailureTarget" in conditions,
        complete="Complete" in conditions,
        failed="Failed" in conditions,
        finished=parse_time(status.get("completionTime") or end.get("lastTransitionTime")),
        reason=end.get("reason", ""),
        message=end.get("message", ""),
        ttl_set=job["spec"].get("ttlSecondsAfterFinished") is not None,
        parent=_parent_in(job["spec"]),
        resumed_from=_resumed_from_in(job["spec"]),
    )


def _owner_uid(metadata: Document) -> str:
    owner: Document = next((o for o in metadata.get("ownerReferences") or () if o.get("controller")), {})
    return str(owner.get("uid", ""))


def workload_view(workload: Document) -> WorkloadView:
    """A Workload of Kueue as WorkloadView.

    The message of `QuotaReserved` says what it waits for now; `Evicted` stays true until it is admitted again, and its
    reason says why it lost its quota.
    """
    metadata, spec = workload["metadata"], workload.get("spec") or {}
    conditions = {c["type"]: c for c in (workload.get("status") or {}).get("conditions") or ()}
    quota, evicted = conditions.get("QuotaReserved", {}), conditions.get("Evicted", {})
    waits = quota if quota.get("status") == "False" else {}
    was_evicted = evicted.get("status") == "True"
    return WorkloadView(
        name=metadata["name"],
        active=bool(spec.get("active", True)),
        deactivated_by=(metadata.get("annotations") or {}).get(SUSPENDED_BY_ANNOTATION, ""),
        queue=spec.get("queueName") or "",
        reason=(evicted if was_evicted else waits).get("reason", ""),
        message=waits.get("message") or (evicted.get("message", "") if was_evicted else ""),
    )


def parent_view(*, name: str, version: int, sha256: str, uri: str, base_model: str) -> ParentView:
    """An adapter version of the registry as ParentView; its uri is `pvc://<claim>/<path>`."""
    claim, _, path = uri.removeprefix("pvc://").partition("/")
    return ParentView(name=name, version=version, sha256=sha256, claim_name=claim, path=path, base_model=base_model)


def _parent_in(job_spec: Document) -> ParentView | None:
    """The parent adapter in a Job's own arguments: what was really trained on, whoever recorded what."""
    pod, trainer, flags = _told(job_spec)
    name, _, version = flags.get(PARENT_NAME_FLAG, "").rpartition("/")
    sha256 = flags.get(PARENT_SHA256_FLAG)
    if not name or not version.isdecimal() or not sha256:
        return None
    claim = _claim_at(PARENT_ADAPTER_MOUNT, pod, trainer)
    return ParentView(name=name, version=int(version), sha256=sha256, claim_name=claim)


def _resumed_from_in(job_spec: Document) -> ResumeStatus | None:
    """The run of `spec.resumeFrom` in a Job's own arguments: a crash may have kept it out of the status."""
    pod, trainer, flags = _told(job_spec)
    run, directory = flags.get(RESUME_RUN_FLAG), flags.get(RESUME_FLAG, "")
    mount = next((each for each in (RESUME_MOUNT, OUTPUT_MOUNT) if directory.startswith(f"{each}/")), None)
    if not run or mount is None:
        return None
    path = directory.removeprefix(f"{mount}/")
    uid = path.rpartition("/")[2]
    return ResumeStatus(run=run, uid=uid, claim_name=_claim_at(mount, pod, trainer), path=path)


def _told(job_spec: Document) -> tuple[Document, Document, dict[str, str]]:
    """The pod of a Job, its trainer, and the flags that the trainer was given."""
    pod = job_spec.get("template", {}).get("spec", {})
    trainer: Document = next((c for c in pod.get("containers", ()) if c["name"] == TRAINER_CONTAINER), {})
    flags = dict(argument.removeprefix("--").partition("=")[::2] for argument in trainer.get("args", ()))
    return pod, trainer, flags


def _claim_at(path: str, pod: Document, container: Document) -> str:
    """The claim that a container mounts there; empty for none."""
    volume = next((each["name"] for each in container.get("volumeMounts", ()) if each["mountPath"] == path), None)
    claims = (each.get("persistentVolumeClaim") for each in pod.get("volumes", ()) if each["name"] == volume)
    return next((claim["claimName"] for claim in claims if claim), "")


def pod_view(pod: Document) -> PodView:
    """A pod as PodView; the collect Job's container takes the trainer's place."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or ()}
    scheduled = conditions.get("PodScheduled", {})
    disruption = conditions.get("DisruptionTarget", {})
    is_scheduled, is_disrupted = scheduled.get("status") == "True", disruption.get("status") == "True"
    containers = _containers(pod["spec"], status)
    mains = [each for each in containers if not each.init]
    ready = conditions.get("Ready", {})
    # With gates that others have put on the pod it is not ready either, and its node is well.
    not_ready = ready.get("status") in ("False", "Unknown") and ready.get("reason") != "ReadinessGatesNotReady"
    return PodView(
        name=metadata["name"],
        uid=metadata["uid"],
        phase=status.get("phase", "Pending"),
        created=_required_time(metadata["creationTimestamp"]),
        owner_uid=_owner_uid(metadata),
        node=pod["spec"].get("nodeName") or "",
        scheduled=parse_time(scheduled.get("lastTransitionTime")) if is_scheduled else None,
        unschedulable=scheduled.get("message", "") if scheduled.get("status") == "False" else "",
        disrupted=disruption.get("reason", "") if is_disrupted else "",
        disrupted_at=parse_time(disruption.get("lastTransitionTime")) if is_disrupted else None,
        unheard=not_ready and bool(mains) and all(each.ready and each.running_since for each in mains),
        deleted=parse_time(metadata.get("deletionTimestamp")),
        reason=status.get("reason", ""),
        message=status.get("message", ""),
        containers=containers,
    )


def event_views(events: Iterable[Document]) -> tuple[EventView, ...]:
    """Events, oldest first."""
    views = [
        EventView(
            reason=event.get("reason") or "",
            message=event.get("message") or "",
            time=parse_time(
                (event.get("series") or {}).get("lastObservedTime")
                or event.get("lastTimestamp")
                or event.get("eventTime")
                or event["metadata"].get("creationTimestamp")
            ),
            warning=event.get("type") == "Warning",
        )
        for event in events
    ]
    return tuple(sorted(views, key=lambda view: view.time.timestamp() if view.time else 0.0))


def _containers(spec: Document, status: Document) -> tuple[ContainerView, ...]:
    always = {c["name"] for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always"}
    return tuple(
        _container_view(each, init=init, sidecar=each["name"] in always)
        for init, entries in ((True, status.get("initContainerStatuses")), (False, status.get("containerStatuses")))
        for each in entries or ()
    )


def _container_view(status: Document, *, init: bool, sidecar: bool) -> ContainerView:
    state = status.get("state") or {}
    waiting, running, ended = (
        state.get("waiting") or {},
        state.get("running") or {},
        state.get("terminated") or {},
    )
    return ContainerView(
        name=status["name"],
        init=init,
        sidecar=sidecar,
        image=status.get("image", ""),
        ready=bool(status.get("ready")),
        waiting_reason=waiting.get("reason", ""),
        waiting_message=waiting.get("message", ""),
        running_since=parse_time(running.get("startedAt")),
        exit_code=ended.get("exitCode"),
        exit_reason=ended.get("reason", ""),
        finished=parse_time(ended.get("finishedAt")),
        message=parse_message(ended.get("message")),
    )


def _required_time(value: str) -> datetime:
    return datetime.fromisoformat(value)
