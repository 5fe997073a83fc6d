"""Attempts: one record for each pod, how it ended, what it kept and what it cost."""

from __future__ import annotations

from typing import Any

import pytest

from finetune.api.status import TrainingRunStatus
from finetune.controller.core.views import ProgressView
from tests.support import objects as o
from tests.support.cases import again, failed, failure, look, status, stored

EXPORTED = o.ended(0, {"dataset": {"version": 2, "rows": 400, "evaluationRows": 40}}, seconds=6)
GPUS: dict[str, Any] = {"resources": {"gpus": 8}}
DISRUPTED = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC"}


def training(name: str = "p1", created: float = 2, **more: Any) -> dict[str, Any]:
    return o.pod(name, created=created, export=EXPORTED, trainer=o.running(), **more)


def disrupted(name: str, created: float, at: float, *, phase: str = "Failed", **states: Any) -> dict[str, Any]:
    """A pod that lost its node, or was evicted for another one."""
    pod = o.pod(name, phase, created=created, export=EXPORTED, **states)
    pod["status"]["conditions"].append({**DISRUPTED, "lastTransitionTime": o.stamp(at)})
    return pod


def progress(step: int, seconds: float = 40, **more: str) -> ProgressView:
    return ProgressView(
        metrics={"step": str(step), "totalSteps": "100000", **more},
        percent=1,
        remaining_seconds=130,
        time=o.at(seconds),
    )


def test_attempts_outlive_their_pods_and_count_once() -> None:
    run = stored(look(None, o.job(), o.failed_pod("p1", 137)))
    second = status(look(run, o.job(), training("p2", 60)))
    assert second.attempts == 2
    assert [attempt.exit_code for attempt in second.attempt_history] == [137, None]
    later = look(o.run(second.to_dict()), o.job(), o.pod("p2", created=60, trainer=o.running()), seconds=90)
    assert status(later).attempts == 2


def test_more_attempts_than_are_kept_still_count_once_and_the_status_comes_to_rest() -> None:
    pods = [o.failed_pod(f"p{n:02}", 137, created=100 * n) for n in range(70)]
    made = TrainingRunStatus()
    for seen in (pods[:40], pods):
        made = status(look(o.run(made.to_dict(), resources={"gpus": 2}), o.job(), *seen))
    assert [attempt.pod for attempt in made.attempt_history] == [f"p{n:02}" for n in range(6, 70)]
    assert (made.attempts, made.gpu_seconds) == (70, 70 * 2 * 29)
    assert status(look(o.run(made.to_dict(), resources={"gpus": 2}), o.job(), *pods)) == made


def test_a_pod_that_vanished_ends_its_attempt() -> None:
    run = stored(look(None, o.job(), training()))
    made = status(look(run, o.job(), seconds=80))
    assert [attempt.reason for attempt in made.attempt_history] == ["Gone"]
    assert made.attempt_history[0].completion_time == o.at(80)


def test_a_pod_that_waits_for_a_node_is_no_attempt_yet() -> None:
    made = status(look(None, o.job(), o.unschedulable("0/3 nodes")))
    assert (made.attempts, made.attempt_history, made.start_time) == (0, (), None)


@pytest.mark.parametrize(
    ("code", "reason", "expected"),
    [
        (0, "", "Completed"),
        (75, "", "Interrupted"),
        (76, "", "Interrupted"),
        (137, "OOMKilled", "OutOfMemory"),
        (137, "", "InternalError"),
        (143, "", "InternalError"),
        (7, "", "StorageFull"),
        (9, "", "GPUUnavailable"),
        (11, "", "Hung"),
        (4, "", "BaseModelUnavailable"),
        (1, "", "InternalError"),
    ],
)
def test_how_an_attempt_ended(code: int, reason: str, expected: str) -> None:
    pod = o.failed_pod("p1", code, reason=reason)
    made = status(look(None, o.job(), pod))
    assert [(a.reason, a.exit_code, a.node) for a in made.attempt_history] == [(expected, code, "node-1")]


def test_a_reason_that_this_version_does_not_know_is_an_internal_error() -> None:
    """The trainer's image may be newer than the operator."""
    words = {"failure": {"reason": "SolarFlare", "message": "bits flipped"}}
    found = failed(
        look(None, o.job("Failed", reason="BackoffLimitExceeded", message="x"), o.failed_pod("p1", 1, words))
    )
    assert (found.reason, "bits flipped" in found.message) == ("InternalError", True)


# Suspension


def test_what_is_killed_while_its_job_is_suspended_has_not_failed() -> None:
    run = stored(look(None, o.job(), training()))
    job = o.job(suspend=True, suspended_by=o.UID, suspended_at=70)
    killed = o.pod("p1", "Failed", export=EXPORTED, trainer=o.ended(137, seconds=80), deletionTimestamp=o.stamp(190))
    made = status(look(run, job, killed, seconds=85))
    assert [(a.reason, a.completion_time) for a in made.attempt_history] == [("Suspended", o.at(80))]
    gone = status(look(run, job, seconds=85))
    assert [a.reason for a in gone.attempt_history] == ["Suspended"]


