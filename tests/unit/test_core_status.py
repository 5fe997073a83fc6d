"""The status that follows from what was seen."""

from __future__ import annotations

import json
from typing import Any

import pytest

from finetune.api.status import ResumeStatus, TrainingRunStatus
from finetune.controller.core.case import is_finished
from finetune.controller.core.manifests import build_job
from finetune.controller.core.refusals import classify_registry
from finetune.controller.core.status import restamp
from finetune.controller.core.views import AdapterView, DatasetView, ProgressView
from tests.support import objects as o
from tests.support.cases import again, look, stored
from tests.support.cases import status as status_of

ADAPTER = AdapterView(id="7", name="support", version=4, uri="pvc://adapters/x/adapter", sha256="a" * 64, bytes=10)
AWAY = classify_registry(0, "", "no answer", about="Adapter/support")
RESTS = o.job(suspend=True, suspended_by=o.UID, suspended_at=50)
EXPORTED = o.ended(0, {"dataset": {"version": 2, "rows": 400, "evaluationRows": 40}}, seconds=6)


def condition(status: TrainingRunStatus, type_: str) -> tuple[str, str] | None:
    found = status.condition(type_)
    return (found.status, found.reason) if found else None


def succeeded() -> TrainingRunStatus:
    done = o.pod("p1", "Succeeded", export=EXPORTED, trainer=o.ended(0, o.RESULT, seconds=95))
    return status_of(look(o.run(resources={"gpus": 2}), o.job("Complete"), done, adapter=ADAPTER))


@pytest.mark.parametrize(
    ("pod", "phase"),
    [
        (None, "Pending"),
        (o.pod("p1", "Pending"), "Pending"),
        (o.pod("p1", "Pending", export=o.running()), "Exporting"),
        (o.pod("p1", export=EXPORTED, trainer=o.running()), "Training"),
        (o.failed_pod("p1", 137), "Pending"),
        (o.pod("p1", "Pending", export=EXPORTED, trainer=o.waiting("PodInitializing")), "Exporting"),
        (o.pod("p1", "Running", export=EXPORTED, trainer=o.ended(0)), "Registering"),
        (o.pod("p1", "Running", export=EXPORTED, trainer=o.ended(137)), "Training"),
        (o.pod("p1", "Succeeded", export=EXPORTED, trainer=o.ended(0)), "Registering"),
    ],
)
def test_the_phase_of_an_active_run(pod: dict[str, Any] | None, phase: str) -> None:
    status = status_of(look(None, o.job(), *([pod] if pod else [])))
    assert status.phase == phase
    assert condition(status, "Succeeded") == ("Unknown", phase)
    assert condition(status, "Finished") == ("False", phase)
    assert condition(status, "Reconciling") == ("True", phase)
    assert condition(status, "Stalled") is None


@pytest.mark.parametrize(
    ("spec", "warned"),
    [({}, True), ({"adapter": {"name": "support"}}, False), ({"experiment": "support"}, False)],
)
def test_an_adapter_that_will_never_have_a_second_version_is_told(spec: dict[str, Any], warned: bool) -> None:
    run = o.run(name="support-1", **spec)
    for seen in (look(run, o.job()), look(run)):
        accepted = status_of(seen).condition("Accepted")
        assert accepted is not None
        assert ("set spec.adapter.name" in accepted.message) is warned


def test_a_success_has_the_result_the_adapter_and_the_conditions() -> None:
    status = succeeded()
    assert status.result is not None
    assert (status.result.final_loss, status.result.adapter.version) == ("1.8342", 4)
    assert condition(status, "Succeeded") == ("True", "AdapterRegistered")
    assert condition(status, "Finished") == ("True", "AdapterRegistered")
    assert condition(status, "DatasetReady") == ("True", "DatasetExported")
    assert condition(status, "Reconciling") is None
    assert condition(status, "Stalled") is None
    assert status.dataset is not None
    assert (status.dataset.version, status.dataset.rows, status.dataset.tokens) == (2, 400, 39000)
    assert status.timings is not None
    assert (status.timings.scheduled_seconds, status.timings.export_seconds, status.timings.first_step_seconds) == (
        3,
        6,
        20,
    )
    assert status.progress is not None
    assert (status.progress.step, status.progress.percent) == (55, 100)
    assert (status.attempts, status.gpu_seconds, status.duration_seconds) == (1, 2 * (95 - 3), 97)


