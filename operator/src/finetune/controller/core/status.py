"""The next status, as a pure function of the previous one, the observation and the time."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, cast

from finetune.api import conditions, reasons
from finetune.api.conditions import Condition, ConditionStatus, set_condition
from finetune.api.fields import MAX_DECIMAL, clip
from finetune.api.losses import loss_change
from finetune.api.status import (
    MAX_CONDITIONS,
    MAX_EARLIER_WAITS,
    MAX_LOSS_HISTORY,
    MAX_WARNINGS,
    AdapterStatus,
    DatasetStatus,
    EarlierWait,
    Measurements,
    OutputStatus,
    ParentAdapterStatus,
    Progress,
    Result,
    Timings,
    TrainingRunStatus,
    Waiting,
)
from finetune.api.status import Failure as FailureStatus

from . import names
from .attempts import COMPLETED, INTERRUPTED, SUSPENDED, added_gpu_seconds, count_attempts
from .case import Case, active_time
from .exits import FAIL_JOB
from .findings import Finding, Verdict
from .policies import failure_of, queue, waiting_of
from .policies.pods import SLOW_TERMINATION
from .policies.trainer import crashed
from .seen import Seen
from .storage import output_claim_name
from .views import whole_number

MAXIMUM_SECONDS = 10**9
"""Of a remaining time that is believed: thirty years."""


_ADAPTER_OF_ONE_RUN = (
    "; its adapter is named after the run, so that there will be no version 2 of it: set spec.adapter.name to collect "
    "the results of several runs under one name"
)


def restamp(status: Mapping[str, Any], generation: int) -> dict[str, Any]:
    """A finished status, as the API gives it, for a new generation: `kubectl wait` ignores conditions with an old one.

    Nothing else of it changes: another version of the operator may have written what this one cannot read.
    """
    stamped = [{**each, "observedGeneration": generation} for each in status.get("conditions") or ()]
    return {**status, "observedGeneration": generation, "conditions": stamped}


def with_stored(status: Mapping[str, Any], stored: bool | None) -> dict[str, Any]:
    """A finished status, as the API gives it, with what the registry has said of the files; None: nothing new.

    When they could not be sent, nothing is said of them any more: they are on the claim.
    """
    if stored is None:
        return dict(status)
    adapter = {key: value for key, value in status["result"]["adapter"].items() if key != "stored"}
    adapter |= {"stored": True} if stored else {}
    return {**status, "result": {**status["result"], "adapter": adapter}}


def next_status(case: Case) -> TrainingRunStatus:
    """The status that follows from what was seen; what a container has posted and does not fit is left out of it."""
    run, seen, old, now = case.run, case.seen, case.run.status, case.now
    failure, waiting = failure_of(case), waiting_of(case)
    succeeded = failure is None and case.outcome.adapter is not None and case.result is not None
    ended = succeeded or failure is not None
    phase = _phase(case, failure=failure, succeeded=succeeded)
    start = old.start_time or min((a.start_time for a in case.attempts if a.start_time), default=None)
    completion = old.completion_time or ((seen.job.finished if seen.job else None) or now if ended else None)
    values: dict[str, object] = {
        "observed_generation": run.metadata.generation,
        "phase": phase,
        "conditions": _conditions(case, phase, failure, waiting, ended=ended),
        "waiting": None if ended else waiting_status(old, waiting, now),
        "job_name": seen.job.name if seen.job else old.job_name,
        "job_uid": seen.job.uid if seen.job else old.job_uid,
        "output": old.output  # of a restored run: where its files are, though it has another uid now
        or OutputStatus(claim_name=output_claim_name(run), path=names.output_path(run.experiment, run.metadata.uid)),
        "attempts": (old.attempts or 0) + count_attempts(old.attempt_history, case.attempts),
        "attempt_history": case.attempts,
        "start_time": start,
        "training_start_time": old.training_start_time or (now if case.trained else None),
        "active": active_time(old.active, seen.job, case.attempts),
        "completion_time": completion,
        "duration_seconds": _seconds(start, completion),
        "gpu_seconds": (old.gpu_seconds or 0)
        + added_gpu_seconds(old.attempt_history, case.attempts, run.spec.resources.gpus),
        "timings": _timings(case, accepted=now if _accepted(case, failure, waiting)[0] == "True" else None),
        "progress": _progress(case, training=phase == reasons.TRAINING),
        "dataset": _dataset(old.dataset, case),
        "parent_adapter": recorded_parent(old.parent_adapter, case),
        "resumed_from": case.outcome.resume or old.resumed_from or (seen.job.resumed_from if seen.job else None),
        "warnings": _warnings(case)[:MAX_WARNINGS],
    }
    if succeeded:
        values |= _result(case)
        values["progress"] = _completed(_progress(case, training=False) or Progress(), case)
    if failure is not None:
        values["failure"] = FailureStatus(
            reason=failure.reason,
            message=clip(failure.message),
            exit_code=failure.exit_code,
            hint=hint_of(failure),
            row=failure.row,
        )
    return TrainingRunStatus.model_validate({**dict(old), **values})


def troubled_status(status: TrainingRunStatus, finding: Finding, generation: int, now: datetime) -> TrainingRunStatus:
    """The status of a run that could not be looked at: nothing changes but what it waits for."""
    listed = status.conditions
    for type_, value in (
        (conditions.SUCCEEDED, "Unknown"),
        (conditions.FINISHED, "False"),
        (conditions.RECONCILING, "True"),
    ):
        reason = status.phase or reasons.PENDING
        listed = set_condition(listed, type_, cast("ConditionStatus", value), reason, finding.message, generation, now)
    update = {"conditions": listed, "waiting": waiting_status(status, finding, now), "observed_generation": generation}
    return status.model_copy(update={"phase": status.phase or reasons.PENDING, **update})


def waiting_status(old: TrainingRunStatus, finding: Finding | None, now: datetime) -> Waiting | None:
    """What the run waits for; each reason and object has a clock of its own until the run is free of trouble.

    Two troubles that take turns, or a pass that fails in between, must not keep each other from ever expiring.
    """
    if finding is None:
        return None
    known = old.waiting
    if known is not None and (known.reason, known.object) == finding.key:
        since, clocks = known.since, known.earlier
    else:
        clocks = _stopped_clocks(known, now)
        spent = next((each.seconds for each in clocks if (each.reason, each.object) == finding.key), 0)
        clocks = tuple(each for each in clocks if (each.reason, each.object) != finding.key)
        since = now - timedelta(seconds=spent)
    return Waiting(
        reason=finding.reason,
        object=finding.key[1],
        message=clip(finding.message),
        hint=hint_of(finding) or None,
        since=since,
        earlier=clocks[-MAX_EARLIER_WAITS:],
    )


def _stopped_clocks(known: Waiting | None, now: datetime) -> tuple[EarlierWait, ...]:
    """How long the run has waited for each thing that was in its way, now that another one is."""
    if known is None:
        return ()
    others = tuple(each for each in known.earlier if (each.reason, each.object) != (known.reason, known.object))
    seconds = max(0, round((now - known.since).total_seconds()))
    return (*others, EarlierWait(reason=known.reason, object=known.object, seconds=seconds))


def hint_of(finding: Finding) -> str:
    """What to do about a finding: its own hint, else its reason's."""
    return clip(finding.hint or reasons.HINTS.get(finding.reason, ""))


