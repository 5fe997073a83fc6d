"""What to do next for a run: one action at a time, from what was seen and what came of the actions before.

The caller performs the action, adds what came of it to the outcome, and asks again until nothing is left to do; then it
writes the status. So every action is decided with everything before it known, and a crash between two of them leaves a
state from which the same question leads on.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from finetune.api import conditions, reasons

from .case import Case, active_time, awaits_files, is_finished
from .mark import is_marked
from .policies import collect as collect_policy
from .policies import failure_of, queue
from .policies.trainer import crashed
from .views import JobView


@dataclass(frozen=True)
class CreateClaim:
    """Create the output claim that the run does not name."""


@dataclass(frozen=True)
class RecordRun:
    """Tell the registry of the run; it pins the versions of its dataset and of its parent adapter."""


@dataclass(frozen=True)
class FindResume:
    """Find the run of `spec.resumeFrom`, and the claim with its checkpoints."""


@dataclass(frozen=True)
class CreateJob:
    """Create the training Job."""


@dataclass(frozen=True)
class SuspendJob:
    """Suspend the Job and mark it as suspended by us; its pods get SIGTERM and save."""


@dataclass(frozen=True)
class ResumeJob:
    """Let a Job go on that we suspended."""


@dataclass(frozen=True)
class ClearStartTime:
    """Take the start time off a suspended Job: the Job controller would compare it with the deadline once more."""


@dataclass(frozen=True)
class SetDeadline:
    """Give the Job what is left of the run's deadline."""

    seconds: int


@dataclass(frozen=True)
class SetWorkloadActive:
    """Tell the queue that the run rests (its quota is free then), or that it wants to go on."""

    name: str
    active: bool


@dataclass(frozen=True)
class DeletePod:
    """Delete a pod whose trainer has died while another container keeps it alive."""

    name: str
    uid: str


@dataclass(frozen=True)
class FetchResult:
    """Ask the registry for the result that the trainer has put there."""


@dataclass(frozen=True)
class CreateCollectJob:
    """Read the result from the claim: no pod and no registry has it."""


@dataclass(frozen=True)
class CreateSendJob:
    """Send the adapter's files from the claim: the trainer could not."""


@dataclass(frozen=True)
class AskStored:
    """Ask the registry whether it has the adapter's files by now."""


@dataclass(frozen=True)
class RegisterAdapter:
    """Register the adapter; idempotent by the run's uid."""


@dataclass(frozen=True)
class FindClaim:
    """Find out who uses the output claim that was made for the run: it has failed before it trained."""


@dataclass(frozen=True)
class DeleteClaim:
    """Delete that claim: nothing is on it, and nobody uses it."""

    uid: str


@dataclass(frozen=True)
class TellEnd:
    """Tell the registry of the end of a run that it may never have heard of, as it hears of a run before its Job."""


@dataclass(frozen=True)
class MarkFinished:
    """Write the end on the run a second time, where it outlives the status."""


@dataclass(frozen=True)
class DeleteJob:
    """Delete a Job that is not needed any more, with its pods."""

    name: str
    uid: str


@dataclass(frozen=True)
class SetTTL:
    """Let Kubernetes remove the ended Job later; only once the final status is stored."""

    seconds_after_finish: int


Action = (
    CreateClaim
    | RecordRun
    | FindResume
    | CreateJob
    | SuspendJob
    | ResumeJob
    | ClearStartTime
    | SetDeadline
    | SetWorkloadActive
    | DeletePod
    | FetchResult
    | CreateCollectJob
    | CreateSendJob
    | AskStored
    | RegisterAdapter
    | FindClaim
    | DeleteClaim
    | TellEnd
    | MarkFinished
    | DeleteJob
    | SetTTL
)


Creation = CreateClaim | CreateJob | CreateCollectJob | CreateSendJob
"""Actions that make a new object: a 404 or a conflict speaks of its namespace or a quota, not of the object."""


