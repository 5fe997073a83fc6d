"""The durable mark: a run that has ended never trains again, whatever became of its status."""

from __future__ import annotations

import json
from typing import Any

import pytest

from finetune.api.trainingrun import TrainingRun
from finetune.controller.core import decide, names
from finetune.controller.core.case import is_finished
from finetune.controller.core.mark import is_marked, mark_of, restored_status
from finetune.controller.core.status import restamp
from finetune.controller.core.views import AdapterView
from tests.support import objects as o
from tests.support.cases import action, look, stored

ADAPTER = AdapterView(id="7", name="support", version=4, uri="pvc://adapters/x/adapter", sha256="a" * 64, bytes=10)
DONE = o.pod("p1", "Succeeded", export=o.ended(0), trainer=o.ended(0, o.RESULT))
DIVERGED = o.failed_pod("p1", 6, {"failure": {"reason": "Diverged", "message": "the loss is nan"}})


def succeeded() -> TrainingRun:
    return stored(look(None, o.job("Complete"), DONE, adapter=ADAPTER))


def failed() -> TrainingRun:
    return stored(look(None, o.job("Failed", reason="PodFailurePolicy"), DIVERGED))


def copy_of(run: TrainingRun, **more: Any) -> TrainingRun:
    """A run without a status that bears the other's mark."""
    return o.run(annotations={"team": "a", **mark_of(run, run.status)}, **more)


def condition(run: TrainingRun, at: float, type_: str) -> tuple[str, str] | None:
    status = restored_status(run, o.at(at))
    found = status.condition(type_) if status is not None else None
    return (found.status, found.reason) if found else None


@pytest.mark.parametrize("uid", [o.UID, "another-uid"], ids=["wiped by hand", "restored from a backup"])
def test_a_success_is_known_by_its_mark(uid: str) -> None:
    run = copy_of(succeeded(), uid=uid, generation=3)
    status = restored_status(run, o.at(5_000))
    assert status is not None
    assert is_finished(status)
    assert (status.phase, status.observed_generation) == ("Succeeded", 3)
    assert status.result is not None
    assert (status.result.adapter.version, status.result.final_loss) == (4, "1.8342")
    assert condition(run, 5_000, "Succeeded") == ("True", "AdapterRegistered")
    assert condition(run, 5_000, "Finished") == ("True", "AdapterRegistered")
    assert condition(run, 5_000, "Stalled") is None
    again = run.model_copy(update={"status": status})
    assert is_marked(again)
    assert restored_status(again, o.at(6_000)) is None
    assert restamp(status.to_dict(), 3) == status.to_dict()


def test_a_failure_is_known_by_its_mark_and_says_so() -> None:
    run = copy_of(failed())
    status = restored_status(run, o.at(5_000))
    assert status is not None
    assert status.failure is not None
    assert (status.phase, status.failure.reason) == ("Failed", "Diverged")
    assert condition(run, 5_000, "Succeeded") == ("False", "Diverged")
    assert condition(run, 5_000, "Stalled") == ("True", "Diverged")
    found = status.condition("Finished")
    assert found is not None
    assert "the loss is nan" in found.message
    assert "restored from the run's mark" in found.message


def test_a_suspended_run_is_the_same_run() -> None:
    assert restored_status(copy_of(succeeded(), uid="another-uid", suspend=True), o.at(5_000)) is not None


@pytest.mark.parametrize(
    "more",
    [
        {"name": "support-2"},
        {"training": {"seed": 7}},
        {"method": "DPO"},
        {"dataset": {"registry": {"name": "other"}}},
        {"resources": {"gpus": 2}},
    ],
)
def test_a_copy_under_another_name_or_with_another_spec_is_another_run(more: dict[str, Any]) -> None:
    run = copy_of(succeeded(), **{"uid": "another-uid", **more})
    assert not is_marked(run)
    assert restored_status(run, o.at(5_000)) is None


def test_so_is_one_in_another_namespace() -> None:
    run = copy_of(succeeded(), uid="another-uid")
    elsewhere = run.model_copy(update={"metadata": run.metadata.model_copy(update={"namespace": "other"})})
    assert not is_marked(elsewhere)


def test_a_run_that_is_under_way_is_not_ended_by_anything_but_its_own_mark() -> None:
    assert restored_status(o.run(), o.at(5)) is None
    assert restored_status(succeeded(), o.at(5)) is None


MARK = mark_of(succeeded(), succeeded().status)[names.FINISHED_ANNOTATION]


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "{",
        "null",
        "3",
        "[]",
        '"x"',
        "{}",
        '{"version": 1}',
        "[" * 100_000,
        MARK[:-30],
        json.dumps({**json.loads(MARK), "uid": None, "run": None}),
        json.dumps({**json.loads(MARK), "uid": {}, "run": []}),
    ],
)
def test_a_broken_mark_is_none(broken: str) -> None:
    run = o.run(annotations={names.FINISHED_ANNOTATION: broken})
    assert not is_marked(run)
    assert restored_status(run, o.at(5)) is None


@pytest.mark.parametrize("content", [None, 3, [], "x", {}, {"phase": "Succeeded"}, {"result": {"finalLoss": 3}}])
def test_a_mark_that_does_not_say_how_the_run_ended_restores_nothing(content: Any) -> None:
    document = {**json.loads(MARK), "status": content}
    run = o.run(annotations={names.FINISHED_ANNOTATION: json.dumps(document)})
    assert restored_status(run, o.at(5)) is None


def test_the_mark_of_a_newer_version_is_read() -> None:
    """It describes the spec in its own words, and knows more; the object is the same."""
    document = json.loads(MARK)
    document |= {"version": 2, "run": "its own digest", "signature": "x"}
    document["status"] |= {"dreams": 3, "phase": "Dreaming"}
    run = o.run(annotations={names.FINISHED_ANNOTATION: json.dumps(document)})
    assert is_marked(run)
    status = restored_status(run, o.at(5))
    assert status is not None
    assert status.phase == "Succeeded"


def test_the_mark_holds_what_a_person_needs_and_is_small() -> None:
    kept = json.loads(MARK)["status"]
    assert {"result", "jobName", "output", "attempts", "durationSeconds"} <= set(kept)
    assert "conditions" not in kept
    assert "lossHistory" not in kept
    assert len(MARK) < 4_096


def test_a_finished_run_is_marked_once_whatever_its_status_holds() -> None:
    """A status of another version may have an end that this one cannot read; it is no reason to mark it for ever."""
    end = {"type": "Finished", "status": "True", "reason": "X", "lastTransitionTime": o.stamp(9)}
    for status in ({"conditions": [end]}, {"conditions": [end], "failure": {"reason": 3}}):
        run = o.run(status)
        assert action(look(run, told=True)) == decide.MarkFinished()
        marked = o.run(status, annotations=mark_of(run, run.status))
        assert action(look(marked)) is None