def test_what_became_of_a_mixs_sources_stays_although_the_trainer_does_not_say_it() -> None:
    sources = [
        {"name": "tickets/2", "version": 2, "rows": 300, "evaluationRows": 30, "found": 330, "dropped": 0},
        {"name": "chats", "rows": 100, "evaluationRows": 10, "found": 2000, "dropped": 1},
        {"rows": "no source that this version can read"},
    ]
    exported = o.ended(0, {"dataset": {"rows": 400, "evaluationRows": 40, "sources": sources}}, seconds=6)
    done = o.pod("p1", "Succeeded", export=exported, trainer=o.ended(0, o.RESULT, seconds=95))
    status = status_of(look(o.run(), o.job("Complete"), done, adapter=ADAPTER))
    assert status.dataset is not None
    assert status.dataset.tokens == 39000
    assert status.dataset.to_dict()["sources"] == sources[:2]


def test_what_preference_training_measures_is_in_the_result() -> None:
    measured = {"rewardAccuracy": "0.91", "rewardMargin": "-1.3", "bestStep": 40}
    words = {**o.RESULT, "result": {**o.RESULT["result"], **measured}, "dataset": {"rows": 400, "duplicates": 2}}
    done = o.pod("p1", "Succeeded", export=EXPORTED, trainer=o.ended(0, words, seconds=95))
    status = status_of(look(o.run(**o.PREFERENCE), o.job("Complete"), done, adapter=ADAPTER))
    assert status.result is not None
    assert status.dataset is not None
    assert (status.result.reward_accuracy, status.result.reward_margin) == ("0.91", "-1.3")
    assert (status.result.best_step, status.dataset.duplicates) == (40, 2)


def test_the_parent_is_shown_from_what_the_registry_said_and_from_the_job() -> None:
    """The Job alone is enough: the operator may have been killed between making it and writing the status."""
    expected = {"name": "support", "version": 3, "sha256": "e" * 64}
    run = o.run(**o.PREFERENCE)
    recorded = status_of(look(run, dataset=DatasetView(version=1), parent=o.PARENT))
    made = {**o.job(), "spec": build_job(run, o.SETTINGS, o.PARENT)["spec"]}
    for status in (recorded, status_of(look(run, made))):
        assert status.parent_adapter is not None
        assert status.parent_adapter.to_dict() == expected
    assert status_of(look(o.run(recorded.to_dict(), **o.PREFERENCE))).parent_adapter == recorded.parent_adapter
    assert status_of(look(None, {**o.job(), "spec": build_job(o.run(), o.SETTINGS)["spec"]})).parent_adapter is None


@pytest.mark.parametrize("digest", ["", None])
def test_a_parent_whose_digest_the_job_does_not_say_is_the_registrys(digest: str | None) -> None:
    run = o.run(**o.PREFERENCE)
    spec = build_job(run, o.SETTINGS, o.PARENT)["spec"]
    trainer = spec["template"]["spec"]["containers"][0]
    trainer["args"] = [flag for flag in trainer["args"] if "sha256" not in flag]
    if digest is not None:
        trainer["args"].append(f"--parent-adapter-sha256={digest}")
    made = {**o.job(), "spec": spec}
    assert status_of(look(run, made)).parent_adapter is None
    known = status_of(look(run, made, parent=o.PARENT)).parent_adapter
    assert known is not None
    assert known.sha256 == o.PARENT.sha256


def test_no_success_without_a_registered_adapter() -> None:
    done = o.pod("p1", "Succeeded", export=EXPORTED, trainer=o.ended(0, o.RESULT))
    status = status_of(look(None, o.job("Complete"), done, refusal=AWAY))
    assert status.phase == "Registering"
    assert status.result is None
    assert not is_finished(status)
    found = status.condition("Succeeded")
    assert found is not None
    assert (found.status, found.message) == ("Unknown", "no answer")


def test_a_failure_names_reason_row_and_remedy() -> None:
    words = {"failure": {"reason": "DatasetInvalid", "message": "row 7: not valid JSON", "row": 7}}
    pod = o.pod("p1", "Failed", export=o.ended(3, words))
    status = status_of(look(None, o.job("Failed", reason="PodFailurePolicy"), pod))
    assert status.failure is not None
    assert (status.failure.reason, status.failure.row, status.failure.exit_code) == ("DatasetInvalid", 7, 3)
    assert "invalidRows" in status.failure.hint
    assert condition(status, "Stalled") == ("True", "DatasetInvalid")
    assert condition(status, "DatasetReady") == ("False", "DatasetInvalid")
    assert status.phase == "Failed"


