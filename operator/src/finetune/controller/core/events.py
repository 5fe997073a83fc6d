"""Kubernetes Events, from the difference between two statuses: they are emitted after the write that they describe."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from finetune.api import API_VERSION, KIND, conditions, reasons
from finetune.api.status import Attempt, TrainingRunStatus
from finetune.api.trainingrun import ObjectMeta

from . import names
from .attempts import COMPLETED, GONE, INTERRUPTED, SUSPENDED

_NO_TROUBLE = frozenset({reasons.QUEUED, reasons.TERMINATING, reasons.INIT_CONTAINER_RUNNING})

MAXIMUM_MESSAGE = 1024
"""Characters that the API allows in an Event's message."""


@dataclass(frozen=True)
class EventDraft:
    """An Event to emit about the run; what may happen again has the time at which it began."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    since: datetime | None = None


def events_between(old: TrainingRunStatus, new: TrainingRunStatus, run_name: str = "<run>") -> tuple[EventDraft, ...]:
    """What happened between two statuses, in order."""
    drafts: list[EventDraft] = []
    if new.job_name and not old.job_name:
        logs = f"kubectl logs -l {names.RUN_LABEL}={run_name} --all-containers --prefix --tail=-1"
        drafts.append(EventDraft("Normal", "JobCreated", f"created Job {new.job_name}; its logs: {logs}"))
    drafts += _waiting_events(old, new)
    drafts += _suspension_events(old, new)
    if _is_true(new, conditions.DATASET_READY) and not _is_true(old, conditions.DATASET_READY):
        drafts.append(EventDraft("Normal", "DatasetExported", _message(new, conditions.DATASET_READY)))
    if new.phase == reasons.TRAINING and old.phase != reasons.TRAINING:
        drafts.append(EventDraft("Normal", "TrainingStarted", "the trainer is running"))
    drafts += _attempt_events(old, new)
    if new.failure is not None and old.failure is None:
        drafts.append(EventDraft("Warning", new.failure.reason, f"{new.failure.message} - {new.failure.hint}"))
    if new.result is not None and old.result is None:
        adapter = new.result.adapter
        drafts.append(
            EventDraft("Normal", "AdapterRegistered", f"{adapter.name} version {adapter.version}: {adapter.uri}")
        )
    return tuple(drafts)


def build_event(run: ObjectMeta, draft: EventDraft, now: datetime) -> dict[str, Any]:
    """The Event as a document; its name follows from what it says, so that saying it again changes nothing."""
    said = f"{run.uid}/{draft.reason}/{draft.message}/{draft.since.timestamp() if draft.since else ''}"
    time = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{run.name}.{hashlib.sha256(said.encode()).hexdigest()[:16]}",
            "namespace": run.namespace,
        },
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": run.name,
            "namespace": run.namespace,
            "uid": run.uid,
        },
        "type": draft.type,
        "reason": draft.reason,
        "message": draft.message[:MAXIMUM_MESSAGE],
        "source": {"component": "finetune-operator"},
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    }


def begins_to_wait(old: TrainingRunStatus, new: TrainingRunStatus) -> bool:
    """Whether a run begins to wait for something; troubles that take turns begin once, until it was free of them."""
    waiting, before = new.waiting, old.waiting
    if waiting is None or before is None:
        return waiting is not None
    told = [(before.reason, before.object), *((each.reason, each.object) for each in before.earlier)]
    return (waiting.reason, waiting.object) not in told


def _waiting_events(old: TrainingRunStatus, new: TrainingRunStatus) -> list[EventDraft]:
    """One Event for each thing that begins to be waited for; a queue and a pod that saves are no trouble."""
    waiting = new.waiting
    if waiting is None or not begins_to_wait(old, new):
        return []
    kind: Literal["Normal", "Warning"] = "Normal" if waiting.reason in _NO_TROUBLE else "Warning"
    hint = f" - {waiting.hint}" if waiting.hint else ""
    return [EventDraft(kind, waiting.reason, f"waiting: {waiting.message}{hint}", waiting.since)]


def _suspension_events(old: TrainingRunStatus, new: TrainingRunStatus) -> list[EventDraft]:
    before, now = old.condition(conditions.SUSPENDED), new.condition(conditions.SUSPENDED)
    if now is None or (before is not None and before.reason == now.reason):
        return []
    if now.reason in (reasons.SUSPENDED, reasons.SUSPENDING, reasons.RESUMED):
        return [EventDraft("Normal", now.reason, now.message, now.last_transition_time)]
    return []


def _attempt_events(old: TrainingRunStatus, new: TrainingRunStatus) -> list[EventDraft]:
    ended = {attempt.uid for attempt in old.attempt_history if attempt.completion_time}
    fresh = [a for a in new.attempt_history if a.completion_time and a.uid not in ended]
    return [_attempt_event(attempt) for attempt in fresh if attempt.reason not in (COMPLETED, GONE)]


def _attempt_event(attempt: Attempt) -> EventDraft:
    """An interruption or a suspension is normal, and says what it has kept."""
    kept = f" and kept step {attempt.step}" if attempt.step else ""
    if attempt.reason == INTERRUPTED:
        return EventDraft("Normal", "AttemptInterrupted", f"pod {attempt.pod} was interrupted{kept}")
    if attempt.reason == SUSPENDED:
        return EventDraft("Normal", "AttemptSuspended", f"pod {attempt.pod} was stopped with its Job{kept}")
    where = f" on node {attempt.node}" if attempt.node else ""
    said = f"pod {attempt.pod}{where} ended: {attempt.reason}, exit code {attempt.exit_code}"
    return EventDraft("Warning", "AttemptEnded", said)


def _is_true(status: TrainingRunStatus, type_: str) -> bool:
    condition = status.condition(type_)
    return condition is not None and condition.status == "True"


def _message(status: TrainingRunStatus, type_: str) -> str:
    condition = status.condition(type_)
    return condition.message if condition is not None else ""
