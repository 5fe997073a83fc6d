"""Suspension and deadline: only what the operator suspended is resumed, and only active time counts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.api.status import ActiveTime, Attempt
from finetune.api.trainingrun import TrainingRun
from finetune.controller.core import decide
from finetune.controller.core.case import Case, active_time
from finetune.controller.core.seen import Outcome, Seen
from finetune.controller.core.views import JobView, job_view
from tests.support import objects as o
from tests.support.cases import action, again, failed, failure, look, status, stored, waiting, waits_for

RESTS: dict[str, Any] = {"suspend": True, "suspended_by": o.UID}


def active(seconds: int, since: float | None = None) -> dict[str, Any]:
    """A status that has counted so much."""
    document = {"seconds": seconds, **({"since": o.stamp(since)} if since is not None else {})}
    return {"phase": "Training", "jobName": o.JOB, "jobUid": "job-uid", "active": document}


# Who suspended it


def test_a_suspended_run_suspends_its_job_and_says_whose_doing_it_is() -> None:
    assert action(look(o.run(suspend=True), o.job())) == decide.SuspendJob()
    assert action(look(o.run(suspend=True), o.job(**RESTS))) is None


def test_only_a_job_that_the_operator_suspended_is_resumed() -> None:
    assert action(look(None, o.job(**RESTS))) == decide.ResumeJob()
    assert action(look(None, o.job(suspend=True))) is None
    assert action(look(None, o.job(suspend=True, suspended_by="another-run"))) is None


def test_a_job_that_somebody_else_has_resumed_loses_our_mark() -> None:
    """Who suspends it later would be taken for us, and undone."""
    assert action(look(None, o.job(suspended_by=o.UID))) == decide.ResumeJob()
    assert action(look(None, o.job(suspended_by="another-run"))) is None
    assert action(look(o.run(suspend=True), o.job(suspended_by=o.UID))) == decide.SuspendJob()


def test_a_job_that_somebody_else_suspended_is_waited_for_and_said() -> None:
    job = o.job(suspend=True, suspended_at=50)
    case = look(None, job)
    assert waits_for(case) == "SuspendedByOther"
    assert (o.JOB in waiting(case).message, "kubectl patch job" in waiting(case).hint) == (True, True)
    assert failure(again(case, 100_000)) is None
    assert action(again(case, 100_000)) is None
    made = status(case)
    assert made.phase == "Suspended"
    found = made.condition("Suspended")
    assert found is not None
    assert (found.status, found.reason) == ("True", "SuspendedByOther")


def test_a_job_that_somebody_else_suspended_is_not_claimed_by_a_suspended_run() -> None:
    """A person suspends the run as well, and lets it go on: the Job stays with whoever suspended it."""
    foreign = o.job(suspend=True, suspended_at=50)
    resting = look(o.run(suspend=True), foreign)
    assert action(resting) is None
    assert action(look(o.run(stored(resting).status.to_dict()), foreign)) is None


def test_a_run_that_its_owner_lets_rest_does_not_say_that_somebody_else_does() -> None:
    case = look(o.run(suspend=True), o.job(**RESTS, suspended_at=50))
    assert waits_for(case) is None
    assert status(case).phase == "Suspended"


# The deadline


def test_a_suspended_job_gives_up_its_start_time_once_it_is_counted() -> None:
    """Kubernetes would compare the old start with the shortened deadline in the second of the resume."""
    job = o.job(**RESTS, suspended_at=70, started=10, activeDeadlineSeconds=100)
    suspended = look(o.run(active(0, 10), suspend=True, activeDeadlineSeconds=100), job, seconds=75)
    assert action(suspended) is None
    assert status(suspended).active == ActiveTime(seconds=60)
    assert action(again(suspended, 76)) == decide.ClearStartTime()


def test_the_deadline_is_what_is_left_before_the_job_goes_on() -> None:
    cleared = o.job(**RESTS, suspended_at=70, activeDeadlineSeconds=100)
    run = o.run(active(60), activeDeadlineSeconds=100)
    assert action(look(run, cleared)) == decide.SetDeadline(40)
    shortened = o.job(**RESTS, suspended_at=70, activeDeadlineSeconds=40)
    assert action(look(run, shortened)) == decide.ResumeJob()


def test_a_run_that_has_used_up_its_deadline_still_has_a_second() -> None:
    """Zero would be no number of seconds, and the Job is the one who says that it is over."""
    spent = o.job(**RESTS, suspended_at=700, activeDeadlineSeconds=100)
    assert action(look(o.run(active(600), activeDeadlineSeconds=100), spent)) == decide.SetDeadline(1)


def test_a_job_is_not_resumed_before_its_active_time_is_stored() -> None:
    job = o.job(**RESTS, suspended_at=70, started=10, activeDeadlineSeconds=100)
    fast = look(o.run(active(0, 10), activeDeadlineSeconds=100), job, seconds=71)
    assert action(fast) is None
    assert status(fast).active == ActiveTime(seconds=60)
    assert action(again(fast, 72)) == decide.ClearStartTime()


def test_a_run_without_a_deadline_goes_on_with_its_time_counted_all_the_same() -> None:
    job = o.job(**RESTS, suspended_at=70, started=10)
    case = look(o.run(active(0, 10)), job, seconds=71)
    assert status(case).active == ActiveTime(seconds=60)
    assert action(again(case, 72)) == decide.ClearStartTime()
    assert action(look(o.run(active(60)), o.job(**RESTS, suspended_at=70))) == decide.ResumeJob()


def test_a_suspension_that_the_job_controller_never_saw_is_not_counted() -> None:
    """Suspended, resumed and suspended again faster than it looks: nothing has ended, and nothing counts twice."""
    run = o.run(active(0, 10), activeDeadlineSeconds=100_000, suspend=True)
    unseen = o.job(**RESTS, started=10, activeDeadlineSeconds=100_000)
    case = look(run, unseen, seconds=36_000)
    assert status(case).active == ActiveTime(seconds=0, since=o.at(10))
    assert action(case) is None
    resumed = look(o.run(active(0, 10), activeDeadlineSeconds=100_000), unseen, seconds=36_001)
    assert action(resumed) == decide.ResumeJob()
    seen = o.job(**RESTS, started=10, suspended_at=36_002, activeDeadlineSeconds=100_000)
    assert status(look(run, seen, seconds=36_003)).active == ActiveTime(seconds=35_992)


@pytest.mark.parametrize("value", ["x", "", "-1", "9" * 400])
def test_what_somebody_writes_on_the_job_does_not_hold_up_the_run(value: str) -> None:
    job = o.job()
    job["metadata"]["annotations"] = {"finetune.dev/active-seconds": value, "finetune.dev/suspended-by": value}
    case = look(o.run(suspend=True), job)
    assert action(case) == decide.SuspendJob()
    assert status(case).condition("Suspended") is not None


def test_the_deadline_of_a_run_that_was_suspended_says_that_suspensions_do_not_count() -> None:
    over = o.job("Failed", reason="DeadlineExceeded", message="Job was active longer than specified deadline")
    plain = failed(look(o.run(activeDeadlineSeconds=90), over))
    assert (plain.reason, plain.message) == ("DeadlineExceeded", "active for longer than activeDeadlineSeconds (90)")
    rested = failed(look(o.run(active(30, 50), activeDeadlineSeconds=90), over))
    assert "activeDeadlineSeconds (90) in all, suspensions not counted" in rested.message


def test_the_deadline_of_a_run_that_was_waiting_says_for_what() -> None:
    over = o.job("Failed", reason="DeadlineExceeded")
    unfit = o.pod(
        "p1", "Pending", conditions=[{"type": "PodScheduled", "status": "False", "message": "0/3 nodes: no gpu"}]
    )
    waited = look(o.run(activeDeadlineSeconds=90), o.job(), unfit)
    message = failed(look(stored(waited), over, seconds=100)).message
    assert message.endswith("; it was waiting: 0/3 nodes: no gpu")


def test_queueing_for_admission_is_no_active_time() -> None:
    """A queue clears the start time when it takes the quota back."""
    held = o.job(suspend=True, queue="gpus", suspended_at=500)
    assert status(look(o.run(active(0, 10)), held, seconds=501)).active == ActiveTime(seconds=490)


# The count, for any order of events


def test_an_active_time_whose_end_nobody_saw_ended_with_its_last_pod() -> None:
    """The operator was away while somebody suspended the Job and let it go on."""
    job = job_view(o.job(started=1000))
    gone = Attempt(pod="p1", uid="u", start_time=o.at(12), completion_time=o.at(400), reason="Interrupted")
    known = ActiveTime(seconds=5, since=o.at(10))
    assert active_time(known, job, (gone,)) == ActiveTime(seconds=395, since=o.at(1000))
    assert active_time(known, job, ()) == ActiveTime(seconds=5, since=o.at(1000))
    later = gone.model_copy(update={"completion_time": o.at(1010)})
    assert active_time(known, job, (later,)) == ActiveTime(seconds=5, since=o.at(1000))


def test_a_job_that_has_ended_or_is_gone_changes_no_count() -> None:
    known = ActiveTime(seconds=5, since=o.at(10))
    assert active_time(known, None, ()) == known
    assert active_time(known, job_view(o.job("Complete", started=1000)), ()) == known
    assert active_time(None, job_view(o.job(suspend=True, suspended_at=3)), ()) is None


@dataclass
class World:
    """A run, its Job as the Job controller of Kubernetes 1.34 keeps it, and the operator's passes."""

    limit: int | None = None
    now: int = 0
    run: TrainingRun = field(default_factory=o.run)
    job: JobView = field(default_factory=lambda: job_view(o.job(suspend=True)))
    begun: int | None = None
    """Since when the Job is active, in truth."""
    active: int = 0
    """Seconds of the active times that have ended, in truth."""
    overdue: int | None = None
    """How long the Job had been active when its controller said that the deadline was over."""
    pods: list[Attempt] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.job = dataclasses.replace(
            self.job, suspended=False, suspended_at=None, started=None, active_deadline_seconds=self.limit
        )
        self.want(suspend=False)

    def want(self, *, suspend: bool) -> None:
        """A person sets `spec.suspend`."""
        deadline: dict[str, Any] = {"activeDeadlineSeconds": self.limit} if self.limit else {}
        made = o.run(suspend=suspend, **deadline)
        self.run = made.model_copy(update={"status": self.run.status})

    def time(self) -> datetime:
        return o.at(self.now)

    def controller(self) -> None:
        """One sync of the Job controller."""
        job = self.job
        if job.failed:
            return
        if job.started is None and not job.suspended:
            job = dataclasses.replace(job, started=self.time())
            if self.begun is None:
                self.begin()
        if self.is_overdue(job):
            self.overdue = self.truth()
            self.job = dataclasses.replace(job, failed=True, reason="DeadlineExceeded")
            return
        if job.suspended and job.suspended_at is None:
            job = dataclasses.replace(job, suspended_at=self.time())
            self.end()
        elif not job.suspended and job.suspended_at is not None:
            job = dataclasses.replace(job, suspended_at=None, started=self.time())
            if self.begun is None:
                self.begin()
        self.job = job

    def is_overdue(self, job: JobView) -> bool:
        if job.active_deadline_seconds is None or job.started is None or job.suspended:
            return False
        return (self.time() - job.started).total_seconds() >= job.active_deadline_seconds

    def begin(self) -> None:
        """Pods are made."""
        self.begun = self.now
        name = f"p{len(self.pods)}"
        self.pods.append(Attempt(pod=name, uid=f"{name}-uid", start_time=self.time()))

    def end(self) -> None:
        """The pods are stopped, and their trainers say so at once."""
        if self.begun is None:
            return
        self.active += self.now - self.begun
        self.begun = None
        self.pods[-1] = self.pods[-1].model_copy(update={"completion_time": self.time(), "reason": "Interrupted"})

    def operator(self) -> None:
        """One pass of the operator: what it does to the Job, then the status."""
        if self.job.failed:
            return
        for _ in range(8):
            case = self.case()
            wanted = decide.next_action(case)
            if wanted is None:
                break
            self.job = self.changed(wanted)
        known = self.run.status.active
        update = {"active": active_time(known, self.job, tuple(self.pods)), "job_name": o.JOB}
        self.run = self.run.model_copy(update={"status": self.run.status.model_copy(update=update)})

    def case(self) -> Case:
        run = self.run.model_copy(
            update={"status": self.run.status.model_copy(update={"attempt_history": tuple(self.pods)})}
        )
        return Case(run, Seen(job=self.job), Outcome(), o.SETTINGS, self.time())

    def changed(self, wanted: decide.Action) -> JobView:
        match wanted:
            case decide.SuspendJob():
                return dataclasses.replace(self.job, suspended=True, suspended_by=o.UID)
            case decide.ResumeJob():
                return dataclasses.replace(self.job, suspended=False, suspended_by="")
            case decide.ClearStartTime():
                assert self.job.suspended
                assert self.job.suspended_at is not None, "the API server refuses it for a Job that is not suspended"
                return dataclasses.replace(self.job, started=None)
            case decide.SetDeadline(seconds):
                return dataclasses.replace(self.job, active_deadline_seconds=seconds)
            case _:
                raise AssertionError(wanted)

    def truth(self) -> int:
        """Seconds that the Job was active so far."""
        return self.active + (self.now - self.begun if self.begun is not None else 0)

    def known(self) -> int:
        """What the operator has counted."""
        return self.run.status.active.seconds if self.run.status.active else 0