def test_a_failure_told_with_half_a_surrogate_pair_is_a_status_all_the_same() -> None:
    pod = o.pod("p1", "Failed", export=o.ended(3, {"failure": {"reason": "DatasetInvalid", "message": "a\ud800b"}}))
    status = status_of(look(None, o.job("Failed", reason="PodFailurePolicy"), pod))
    assert status.failure is not None
    assert (status.failure.reason, status.failure.message) == ("DatasetInvalid", "a?b")
    json.dumps(status.to_dict(), ensure_ascii=False).encode()


def test_the_same_observation_gives_the_same_status() -> None:
    case = look(None, o.job(), o.pod("p1", export=EXPORTED, trainer=o.running()))
    assert status_of(again(case, 120)) == status_of(again(case, 61))


def test_conditions_keep_their_time_until_their_status_changes() -> None:
    first = status_of(look(None, o.job(), o.pod("p1", export=EXPORTED, trainer=o.running()), seconds=10))
    done = o.pod("p1", "Succeeded", export=EXPORTED, trainer=o.ended(0, o.RESULT))
    second = status_of(look(o.run(first.to_dict()), o.job("Complete"), done, adapter=ADAPTER, seconds=99))
    times = {c.type: c.last_transition_time for c in second.conditions}
    assert (times["Accepted"], times["Succeeded"]) == (o.at(10), o.at(99))


def test_a_finished_run_only_follows_the_generation() -> None:
    status = {**succeeded().to_dict(), "fromANewerVersion": {"kept": True}}
    stamped = restamp(status, 5)
    assert stamped["observedGeneration"] == 5
    assert {each["observedGeneration"] for each in stamped["conditions"]} == {5}
    assert stamped["fromANewerVersion"] == {"kept": True}
    assert restamp(stamped, status["observedGeneration"]) == status


def test_suspended_only_when_no_pod_is_left() -> None:
    run = o.run(suspend=True)
    saving = status_of(look(run, RESTS, o.pod("p1", trainer=o.running())))
    assert condition(saving, "Suspended") == ("False", "Suspending")
    gone = status_of(look(run, RESTS))
    assert condition(gone, "Suspended") == ("True", "Suspended")
    assert condition(gone, "Reconciling") is None


def test_between_the_pods_end_and_the_registration_no_next_attempt_is_announced() -> None:
    done = o.pod("p2", "Succeeded", created=60, export=EXPORTED, trainer=o.ended(0, o.RESULT))
    status = status_of(look(None, o.job("Complete"), o.failed_pod("p1", 137), done))
    found = status.condition("Reconciling")
    assert found is not None
    assert (found.reason, found.message) == ("Registering", "the training is done; its adapter is being registered")


def test_a_post_that_does_not_fit_the_status_does_not_hold_it_up() -> None:
    metrics = {"step": "9" * 60, "totalSteps": "²", "loss": "1" * 60, "epoch": "", "learningRate": "2e-4"}
    progress = ProgressView(metrics=metrics, percent=12, remaining_seconds=None, time=o.at(40))
    status = status_of(look(None, o.job(), o.pod("p1", trainer=o.running()), progress=progress))
    assert status.progress is not None
    assert status.progress.to_dict() == {"percent": 12, "learningRate": "2e-4", "lastUpdateTime": o.stamp(40)}


def test_progress_comes_from_the_latest_post() -> None:
    progress = ProgressView(
        metrics={"step": "7", "totalSteps": "55", "loss": "2.91"}, percent=12, remaining_seconds=130, time=o.at(40)
    )
    status = status_of(look(None, o.job(), o.pod("p1", trainer=o.running()), progress=progress))
    assert status.progress is not None
    assert (status.progress.step, status.progress.loss, status.progress.percent) == (7, "2.91", 12)


def test_a_pod_that_does_not_go_away_is_a_warning_that_names_the_node() -> None:
    stuck = o.pod("p1", trainer=o.running(), deletionTimestamp=o.stamp(10))
    first = look(None, o.job(), stuck, seconds=60)
    grace = o.SETTINGS.termination_grace_seconds
    assert status_of(again(first, 60 + grace + 60)).warnings == ()
    assert "node-1" in status_of(again(first, 60 + grace + 61)).warnings[0]


