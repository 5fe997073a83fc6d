"""Who else decides when the Job runs: a queue, or a person."""

from __future__ import annotations

from finetune.api import reasons
from finetune.controller.core.case import Case
from finetune.controller.core.findings import Finding, wait


def is_queued(case: Case) -> bool:
    """A queue decides when the Job runs."""
    job = case.seen.job
    return job is not None and (case.seen.workload is not None or (bool(job.queue) and job.suspended))


def suspended_by_us(case: Case) -> bool:
    """The operator suspended the Job itself, for this run."""
    job = case.seen.job
    return job is not None and job.suspended and job.suspended_by == case.run.metadata.uid


def held_back(case: Case) -> Finding | None:
    """A queue has not admitted the Job, or has taken its quota back."""
    job, workload = case.seen.job, case.seen.workload
    if job is None or job.ended or case.run.spec.suspend or not is_queued(case) or not job.suspended:
        return None
    if suspended_by_us(case):
        return None
    name = job.queue or "?"
    if workload is None:
        said = f"Job {job.name} waits for the queue {name}, which has not looked at it yet"
        return wait(reasons.QUEUED, said, f"LocalQueue/{name}", "Is Kueue running, and does the LocalQueue exist?")
    said = workload.message or "not admitted yet"
    why = f" ({workload.reason})" if workload.reason else ""
    return wait(reasons.QUEUED, f"waits in the queue {name}: {said}{why}", f"LocalQueue/{name}")


def suspended_by_other(case: Case) -> Finding | None:
    """Somebody else has suspended the Job: it is theirs to resume."""
    job = case.seen.job
    if job is None or job.ended or not job.suspended or case.run.spec.suspend:
        return None
    if is_queued(case) or suspended_by_us(case):
        return None
    return wait(
        reasons.SUSPENDED_BY_OTHER,
        f"Job {job.name} is suspended, and not by this run's spec.suspend",
        f"Job/{job.name}",
        f"Whoever suspended it resumes it: kubectl patch job {job.name} --type=merge -p "
        """'{"spec":{"suspend":false}}'""",
    )