def _phase(case: Case, *, failure: Finding | None, succeeded: bool) -> str:
    """One word for people; nothing is decided by it but what a lost Job means."""
    run, seen = case.run, case.seen
    pod, job = seen.newest_pod, seen.job
    if failure is not None:
        return reasons.FAILED
    if succeeded:
        return reasons.SUCCEEDED
    if case.done:
        return reasons.REGISTERING
    if run.spec.suspend and (job is None or job.suspended):
        return reasons.SUSPENDED
    if job is not None and job.suspended and (pod is None or pod.finished):
        if queue.suspended_by_us(case):
            return reasons.PENDING
        return reasons.QUEUED if queue.is_queued(job, seen.workload) else reasons.SUSPENDED
    if pod is None or (pod.finished and not _is_final(case)):
        return reasons.PENDING
    if pod.trainer.started:
        return reasons.TRAINING
    return reasons.EXPORTING if pod.export.started else reasons.PENDING


def _is_final(case: Case) -> bool:
    """The newest pod has ended in a way that ends the Job, which needs a moment to say so."""
    pod, job = case.seen.newest_pod, case.seen.job
    if pod is None or job is None:
        return False
    words = pod.last_words
    return job.failing or job.failed or (words is not None and words.exit_code in FAIL_JOB and not pod.disrupted)


