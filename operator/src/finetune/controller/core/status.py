"""The next status, as a pure function of the previous one, the observation and the time."""

from __future__ import annotations

from datetime import datetime, timedelta

from finetune.api import conditions, reasons
from finetune.api.conditions import Condition, ConditionStatus, set_condition
from finetune.api.fields import MAX_DECIMAL, clip
from finetune.api.status import (
    MAX_LOSS_HISTORY,
    AdapterStatus,
    DatasetStatus,
    Measurements,
    OutputStatus,
    ParentAdapterStatus,
    Phase,
    Progress,
    Result,
    Timings,
    TrainingRunStatus,
)
from finetune.api.status import Failure as FailureStatus
from finetune.api.trainingrun import TrainingRun

from . import names
from .attempts import COMPLETED, INTERRUPTED, added_gpu_seconds, count_attempts
from .failures import Case, Failure
from .observe import Observation
from .storage import output_claim_name

MAXIMUM_DIGITS = 15
"""Of a step that is believed: more would not fit every reader of JSON."""
SLOW_TERMINATION = timedelta(seconds=60)
"""Past its grace period a pod that is still terminating is worth a warning."""


def is_finished(status: TrainingRunStatus) -> bool:
    """The run has reached its end; nothing but `observedGeneration` changes any more."""
    finished = status.condition(conditions.FINISHED)
    return finished is not None and finished.status == "True"


def restamp(status: TrainingRunStatus, generation: int) -> TrainingRunStatus:
    """A finished status for a new generation: `kubectl wait` ignores conditions with an old one."""
    stamped = tuple(c.model_copy(update={"observed_generation": generation}) for c in status.conditions)
    return status.model_copy(update={"observed_generation": generation, "conditions": stamped})


def next_status(case: Case, failure: Failure | None) -> TrainingRunStatus:
    """The status that follows from what was seen."""
    run, seen, old, now = case.run, case.seen, case.run.status, case.now
    succeeded = failure is None and seen.adapter is not None and seen.result is not None
    ended = succeeded or failure is not None
    phase = _phase(case, failure=failure, succeeded=succeeded)
    start = old.start_time or min((a.start_time for a in case.attempts if a.start_time), default=None)
    completion = old.completion_time or ((seen.job.finished if seen.job else None) or now if ended else None)
    values: dict[str, object] = {
        "observed_generation": run.metadata.generation,
        "phase": phase,
        "conditions": _conditions(case, phase, failure, ended=ended),
        "job_name": seen.job.name if seen.job else old.job_name,
        "output": OutputStatus(
            claim_name=output_claim_name(run), path=names.output_path(run.experiment, run.metadata.uid)
        ),
        "attempts": (old.attempts or 0) + count_attempts(old.attempt_history, case.attempts),
        "attempt_history": case.attempts,
        "start_time": start,
        "completion_time": completion,
        "duration_seconds": _seconds(start, completion),
        "gpu_seconds": (old.gpu_seconds or 0)
        + added_gpu_seconds(old.attempt_history, case.attempts, run.spec.resources.gpus),
        "timings": _timings(run, seen, accepted=now if _accepted(case, failure)[0] == "True" else None),
        "progress": _progress(seen) or old.progress,
        "dataset": _dataset(old.dataset, seen),
        "parent_adapter": recorded_parent(old.parent_adapter, seen),
        "warnings": _warnings(seen, now),
    }
    if succeeded:
        values |= _result(seen)
        values["progress"] = _completed(_progress(seen) or old.progress or Progress(), seen)
    if failure is not None:
        values["failure"] = FailureStatus(
            reason=failure.reason,
            message=clip(failure.message),
            exit_code=failure.exit_code,
            hint=reasons.HINTS[failure.reason],
            row=failure.row,
        )
    return TrainingRunStatus.model_validate({**dict(old), **values})


def _phase(case: Case, *, failure: Failure | None, succeeded: bool) -> Phase:
    """One word for people; nothing is decided by it but what a lost Job means."""
    run, seen = case.run, case.seen
    pod = seen.newest_pod
    if failure is not None:
        return "Failed"
    if succeeded:
        return "Succeeded"
    if (seen.job and seen.job.complete) or (seen.job is None and run.status.phase == "Registering"):
        return "Registering"
    if pod is not None and pod.trainer.succeeded:
        return "Registering"  # pod and Job need a moment to see that they are done
    if run.spec.suspend:
        return "Suspended"
    if pod is None or pod.finished:
        return "Pending"
    if pod.trainer.running_since or pod.trainer.exit_code is not None:
        return "Training"
    return "Exporting" if pod.export.running_since or pod.export.succeeded else "Pending"


