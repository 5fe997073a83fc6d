"""Who else decides when the Job runs: a queue, or a person."""

from __future__ import annotations

from datetime import timedelta

from finetune.api import reasons
from finetune.controller.core.case import Case
from finetune.controller.core.findings import Finding, wait
from finetune.controller.core.views import JobView, WorkloadView

UNHEARD = timedelta(seconds=10)
"""What a queue gets to notice a new Job; one that says nothing for longer will not."""


def is_queued(job: JobView | None, workload: WorkloadView | None) -> bool:
    """Whether a queue decides when the Job runs."""
    return job is not None and (workload is not None or (bool(job.queue) and job.suspended))


def suspended_by_us(case: Case) -> bool:
    """Whether the operator suspended the Job itself, for this run, and no queue has taken it over since."""
    job = case.seen.job
    return job is not None and job.suspended and _is_ours(case, job)


def _is_ours(case: Case, job: JobView) -> bool:
    return job.suspended_by == case.run.metadata.uid and case.seen.workload is None


def is_hidden(case: Case) -> bool:
    """Whether the Job bears a queue's label, and the queue's record of it could not be read."""
    job = case.seen.job
    return job is not None and bool(job.queue) and bool(case.seen.workload_hidden)


def unreadable(case: Case) -> Finding | None:
    """What a queue does with the Job is not known: the operator keeps its hands off, and says what it lacks."""
    job = case.seen.job
    if job is None or job.ended or not is_hidden(case):
        return None
    return wait(
        reasons.OPERATOR_FORBIDDEN,
        f"cannot read what the queue {job.queue} says of Job {job.name}: {case.seen.workload_hidden}",
        f"LocalQueue/{job.queue}",
        "The operator's role needs get, list and patch of workloads.kueue.x-k8s.io: compare it with the chart's.",
    )


def held_back(case: Case) -> Finding | None:
    """A queue has not admitted the Job, or has taken its quota back; the Job that reads the result may wait, too."""
    job, workload = case.job, case.seen.workload
    if job is None or job.ended or not job.suspended or not is_queued(job, workload):
        return None
    if _is_ours(case, job) or (case.run.spec.suspend and not case.done):
        return None
    if workload is None:
        return _unheard(case, job)
    name = workload.queue or job.queue
    if not name:
        return wait(
            reasons.QUEUED,
            f"a queue must admit Job {job.name}, and it names none",
            f"Job/{job.name}",
            "Set spec.scheduling.queueName in a new run, or label the Job: "
            f"kubectl label job {job.name} kueue.x-k8s.io/queue-name=<a LocalQueue>",
        )
    if not workload.active:
        said = "its Workload was deactivated, and not by this run"
        hint = f"""kubectl patch workload {workload.name} --type=merge -p '{{"spec":{{"active":true}}}}'"""
        return wait(reasons.QUEUED, f"waits in the queue {name}: {said}", f"LocalQueue/{name}", hint)
    why = f" ({workload.reason})" if workload.reason else ""
    said = workload.message or "not looked at yet"
    return wait(reasons.QUEUED, f"waits in the queue {name}: {said}{why}", f"LocalQueue/{name}")


def suspended_by_other(case: Case) -> Finding | None:
    """Somebody else has suspended the Job: it is theirs to resume."""
    job = case.job
    if job is None or job.ended or not job.suspended or is_queued(job, case.seen.workload):
        return None
    if _is_ours(case, job) or (case.run.spec.suspend and not case.done):
        return None
    return wait(
        reasons.SUSPENDED_BY_OTHER,
        f"Job {job.name} is suspended, and not by this run's spec.suspend",
        f"Job/{job.name}",
        f"Whoever suspended it resumes it: kubectl patch job {job.name} --type=merge -p "
        """'{"spec":{"suspend":false}}'""",
    )


def _unheard(case: Case, job: JobView) -> Finding:
    """The Job has a queue's label, and nothing has made a Workload of it."""
    name = f"LocalQueue/{job.queue}"
    if case.waited(reasons.QUEUED, name) < UNHEARD:
        return wait(reasons.QUEUED, f"waits for the queue {job.queue}, which has not looked at it yet", name)
    wanted = case.run.spec.scheduling.workload_priority_class_name
    missing = f", and is there a WorkloadPriorityClass {wanted}" if wanted else ""
    return wait(
        reasons.QUEUED,
        f"waits for the queue {job.queue}, but Kueue has made no Workload for Job {job.name}",
        name,
        f"Is Kueue installed and running{missing}? kubectl get localqueues,workloadpriorityclasses",
    )
