"""API documents as a real cluster makes them, for tests of what is decided from them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune.api.trainingrun import TrainingRun
from finetune.controller.core import names
from finetune.controller.core.settings import Settings
from finetune.controller.core.views import ParentView

CREATED = datetime(2026, 11, 24, 6, 0, 0, tzinfo=UTC)
UID = "6f1b8e1c-2d9f-4b6f-9a55-0f6c1f0e7a11"
JOB = names.job_name("support", UID)
SETTINGS = Settings(registry_url="http://registry", trainer_image="trainer:1")

PARENT = ParentView(
    name="support",
    version=3,
    sha256="e" * 64,
    claim_name="parents",
    path="support/parent-uid/adapter",
    base_model="smollm2",
)
PREFERENCE: dict[str, Any] = {
    "method": "DPO",
    "parentAdapter": {"name": "support"},
    "dpo": {"beta": "0.2", "loss": "IPO"},
}
"""Parts of the spec of a run of preference training on that parent."""

RESULT: dict[str, Any] = {
    "result": {
        "runUid": UID,
        "finalLoss": "1.8342",
        "evaluationLoss": "1.9011",
        "baseEvaluationLoss": "2.77",
        "steps": 55,
        "tokens": 41234,
        "adapter": {"sha256": "a" * 64, "bytes": 10, "files": [{"path": "x", "bytes": 10, "sha256": "b" * 64}]},
    },
    "dataset": {"rows": 400, "evaluationRows": 40, "tokens": 39000, "sha256": "c" * 64},
    "timings": {"firstStepTime": "2026-11-24T06:00:20Z"},
}


def at(seconds: float) -> datetime:
    """The time so many seconds after the run's creation."""
    return CREATED + timedelta(seconds=seconds)


def stamp(seconds: float) -> str:
    """The same as an API time."""
    return at(seconds).strftime("%Y-%m-%dT%H:%M:%SZ")


def run(
    status: dict[str, Any] | None = None,
    *,
    generation: int = 1,
    name: str = "support",
    uid: str = UID,
    annotations: dict[str, str] | None = None,
    **spec: Any,
) -> TrainingRun:
    """A run of the registry's dataset `tickets`; keyword arguments replace parts of the spec."""
    document = {
        "metadata": {
            "name": name,
            "namespace": "ml",
            "uid": uid,
            "generation": generation,
            "creationTimestamp": stamp(0),
            "annotations": annotations or {},
        },
        "spec": {
            "method": "SFT",
            "baseModel": {"volume": {"claimName": "base-models", "path": "smollm2"}},
            "dataset": {"registry": {"name": "tickets"}},
            "output": {"claimName": "adapters"},
            **spec,
        },
        "status": status or {},
    }
    return TrainingRun.from_object(document)


def job(
    condition: str = "",
    *,
    reason: str = "",
    message: str = "",
    owner: str = UID,
    suspend: bool = False,
    suspended_by: str = "",
    suspended_at: float | None = None,
    started: float | None = None,
    queue: str = "",
    seconds: float = 1,
    end: float = 100,
    **spec: Any,
) -> dict[str, Any]:
    """A Job, created `seconds` after the run; `condition` is Complete or Failed, true since `end`.

    A Job that is not suspended has started when it was created, unless `started` says otherwise; `suspended_at` is
    since when its controller holds it suspended.
    """
    begun = started if started is not None or suspend else seconds
    status: dict[str, Any] = {} if begun is None else {"startTime": stamp(begun)}
    listed = []
    if suspended_at is not None:
        since = stamp(suspended_at)
        listed.append({"type": "Suspended", "status": "True", "reason": "JobSuspended", "lastTransitionTime": since})
    if condition:
        entry = {"type": condition, "status": "True", "reason": reason, "message": message}
        listed.append({**entry, "lastTransitionTime": stamp(end)})
    if listed:
        status["conditions"] = listed
    return {
        "metadata": {
            "name": JOB,
            "uid": "job-uid",
            "creationTimestamp": stamp(seconds),
            "annotations": {names.SUSPENDED_BY_ANNOTATION: suspended_by} if suspended_by else {},
            "labels": {names.QUEUE_LABEL: queue} if queue else {},
            "ownerReferences": [{"kind": "TrainingRun", "controller": True, "uid": owner}],
        },
        "spec": {"suspend": suspend, **spec},
        "status": status,
    }


