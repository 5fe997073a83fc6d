"""What is told of a run when its status has changed: one line in the log for each transition, and the metrics.

A transition is another phase, something that begins to be waited for, or the end of waiting. Its line says which run,
what it is now and why, in one word: messages quote rows and specs, and stand in the run's status.
"""

from __future__ import annotations

import logging
from datetime import datetime

from finetune.api import reasons
from finetune.api.status import TrainingRunStatus
from finetune.api.trainingrun import ObjectMeta
from finetune.logs import fields
from finetune.metrics import bounded

from .core.events import begins_to_wait

_log = logging.getLogger(__name__)

UNFINISHED = frozenset(
    {
        reasons.QUEUED,
        reasons.PENDING,
        reasons.EXPORTING,
        reasons.TRAINING,
        reasons.REGISTERING,
        reasons.SUSPENDED,
    }
)
"""The phases of a run that has not ended."""
PHASES = UNFINISHED | {reasons.SUCCEEDED, reasons.FAILED}
REASONS = frozenset({*reasons.HINTS, *reasons.OTHER_REASONS})
"""Every word for why; what a pod or a newer version says beyond them is `other`."""


def reason_of(status: TrainingRunStatus) -> str:
    """One word for why a run is in its phase: the failure's, what it waits for, else the phase itself."""
    if status.failure is not None:
        return bounded(status.failure.reason, REASONS)
    if status.waiting is not None:
        return bounded(status.waiting.reason, REASONS)
    return reasons.ADAPTER_REGISTERED if status.result is not None else bounded(status.phase or "", REASONS)


def is_transition(old: TrainingRunStatus, new: TrainingRunStatus) -> bool:
    """Whether a change of the status deserves a line; troubles that take turns get one each."""
    return new.phase != old.phase or begins_to_wait(old, new) or (new.waiting is None and old.waiting is not None)


def log_transition(run: ObjectMeta, old: TrainingRunStatus, new: TrainingRunStatus, now: datetime) -> None:
    """Log that a run's stored status is another one, if it is a transition; `seconds` count from its creation."""
    if not is_transition(old, new):
        return
    created = run.creation_timestamp
    phase = bounded(new.phase or "", PHASES)
    _log.info(
        "%s",
        phase,
        extra=fields(
            run=run.name,
            namespace=run.namespace,
            uid=run.uid,
            phase=phase,
            reason=reason_of(new),
            seconds=max(0, round((now - created).total_seconds())) if created else None,
            attempt=new.attempts or 0,
        ),
    )
