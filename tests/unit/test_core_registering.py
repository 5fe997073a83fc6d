"""Once a training is done only its registration is left, whatever becomes of its Job, its pods and its reader."""

from __future__ import annotations

from typing import Any

import pytest

from finetune.controller.core import decide
from finetune.controller.core.case import Case
from tests.support import objects as o
from tests.support.cases import action, again, failed, failure, look, status, waiting, waits_for

REGISTERING: dict[str, Any] = {"phase": "Registering", "jobName": o.JOB, "jobUid": "job-uid"}
LATE = 60 + o.SETTINGS.linger_seconds
SIDECARS = {"running": o.running(), "without an image": o.waiting("ImagePullBackOff", "no such image")}
QUOTA = 'Error creating: pods "x" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1'


def reader_job(condition: str = "", **more: Any) -> dict[str, Any]:
    job = o.job(condition, **more)
    job["metadata"] |= {"name": f"{o.JOB}-collect", "uid": "collect-uid"}
    return job


def reader(phase: str, state: dict[str, Any], **more: Any) -> dict[str, Any]:
    pod = o.pod("c", phase, **more)
    del pod["status"]["initContainerStatuses"]
    pod["status"]["containerStatuses"] = [{"name": "collect", "state": state}]
    return pod


def silent(sidecar: dict[str, Any], phase: str = "Running") -> dict[str, Any]:
    """A trainer that ended well and left no words, in a pod that another container keeps alive."""
    return o.beside(o.pod("p1", phase, export=o.ended(0), trainer=o.ended(0, "?")), "mesh", sidecar)


def collecting(*pods: dict[str, Any], condition: str = "", **more: Any) -> Case:
    job = reader_job(condition, **({"reason": "BackoffLimitExceeded"} if condition == "Failed" else {}))
    return look(o.run(REGISTERING), o.job("Complete"), result_asked=True, collect_job=job, collect_pods=pods, **more)


@pytest.mark.parametrize(
    ("spec", "job"),
    [
        ({}, o.job("Failed", reason="DeadlineExceeded")),
        ({}, o.job("Failed", reason="BackoffLimitExceeded")),
        ({}, o.job()),
        ({"suspend": True}, o.job()),
        ({"suspend": True}, o.job(suspend=True, suspended_by=o.UID, suspended_at=50)),
        ({}, o.job(suspend=True, suspended_at=50)),
        ({}, None),
    ],
)
def test_what_is_stored_as_done_stays_done(spec: dict[str, Any], job: dict[str, Any] | None) -> None:
    """The pod that said so is gone, and the operator was started again."""
    case = look(o.run(REGISTERING, **spec), job)
    assert (case.done, failure(case), action(case)) == (True, None, decide.FetchResult())
    assert status(case).phase == "Registering"
    asked = look(o.run(REGISTERING, **spec), job, result_asked=True)
    assert action(asked) == decide.CreateCollectJob()


def test_a_restored_run_whose_files_are_elsewhere_is_lost_and_not_misread() -> None:
    stored = {**REGISTERING, "output": {"claimName": "t-support-old", "path": "support/another-uid"}}
    case = look(o.run(stored), None, result_asked=True)
    assert failed(case).reason == "JobLost"


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (o.ended(1, "PermissionError: /output/support: denied"), "PermissionError"),
        (o.ended(2, "usage: cli: invalid choice: 'collect'"), "invalid choice"),
        (o.ended(137, reason="OOMKilled"), "memory"),
    ],
)
@pytest.mark.parametrize("condition", ["", "Failed"])
def test_a_reader_that_fails_says_so_and_is_not_made_again_at_once(
    state: dict[str, Any], words: str, condition: str
) -> None:
    case = collecting(reader("Failed", state), condition=condition)
    assert (waits_for(case), action(case), failure(case)) == ("ResultUnread", None, None)
    assert words in waiting(case).message
    expected = decide.DeleteJob(f"{o.JOB}-collect", "collect-uid") if condition else None
    assert action(again(case, LATE)) == expected


@pytest.mark.parametrize("sidecar", SIDECARS)
@pytest.mark.parametrize("held", ["the claim", "the quota", "a queue"])
def test_what_the_finished_trainers_pod_holds_is_given_to_the_reader(sidecar: str, held: str) -> None:
    more: dict[str, Any] = {"collect_job": reader_job(), "result_asked": True}
    match held:
        case "the claim":
            more["collect_pods"] = [reader("Pending", {})]
            more["events"] = [o.event("FailedAttachVolume", "Multi-Attach error: Volume is already used by pod(s) p1")]
        case "the quota":
            more["events"] = [o.event("FailedCreate", QUOTA)]
        case _:
            more["collect_job"] = reader_job(suspend=True, queue="gpus")
            more["workload"] = o.workload(("QuotaReserved", "False", "Pending", "insufficient unused quota for cpu"))
    case = look(o.run(REGISTERING), o.job(), silent(SIDECARS[sidecar]), **more)
    assert waits_for(case) is not None
    assert action(case) is None
    assert action(again(case, LATE)) == decide.DeleteJob(o.JOB, "job-uid")


def test_a_reader_that_somebody_deletes_and_a_finalizer_holds_is_named() -> None:
    job = reader_job()
    job["metadata"]["deletionTimestamp"] = o.stamp(50)
    case = look(o.run(REGISTERING), o.job("Complete"), result_asked=True, collect_job=job)
    assert waits_for(case) == "Terminating"
    assert f"{o.JOB}-collect" in waiting(case).message