def test_a_run_in_the_way_of_nothing_is_accepted_and_one_that_waits_says_for_what() -> None:
    waiting = status_of(look(name_taken='Job "x" belongs to another object'))
    assert condition(waiting, "Accepted") == ("Unknown", "WaitingForReference")
    assert waiting.timings is not None
    assert waiting.timings.accepted_seconds is None
    missing = status_of(look(dataset=DatasetView(missing="no such dataset")))
    assert condition(missing, "Accepted") == ("False", "WaitingForReference")
    assert condition(status_of(look(None, o.job())), "Accepted") == ("True", "SpecAccepted")


# No flicker


@pytest.mark.parametrize(
    ("pod", "phase", "announced"),
    [
        (o.pod("p1", "Failed", export=o.ended(3)), "Exporting", False),
        (o.failed_pod("p1", 6), "Training", False),
        (o.failed_pod("p1", 2), "Training", False),
        (o.failed_pod("p1", 9), "Pending", True),
        (o.failed_pod("p1", 75), "Pending", False),
    ],
)
def test_an_attempt_that_ends_the_job_is_not_called_pending(pod: dict[str, Any], phase: str, announced: bool) -> None:
    """The Job needs a moment to say so: no next attempt is announced that will not come."""
    status = status_of(look(None, o.job(), pod))
    assert status.phase == phase
    found = status.condition("Finished")
    assert found is not None
    assert ("starts the next one" in found.message) == announced


def test_a_job_that_has_failed_for_good_announces_no_next_attempt() -> None:
    failing = o.job("FailureTarget", reason="BackoffLimitExceeded", message="x")
    status = status_of(look(None, failing, o.failed_pod("p1", 137)))
    assert status.phase == "Training"
    assert status_of(look(o.run(status.to_dict()), o.job("Failed", reason="BackoffLimitExceeded"))).phase == "Failed"


def test_a_run_whose_status_was_wiped_is_not_called_registering_while_its_job_has_no_pod() -> None:
    assert status_of(look(None, o.job())).phase == "Pending"


# Suspended


def test_a_run_that_was_never_suspended_was_not_resumed() -> None:
    status = status_of(look(None, o.job()))
    assert condition(status, "Suspended") == ("False", "NotSuspended")
    rested = stored(look(o.run(suspend=True), RESTS))
    assert condition(rested.status, "Suspended") == ("True", "Suspended")
    resumed = status_of(look(o.run(rested.status.to_dict()), o.job()))
    assert condition(resumed, "Suspended") == ("False", "Resumed")
    assert condition(status_of(look(o.run(resumed.to_dict()), o.job())), "Suspended") == ("False", "Resumed")


def test_a_run_is_under_way_while_its_pod_still_saves() -> None:
    """kstatus reads the absence of Reconciling as: this is how it is meant to be."""
    saving = status_of(look(o.run(suspend=True), RESTS, o.pod("p1", export=EXPORTED, trainer=o.running())))
    assert condition(saving, "Suspended") == ("False", "Suspending")
    assert saving.phase == "Suspended"
    assert condition(saving, "Reconciling") == ("True", "Suspended")
    before = status_of(look(o.run(suspend=True), o.job(), o.pod("p1", export=EXPORTED, trainer=o.running())))
    assert condition(before, "Suspended") == ("False", "Suspending")
    assert condition(before, "Reconciling") is not None


# Progress


def post(**metrics: str) -> ProgressView:
    return ProgressView(metrics=metrics, percent=12, remaining_seconds=130, time=o.at(40))


@pytest.mark.parametrize(
    "seen",
    [
        (o.run(suspend=True), RESTS, []),
        (o.run(), o.job("Failed", reason="DeadlineExceeded"), [o.failed_pod("p1", 143)]),
        (o.run(), o.job(), [o.failed_pod("p1", 137)]),
    ],
)
def test_nothing_that_is_not_under_way_has_a_time_left(seen: Any) -> None:
    run, job, pods = seen
    trained = status_of(look(None, o.job(), o.pod("p1", trainer=o.running()), progress=post(step="7")))
    assert trained.progress is not None
    assert trained.progress.remaining_seconds == 130
    later = status_of(look(run.model_copy(update={"status": trained}), job, *pods, progress=post(step="7")))
    assert later.progress is not None
    assert (later.progress.step, later.progress.remaining_seconds) == (7, None)


def test_progress_is_no_less_than_what_an_attempt_has_saved() -> None:
    """The last post came at step 1, and the trainer saved step 293 when it was asked to stop."""
    run = stored(look(None, o.job(), o.pod("p1", trainer=o.running()), progress=post(step="1")))
    saved = o.failed_pod("p1", 75, {"interrupted": {"step": 293}})
    status = status_of(look(run, o.job(), saved, progress=post(step="1")))
    assert status.progress is not None
    assert (status.progress.step, status.progress.checkpoint_step) == (293, 293)


