"""A run in a queue: the queue alone decides when its Job runs, and is told what a person wants."""

from __future__ import annotations

from typing import Any

import pytest

from finetune.controller.core import decide
from finetune.controller.core.manifests import build_collect_job, build_job
from finetune.controller.core.views import workload_view
from tests.support import objects as o
from tests.support.cases import action, again, failure, look, status, stored, waiting, waits_for

HELD = o.job(suspend=True, queue="gpus", suspended_at=3)
NO_ROOM = (
    "QuotaReserved",
    "False",
    "Pending",
    "couldn't assign flavors to pod set main: insufficient unused quota for gpu in flavor any, 1 more needed",
)
PREEMPTED = ("Evicted", "True", "Preempted", "Preempted to accommodate a workload (UID: 1, JobUID: 2)")
WORKLOAD = o.workload()["metadata"]["name"]


def test_a_job_that_a_queue_has_suspended_is_left_to_the_queue() -> None:
    """With a Workload or without, with the label or without: nothing of the Job is written."""
    for job in (HELD, o.job(suspend=True, suspended_at=3)):
        for workload in (o.workload(NO_ROOM), o.workload(NO_ROOM, PREEMPTED), o.workload()):
            assert action(look(None, job, workload=workload)) is None
    assert action(look(None, HELD)) is None


@pytest.mark.parametrize(
    ("conditions", "text"),
    [
        ([], "not looked at yet"),
        ([NO_ROOM], "insufficient unused quota for gpu in flavor any, 1 more needed (Pending)"),
        ([("QuotaReserved", "False", "Inadmissible", "ClusterQueue cq is inactive")], "ClusterQueue cq is inactive"),
        ([("QuotaReserved", "False", "Inadmissible", "LocalQueue gpus doesn't exist")], "LocalQueue gpus doesn't"),
        ([NO_ROOM, PREEMPTED], "1 more needed (Preempted)"),
        (
            [("QuotaReserved", "True", "QuotaReserved", "ok"), PREEMPTED],
            "Preempted to accommodate a workload (UID: 1, JobUID: 2) (Preempted)",
        ),
        (
            [NO_ROOM, ("Evicted", "False", "QuotaReserved", "Previously: Preempted")],
            "1 more needed (Pending)",
        ),
    ],
)
def test_what_the_queue_says_is_said(conditions: list[tuple[str, str, str, str]], text: str) -> None:
    case = look(None, HELD, workload=o.workload(*conditions))
    assert (waiting(case).reason, waiting(case).object) == ("Queued", "LocalQueue/gpus")
    assert waiting(case).message.startswith("waits in the queue gpus: ")
    assert text in waiting(case).message
    assert failure(again(case, 10**7)) is None
    made = status(case)
    assert made.phase == "Queued"
    suspended = made.condition("Suspended")
    assert suspended is not None
    assert (suspended.status, suspended.reason) == ("False", "Queued")


def test_a_job_that_names_no_queue_says_how_to_name_one() -> None:
    """Every Job needs a queue here, and nobody has named one: it would wait for ever."""
    nameless = ("QuotaReserved", "False", "Inadmissible", "LocalQueue  doesn't exist")
    case = look(None, o.job(suspend=True, suspended_at=3), workload=o.workload(nameless, queue=""))
    assert "names none" in waiting(case).message
    assert "spec.scheduling.queueName" in waiting(case).hint
    assert f"kubectl label job {o.JOB} kueue.x-k8s.io/queue-name" in waiting(case).hint
    assert status(case).phase == "Queued"


def test_a_queue_that_makes_no_workload_is_said_after_a_moment() -> None:
    """Kueue is not installed, or there is no such priority class: nothing else says so."""
    run = o.run(scheduling={"queueName": "gpus", "workloadPriorityClassName": "nope"})
    first = look(run, HELD, seconds=10)
    assert "has not looked at it yet" in waiting(first).message
    late = again(first, 20)
    assert "has made no Workload" in waiting(late).message
    assert "WorkloadPriorityClass nope" in waiting(late).hint


# What a person wants


def test_a_queued_run_that_shall_rest_gives_its_quota_back() -> None:
    rests = o.run(suspend=True)
    for job in (HELD, o.job(queue="gpus")):
        assert action(look(rests, job, workload=o.workload())) == decide.SetWorkloadActive(WORKLOAD, active=False)
        ours = o.workload(active=False, deactivated_by=o.UID)
        assert action(look(rests, job, workload=ours)) is None
    case = look(rests, HELD, workload=o.workload(active=False, deactivated_by=o.UID))
    assert waits_for(case) is None
    assert status(case).phase == "Suspended"


def test_only_a_workload_that_the_operator_deactivated_is_activated() -> None:
    ours = look(None, HELD, workload=o.workload(active=False, deactivated_by=o.UID))
    assert action(ours) == decide.SetWorkloadActive(WORKLOAD, active=True)
    for by in ("", "another-run"):
        theirs = look(None, HELD, workload=o.workload(active=False, deactivated_by=by))
        assert action(theirs) is None
        assert "was deactivated, and not by this run" in waiting(theirs).message
        assert "kubectl patch workload" in waiting(theirs).hint


def test_a_job_with_a_queues_label_that_no_queue_holds_is_suspended_and_resumed_by_us() -> None:
    """Kueue was removed: nobody else would."""
    alone = o.job(queue="gpus")
    assert action(look(o.run(suspend=True), alone)) == decide.SuspendJob()
    rests = o.job(queue="gpus", suspend=True, suspended_by=o.UID, suspended_at=50)
    assert action(look(o.run(suspend=True), rests)) is None
    assert action(look(None, rests)) == decide.ResumeJob()


