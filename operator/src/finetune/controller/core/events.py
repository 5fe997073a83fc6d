"""Kubernetes Events, from the difference between two statuses: they are emitted after the write that they describe."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from finetune.api import API_VERSION, KIND, conditions
from finetune.api.status import TrainingRunStatus
from finetune.api.trainingrun import TrainingRun

from .attempts import COMPLETED, GONE

MAXIMUM_MESSAGE = 1024
"""Characters that the API allows in an Event's message."""


@dataclass(frozen=True)
class EventDraft:
    """An Event to emit about the run."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


def events_between(old: TrainingRunStatus, new: TrainingRunStatus) -> tuple[EventDraft, ...]:
    """What happened between two statuses, in order."""
    drafts: list[EventDraft] = []
    if new.job_name and not old.job_name:
        drafts.append(EventDraft("Normal", "JobCreated", f"created Job {new.job_name}"))
    waiting = _message(new, conditions.ACCEPTED)
    if waiting != _message(old, conditions.ACCEPTED) and not _is_true(new, conditions.ACCEPTED):
        drafts.append(EventDraft("Warning", "Waiting", waiting))
    if _is_true(new, conditions.DATASET_READY) and not _is_true(old, conditions.DATASET_READY):
        drafts.append(EventDraft("Normal", "DatasetExported", _message(new, conditions.DATASET_READY)))
    if new.phase == "Training" and old.phase != "Training":
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


def build_event(run: TrainingRun, draft: EventDraft, now: datetime) -> dict[str, Any]:
    """The Event as a document; its name follows from what it says, so that saying it again changes nothing."""
    said = f"{run.metadata.uid}/{draft.reason}/{draft.message}"
    time = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{run.metadata.name}.{hashlib.sha256(said.encode()).hexdigest()[:16]}",
            "namespace": run.metadata.namespace,
        },
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": run.metadata.name,
            "namespace": run.metadata.namespace,
            "uid": run.metadata.uid,
        },
        "type": draft.type,
        "reason": draft.reason,
        "message": draft.message[:MAXIMUM_MESSAGE],
        "source": {"component": "finetune-operator"},
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    }


def _attempt_events(old: TrainingRunStatus, new: TrainingRunStatus) -> list[EventDraft]:
    ended = {attempt.uid for attempt in old.attempt_history if attempt.completion_time}
    fresh = [a for a in new.attempt_history if a.completion_time and a.uid not in ended]
    return [
        EventDraft("Warning", "AttemptEnded", f"pod {a.pod} ended: {a.reason}, exit code {a.exit_code}")
        for a in fresh
        if a.reason not in (COMPLETED, GONE)
    ]


def _is_true(status: TrainingRunStatus, type_: str) -> bool:
    condition = status.condition(type_)
    return condition is not None and condition.status == "True"


def _message(status: TrainingRunStatus, type_: str) -> str:
    condition = status.condition(type_)
    return condition.message if condition is not None else ""
