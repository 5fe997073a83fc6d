"""What to do next for a run: one action at a time, from the observation alone.

The caller performs the action, adds what came of it to the observation, and asks again until nothing is left to do;
then it writes the status. So every action is decided with everything before it known, and a crash between two of them
leaves a state from which the same question leads on.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from finetune.api.trainingrun import TrainingRun

from .attempts import merge_attempts
from .failures import Case, failure_of
from .observe import JobView, Observation
from .problems import problem_of
from .settings import Settings
from .status import is_finished


@dataclass(frozen=True)
class CreateClaim:
    """Create the output claim that the run does not name."""


@dataclass(frozen=True)
class RecordRun:
    """Tell the registry of the run; it pins the versions of its dataset and of its parent adapter."""


@dataclass(frozen=True)
class CreateJob:
    """Create the training Job."""


@dataclass(frozen=True)
class SuspendJob:
    """Suspend the Job; its pods get SIGTERM and save."""

    active_seconds: int
    """Whole seconds that the Job was active so far, kept on the Job."""


@dataclass(frozen=True)
class ResumeJob:
    """Let the Job go on, with what is left of its deadline."""

    active_deadline_seconds: int | None


@dataclass(frozen=True)
class CreateCollectJob:
    """Read the result from the claim: no pod and no registry has it."""


@dataclass(frozen=True)
class RegisterAdapter:
    """Register the adapter; idempotent by the run's uid."""


@dataclass(frozen=True)
class DeleteJob:
    """Delete a Job that is not needed any more, with its pods."""

    name: str


@dataclass(frozen=True)
class SetTTL:
    """Let Kubernetes remove the ended Job later; only once the final status is stored."""

    seconds_after_finish: int


Action = (
    CreateClaim
    | RecordRun
    | CreateJob
    | SuspendJob
    | ResumeJob
    | CreateCollectJob
    | RegisterAdapter
    | DeleteJob
    | SetTTL
)


Creation = CreateClaim | CreateJob | CreateCollectJob
"""Actions that an admission rule, a quota or the schema may refuse."""


def case_of(run: TrainingRun, seen: Observation, settings: Settings, now: datetime) -> Case:
    """The run, what was seen of it, and what follows at once: attempts and what is in its way."""
    attempts = merge_attempts(run.status.attempt_history, seen.pods, now)
    return Case(run=run, seen=seen, attempts=attempts, problem=problem_of(run, seen), settings=settings, now=now)


def next_action(case: Case) -> Action | None:
    """The next thing to do for the run; None when the status can be written."""
    run, seen = case.run, case.seen
    if is_finished(run.status):
        return _clean_up(case)
    if failure_of(case) is not None:
        return None  # the reason is stored first; what is left of the Job is deleted after that
    if seen.name_taken or seen.refused or seen.registry_error:
        return None
    if seen.job is None and run.status.job_name is None:
        return _start(case)
    if seen.job is not None and not seen.job.ended and seen.job.suspended != run.spec.suspend:
        return _suspend_or_resume(case, seen.job)
    return _finish(case)


def _start(case: Case) -> Action | None:
    """Everything that the Job needs comes before the Job."""
    run, seen = case.run, case.seen
    if run.spec.suspend:
        return None
    if seen.dataset is None:
        return RecordRun()
    if seen.dataset.missing or seen.parent_missing:
        return None
    if run.spec.output.claim_name is None and not seen.claim_exists:
        return CreateClaim()
    return CreateJob()


def _suspend_or_resume(case: Case, job: JobView) -> Action:
    if case.run.spec.suspend:
        active = (case.now - job.started).total_seconds() if job.started else 0.0
        return SuspendJob(job.active_seconds + round(active))
    limit = case.run.spec.active_deadline_seconds
    return ResumeJob(max(1, limit - job.active_seconds) if limit is not None else None)


def _finish(case: Case) -> Action | None:
    """Registration comes before success, and the result before registration."""
    run, seen = case.run, case.seen
    ended = seen.job.complete if seen.job is not None else run.status.phase == "Registering"
    if seen.result is not None and (ended or seen.job is None):
        return None if seen.adapter is not None else RegisterAdapter()
    if not ended:
        return None
    if seen.collect_job is None:
        return CreateCollectJob()
    if seen.collect_job.complete and not seen.collected:
        return DeleteJob(seen.collect_job.name)  # its pod was deleted before anybody heard it: read once more
    return None


def _clean_up(case: Case) -> Action | None:
    """After the final status is stored: no Job goes on, and the ended one gets its time to live."""
    run, seen = case.run, case.seen
    if seen.collect_job is not None:
        return DeleteJob(seen.collect_job.name)
    job = seen.job
    if job is None:
        return None
    if not job.ended:
        return DeleteJob(job.name)
    if job.ttl_set:
        return None
    finished = job.finished or case.now
    since = max(0, round((case.now - finished).total_seconds()))
    return SetTTL(since + run.spec.job_ttl_seconds)
