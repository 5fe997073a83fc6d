"""What was seen of a run's children, as immutable values made from the API's documents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from .messages import Message, parse_message
from .names import (
    ACTIVE_SECONDS_ANNOTATION,
    COLLECT_CONTAINER,
    EXPORT_CONTAINER,
    PARENT_ADAPTER_MOUNT,
    PARENT_NAME_FLAG,
    PARENT_SHA256_FLAG,
    TRAINER_CONTAINER,
)

Document = Mapping[str, Any]


def parse_time(value: str | None) -> datetime | None:
    """An API time such as `2026-11-24T06:00:00Z` (or with fractions of a second) as an aware datetime."""
    return datetime.fromisoformat(value) if value else None


@dataclass(frozen=True)
class ContainerView:
    """The state of one container: waiting, running or terminated."""

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


@dataclass(frozen=True)
class PodView:
    """One pod of the training Job or of the collect Job."""

    name: str
    uid: str
    phase: str
    created: datetime
    node: str = ""
    scheduled: datetime | None = None
    unschedulable: str = ""
    """The scheduler's message while it finds no node."""
    disrupted: str = ""
    """Why the pod was or is being evicted (the reason of `DisruptionTarget`)."""
    deleted: datetime | None = None
    """When its deletion is or was due; grace period included."""
    reason: str = ""
    message: str = ""
    """The kubelet's words for `reason`."""
    export: ContainerView = field(default_factory=ContainerView)
    trainer: ContainerView = field(default_factory=ContainerView)

    @property
    def finished(self) -> bool:
        """The pod has ended, well or badly."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def over_its_limit(self) -> bool:
        """It was evicted for what it used of the node's disk or of shared memory: its own doing, no disruption."""
        return self.reason == "Evicted" and not self.disrupted

    @property
    def last_words(self) -> ContainerView | None:
        """The container that decided how the pod ended; None when none has."""
        for container in (self.trainer, self.export):
            if container.exit_code is not None and (container is self.trainer or not container.succeeded):
                return container
        return None


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
    suspended: bool = False
    started: datetime | None = None
    """Since when it is active; reset by a suspension."""
    active_seconds: int = 0
    """Seconds it was active before its last suspension."""
    complete: bool = False
    failed: bool = False
    finished: datetime | None = None
    reason: str = ""
    message: str = ""
    ttl_set: bool = False
    parent: ParentView | None = None
    """The parent adapter that its trainer was told of."""

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


@dataclass(frozen=True)
class DatasetView:
    """What the registry said when it was told of the run."""

    version: int | None = None
    """The version of `spec.dataset.registry` that is pinned for the run."""
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


@dataclass(frozen=True)
class ProgressView:
    """The trainer's latest post to the registry."""

    metrics: Mapping[str, str]
    percent: int | None
    remaining_seconds: int | None
    time: datetime | None


@dataclass(frozen=True)
class Observation:
    """Everything that decisions about one run are made from."""

    job: JobView | None = None
    pods: tuple[PodView, ...] = ()
    events: tuple[EventView, ...] = ()
    claim_exists: bool = False
    dataset: DatasetView | None = None
    """Set once the registry has been told of the run, which happens before the Job is created."""
    parent: ParentView | None = None
    """The adapter version that is pinned for `spec.parentAdapter`; known as the dataset is."""
    parent_missing: str = ""
    """Why there is no such adapter, or why its files cannot be reached."""
    name_taken: str = ""
    """The Job's name belongs to another run; says to which."""
    refused: str = ""
    """The API server's message when it refused to create a child."""
    stored_result: Message | None = None
    """The result document from the registry; None when it was not asked for or has none."""
    collect_job: JobView | None = None
    collect_pods: tuple[PodView, ...] = ()
    adapter: AdapterView | None = None
    registry_error: str = ""
    """Why the registry could not do what it was asked for."""
    registry_refused: str = ""
    """Why the registry will never accept this adapter."""
    progress: ProgressView | None = None

    @property
    def newest_pod(self) -> PodView | None:
        """The pod of the latest attempt."""
        return max(self.pods, key=lambda pod: (pod.created, pod.name), default=None)

    @property
    def collected(self) -> bool:
        """The claim has been read to its end, and whoever read it can still say what was there."""
        return any(pod.trainer.succeeded for pod in self.collect_pods)

    @property
    def result(self) -> Message | None:
        """The trainer's result: from the termination message, the registry, or the claim, in this order."""
        spoken = [pod.trainer.message for pod in self.pods if pod.trainer.succeeded]
        spoken += [self.stored_result] if self.stored_result else []
        spoken += [pod.trainer.message for pod in self.collect_pods if pod.trainer.succeeded]
        return next((message for message in spoken if message.result), None)