# The deadline


def test_the_queue_time_is_taken_off_no_deadline() -> None:
    """Kueue clears the start time, so that the Job's clock starts anew at each admission."""
    run = o.run(
        {"jobName": o.JOB, "active": {"seconds": 0, "since": o.stamp(10)}, "phase": "Training"},
        activeDeadlineSeconds=100,
    )
    evicted = o.job(suspend=True, queue="gpus", suspended_at=50, activeDeadlineSeconds=100)
    case = look(run, evicted, workload=o.workload(NO_ROOM, PREEMPTED))
    assert action(case) is None
    counted = stored(case)
    assert counted.status.active is not None
    assert counted.status.active.seconds == 40
    assert action(look(counted, evicted, workload=o.workload(NO_ROOM))) == decide.SetDeadline(60)
    shortened = o.job(suspend=True, queue="gpus", suspended_at=50, activeDeadlineSeconds=60)
    assert action(look(counted, shortened, workload=o.workload(NO_ROOM))) is None


# Preemption


def test_a_preemption_costs_no_attempt_that_counts() -> None:
    training = stored(look(None, o.job(queue="gpus"), o.pod("p1", export=o.ended(0), trainer=o.running())))
    saved = o.failed_pod("p1", 75, {"interrupted": {"step": 40}}, deletionTimestamp=o.stamp(190))
    case = look(training, HELD, saved, workload=o.workload(NO_ROOM, PREEMPTED))
    assert [(attempt.reason, attempt.step) for attempt in case.attempts] == [("Suspended", 40)]
    assert status(case).phase == "Queued"
    gone = look(training, HELD, workload=o.workload(NO_ROOM, PREEMPTED))
    assert [attempt.reason for attempt in gone.attempts] == ["Suspended"]
    assert failure(gone) is None


def test_the_job_that_reads_the_result_may_wait_in_the_queue_too() -> None:
    held: dict[str, Any] = {**HELD, "metadata": {**HELD["metadata"], "name": f"{o.JOB}-collect"}}
    case = look(
        o.run({"phase": "Registering", "jobName": o.JOB}),
        o.job("Complete"),
        result_asked=True,
        collect_job=held,
        workload=o.workload(NO_ROOM),
    )
    assert action(case) is None
    assert (waits_for(case), status(case).phase) == ("Queued", "Registering")


# The manifests


def test_a_queued_job_is_born_suspended_and_says_which_queue() -> None:
    run = o.run(scheduling={"queueName": "gpus", "workloadPriorityClassName": "urgent"})
    job = build_job(run, o.SETTINGS)
    assert job["spec"]["suspend"] is True
    assert "annotations" not in job["metadata"]  # it is not ours to resume
    labels = {"kueue.x-k8s.io/queue-name": "gpus", "kueue.x-k8s.io/priority-class": "urgent"}
    for each in (job, build_collect_job(run, o.SETTINGS)):
        assert labels.items() <= each["metadata"]["labels"].items()
        assert not labels.keys() & each["spec"]["template"]["metadata"]["labels"].keys()
    assert "suspend" not in build_job(o.run(), o.SETTINGS)["spec"]


@pytest.mark.parametrize(
    "document",
    [
        {"metadata": {"name": "w"}},
        {"metadata": {"name": "w"}, "spec": {}, "status": {}},
        {"metadata": {"name": "w", "annotations": None}, "spec": {"queueName": None}, "status": {"conditions": None}},
        {"metadata": {"name": "w"}, "status": {"conditions": [{"type": "New", "status": "True"}]}},
    ],
)
def test_a_workload_with_little_in_it_is_read(document: dict[str, Any]) -> None:
    view = workload_view(document)
    assert (view.name, view.active, view.queue, view.message) == ("w", True, "", "")


HIDDEN = 'workloads.kueue.x-k8s.io is forbidden: User "operator" cannot list resource "workloads"'


def test_a_job_of_a_queue_whose_record_cannot_be_read_is_left_alone_and_the_missing_right_is_named() -> None:
    running = {**o.job(), "metadata": {**o.job()["metadata"], "labels": {"kueue.x-k8s.io/queue-name": "gpus"}}}
    run = o.run(suspend=True)
    case = look(run, running, workload_hidden=HIDDEN)
    assert decide.next_action(case) is None
    waiting = status(case).waiting
    assert waiting is not None
    assert (waiting.reason, waiting.object) == ("OperatorForbidden", "LocalQueue/gpus")
    assert HIDDEN in waiting.message
    assert "workloads.kueue.x-k8s.io" in str(waiting.hint)
    assert decide.next_action(look(run, o.job(), workload_hidden=HIDDEN)) == decide.SuspendJob()  # no queue's business


def test_a_run_that_only_waited_in_a_queue_was_never_suspended() -> None:
    queued = {
        **o.job(suspend=True),
        "metadata": {**o.job()["metadata"], "labels": {"kueue.x-k8s.io/queue-name": "gpus"}},
    }
    before = stored(look(o.run(), queued))
    condition = status(look(before, o.job(), o.pod("p1", trainer=o.running()))).condition("Suspended")
    assert condition is not None
    assert (condition.status, condition.reason) == ("False", "NotSuspended")
