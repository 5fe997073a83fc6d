"""One run and all that is known of it: what policies, decisions and the status look at."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property

from finetune.api import conditions, reasons
from finetune.api.status import ActiveTime, Attempt, TrainingRunStatus
from finetune.api.trainingrun import TrainingRun

from .attempts import GONE, SUSPENDED, known_step, merge_attempts
from .messages import Message
from .seen import Outcome, Seen, newest, result_of
from .settings import Settings
from .views import JobView, PodView


@dataclass(frozen=True)
class Case:
    """A run, what was read of it, what came of the operator's calls, and the operator's clock."""

    run: TrainingRun
    seen: Seen
    outcome: Outcome
    settings: Settings
    now: datetime

    def with_status(self, status: TrainingRunStatus) -> Case:
        """The same look at the run once this status is stored."""
        return replace(self, run=self.run.model_copy(update={"status": status}))

    @cached_property
    def attempts(self) -> tuple[Attempt, ...]:
        """The attempts so far."""
        return merge_attempts(
            self.run.status.attempt_history,
            self.seen.pods,
            self.now,
            suspended=self.seen.job is not None and self.seen.job.suspended,
            step=known_step(self.run.status.progress, self.seen.progress),
        )

    @property
    def active_deadline_seconds(self) -> int | None:
        """Longest active time of the run: its own, else what the administrator allows."""
        return self.run.spec.active_deadline_seconds or self.settings.active_deadline_seconds

    @property
    def result(self) -> Message | None:
        """The trainer's result, from wherever it was heard."""
        return result_of(self.seen, self.outcome)

    @property
    def trained(self) -> bool:
        """An attempt has reached its trainer, or may have while nobody looked: nothing that may pass ends the run."""
        status = self.run.status
        if status.training_start_time is not None or (status.progress is not None and status.progress.step):
            return True
        if self.done or self.outcome.known or any(pod.trainer.started for pod in self.seen.pods):
            return True
        unheard = (GONE, SUSPENDED)
        silent = (a.reason in unheard and a.completion_time and a.exit_code is None for a in self.attempts)
        return any(silent) or any(attempt.step for attempt in self.attempts)

    @property
    def starting(self) -> bool:
        """There is no Job, and there never was one."""
        return self.seen.job is None and self.run.status.job_name is None

    @property
    def done(self) -> bool:
        """The training has ended well; what is left is to register its result, whatever becomes of its Job."""
        job = self.seen.job
        return self._was_done or self.seen.trainer_done or (job is not None and job.complete)

    @property
    def _was_done(self) -> bool:
        """It is stored, and of this very run: one that was restored from a backup has its files elsewhere."""
        status = self.run.status
        own = status.output is None or status.output.path.endswith(f"/{self.run.metadata.uid}")
        return status.phase == reasons.REGISTERING and own

    @property
    def job(self) -> JobView | None:
        """The Job whose pod is waited for: the training's, or the one that reads the result from the claim."""
        return self.seen.collect_job if self.done else self.seen.job

    @property
    def pod(self) -> PodView | None:
        """The newest pod of that Job."""
        return newest(self.seen.collect_pods) if self.done else self.seen.newest_pod

    @property
    def pending_pod(self) -> PodView | None:
        """The same, while its containers have not all started."""
        return self.pod if self.pod is not None and self.pod.phase == "Pending" else None

    def waited(self, reason: str, object_: str) -> timedelta:
        """How long the run has waited for this, by the operator's own clock; nothing when it begins now."""
        waiting = self.run.status.waiting
        if waiting is None:
            return timedelta(0)
        if (waiting.reason, waiting.object) == (reason, object_):
            return max(timedelta(0), self.now - waiting.since)
        earlier = (each.seconds for each in waiting.earlier if (each.reason, each.object) == (reason, object_))
        return timedelta(seconds=next(earlier, 0))


def is_finished(status: TrainingRunStatus) -> bool:
    """The run has reached its end; nothing but `observedGeneration` changes any more."""
    finished = status.condition(conditions.FINISHED)
    return finished is not None and finished.status == "True"


def awaits_files(status: TrainingRunStatus) -> bool:
    """The adapter's files are on the claim alone, and are being sent to the registry's store."""
    return status.result is not None and status.result.adapter.stored is False


def active_time(known: ActiveTime | None, job: JobView | None, attempts: tuple[Attempt, ...]) -> ActiveTime | None:
    """How long the Job was active, from its own times alone, so that no clock but the Job controller's matters.

    The Job controller says since when it holds a Job suspended, and when it started it (again). An active time whose
    end nobody saw ended with its last pod. Each active time is counted once, when it is seen to have ended.
    """
    if job is None or job.ended:
        return known
    total = known or ActiveTime()
    if job.suspended_at is not None:
        if total.since is None:
            return known
        return ActiveTime(seconds=total.seconds + _seconds(total.since, job.suspended_at))
    if job.started is None or job.started == total.since:
        return known
    if total.since is None:
        return ActiveTime(seconds=total.seconds, since=job.started)
    ends = (a.completion_time for a in attempts if a.completion_time and a.completion_time <= job.started)
    ended = max((end for end in ends if end >= total.since), default=total.since)
    return ActiveTime(seconds=total.seconds + _seconds(total.since, ended), since=job.started)


def _seconds(start: datetime, end: datetime) -> int:
    return max(0, round((end - start).total_seconds()))