def _conditions(
    case: Case, phase: str, failure: Finding | None, waiting: Finding | None, *, ended: bool
) -> tuple[Condition, ...]:
    current = case.run.status.conditions
    generation, now = case.run.metadata.generation, case.now

    def put(type_: str, status: ConditionStatus, reason: str, message: str) -> None:
        nonlocal current
        current = set_condition(current, type_, status, reason, message, generation, now)

    message = waiting.message if waiting else _activity(case)
    suspended = _suspended(case)
    put(conditions.ACCEPTED, *_accepted(case, failure, waiting))
    put(conditions.DATASET_READY, *_dataset_ready(case, failure, waiting))
    if failure is not None:
        put(conditions.SUCCEEDED, "False", failure.reason, failure.message)
        put(conditions.FINISHED, "True", failure.reason, failure.message)
        put(conditions.STALLED, "True", failure.reason, hint_of(failure))
    elif ended:
        put(conditions.SUCCEEDED, "True", reasons.ADAPTER_REGISTERED, _registered(case))
        put(conditions.FINISHED, "True", reasons.ADAPTER_REGISTERED, _registered(case))
    else:
        put(conditions.SUCCEEDED, "Unknown", phase, message)
        put(conditions.FINISHED, "False", phase, message)
    put(conditions.SUSPENDED, *suspended)
    if ended or suspended[0] == "True":
        current = tuple(c for c in current if c.type != conditions.RECONCILING)  # kstatus wants it absent, not False
    else:
        put(conditions.RECONCILING, "True", phase, message)
    return _that_fit(current)


def _that_fit(listed: tuple[Condition, ...]) -> tuple[Condition, ...]:
    """As many conditions as a status may have; what other controllers have added gives way to ours."""
    others = [each.type for each in listed if each.type not in conditions.TYPES]
    kept = others[: max(0, MAX_CONDITIONS - (len(listed) - len(others)))]
    return tuple(each for each in listed if each.type in conditions.TYPES or each.type in kept)


def _accepted(case: Case, failure: Finding | None, waiting: Finding | None) -> tuple[ConditionStatus, str, str]:
    if failure is not None and failure.reason == reasons.INVALID_SPEC:
        return "False", reasons.INVALID_SPEC, failure.message
    if waiting is not None and case.starting:
        # False: it waits for what must appear in time. What may take as long as it takes is Unknown.
        status: ConditionStatus = "False" if waiting.verdict is Verdict.EXPIRE else "Unknown"
        return status, reasons.WAITING_FOR_REFERENCE, waiting.message
    message = "the run's Job exists" if case.seen.job else "the spec is valid"
    if case.run.spec.adapter is None and case.run.spec.experiment is None:
        message += _ADAPTER_OF_ONE_RUN
    return "True", reasons.SPEC_ACCEPTED, message


def _dataset_ready(case: Case, failure: Finding | None, waiting: Finding | None) -> tuple[ConditionStatus, str, str]:
    exported = _exported(case.seen)
    if exported is not None:
        message = f"{exported.rows} rows to train on, {exported.evaluation_rows} held out"
        return "True", reasons.DATASET_EXPORTED, message
    known = case.run.status.condition(conditions.DATASET_READY)
    if known is not None and known.status == "True":
        return "True", known.reason, known.message
    finding = failure or waiting
    if finding is not None and finding.reason in (reasons.DATASET_UNAVAILABLE, reasons.DATASET_INVALID):
        return "False", finding.reason, finding.message
    return "Unknown", reasons.DATASET_PENDING, "the rows are not on the output claim yet"