def _conditions(case: Case, phase: Phase, failure: Failure | None, *, ended: bool) -> tuple[Condition, ...]:
    current = case.run.status.conditions
    generation, now = case.run.metadata.generation, case.now

    def put(type_: str, status: ConditionStatus, reason: str, message: str) -> None:
        nonlocal current
        current = set_condition(current, type_, status, reason, message, generation, now)

    problem = case.problem.message if case.problem else ""
    put(conditions.ACCEPTED, *_accepted(case, failure))
    put(conditions.DATASET_READY, *_dataset_ready(case, failure))
    if failure is not None:
        put(conditions.SUCCEEDED, "False", failure.reason, failure.message)
        put(conditions.FINISHED, "True", failure.reason, failure.message)
        put(conditions.STALLED, "True", failure.reason, reasons.HINTS[failure.reason])
    elif ended:
        put(conditions.SUCCEEDED, "True", reasons.ADAPTER_REGISTERED, _registered(case.seen))
        put(conditions.FINISHED, "True", reasons.ADAPTER_REGISTERED, _registered(case.seen))
    else:
        put(conditions.SUCCEEDED, "Unknown", phase, problem or _activity(case))
        put(conditions.FINISHED, "False", phase, problem or _activity(case))
    put(conditions.SUSPENDED, *_suspended(case))
    if ended or phase == "Suspended":
        return tuple(c for c in current if c.type != conditions.RECONCILING)  # kstatus wants it absent, not False
    put(conditions.RECONCILING, "True", phase, problem or _activity(case))
    return current


def _accepted(case: Case, failure: Failure | None) -> tuple[ConditionStatus, str, str]:
    if failure is not None and failure.reason == reasons.INVALID_SPEC:
        return "False", reasons.INVALID_SPEC, failure.message
    if case.problem is not None and case.seen.job is None:
        # False since when the run waits for what must appear in time; what may take as long as it takes is Unknown
        waiting: ConditionStatus = "False" if case.problem.expires else "Unknown"
        return waiting, reasons.WAITING_FOR_REFERENCE, case.problem.message
    return "True", reasons.SPEC_ACCEPTED, "the run's Job exists" if case.seen.job else "the spec is valid"


def _dataset_ready(case: Case, failure: Failure | None) -> tuple[ConditionStatus, str, str]:
    exported = _exported(case.seen)
    if exported is not None:
        message = f"{exported.rows} rows to train on, {exported.evaluation_rows} held out"
        return "True", reasons.DATASET_EXPORTED, message
    about = (reasons.DATASET_UNAVAILABLE, reasons.DATASET_INVALID)
    if failure is not None and failure.reason in about:
        return "False", failure.reason, failure.message
    if case.problem is not None and case.problem.reason in about:
        return "False", case.problem.reason, case.problem.message
    known = case.run.status.condition(conditions.DATASET_READY)
    if known is not None and known.status == "True":
        return "True", known.reason, known.message
    return "Unknown", reasons.DATASET_PENDING, "the rows are not on the output claim yet"


def _suspended(case: Case) -> tuple[ConditionStatus, str, str]:
    if not case.run.spec.suspend:
        return "False", reasons.RESUMED, "spec.suspend is false"
    if any(not pod.finished for pod in case.seen.pods):
        return "False", reasons.SUSPENDING, "the pod is saving its checkpoint"
    return "True", reasons.SUSPENDED, "spec.suspend is true; set it to false to go on"


def _activity(case: Case) -> str:
    """What the run is doing, for the conditions' messages."""
    last = case.attempts[-1] if case.attempts else None
    if last is None or last.completion_time is None or last.reason in (COMPLETED, INTERRUPTED):
        return ""
    return f"attempt {last.pod} ended with {last.reason}; Kubernetes starts the next one"


def _registered(seen: Observation) -> str:
    return f"adapter {seen.adapter.name} version {seen.adapter.version}" if seen.adapter else ""


def _exported(seen: Observation) -> DatasetStatus | None:
    """What export counted, from the newest pod that says so."""
    pods = sorted(seen.pods, key=lambda pod: pod.created, reverse=True)
    return next((p.export.message.dataset for p in pods if p.export.succeeded and p.export.message.dataset), None)


