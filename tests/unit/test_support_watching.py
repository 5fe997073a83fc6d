"""The rules that every recorded life is judged by: each notices what it is there for."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.watching import Record, broken_run, two_jobs, went_back

FINISHED = [{"type": "Finished", "status": "True"}]
ENDED: dict[str, Any] = {"phase": "Succeeded", "conditions": FINISHED, "result": {"adapter": {"version": 1}}}


def run(status: dict[str, Any], version: int = 1) -> dict[str, Any]:
    return {"metadata": {"name": "a", "uid": "u", "resourceVersion": str(version)}, "status": status}


def job(uid: str, run_uid: str = "u", role: str = "train") -> dict[str, Any]:
    labels = {"finetune.dev/run-uid": run_uid, "finetune.dev/role": role}
    return {"metadata": {"name": uid, "uid": uid, "labels": labels}}


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({}, {"attempts": 1}, ""),
        ({"attempts": 1}, {"attempts": 2}, ""),
        ({"attempts": 2}, {"attempts": 1}, "attempts went from 2 to 1"),
        ({"gpuSeconds": 4}, {}, "gpuSeconds went from 4 to None"),
        ({"jobName": "j"}, {"jobName": "k"}, "jobName went from j to k"),
        ({"trainingStartTime": "t"}, {}, "trainingStartTime went from t to None"),
        (ENDED, {**ENDED, "conditions": []}, "an end was left"),
        (ENDED, {**ENDED, "phase": "Failed"}, "phase of a finished run went from Succeeded to Failed"),
        (ENDED, {**ENDED, "observedGeneration": 2}, ""),
    ],
)
def test_a_status_that_goes_back_is_noticed(before: dict[str, Any], now: dict[str, Any], said: str) -> None:
    assert went_back(before, now) == ([said] if said else [])


def test_success_without_an_adapter_is_noticed() -> None:
    assert broken_run([run({}), run(ENDED, 2)]) == []
    assert broken_run([run({"phase": "Succeeded"}, 7)]) == ["a@7: Succeeded without an adapter"]


def test_a_second_job_is_noticed_also_after_the_first_has_gone() -> None:
    assert two_jobs([job("a"), job("a"), job("b", run_uid="v"), job("c", role="collect")]) == []
    assert two_jobs([job("a"), job("b")]) == ["run u had 2 Jobs"]


def test_a_run_that_never_ended_is_named_unless_it_was_deleted() -> None:
    record = Record([("trainingruns", "ADDED", run({"phase": "Training"}))])
    assert record.unfinished() == ["a"]
    record.versions.append(("trainingruns", "DELETED", run({"phase": "Training"}, 2)))
    assert record.unfinished() == []
    record = Record([("trainingruns", "ADDED", run(ENDED))])
    assert record.unfinished() == []