WAIT = 13
LIMITS = st.sampled_from([20, 30, 50, 80, 130])
SCENES = (
    ("wait",),
    ("controller",),
    ("operator",),
    ("rest",),
    ("go on",),
    ("stop",),
    ("start",),
    ("wait", "rest", "operator", "controller", "operator"),
    ("wait", "go on", "operator", "operator", "operator", "controller"),
    ("wait", "stop", "controller", "wait", "start", "controller", "wait", "operator"),
)
"""What happens to a run: a person makes it rest and go on, another one stops and starts its Job."""
OURS = tuple(scene for scene in SCENES if not {"stop", "start"} & set(scene))


def steps(scenes: tuple[tuple[str, ...], ...]) -> st.SearchStrategy[list[str]]:
    """Any scenes after one another."""
    return st.lists(st.sampled_from(scenes), max_size=16).map(
        lambda played: [step for scene in played for step in scene]
    )


def play(world: World, happens: list[str], *, thorough: bool) -> None:
    """Let things happen; `thorough` means that controller and operator look after each of them."""
    for step in ["controller", "operator", *happens]:
        if world.job.failed:
            return
        match step:
            case "wait":
                world.now += WAIT
            case "controller":
                world.controller()
            case "operator":
                world.operator()
            case "stop" | "start":
                world.job = dataclasses.replace(world.job, suspended=step == "stop")
            case _:
                world.want(suspend=step == "rest")
        for _ in range(3 if thorough else 0):
            world.controller()
            world.operator()
        assert world.known() <= world.truth(), f"{world.known()} s counted of {world.truth()}"