def _suspended(case: Case) -> tuple[ConditionStatus, str, str]:
    job = case.seen.job
    going = any(not pod.finished for pod in case.seen.pods)
    if case.run.spec.suspend:
        if job is not None and not job.ended and not job.suspended:
            return "False", reasons.SUSPENDING, "the Job is not suspended yet"
        if going:
            return "False", reasons.SUSPENDING, "the pod is saving its checkpoint"
        return "True", reasons.SUSPENDED, "spec.suspend is true; set it to false to go on"
    if job is not None and not job.ended and job.suspended and not going and not queue.suspended_by_us(case):
        if queue.is_queued(job, case.seen.workload):
            return "False", reasons.QUEUED, "a queue holds the run back"
        return "True", reasons.SUSPENDED_BY_OTHER, f"Job {job.name} was suspended, and not by this run"
    known = case.run.status.condition(conditions.SUSPENDED)
    if known is not None and known.reason not in (reasons.NOT_SUSPENDED, reasons.QUEUED):
        return "False", reasons.RESUMED, "the run was suspended, and goes on"
    return "False", reasons.NOT_SUSPENDED, "spec.suspend is false"


def _activity(case: Case) -> str:
    """What the run is doing, for the conditions' messages, when nothing is in its way."""
    pod, last = case.pending_pod, case.attempts[-1] if case.attempts else None
    if pod is not None and case.seen.events and not any(each.started for each in pod.containers):
        newest = case.seen.events[-1]
        return f"pod {pod.name}: {newest.message}" if newest.reason in ("Pulling", "Pulled") else ""
    if case.done and case.outcome.adapter is None:
        return "the training is done; its adapter is being registered"
    if last is None or last.completion_time is None or last.reason in (COMPLETED, INTERRUPTED, SUSPENDED):
        return ""
    if _is_final(case):
        return f"attempt {last.pod} ended with {last.reason}"
    return f"attempt {last.pod} ended with {last.reason}; Kubernetes starts the next one"


def _registered(case: Case) -> str:
    adapter = case.outcome.adapter
    return f"adapter {adapter.name} version {adapter.version}" if adapter else ""


def _exported(seen: Seen) -> DatasetStatus | None:
    """What export counted, from the newest pod that says so."""
    pods = sorted(seen.pods, key=lambda pod: pod.created, reverse=True)
    return next((p.export.message.dataset for p in pods if p.export.succeeded and p.export.message.dataset), None)


def _dataset(old: DatasetStatus | None, case: Case) -> DatasetStatus | None:
    values = old.model_dump(exclude_none=True) if old else {}
    recorded, result = case.outcome.dataset, case.result
    if recorded is not None and recorded.version is not None:
        values |= {"version": recorded.version, "source_sha256": recorded.sha256}
    for message in (_exported(case.seen), result.dataset if result else None):
        values |= message.model_dump(exclude_none=True) if message else {}
    return DatasetStatus(**values) if values else None


def recorded_parent(old: ParentAdapterStatus | None, case: Case) -> ParentAdapterStatus | None:
    """The parent adapter that the run goes on from, once it was found: what its Job says, else the registry first."""
    view = (case.seen.job.parent if case.seen.job else None) or case.outcome.parent
    return ParentAdapterStatus(name=view.name, version=view.version, sha256=view.sha256) if view else old


def _progress(case: Case, *, training: bool) -> Progress | None:
    """The newest of what was posted, what an interrupted attempt has kept, and what was known."""
    progress = _posted(case.seen) or case.run.status.progress
    kept = max((a.step for a in case.attempts if a.completion_time and a.step is not None), default=None)
    if progress is not None and kept is not None and not training:
        update = {"step": max(progress.step or 0, kept), "checkpoint_step": max(progress.checkpoint_step or 0, kept)}
        progress = progress.model_copy(update=update)
    if progress is None or training:
        return progress
    return progress.model_copy(update={"remaining_seconds": None})  # nothing is under way that would end by then


