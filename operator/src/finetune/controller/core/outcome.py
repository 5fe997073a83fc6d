"""What the registry is told of a run: the part of its status that is worth keeping when the object is gone."""

from __future__ import annotations

from datetime import datetime

from finetune.api.registry import DELETED, OutcomeRequest
from finetune.api.status import TrainingRunStatus
from finetune.api.trainingrun import ObjectMeta

from .case import is_finished

OBJECT_DELETED = "ObjectDeleted"
_MAX_TEXT = 4096


def outcome_of(run: ObjectMeta, status: TrainingRunStatus) -> OutcomeRequest | None:
    """The outcome so far, as the object of this version says it; None before it has a phase."""
    if status.phase is None:
        return None
    said = status.failure or status.waiting
    result = status.result
    return OutcomeRequest(
        phase=status.phase,
        reason=said.reason if said else None,
        message=said.message[:_MAX_TEXT] if said else None,
        hint=said.hint[:_MAX_TEXT] if said and said.hint else None,
        row=status.failure.row if status.failure else None,
        attempts=status.attempts,
        gpu_seconds=status.gpu_seconds,
        resumed_from_step=status.resumed_from_step,
        start_time=status.start_time,
        completion_time=status.completion_time,
        evaluation_loss=result.evaluation_loss if result else None,
        base_evaluation_loss=result.base_evaluation_loss if result else None,
        ended=is_finished(status),
        version=int(run.resource_version) if run.resource_version.isdigit() else 0,
    )


def deleted_outcome(phase: str | None, now: datetime) -> OutcomeRequest:
    """The outcome of a run whose object is gone, and that was in `phase` when something was heard of it last."""
    return OutcomeRequest(
        phase=DELETED,
        reason=OBJECT_DELETED,
        message=f"the TrainingRun was deleted while it was {phase or 'not looked at yet'}",
        completion_time=now,
        ended=True,
    )