def test_a_pod_that_saves_while_its_job_goes_on_already_was_suspended() -> None:
    """Kueue gives the quota back within the grace period: what stopped the pod is kept with its attempt."""
    run = stored(look(None, o.job(), training()))
    saving = training()
    saving["metadata"]["deletionTimestamp"] = o.stamp(190)
    run = stored(look(run, o.job(suspend=True, suspended_at=70), saving, seconds=75))
    saved = o.failed_pod("p1", 75, {"interrupted": {"step": 5}}, deletionTimestamp=o.stamp(190))
    assert [(a.reason, a.step) for a in look(run, o.job(), saved, seconds=85).attempts] == [("Suspended", 5)]
    assert [a.reason for a in look(run, o.job(), seconds=85).attempts] == ["Suspended"]


@pytest.mark.parametrize(
    ("code", "words", "expected"),
    [
        (75, {"interrupted": {"step": 5}}, ("Suspended", 75, 5)),
        (137, None, ("Suspended", 137, None)),
        (5, {"failure": {"reason": "OutOfMemory", "message": "x"}}, ("OutOfMemory", 5, None)),
        (None, None, ("Suspended", None, None)),  # its node is lost, too: nothing more is known
    ],
)
def test_last_words_that_are_heard_after_the_pod_is_gone_complete_the_record(
    code: int | None, words: dict[str, Any] | None, expected: tuple[str, int | None, int | None]
) -> None:
    run = stored(look(None, o.job(), training()))
    run = stored(look(run, o.job(suspend=True, suspended_at=70), seconds=75))
    assert [(a.reason, a.exit_code) for a in run.status.attempt_history] == [("Suspended", None)]
    trainer = o.running() if code is None else o.ended(code, words, seconds=74)
    heard = o.pod("p1", "Failed", created=2, export=EXPORTED, trainer=trainer, deletionTimestamp=o.stamp(104))
    run = stored(look(run, o.job(), heard, seconds=80))
    assert [(a.reason, a.exit_code, a.step) for a in run.status.attempt_history] == [expected]
    later = stored(look(run, o.job(), heard, seconds=90))
    assert later.status.attempt_history == run.status.attempt_history


def test_suspensions_are_not_counted_however_many() -> None:
    """A queue may preempt a run all night before its first step."""
    run = o.run()
    for n in range(40):
        seconds = 100.0 * n
        run = stored(look(run, o.job(), training(f"p{n}", seconds), seconds=seconds + 40))
        job = o.job(suspend=True, suspended_at=round(seconds) + 50)
        run = stored(look(run, job, seconds=seconds + 60))
        assert failure(look(run, o.job(), seconds=seconds + 70)) is None, n
    assert {attempt.reason for attempt in run.status.attempt_history} == {"Suspended"}


def test_what_crashes_by_itself_while_its_job_is_suspended_has_crashed() -> None:
    job = o.job(suspend=True, suspended_by=o.UID, suspended_at=70)
    pod = o.pod("p1", "Failed", export=EXPORTED, trainer=o.ended(1, "boom", seconds=69), deletionTimestamp=o.stamp(190))
    assert [a.reason for a in status(look(None, job, pod)).attempt_history] == ["InternalError"]


# Lost nodes


def test_the_gpu_seconds_of_a_lost_node_are_counted() -> None:
    """Ten hours on eight GPUs; then the node is gone, and nobody can say how the trainer ended."""
    lost = disrupted("p1", 2, 36_003, trainer={})
    made = status(look(o.run(**GPUS), o.job(), lost, seconds=36_400))
    assert made.gpu_seconds == 8 * 36_000
    assert made.attempt_history[0].completion_time == o.at(36_003)
    assert made.attempt_history[0].reason == "Interrupted"


def test_a_time_in_the_future_is_no_end() -> None:
    """A deletion is due now plus the grace period; the trainer's own end, or now, is when it ended."""
    ended = o.pod("p1", "Failed", export=EXPORTED, trainer=o.ended(75, seconds=60), deletionTimestamp=o.stamp(180))
    assert status(look(None, o.job(), ended, seconds=61)).attempt_history[0].completion_time == o.at(60)
    silent = o.pod("p1", "Failed", export=EXPORTED, deletionTimestamp=o.stamp(180))
    assert status(look(None, o.job(), silent, seconds=61)).attempt_history[0].completion_time == o.at(61)