@settings(deadline=None, derandomize=True, max_examples=60)
@given(steps(SCENES))
def test_never_more_is_counted_than_was_active(happens: list[str]) -> None:
    play(World(), happens, thorough=False)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(steps(SCENES))
def test_all_is_counted_that_was_active_when_each_suspension_was_seen(happens: list[str]) -> None:
    world = World()
    play(world, happens, thorough=True)
    world.want(suspend=True)
    play(world, [], thorough=True)
    assert world.known() == world.active


@settings(deadline=None, derandomize=True, max_examples=60)
@given(steps(OURS), LIMITS)
def test_no_run_is_over_before_its_deadline_was_really_active(happens: list[str], limit: int) -> None:
    """However fast a person toggles `spec.suspend`, and whenever the operator looks.

    Not so when another one stops and starts the Job and nobody looks in between: it is Kubernetes that compares.
    """
    world = World(limit=limit)
    play(world, happens, thorough=False)
    assert world.overdue is None or world.overdue >= limit


@settings(deadline=None, derandomize=True, max_examples=60)
@given(steps(SCENES), LIMITS)
def test_a_run_is_over_when_its_deadline_was_active(happens: list[str], limit: int) -> None:
    world = World(limit=limit)
    play(world, happens, thorough=True)
    assert world.overdue is None or limit <= world.overdue < limit + WAIT
    if world.overdue is None:
        assert world.truth() < limit + WAIT or world.job.suspended