def job_view(job: Document) -> JobView:
    """A `batch/v1` Job as JobView."""
    metadata, status = job["metadata"], job.get("status") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or () if c.get("status") == "True"}
    end = conditions.get("Complete") or conditions.get("Failed") or {}
    owner: Document = next((o for o in metadata.get("ownerReferences") or () if o.get("controller")), {})
    annotations = metadata.get("annotations") or {}
    return JobView(
        name=metadata["name"],
        uid=metadata["uid"],
        owner_uid=owner.get("uid", ""),
        created=_required_time(metadata["creationTimestamp"]),
        suspended=bool(job["spec"].get("suspend")),
        started=parse_time(status.get("startTime")),
        active_seconds=int(annotations.get(ACTIVE_SECONDS_ANNOTATION, "0")),
        complete="Complete" in conditions,
        failed="Failed" in conditions,
        finished=parse_time(status.get("completionTime") or end.get("lastTransitionTime")),
        reason=end.get("reason", ""),
        message=end.get("message", ""),
        ttl_set=job["spec"].get("ttlSecondsAfterFinished") is not None,
        parent=_parent_in(job["spec"]),
    )


def parent_view(*, name: str, version: int, sha256: str, uri: str, base_model: str) -> ParentView:
    """An adapter version of the registry as ParentView; its uri is `pvc://<claim>/<path>`."""
    claim, _, path = uri.removeprefix("pvc://").partition("/")
    return ParentView(name=name, version=version, sha256=sha256, claim_name=claim, path=path, base_model=base_model)


def _parent_in(job_spec: Document) -> ParentView | None:
    """The parent adapter in a Job's own arguments: what was really trained on, whoever recorded what."""
    pod = job_spec.get("template", {}).get("spec", {})
    trainer: Document = next((c for c in pod.get("containers", ()) if c["name"] == TRAINER_CONTAINER), {})
    flags = dict(argument.removeprefix("--").partition("=")[::2] for argument in trainer.get("args", ()))
    name, _, version = flags.get(PARENT_NAME_FLAG, "").rpartition("/")
    sha256 = flags.get(PARENT_SHA256_FLAG)
    if not name or not version.isdecimal() or not sha256:
        return None
    claim = _claim_at(PARENT_ADAPTER_MOUNT, pod, trainer)
    return ParentView(name=name, version=int(version), sha256=sha256, claim_name=claim)


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
    containers = {
        c["name"]: _container_view(c)
        for c in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    }
    is_scheduled = scheduled.get("status") == "True"
    return PodView(
        name=metadata["name"],
        uid=metadata["uid"],
        phase=status.get("phase", "Pending"),
        created=_required_time(metadata["creationTimestamp"]),
        node=pod["spec"].get("nodeName") or "",
        scheduled=parse_time(scheduled.get("lastTransitionTime")) if is_scheduled else None,
        unschedulable=scheduled.get("message", "") if scheduled.get("status") == "False" else "",
        disrupted=disruption.get("reason", "") if disruption.get("status") == "True" else "",
        deleted=parse_time(metadata.get("deletionTimestamp")),
        reason=status.get("reason", ""),
        message=status.get("message", ""),
        export=containers.get(EXPORT_CONTAINER, ContainerView()),
        trainer=containers.get(TRAINER_CONTAINER) or containers.get(COLLECT_CONTAINER) or ContainerView(),
    )


def event_views(events: Iterable[Document]) -> tuple[EventView, ...]:
    """Events, oldest first."""
    views = [
        EventView(
            reason=event.get("reason") or "",
            message=event.get("message") or "",
            time=parse_time(
                event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp")
            ),
        )
        for event in events
    ]
    return tuple(sorted(views, key=lambda view: view.time.timestamp() if view.time else 0.0))


def _container_view(status: Document) -> ContainerView:
    state = status.get("state") or {}
    waiting, running, ended = (
        state.get("waiting") or {},
        state.get("running") or {},
        state.get("terminated") or {},
    )
    return ContainerView(
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
