"""What one trouble used to hide: a dead trainer, a lost node, a Job that nobody serves, an attempt that nobody saw."""

from __future__ import annotations

from typing import Any

import pytest

from finetune.controller.core import decide
from tests.support import objects as o
from tests.support.cases import action, again, failure, look, status, stored, waiting, waits_for

TRAINING: dict[str, Any] = {"phase": "Training", "jobName": o.JOB, "jobUid": "job-uid"}
PENDING: dict[str, Any] = {**TRAINING, "phase": "Pending"}
NO_ROOM = ("QuotaReserved", "False", "Pending", "insufficient unused quota for nvidia.com/gpu")
LATE = 60 + o.SETTINGS.linger_seconds


@pytest.mark.parametrize(
    ("trainer", "sidecar"),
    [
        (o.ended(1, "boom"), o.waiting("ImagePullBackOff", "no such image")),
        (o.ended(75, {"interrupted": {"step": 5}}), o.waiting("CreateContainerConfigError", 'secret "x" not found')),
        (o.ended(137), o.running()),
    ],
)
def test_a_trainer_that_died_beside_a_container_that_cannot_start_is_found(
    trainer: dict[str, Any], sidecar: dict[str, Any]
) -> None:
    pod = o.beside(o.pod("p1", "Pending", export=o.ended(0), trainer=trainer), "istio-proxy", sidecar)
    case = look(o.run(TRAINING), o.job(), pod)
    assert (waits_for(case), action(case)) == ("SidecarRunning", None)
    assert action(again(case, LATE)) == decide.DeletePod("p1", "p1-uid")


def test_a_pod_that_is_stuck_on_a_lost_node_is_said_though_a_queue_holds_the_job() -> None:
    pod = o.pod("p1", export=o.ended(0), trainer=o.running(), deletionTimestamp=o.stamp(50))
    case = look(o.run(TRAINING), o.job(suspend=True, queue="gpus"), pod, workload=o.workload(NO_ROOM))
    late = again(case, 5_000)
    assert waits_for(late) == "Terminating"
    assert "no other pod may start before it is gone" in waiting(late).message
    assert any("out-of-service" in each for each in status(late).warnings)
    gone = look(stored(late), o.job(suspend=True, queue="gpus"), workload=o.workload(NO_ROOM), seconds=5_010)
    assert waits_for(gone) == "Queued"


def test_a_queue_that_took_over_a_job_that_we_suspended_is_said() -> None:
    job = o.job(suspend=True, suspended_by=o.UID, suspended_at=50)
    case = look(o.run(TRAINING), job, workload=o.workload(NO_ROOM))
    assert (waits_for(case), action(case), status(case).phase) == ("Queued", None, "Queued")
    assert "insufficient unused quota" in waiting(case).message


def test_a_job_without_a_pod_says_so_after_a_while() -> None:
    assert waits_for(look(o.run(PENDING), o.job(), pending_seconds=5)) is None
    case = look(o.run(PENDING), o.job(), pending_seconds=10)
    assert (waits_for(case), failure(again(case, 10**6))) == ("PodNotStarted", None)
    assert f"kubectl describe job {o.JOB}" in waiting(case).hint
    backs_off = look(o.run(PENDING), o.job(), o.failed_pod("p1", 1), pending_seconds=360)
    assert waits_for(backs_off) is None, "the Job controller waits longer after each failure"
    assert waits_for(look(o.run(PENDING), o.job(), o.failed_pod("p1", 1), pending_seconds=400)) == "PodNotStarted"
    refused = o.event("FailedCreate", 'Error creating: pods "x" is forbidden: exceeded quota: q')
    assert waits_for(look(o.run(PENDING), o.job(), pending_seconds=10, events=[refused])) == "QuotaExceeded"
    assert waits_for(look(o.run(PENDING), o.job(), o.pending(), pending_seconds=10)) is None


