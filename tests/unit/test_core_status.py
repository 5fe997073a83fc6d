"""The status that follows from what was seen, and the Events that tell of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from finetune.api.status import TrainingRunStatus
from finetune.controller.core import decide
from finetune.controller.core.events import build_event, events_between
from finetune.controller.core.failures import failure_of
from finetune.controller.core.manifests import build_job
from finetune.controller.core.observe import AdapterView, DatasetView, Observation, ProgressView, job_view, pod_view
from finetune.controller.core.status import is_finished, next_status, restamp
from tests.support import objects as o

ADAPTER = AdapterView(id="7", name="support", version=4, uri="pvc://adapters/x/adapter", sha256="a" * 64, bytes=10)
EXPORTED = o.ended(0, {"dataset": {"version": 2, "rows": 400, "evaluationRows": 40}}, seconds=6)


def observe(job: dict[str, Any] | None, *pods: dict[str, Any], **more: Any) -> Observation:
    return Observation(job=job_view(job) if job else None, pods=tuple(pod_view(pod) for pod in pods), **more)


def status_of(run: Any, seen: Observation, seconds: float = 60) -> TrainingRunStatus:
    case = decide.case_of(run, seen, o.SETTINGS, o.at(seconds))
    return next_status(case, failure_of(case))


def condition(status: TrainingRunStatus, type_: str) -> tuple[str, str] | None:
    found = status.condition(type_)
    return (found.status, found.reason) if found else None


def succeeded() -> TrainingRunStatus:
    done = o.pod("p1", "Succeeded", export=EXPORTED, trainer=o.ended(0, o.RESULT, seconds=95))
    return status_of(o.run(resources={"gpus": 2}), observe(o.job("Complete"), done, adapter=ADAPTER))


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
    status = status_of(o.run(), observe(o.job(), *([pod] if pod else [])))
    assert status.phase == phase
    assert condition(status, "Succeeded") == ("Unknown", phase)
    assert condition(status, "Finished") == ("False", phase)
    assert condition(status, "Reconciling") == ("True", phase)
    assert condition(status, "Stalled") is None


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


def test_what_preference_training_measures_is_in_the_result() -> None:
    measured = {"rewardAccuracy": "0.91", "rewardMargin": "-1.3", "bestStep": 40}
    words = {**o.RESULT, "result": {**o.RESULT["result"], **measured}, "dataset": {"rows": 400, "duplicates": 2}}
    done = o.pod("p1", "Succeeded", export=EXPORTED, trainer=o.ended(0, words, seconds=95))
    status = status_of(o.run(**o.PREFERENCE), observe(o.job("Complete"), done, adapter=ADAPTER))
    assert status.result is not None
    assert status.dataset is not None
    assert (status.result.reward_accuracy, status.result.reward_margin) == ("0.91", "-1.3")
    assert (status.result.best_step, status.dataset.duplicates) == (40, 2)


def test_the_parent_is_shown_from_what_the_registry_said_and_from_the_job() -> None:
    """The Job alone is enough: the operator may have been killed between making it and writing the status."""
    expected = {"name": "support", "version": 3, "sha256": "e" * 64}
    run = o.run(**o.PREFERENCE)
    recorded = status_of(run, Observation(dataset=DatasetView(version=1), parent=o.PARENT))
    made = {**o.job(), "spec": build_job(run, o.SETTINGS, o.PARENT)["spec"]}
    for status in (recorded, status_of(run, observe(made))):
        assert status.parent_adapter is not None
        assert status.parent_adapter.to_dict() == expected
    assert status_of(o.run(recorded.to_dict(), **o.PREFERENCE), Observation()).parent_adapter == recorded.parent_adapter
    assert (
        status_of(o.run(), observe({**o.job(), "spec": build_job(o.run(), o.SETTINGS)["spec"]})).parent_adapter is None
    )


@pytest.mark.parametrize("digest", ["", None])
def test_a_parent_whose_digest_the_job_does_not_say_is_the_registrys(digest: str | None) -> None:
    run = o.run(**o.PREFERENCE)
    spec = build_job(run, o.SETTINGS, o.PARENT)["spec"]
    trainer = spec["template"]["spec"]["containers"][0]
    trainer["args"] = [flag for flag in trainer["args"] if "sha256" not in flag]
    if digest is not None:
        trainer["args"].append(f"--parent-adapter-sha256={digest}")
    made = {**o.job(), "spec": spec}
    assert status_of(run, observe(made)).parent_adapter is None
    known = status_of(run, observe(made, parent=o.PARENT)).parent_adapter
    assert known is not None
    assert known.sha256 == o.PARENT.sha256


def test_no_success_without_a_registered_adapter() -> None:
    done = o.pod("p1", "Succeeded", export=EXPORTED, trainer=o.ended(0, o.RESULT))
    status = status_of(o.run(), observe(o.job("Complete"), done, registry_error="no answer"))
    assert status.phase == "Registering"
    assert status.result is None
    assert not is_finished(status)
    found = status.condition("Succeeded")
    assert found is not None
    assert (found.status, found.message) == ("Unknown", "no answer")


def test_a_failure_names_reason_row_and_remedy() -> None:
    words = {"failure": {"reason": "DatasetInvalid", "message": "row 7: not valid JSON", "row": 7}}
    pod = o.pod("p1", "Failed", export=o.ended(3, words))
    status = status_of(o.run(), observe(o.job("Failed", reason="PodFailurePolicy"), pod))
    assert status.failure is not None
    assert (status.failure.reason, status.failure.row, status.failure.exit_code) == ("DatasetInvalid", 7, 3)
    assert "invalidRows" in status.failure.hint
    assert condition(status, "Stalled") == ("True", "DatasetInvalid")
    assert condition(status, "DatasetReady") == ("False", "DatasetInvalid")
    assert status.phase == "Failed"


def test_a_failure_told_with_half_a_surrogate_pair_is_a_status_all_the_same() -> None:
    pod = o.pod("p1", "Failed", export=o.ended(3, {"failure": {"reason": "DatasetInvalid", "message": "a\ud800b"}}))
    status = status_of(o.run(), observe(o.job("Failed", reason="PodFailurePolicy"), pod))
    assert status.failure is not None
    assert (status.failure.reason, status.failure.message) == ("DatasetInvalid", "a?b")
    json.dumps(status.to_dict(), ensure_ascii=False).encode()


def test_attempts_outlive_their_pods_and_count_once() -> None:
    first = status_of(o.run(), observe(o.job(), o.failed_pod("p1", 137)))
    run = o.run(first.to_dict())
    second = status_of(run, observe(o.job(), o.pod("p2", created=60, export=EXPORTED, trainer=o.running())))
    assert second.attempts == 2
    assert [attempt.exit_code for attempt in second.attempt_history] == [137, None]
    again = status_of(o.run(second.to_dict()), observe(o.job(), o.pod("p2", created=60, trainer=o.running())), 90)
    assert again.attempts == 2


def test_more_attempts_than_are_kept_still_count_once_and_the_status_comes_to_rest() -> None:
    pods = [o.failed_pod(f"p{n:02}", 137, created=100 * n) for n in range(70)]
    status = TrainingRunStatus()
    for seen in (observe(o.job(), *pods[:40]), observe(o.job(), *pods)):
        status = status_of(o.run(status.to_dict(), resources={"gpus": 2}), seen)
    assert [attempt.pod for attempt in status.attempt_history] == [f"p{n:02}" for n in range(6, 70)]
    assert (status.attempts, status.gpu_seconds) == (70, 70 * 2 * 29)
    assert status_of(o.run(status.to_dict(), resources={"gpus": 2}), observe(o.job(), *pods)) == status


def test_a_pod_that_vanished_ends_its_attempt() -> None:
    first = status_of(o.run(), observe(o.job(), o.pod("p1", export=EXPORTED, trainer=o.running())))
    status = status_of(o.run(first.to_dict()), observe(o.job()), 80)
    assert [attempt.reason for attempt in status.attempt_history] == ["Gone"]
    assert status.attempt_history[0].completion_time == o.at(80)


def test_the_same_observation_gives_the_same_status() -> None:
    seen = observe(o.job(), o.pod("p1", export=EXPORTED, trainer=o.running()))
    first = status_of(o.run(), seen, 60)
    assert status_of(o.run(first.to_dict()), seen, 120) == first


def test_conditions_keep_their_time_until_their_status_changes() -> None:
    first = status_of(o.run(), observe(o.job(), o.pod("p1", export=EXPORTED, trainer=o.running())), 10)
    done = o.pod("p1", "Succeeded", export=EXPORTED, trainer=o.ended(0, o.RESULT))
    second = status_of(o.run(first.to_dict()), observe(o.job("Complete"), done, adapter=ADAPTER), 99)
    times = {c.type: c.last_transition_time for c in second.conditions}
    assert (times["Accepted"], times["Succeeded"]) == (o.at(10), o.at(99))


def test_a_finished_run_only_follows_the_generation() -> None:
    status = succeeded()
    stamped = restamp(status, 5)
    assert stamped.observed_generation == 5
    assert {c.observed_generation for c in stamped.conditions} == {5}
    assert restamp(stamped, status.observed_generation) == status


def test_suspended_only_when_no_pod_is_left() -> None:
    run = o.run(suspend=True)
    saving = status_of(run, observe(o.job(suspend=True), o.pod("p1", trainer=o.running())))
    assert condition(saving, "Suspended") == ("False", "Suspending")
    gone = status_of(run, observe(o.job(suspend=True)))
    assert condition(gone, "Suspended") == ("True", "Suspended")
    assert condition(gone, "Reconciling") is None


def test_between_the_pods_end_and_the_registration_no_next_attempt_is_announced() -> None:
    done = o.pod("p2", "Succeeded", created=60, export=EXPORTED, trainer=o.ended(0, o.RESULT))
    status = status_of(o.run(), observe(o.job("Complete"), o.failed_pod("p1", 137), done))
    found = status.condition("Reconciling")
    assert found is not None
    assert (found.reason, found.message) == ("Registering", "")


def test_a_post_that_does_not_fit_the_status_does_not_hold_it_up() -> None:
    metrics = {"step": "9" * 60, "totalSteps": "²", "loss": "1" * 60, "epoch": "", "learningRate": "2e-4"}
    progress = ProgressView(metrics=metrics, percent=12, remaining_seconds=None, time=o.at(40))
    status = status_of(o.run(), observe(o.job(), o.pod("p1", trainer=o.running()), progress=progress))
    assert status.progress is not None
    assert status.progress.to_dict() == {"percent": 12, "learningRate": "2e-4", "lastUpdateTime": o.stamp(40)}


def test_progress_comes_from_the_latest_post() -> None:
    progress = ProgressView(
        metrics={"step": "7", "totalSteps": "55", "loss": "2.91"}, percent=12, remaining_seconds=130, time=o.at(40)
    )
    status = status_of(o.run(), observe(o.job(), o.pod("p1", trainer=o.running()), progress=progress))
    assert status.progress is not None
    assert (status.progress.step, status.progress.loss, status.progress.percent) == (7, "2.91", 12)


def test_a_pod_that_does_not_go_away_is_a_warning_that_names_the_node() -> None:
    stuck = o.pod("p1", trainer=o.running(), deletionTimestamp=o.stamp(10))
    assert status_of(o.run(), observe(o.job(), stuck), 69).warnings == ()
    assert "node-1" in status_of(o.run(), observe(o.job(), stuck), 71).warnings[0]


def test_a_run_in_the_way_of_nothing_is_accepted_and_one_that_waits_says_for_what() -> None:
    waiting = status_of(o.run(), Observation(name_taken='Job "x" belongs to another object'))
    assert condition(waiting, "Accepted") == ("Unknown", "WaitingForReference")
    assert waiting.timings is not None
    assert waiting.timings.accepted_seconds is None
    missing = status_of(o.run(), Observation(dataset=DatasetView(missing="no such dataset")))
    assert condition(missing, "Accepted") == ("False", "WaitingForReference")
    assert [draft.message for draft in events_between(waiting, missing)] == ["no such dataset"]
    assert condition(status_of(o.run(), observe(o.job())), "Accepted") == ("True", "SpecAccepted")


def test_events_tell_what_changed_and_are_the_same_event_when_told_again() -> None:
    empty = TrainingRunStatus()
    status = succeeded()
    reasons = [draft.reason for draft in events_between(empty, status)]
    assert reasons == ["JobCreated", "DatasetExported", "AdapterRegistered"]
    assert events_between(status, status) == ()
    draft = events_between(empty, status)[0]
    first, second = (build_event(o.run().metadata, draft, o.at(seconds)) for seconds in (1, 2))
    assert first["metadata"]["name"] == second["metadata"]["name"]


def test_a_failed_attempt_is_an_event_once() -> None:
    first = status_of(o.run(), observe(o.job(), o.failed_pod("p1", 137)))
    drafts = events_between(TrainingRunStatus(), first)
    assert "AttemptEnded" in [draft.reason for draft in drafts]
    later = status_of(o.run(first.to_dict()), observe(o.job(), o.failed_pod("p1", 137)), 70)
    assert events_between(first, later) == ()