def next_action(case: Case) -> Action | None:
    """The next thing to do for the run; None when the status can be written."""
    if case.outcome.refusal is not None:
        return None
    if is_finished(case.run.status):
        return _clean_up(case)
    if case.seen.name_taken:
        return None
    if failure_of(case) is not None:
        return None  # the reason is stored first; what is left of the Job is deleted after that
    if case.starting:
        return _start(case)
    job = case.seen.job
    if job is not None and not job.ended and not case.done:
        return _steer(case, job)
    return _finish(case)


def _start(case: Case) -> Action | None:
    """Everything that the Job needs comes before the Job; what the registry knows as done does not train again."""
    run, outcome = case.run, case.outcome
    if run.spec.suspend:
        return None
    if outcome.dataset is None:
        return RecordRun()
    if outcome.adapter is not None or outcome.known:
        if not outcome.result_asked:
            return FetchResult()
        if case.result is not None:
            return None if outcome.adapter is not None else RegisterAdapter()
    if outcome.dataset.missing or outcome.parent_missing:
        return None
    if case.settings.paused:
        return None
    if run.spec.resume_from is not None and outcome.resume is None:
        return None if outcome.resume_missing else FindResume()
    if run.spec.output.claim_name is None and not case.seen.claim_exists:
        return CreateClaim()
    return CreateJob()


def _steer(case: Case, job: JobView) -> Action | None:
    """Whether the Job may run, and for how long."""
    alone = case.seen.workload is None and queue.suspended_by_us(case)  # no queue holds it, whatever its label says
    if queue.is_queued(job, case.seen.workload) and not alone:
        return _tell_queue(case) or _set_deadline(case, job)
    wanted = case.run.spec.suspend
    if wanted and not job.suspended:
        return None if queue.is_hidden(case) else SuspendJob()
    ours = queue.suspended_by_us(case)
    rests = job.suspended and job.suspended_at is not None and _is_counted(case, job)
    if rests and job.started is not None and (ours or job.active_deadline_seconds is not None):
        return ClearStartTime()
    deadline = _set_deadline(case, job)
    if deadline is not None:
        return deadline
    if job.suspended and ours and not wanted:
        return ResumeJob() if _is_counted(case, job) else None
    if not job.suspended and not wanted and job.suspended_by == case.run.metadata.uid:
        return ResumeJob()  # somebody was faster: what others suspend later must not bear our mark
    return _delete_dead(case)


def _delete_dead(case: Case) -> Action | None:
    """A pod whose own container has died and that another one keeps alive: the Job cannot see it."""
    pod = case.pod
    if (
        pod is not None
        and crashed(pod)
        and case.waited(reasons.SIDECAR_RUNNING, f"Pod/{pod.name}") >= case.settings.linger
    ):
        return DeletePod(pod.name, pod.uid)
    return None


def _tell_queue(case: Case) -> Action | None:
    """The queue alone suspends and resumes; what a person wants goes through its own switch."""
    workload = case.seen.workload
    if workload is None:
        return None
    if case.run.spec.suspend and workload.active:
        return SetWorkloadActive(workload.name, active=False)
    if not case.run.spec.suspend and not workload.active and workload.deactivated_by == case.run.metadata.uid:
        return SetWorkloadActive(workload.name, active=True)
    return None


def _is_counted(case: Case, job: JobView) -> bool:
    """The active time that the suspension ended is in the stored status: it would be lost with the Job's start time."""
    known = case.run.status.active
    return active_time(known, job, case.attempts) == known


def _set_deadline(case: Case, job: JobView) -> Action | None:
    """What is left of the deadline, once the Job controller would compare it with nothing older."""
    limit, known = case.active_deadline_seconds, case.run.status.active
    if limit is None or known is None or not _is_counted(case, job):
        return None
    if job.suspended_at is not None and job.started is not None:
        return None
    left = max(1, limit - known.seconds)
    return SetDeadline(left) if job.active_deadline_seconds != left else None