@pytest.mark.parametrize(
    "view",
    [
        ProgressView(metrics={"step": "7"}, percent=12, remaining_seconds=2**60, time=o.at(40)),
        ProgressView(metrics={"step": "7"}, percent=12, remaining_seconds=-1, time=o.at(40)),
        ProgressView(metrics={"step": "7"}, percent=12, remaining_seconds=None, time=None),
        ProgressView(metrics={"step": "7", "checkpointStep": "9" * 400}, percent=12, remaining_seconds=1, time=None),
        ProgressView(metrics={"step": "7", "loss": "\ud800"}, percent=12, remaining_seconds=1, time=None),
    ],
)
def test_whatever_is_posted_a_status_can_be_written(view: ProgressView) -> None:
    status = status_of(look(None, o.job(), o.pod("p1", trainer=o.running()), progress=view))
    json.dumps(status.to_dict(), ensure_ascii=False).encode()
    assert status.phase == "Training"
    assert status.progress is not None
    assert status.progress.step == 7


# Bounds


def test_more_pods_than_there_is_room_for_warnings() -> None:
    stuck = [o.pod(f"p{n:02}", export=EXPORTED, trainer=o.ended(137), deletionTimestamp=o.stamp(10)) for n in range(20)]
    beside = [
        o.beside(o.pod(f"q{n:02}", export=EXPORTED, trainer=o.ended(137)), "agent", o.running()) for n in range(20)
    ]
    status = status_of(look(None, o.job(), *stuck, *beside))
    assert len(status.warnings) == 16
    assert status.phase is not None


def test_a_status_of_another_version_is_read_all_the_same() -> None:
    """A newer operator has written what this one does not know, and is rolled back."""
    newer = {
        "phase": "Dreaming",
        "observedGeneration": 1,
        "jobName": o.JOB,
        "conditions": [
            {"type": "Dreaming", "status": "True", "reason": "Asleep", "lastTransitionTime": o.stamp(5)},
            {"type": "Odd", "status": "Perhaps", "reason": "", "lastTransitionTime": "yesterday"},
        ],
        "attemptHistory": [
            {"pod": "p1", "uid": "u1", "reason": "Abducted", "completionTime": o.stamp(9)},
            {"pod": 3},
            "x",
        ],
        "attempts": "many",
        "gpuSeconds": -1,
        "progress": {"step": "x"},
        "dreams": {"sheep": 3},
        "waiting": {"reason": "Moon", "object": "Sky/moon", "message": "not up", "since": "tonight"},
        "active": {"seconds": "x"},
    }
    run = o.run(newer)
    assert run.status.job_name == o.JOB
    status = status_of(look(run, o.job(), o.pod("p1", export=EXPORTED, trainer=o.running())))
    assert status.phase == "Training"
    assert condition(status, "Dreaming") == ("True", "Asleep")
    assert [attempt.reason for attempt in status.attempt_history if attempt.uid == "u1"] == ["Abducted"]


@pytest.mark.parametrize("broken", [[], "x", 3, {"conditions": "x"}, {"conditions": [None]}, {"phase": 7}])
def test_a_status_that_somebody_has_rewritten_holds_up_nothing(broken: Any) -> None:
    status = status_of(look(o.run(broken), o.job(), o.pod("p1", export=EXPORTED, trainer=o.running())))
    assert status.phase == "Training"


def test_a_run_that_has_reached_its_trainer_says_so_once() -> None:
    exporting = stored(look(None, o.job(), o.pod("p1", "Pending", export=o.running()), seconds=30))
    assert exporting.status.training_start_time is None
    training = stored(look(exporting, o.job(), o.pod("p1", export=EXPORTED, trainer=o.running()), seconds=60))
    assert training.status.training_start_time == o.at(60)
    later = stored(look(training, o.job(), o.unschedulable("no node"), seconds=90))
    assert later.status.training_start_time == o.at(60)


def test_the_run_that_is_gone_on_from_is_shown() -> None:
    found = {"run": "first", "uid": "u", "claimName": "old", "path": "first/u"}
    resume = ResumeStatus.model_validate(found)
    made = stored(look(o.run(resumeFrom={"run": "first"}), dataset=DatasetView(version=1), resume=resume))
    assert made.status.resumed_from == resume
    assert status_of(look(made, o.job())).resumed_from == resume