def test_what_keeps_the_trainer_from_starting_after_the_export_is_said() -> None:
    """The export ended at 50 s; the node cannot make the trainer's sandbox, and only an Event tells."""
    pod = o.pending(o.ended(0), o.waiting("PodInitializing"))
    trouble = o.event("FailedCreatePodSandBox", "failed to allocate for range 0: no IP addresses available", 70)
    case = look(o.run(PENDING), o.job(), pod, events=[trouble], seconds=80)
    assert waits_for(case) == "PodNotStarted"
    assert "no IP addresses" in waiting(case).message
    old = o.event("FailedMount", "timed out", 20)
    assert waits_for(look(o.run(PENDING), o.job(), pod, events=[old], seconds=80)) is None
    running = o.pending(o.running())
    assert waits_for(look(o.run(PENDING), o.job(), running, events=[trouble], seconds=80)) is None


@pytest.mark.parametrize("suspended", [True, False])
def test_an_attempt_that_nobody_saw_may_have_trained(suspended: bool) -> None:
    """The operator was away for ten hours; now an image is missing, which must not end what has trained."""
    known = {**PENDING, "attempts": 1, "attemptHistory": [{"pod": "p0", "uid": "p0-uid", "startTime": o.stamp(3)}]}
    job = o.job(suspend=True, queue="gpus") if suspended else o.job()
    gone = look(o.run(known), job, workload=o.workload(NO_ROOM) if suspended else None, seconds=36_000)
    assert [a.reason for a in gone.attempts] == ["Suspended" if suspended else "Gone"]
    image = o.pod("p9", "Pending", created=36_010, export=o.waiting("ImagePullBackOff", "no such image"))
    case = look(stored(gone), o.job(queue="gpus"), image, seconds=36_020)
    assert waits_for(case) == "ImagePullFailed"
    assert failure(again(case, 40_000)) is None


def test_conditions_of_others_give_way_to_ours() -> None:
    """More than the definition allows: without this none would be kept, and the run could never be finished."""
    others = [
        {"type": f"X{n}", "status": "True", "reason": "R", "message": "", "lastTransitionTime": o.stamp(1)}
        for n in range(14)
    ]
    job = o.job("Failed", reason="BackoffLimitExceeded", message="m")
    made = status(look(o.run({**TRAINING, "conditions": others}), job))
    assert made.phase == "Failed"
    assert {"Accepted", "DatasetReady", "Succeeded", "Finished", "Suspended", "Stalled"} <= {
        each.type for each in made.conditions
    }
    assert len(made.conditions) == 16


def test_a_toggle_within_a_second_is_a_suspension_all_the_same() -> None:
    """The Job goes on already in the pass that first sees its pod being deleted."""
    alive = o.pod("p1", export=o.ended(0), trainer=o.running())
    resting = stored(look(o.run(TRAINING), o.job(suspend=True, suspended_by=o.UID, suspended_at=50), alive))
    assert [(a.reason, a.completion_time) for a in resting.status.attempt_history] == [("Suspended", None)]
    saved = o.failed_pod("p1", 75, {"interrupted": {"step": 5}}, deletionTimestamp=o.stamp(170))
    assert [(a.reason, a.step) for a in look(resting, o.job(), saved).attempts] == [("Suspended", 5)]
    assert [a.reason for a in look(resting, o.job(), alive).attempts] == [None], "it was never stopped"


def test_of_two_pods_of_one_second_the_one_that_lives_is_the_newest() -> None:
    """A queue that was stopped and started again: API times have no fractions, and names are drawn at random."""
    old = o.failed_pod("t-x-mh2j2", 75, {"interrupted": {"step": 12}}, created=10, deletionTimestamp=o.stamp(140))
    new = o.pod("t-x-47kzj", created=10, export=o.ended(0), trainer=o.running())
    case = look(o.run(TRAINING), o.job(queue="gpus"), old, new)
    assert status(case).phase == "Training"
    assert [attempt.pod for attempt in case.attempts] == ["t-x-mh2j2", "t-x-47kzj"]