def _dataset(old: DatasetStatus | None, seen: Observation) -> DatasetStatus | None:
    values = old.model_dump(exclude_none=True) if old else {}
    if seen.dataset is not None and seen.dataset.version is not None:
        values["version"] = seen.dataset.version
    for message in (_exported(seen), seen.result.dataset if seen.result else None):
        values |= message.model_dump(exclude_none=True) if message else {}
    return DatasetStatus(**values) if values else None


def recorded_parent(old: ParentAdapterStatus | None, seen: Observation) -> ParentAdapterStatus | None:
    """The parent adapter that the run goes on from, once it was found: what its Job says, else the registry first."""
    view = (seen.job.parent if seen.job else None) or seen.parent
    return ParentAdapterStatus(name=view.name, version=view.version, sha256=view.sha256) if view else old


def _progress(seen: Observation) -> Progress | None:
    view = seen.progress
    if view is None:
        return None
    metrics = view.metrics
    return Progress.model_validate(
        {
            "step": _whole(metrics.get("step")),
            "totalSteps": _whole(metrics.get("totalSteps")),
            "percent": view.percent,
            "epoch": _number(metrics.get("epoch")),
            "loss": _number(metrics.get("loss")),
            "learningRate": _number(metrics.get("learningRate")),
            "tokensPerSecond": _number(metrics.get("tokensPerSecond")),
            "remainingSeconds": view.remaining_seconds,
            "lastUpdateTime": view.time,
        }
    )


def _completed(progress: Progress, seen: Observation) -> Progress:
    """The progress of a run that is done: the last post may have come before the last step."""
    message = seen.result
    if message is None or message.result is None:
        return progress
    steps = message.result.steps
    done = {"step": steps, "total_steps": steps, "percent": 100, "remaining_seconds": 0}
    return progress.model_copy(update=done)


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() and len(text) <= MAXIMUM_DIGITS else None


def _number(text: str | None) -> str | None:
    """The text if it may stand in the status: a pod posts what it likes."""
    return text if text is not None and 0 < len(text) <= MAX_DECIMAL else None


def _timings(run: TrainingRun, seen: Observation, *, accepted: datetime | None) -> Timings:
    """Each first of its kind, in seconds since the run's creation; what is known stays."""
    known = run.status.timings or Timings()
    created = run.metadata.creation_timestamp
    first = min(seen.pods, key=lambda pod: pod.created, default=None)
    said = seen.result.timings if seen.result else None
    return Timings(
        accepted_seconds=_first(known.accepted_seconds, _seconds(created, accepted)),
        scheduled_seconds=_first(known.scheduled_seconds, _seconds(created, first.scheduled if first else None)),
        export_seconds=_first(
            known.export_seconds,
            _seconds(created, first.export.finished if first and first.export.succeeded else None),
        ),
        model_load_seconds=_first(
            known.model_load_seconds, _seconds(created, said.model_loaded_time if said else None)
        ),
        first_step_seconds=_first(known.first_step_seconds, _seconds(created, said.first_step_time if said else None)),
    )


def _first(known: int | None, seen: int | None) -> int | None:
    return known if known is not None else seen


def _seconds(start: datetime | None, end: datetime | None) -> int | None:
    return max(0, round((end - start).total_seconds())) if start and end else None


def _result(seen: Observation) -> dict[str, object]:
    """The parts of the status that only a success has."""
    message, adapter = seen.result, seen.adapter
    if message is None or message.result is None or adapter is None:
        return {}
    result = message.result
    return {
        "resumed_from_step": result.resumed_from_step or None,
        "loss_history": message.loss_history[:MAX_LOSS_HISTORY],
        "result": Result(
            **result.model_dump(include=set(Measurements.model_fields)),
            adapter=AdapterStatus(
                id=adapter.id,
                name=adapter.name,
                version=adapter.version,
                uri=adapter.uri,
                sha256=adapter.sha256,
                bytes=adapter.bytes,
            ),
        ),
    }


def _warnings(seen: Observation, now: datetime) -> tuple[str, ...]:
    """Pods that should long be gone: the node is probably lost, and only a person can say so."""
    return tuple(
        f"pod {pod.name} on node {pod.node or '?'} is still terminating; if the node is lost, delete the Node or taint "
        "it with node.kubernetes.io/out-of-service"
        for pod in seen.pods
        if pod.deleted is not None and not pod.finished and now - pod.deleted > SLOW_TERMINATION
    )