def pod(
    name: str = "p1",
    phase: str = "Running",
    *,
    created: float = 2,
    export: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
    conditions: list[dict[str, Any]] | None = None,
    **metadata: Any,
) -> dict[str, Any]:
    """A pod of the Job, scheduled a second after its creation; `export` and `trainer` are container states."""
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": stamp(created + 1)}
    return {
        "metadata": {"name": name, "uid": f"{name}-uid", "creationTimestamp": stamp(created), **metadata},
        "spec": {"nodeName": "node-1"},
        "status": {
            "phase": phase,
            "conditions": [scheduled] if conditions is None else conditions,
            "initContainerStatuses": [{"name": "export", "state": export or {}}],
            "containerStatuses": [{"name": "trainer", "state": trainer or {}}],
        },
    }


def running(seconds: float = 5) -> dict[str, Any]:
    """The state of a container that runs."""
    return {"running": {"startedAt": stamp(seconds)}}


def ended(code: int, message: Any = None, *, seconds: float = 50, reason: str = "") -> dict[str, Any]:
    """The state of a container that ended; `message` is its last words, as JSON unless it is text."""
    text = message if isinstance(message, str) else json.dumps(message) if message else ""
    state = {"exitCode": code, "reason": reason or ("Completed" if code == 0 else "Error"), "message": text}
    return {"terminated": {**state, "finishedAt": stamp(seconds)}}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    """The state of a container that cannot start."""
    return {"waiting": {"reason": reason, "message": message}}


def failed_pod(
    name: str, code: int, message: Any = None, *, created: float = 2, reason: str = "", **metadata: Any
) -> dict[str, Any]:
    """A pod whose trainer failed."""
    return pod(
        name,
        "Failed",
        created=created,
        export=ended(0, {"dataset": {"rows": 400, "evaluationRows": 40}}, seconds=created + 3),
        trainer=ended(code, message, seconds=created + 30, reason=reason),
        **metadata,
    )


def pending(export: dict[str, Any] | None = None, trainer: dict[str, Any] | None = None) -> dict[str, Any]:
    """A pod with a node whose containers have not all started."""
    return pod("p1", "Pending", export=export, trainer=trainer)


def unschedulable(message: str) -> dict[str, Any]:
    """A pod for which the scheduler finds no node."""
    return pod("p1", "Pending", conditions=[{"type": "PodScheduled", "status": "False", "message": message}])


def beside(
    pod_: dict[str, Any], name: str, state: dict[str, Any], *, init: bool = False, always: bool = False
) -> dict[str, Any]:
    """The pod with a container that somebody else has put into it; `always` makes an init container a sidecar.

    An injected init container comes before the export, as webhooks put it.
    """
    entry = {"name": name, "state": state}
    spec, status = dict(pod_["spec"]), dict(pod_["status"])
    if init:
        restart = {"restartPolicy": "Always"} if always else {}
        spec["initContainers"] = [{"name": name, **restart}, *spec.get("initContainers", [])]
        status["initContainerStatuses"] = [entry, *status["initContainerStatuses"]]
    else:
        status["containerStatuses"] = [*status["containerStatuses"], entry]
    return {**pod_, "spec": spec, "status": status}


def event(reason: str, message: str, seconds: float = 20, *, warning: bool = True) -> dict[str, Any]:
    """An Event of a pod, its Job or one of its claims."""
    kind = "Warning" if warning else "Normal"
    return {"reason": reason, "message": message, "type": kind, "metadata": {}, "lastTimestamp": stamp(seconds)}


def workload(
    *conditions: tuple[str, str, str, str], active: bool = True, deactivated_by: str = "", queue: str = "gpus"
) -> dict[str, Any]:
    """Kueue's record of the Job; conditions are (type, status, reason, message)."""
    listed = [
        {"type": type_, "status": status, "reason": reason, "message": message}
        for type_, status, reason, message in conditions
    ]
    annotations = {names.SUSPENDED_BY_ANNOTATION: deactivated_by} if deactivated_by else {}
    return {
        "metadata": {"name": f"job-{JOB}-1a2b3", "annotations": annotations},
        "spec": {"active": active, "queueName": queue},
        "status": {"conditions": listed},
    }