def _finish(case: Case) -> Action | None:
    """Registration comes before success, and the result before registration."""
    if case.result is not None:
        return None if case.outcome.adapter is not None else RegisterAdapter()
    if not case.outcome.result_asked and (case.done or case.seen.job is None):
        return FetchResult()
    if not case.done:
        return None
    collect = case.seen.collect_job
    if collect is None:
        return CreateCollectJob()
    if collect_policy.may_be_made_anew(case):
        return DeleteJob(collect.name, collect.uid)
    return _end_what_is_done(case) or _delete_dead(case)


def _end_what_is_done(case: Case) -> Action | None:
    """Another container keeps the pod of a finished trainer alive, and with it what the reader waits for.

    That may be the claim, the quota for pods, or a queue's. The Job has nothing left to do: that it is done is stored.
    """
    job, waiting = case.seen.job, case.run.status.waiting
    if job is None or job.ended or job.deleting or waiting is None:
        return None
    if case.pod is not None and case.pod.phase != "Pending":
        return None
    held = any(pod.trainer.succeeded and not pod.finished and pod.lives_on for pod in case.seen.pods)
    stored = case.run.status.phase == reasons.REGISTERING
    long_enough = case.now - waiting.since >= case.settings.linger
    return DeleteJob(job.name, job.uid) if held and stored and long_enough else None


def _clean_up(case: Case) -> Action | None:
    """After the final status is stored: no Job goes on, and the ended one gets its time to live."""
    run, seen = case.run, case.seen
    if not is_marked(run) and not case.outcome.mark_refused:
        return _before_the_mark(case) or MarkFinished()
    if seen.collect_job is not None:
        return DeleteJob(seen.collect_job.name, seen.collect_job.uid)
    return _end_job(case) or _send(case)


def _before_the_mark(case: Case) -> Action | None:
    """What would be left undone for ever if the operator ended now and the run were marked already."""
    claim = case.outcome.claim
    if _has_an_empty_claim(case):
        if claim is None:
            return FindClaim()
        if claim.is_unused and not case.outcome.claim_deleted:
            return DeleteClaim(claim.uid)
    return TellEnd() if case.run.status.job_name is None and not case.outcome.told else None


def _send(case: Case) -> Action | None:
    """The files get into the registry's store, if only later: a Job tries for hours, and then it is asked once."""
    job, outcome = case.seen.send_job, case.outcome
    if not awaits_files(case.run.status) or outcome.stored is not None:
        return None
    if job is None:
        return CreateSendJob()
    return AskStored() if job.ended else None


def _end_job(case: Case) -> Action | None:
    run, job = case.run, case.seen.job
    if job is None or job.deleting:
        return None
    if not job.ended:
        return DeleteJob(job.name, job.uid) if lingers(case) <= timedelta(0) else None
    if job.ttl_set:
        return None
    finished = job.finished or case.now
    since = max(0, round((case.now - finished).total_seconds()))
    return SetTTL(since + run.spec.job_ttl_seconds)


def _has_an_empty_claim(case: Case) -> bool:
    """The claim that the operator made holds nothing that anybody would miss: the run ended before its first step.

    A trainer that was reached may have trained unheard, unless each attempt ended by what it needs to begin.
    """
    status = case.run.status
    if case.run.spec.output.claim_name is not None or status.failure is None:
        return False
    stepped = status.progress is not None and bool(status.progress.step)
    began = any(each.step or each.reason not in reasons.BEFORE_TRAINING for each in case.attempts)
    never = not case.trained or (bool(case.attempts) and not began and not stepped)
    return status.failure.reason in reasons.BEFORE_TRAINING and never


def lingers(case: Case) -> timedelta:
    """How long the Job of a finished run may still go on by itself.

    After a success its pod has a moment to end, so that the logs are kept; a sidecar that goes on has no longer. A
    failed run's Job is over at once.
    """
    finished = case.run.status.condition(conditions.FINISHED)
    if case.run.status.result is None or finished is None:
        return timedelta(0)
    return case.settings.linger - max(timedelta(0), case.now - finished.last_transition_time)
