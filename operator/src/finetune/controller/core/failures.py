"""Whether a run has failed, and why: an ordered list of policies over the observation.

A failed pod is not a failed run: the Job does the retries, and only its `Failed` condition counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from finetune.api import conditions, reasons
from finetune.api.status import Attempt
from finetune.api.trainingrun import TrainingRun

from .attempts import COMPLETED, GONE, INTERRUPTED, failure_reason, interruptions_without_progress
from .observe import ContainerView, Observation, PodView
from .problems import Problem
from .settings import Settings


@dataclass(frozen=True)
class Failure:
    """Why the run has failed."""

    reason: str
    message: str
    exit_code: int | None = None
    row: int | None = None


@dataclass(frozen=True)
class Case:
    """What the policies look at."""

    run: TrainingRun
    seen: Observation
    attempts: tuple[Attempt, ...]
    problem: Problem | None
    settings: Settings
    now: datetime


def failure_of(case: Case) -> Failure | None:
    """Why the run has failed; None while it has not."""
    for policy in _POLICIES:
        failure = policy(case)
        if failure is not None:
            return failure
    return None


def waiting_since(case: Case) -> datetime:
    """Since when the run waits for what it waits for now; hours in the queue for a GPU are not part of it."""
    pod, job = case.seen.newest_pod, case.seen.job
    if pod is not None:
        return max(time for time in (pod.created, pod.scheduled, pod.export.finished) if time)
    if job is not None:
        return job.started or job.created
    accepted = case.run.status.condition(conditions.ACCEPTED)
    return accepted.last_transition_time if accepted and accepted.status == "False" else case.now


def _parent_of_another_base(case: Case) -> Failure | None:
    """An adapter fits the model that it was trained on, and no other."""
    parent, base = case.seen.parent, case.run.spec.base_model.display_name
    if case.seen.job is not None or parent is None or parent.base_model == base:
        return None
    return Failure(
        reasons.INVALID_SPEC,
        f"spec.parentAdapter: adapter {parent.name} version {parent.version} was trained on the base model "
        f"{parent.base_model}, and spec.baseModel is {base}: use the parent's base model under the same name, or "
        "another parent",
    )


def _refused_by_registry(case: Case) -> Failure | None:
    """The registry will never accept this adapter."""
    refusal = case.seen.registry_refused
    return Failure(reasons.ADAPTER_INVALID, refusal) if refusal else None


def _collect_failed(case: Case) -> Failure | None:
    """Training ended well, but its result cannot be read from anywhere."""
    job, seen = case.seen.collect_job, case.seen
    if job is None or not (job.failed or seen.collected) or seen.result is not None:
        return None
    pod = max(seen.collect_pods, key=lambda pod: pod.created, default=None)
    words = pod.last_words if pod else None
    said = words.message.failure.message if words and words.message.failure else words.message.text if words else ""
    detail = said or job.message or "the file holds no result"
    return Failure(reasons.ADAPTER_INVALID, f"training_config.json could not be read from the output claim: {detail}")


def _job_lost(case: Case) -> Failure | None:
    """The Job of a run that had one is gone, and nothing shows that the training was done."""
    status, seen = case.run.status, case.seen
    if seen.job is not None or status.job_name is None or seen.result is not None:
        return None
    if status.phase == reasons.REGISTERING:
        return None  # the claim still has the result: it is being collected
    if seen.registry_error:
        return None  # the registry may have the result, which says that the training was done
    return Failure(reasons.JOB_LOST, f'Job "{status.job_name}" does not exist any more')


def _deadline(case: Case) -> Failure | None:
    """The Job ran out of its active deadline."""
    job = case.seen.job
    if job is None or not job.failed or job.reason != "DeadlineExceeded":
        return None
    limit = case.run.spec.active_deadline_seconds
    waiting = f"; it was waiting: {case.problem.message}" if case.problem else ""
    return Failure(reasons.DEADLINE_EXCEEDED, f"active for longer than activeDeadlineSeconds ({limit}){waiting}")


def _job_failed(case: Case) -> Failure | None:
    """The Job gave up: the last attempt's own reason, unless the attempts had different ones."""
    job, seen = case.seen.job, case.seen
    if job is None or not job.failed:
        return None
    causes = [a for a in case.attempts if a.reason and a.reason not in (COMPLETED, INTERRUPTED, GONE)]
    distinct = list(dict.fromkeys(attempt.reason for attempt in causes))
    pod = _last_failed_pod(seen)
    if job.reason == "BackoffLimitExceeded" and (pod is None or len(distinct) > 1):
        listed = "; ".join(f"{attempt.pod}: {attempt.reason} (exit code {attempt.exit_code})" for attempt in causes)
        return Failure(reasons.RETRIES_EXHAUSTED, f"{job.message}. {listed or 'no pod could be read'}")
    if pod is None:
        return Failure(reasons.INTERNAL_ERROR, f"{job.reason}: {job.message}")
    return failure_of_pod(pod)


def _interrupted_too_often(case: Case) -> Failure | None:
    """Interruptions are free, but not endless."""
    count = interruptions_without_progress(case.attempts)
    if count <= case.settings.max_interruptions:
        return None
    last = max(case.seen.pods, key=lambda pod: pod.created, default=None)
    said = f" (the last time: {last.message.strip()})" if last and last.message else ""
    return Failure(
        reasons.RETRIES_EXHAUSTED,
        f"interrupted {count} times in a row without a new checkpoint{said}; lower training.checkpointSteps or move "
        "the run to nodes that are not preempted",
    )


def _waited_too_long(case: Case) -> Failure | None:
    """Something that the run refers to did not appear in time."""
    problem = case.problem
    if problem is None or not problem.expires or case.run.spec.suspend:
        return None
    waited = (case.now - waiting_since(case)).total_seconds()
    if waited < case.settings.reference_timeout_seconds:
        return None
    return Failure(problem.reason, f"{problem.message} (waited {case.settings.reference_timeout_seconds} s)")


_POLICIES: tuple[Callable[[Case], Failure | None], ...] = (
    _parent_of_another_base,
    _refused_by_registry,
    _collect_failed,
    _job_lost,
    _deadline,
    _job_failed,
    _interrupted_too_often,
    _waited_too_long,
)


def failure_of_pod(pod: PodView) -> Failure:
    """A pod's own reason and last words."""
    words = pod.last_words
    if pod.over_its_limit:
        reason = failure_reason(pod, words or ContainerView())
        return Failure(reason, f"pod {pod.name} was evicted: {pod.message.strip()}", words.exit_code if words else None)
    if words is None:
        reason = reasons.NODE_LOST if pod.reason else reasons.INTERNAL_ERROR
        return Failure(
            reason,
            f"pod {pod.name} on node {pod.node or '?'} ended without a word ({pod.reason or pod.phase})",
        )
    container = "export" if words is pod.export else "trainer"
    own = words.message.failure
    if own is not None and words.exit_reason != "OOMKilled":
        return Failure(failure_reason(pod, words), own.message, words.exit_code, own.row)
    detail = words.message.text or words.exit_reason or "no last words"
    message = f"container {container} of pod {pod.name} ended with exit code {words.exit_code}: {detail}"
    return Failure(failure_reason(pod, words), message, words.exit_code)


def _last_failed_pod(seen: Observation) -> PodView | None:
    failed = [pod for pod in seen.pods if pod.phase == "Failed"]
    return max(failed, key=lambda pod: (pod.created, pod.name), default=None)
