"""The Job: what its creation meets, who else has a hand in it, and how it ends."""

from __future__ import annotations

from finetune.api import reasons
from finetune.controller.core.attempts import COMPLETED, GONE, INTERRUPTED, SUSPENDED
from finetune.controller.core.case import Case
from finetune.controller.core.findings import Finding, end, wait
from finetune.controller.core.refusals import Doing

from .trainer import failure_of_pod, last_failed_pod

SILENT_SECONDS = 10.0
"""How long a new Job may have no pod before that is said, by the operator's own clock."""
BACK_OFF_SECONDS = 400.0
"""The same after a pod that failed: the Job controller waits for up to six minutes before it makes the next one."""
_NO_CAUSES = (COMPLETED, INTERRUPTED, SUSPENDED, GONE)


def call_refused(case: Case) -> Finding | None:
    """The API server or the registry refused what the operator asked for."""
    refusal = case.outcome.refusal
    return refusal.finding if refusal is not None else None


def doing(case: Case) -> Doing:
    """Whether a refusal may end the run: only before it has started."""
    return Doing.START if case.starting and not case.trained else Doing.GO_ON


def name_taken(case: Case) -> Finding | None:
    """Another object has the Job's name; nothing of it is touched."""
    if not case.seen.name_taken:
        return None
    return wait(reasons.JOB_NAME_TAKEN, case.seen.name_taken, "Job")


def being_deleted(case: Case) -> Finding | None:
    """Somebody has deleted the Job, and it is not gone yet."""
    job = case.job
    if job is None or not job.deleting or case.result is not None:
        return None
    return wait(reasons.TERMINATING, f'Job "{job.name}" is being deleted, and not by its run', f"Job/{job.name}")


def without_a_pod(case: Case) -> Finding | None:
    """The Job may run, and nobody makes a pod for it or says why."""
    job, pod = case.job, case.pod
    if job is None or job.ended or job.suspended or job.deleting or (pod is not None and not pod.finished):
        return None
    first = pod is None and (case.done or not case.attempts)
    patience = SILENT_SECONDS if first else BACK_OFF_SECONDS
    if case.result is not None or case.seen.pending_seconds < patience:
        return None
    return wait(
        reasons.POD_NOT_STARTED,
        f"Job {job.name} has no pod, and no Event says why",
        f"Job/{job.name}",
        f"Kubernetes' Job controller makes the pod: is the controller manager well? kubectl describe job {job.name}",
    )


def lost(case: Case) -> Finding | None:
    """The Job of a run that had one is gone, and nothing shows that the training was done."""
    status = case.run.status
    if case.seen.job is not None or status.job_name is None or case.result is not None or case.seen.name_taken:
        return None
    if case.done or not case.outcome.result_asked:
        return None  # the claim has the result and is being read, or the registry has not been asked yet
    return end(reasons.JOB_LOST, f'Job "{status.job_name}" does not exist any more')


def deadline_exceeded(case: Case) -> Finding | None:
    """The Job ran out of its active deadline before the trainer was done."""
    job = case.seen.job
    if job is None or not job.failed or job.reason != "DeadlineExceeded" or case.done:
        return None
    waiting = case.run.status.waiting
    about = f"; it was waiting: {waiting.message}" if waiting else ""
    limit = case.active_deadline_seconds
    suspended = " in all, suspensions not counted" if case.run.status.active and case.run.status.active.seconds else ""
    return end(reasons.DEADLINE_EXCEEDED, f"active for longer than activeDeadlineSeconds ({limit}){suspended}{about}")


def failed(case: Case) -> Finding | None:
    """The Job gave up: the attempts' own reason, unless they had different ones.

    A trainer that ended with 0 is done whatever the Job says: it judges by the pod, sidecars among it.
    """
    job = case.seen.job
    if job is None or not job.failed or job.reason == "DeadlineExceeded" or case.done:
        return None
    causes = [attempt for attempt in case.attempts if attempt.reason and attempt.reason not in _NO_CAUSES]
    distinct = list(dict.fromkeys(attempt.reason for attempt in causes))
    pod = last_failed_pod(case.seen.pods)
    if job.reason == "BackoffLimitExceeded" and len(distinct) != 1:
        listed = "; ".join(
            f"{attempt.pod} on {attempt.node or 'no node'}: {attempt.reason} (exit code {attempt.exit_code})"
            for attempt in causes
        )
        return end(reasons.RETRIES_EXHAUSTED, f"{job.message}. {listed or 'no pod could be read'}")
    if pod is not None:
        return failure_of_pod(pod, case.run)
    if distinct:  # the pods are gone, but the status remembers
        last = causes[-1]
        message = f"{job.message}. pod {last.pod} on node {last.node or '?'} was the last of {len(causes)}"
        return end(distinct[-1] or reasons.INTERNAL_ERROR, message, exit_code=last.exit_code)
    return end(reasons.INTERNAL_ERROR, f"{job.reason}: {job.message}")