def _posted(seen: Seen) -> Progress | None:
    view = seen.progress
    if view is None:
        return None
    metrics = view.metrics
    remaining = view.remaining_seconds
    return Progress.model_validate(
        {
            "step": whole_number(metrics.get("step")),
            "totalSteps": whole_number(metrics.get("totalSteps")),
            "percent": view.percent,
            "epoch": _number(metrics.get("epoch")),
            "loss": _number(metrics.get("loss")),
            "learningRate": _number(metrics.get("learningRate")),
            "tokensPerSecond": _number(metrics.get("tokensPerSecond")),
            "checkpointStep": whole_number(metrics.get("checkpointStep")),
            "remainingSeconds": remaining if remaining is not None and 0 <= remaining < MAXIMUM_SECONDS else None,
            "lastUpdateTime": view.time,
        }
    )


def _completed(progress: Progress, case: Case) -> Progress:
    """The progress of a run that is done: the last post may have come before the last step."""
    message = case.result
    if message is None or message.result is None:
        return progress
    steps = message.result.steps
    done = {"step": steps, "total_steps": steps, "percent": 100, "remaining_seconds": 0}
    return progress.model_copy(update=done)


def _number(text: str | None) -> str | None:
    """The text if it may stand in the status: a pod posts what it likes."""
    return text if text is not None and text.isascii() and 0 < len(text) <= MAX_DECIMAL else None


def _timings(case: Case, *, accepted: datetime | None) -> Timings:
    """Each first of its kind, in seconds since the run's creation; what is known stays."""
    known = case.run.status.timings or Timings()
    created = case.run.metadata.creation_timestamp
    first = min(case.seen.pods, key=lambda pod: pod.created, default=None)
    said = case.result.timings if case.result else None
    exported = first.export.finished if first and first.export.succeeded else None
    return Timings(
        accepted_seconds=_first(known.accepted_seconds, _seconds(created, accepted)),
        scheduled_seconds=_first(known.scheduled_seconds, _seconds(created, first.scheduled if first else None)),
        export_seconds=_first(known.export_seconds, _seconds(created, exported)),
        model_load_seconds=_first(
            known.model_load_seconds, _seconds(created, said.model_loaded_time if said else None)
        ),
        first_step_seconds=_first(known.first_step_seconds, _seconds(created, said.first_step_time if said else None)),
    )


def _first(known: int | None, seen: int | None) -> int | None:
    return known if known is not None else seen


def _seconds(start: datetime | None, end: datetime | None) -> int | None:
    return max(0, round((end - start).total_seconds())) if start and end else None


def _result(case: Case) -> dict[str, object]:
    """The parts of the status that only a success has."""
    message, adapter = case.result, case.outcome.adapter
    if message is None or message.result is None or adapter is None:
        return {}
    result = message.result
    return {
        "resumed_from_step": result.resumed_from_step or None,
        "loss_history": message.loss_history[:MAX_LOSS_HISTORY],
        "result": Result(
            **result.model_dump(include=set(Measurements.model_fields)),
            loss_change=loss_change(result.evaluation_loss, result.base_evaluation_loss),
            adapter=AdapterStatus(
                id=adapter.id,
                name=adapter.name,
                version=adapter.version,
                uri=adapter.uri,
                sha256=adapter.sha256,
                bytes=adapter.bytes,
                reference=f"{adapter.name}/{adapter.version}",
                stored=adapter.stored,
            ),
        ),
    }


def _warnings(case: Case) -> tuple[str, ...]:
    """What a person should look at although the run goes on, and may go on for long."""
    warnings: list[str] = []
    for pod in case.seen.pods:
        slow = timedelta(seconds=case.settings.termination_grace_seconds) + SLOW_TERMINATION
        if pod.deleted and not pod.finished and case.waited(reasons.TERMINATING, f"Pod/{pod.name}") > slow:
            warnings.append(
                f"pod {pod.name} on node {pod.node or '?'} is still terminating; if the node is lost, delete the Node "
                "or taint it with node.kubernetes.io/out-of-service"
            )
        if crashed(pod):
            warnings.append(f"the trainer of pod {pod.name} has ended, and another container keeps the pod alive")
    return tuple(warnings)