def test_hard_losses_are_progress_when_the_trainer_went_on() -> None:
    """21 spot nodes in a row, each gone without a word; a checkpoint later each time."""
    run = o.run(**GPUS)
    pods: list[dict[str, Any]] = []
    for n in range(30):
        seconds = 4_000.0 * n
        alive = training(f"p{n}", seconds)
        run = stored(
            look(run, o.job(), *pods, alive, seconds=seconds + 3_800, progress=progress(1_000 * (n + 1), seconds))
        )
        pods = [disrupted(f"p{n}", seconds, seconds + 3_900, trainer={})]
        case = look(run, o.job(), *pods, seconds=seconds + 3_950)
        assert failure(case) is None, n
        run = stored(case)
    assert [a.step for a in run.status.attempt_history][:3] == [1_000, 2_000, 3_000]


def test_hard_losses_without_a_step_end_the_run() -> None:
    pods = [disrupted(f"p{n:02}", 100 * n, 100 * n + 50, trainer={}) for n in range(21)]
    assert failure(look(None, o.job(), *pods[:20])) is None
    found = failed(look(None, o.job(), *pods))
    assert (found.reason, "21 times" in found.message) == ("RetriesExhausted", True)


def test_the_checkpoint_is_what_a_lost_attempt_has_kept() -> None:
    run = stored(look(None, o.job(), training(), progress=progress(120, checkpointStep="100")))
    lost = disrupted("p1", 2, 60, trainer={})
    made = status(look(run, o.job(), lost))
    assert made.attempt_history[0].step == 100


def test_a_failure_in_between_starts_the_count_of_interruptions_anew() -> None:
    """The Job counts that one, so that there is an end to it."""
    pods = [disrupted(f"a{n:02}", 100 * n, 100 * n + 50, trainer={}) for n in range(15)]
    pods += [o.failed_pod("b", 1, created=1_500)]
    pods += [disrupted(f"c{n:02}", 1_600 + 100 * n, 1_650 + 100 * n, trainer={}) for n in range(15)]
    assert failure(look(None, o.job(), *pods)) is None


def test_a_node_that_went_down_without_a_condition_is_named() -> None:
    pod = o.pod("p1", "Failed", export=EXPORTED, trainer={})
    pod["status"] |= {"reason": "NodeLost", "message": "Node node-1 which was running pod p1 is unresponsive"}
    found = failed(look(None, o.job("Failed", reason="BackoffLimitExceeded", message="x"), pod))
    assert (found.reason, "node-1" in found.message) == ("NodeLost", True)


def test_a_pod_that_the_kubelet_did_not_admit_is_no_error_of_ours() -> None:
    pod = o.pod("p1", "Failed", trainer={})
    pod["status"] |= {"reason": "UnexpectedAdmissionError", "message": "no healthy devices present"}
    found = failed(look(None, o.job("Failed", reason="BackoffLimitExceeded", message="x"), pod))
    assert found.reason == "NodeLost"
    assert "no healthy devices present" in found.message


def test_when_an_attempt_ended_does_not_change_while_it_is_looked_at() -> None:
    lost = o.pod("p1", "Failed", export=EXPORTED, trainer={})
    first = look(o.run(**GPUS), o.job(), lost, seconds=100)
    assert status(again(first, 5_000)).gpu_seconds == status(first).gpu_seconds


@pytest.mark.parametrize(("code", "reason"), [(255, "Unknown"), (137, "ContainerStatusUnknown")])
def test_a_node_that_restarted_is_no_error_in_the_software(code: int, reason: str) -> None:
    run = stored(look(None, o.job(), training(), progress=progress(70)))
    pod = o.failed_pod("p1", code, reason=reason)
    case = look(run, o.job("Failed", reason="BackoffLimitExceeded", message="x"), pod)
    assert [(attempt.reason, attempt.step) for attempt in case.attempts] == [("NodeLost", 70)]
    assert (failed(case).reason, "on node node-1" in failed(case).message) == ("NodeLost", True)


def test_a_training_that_is_done_was_not_interrupted_too_often() -> None:
    """Its pod is gone, and the administrator has lowered the number."""
    pods = [o.failed_pod(f"p{n}", 75, {"interrupted": {"step": 5}}, created=2 + 40 * n) for n in range(10)]
    run = stored(look(None, o.job(), *pods))
    strict = o.SETTINGS.model_copy(update={"max_interruptions": 3})
    assert failed(look(run, o.job(), settings=strict)).reason == "RetriesExhausted"
    assert failure(look(run, o.job("Complete"), settings=strict)) is None


@pytest.mark.parametrize(("code", "expected"), [(0, "Completed"), (75, "Interrupted"), (137, "InternalError")])
def test_a_trainer_that_has_ended_ends_its_attempt_though_its_pod_goes_on(code: int, expected: str) -> None:
    """The last status of a run is written before the pod has noticed, or while a sidecar keeps it alive."""
    pod = o.pod("p1", export=EXPORTED, trainer=o.ended(code, o.RESULT if code == 0 else None, seconds=90))
    (attempt,) = status(look(None, o.job(), pod)).attempt_history
    assert (attempt.reason, attempt.exit_code, attempt.completion_time) == (expected, code, o.at(90))
