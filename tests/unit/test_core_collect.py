"""A finished training is never lost: the Job that reads its result is as patient as the training was."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from finetune.controller.core import decide
from finetune.controller.core.case import Case
from finetune.controller.core.manifests import build_collect_job
from finetune.controller.core.refusals import Doing, classify
from tests.support import objects as o
from tests.support.cases import action, again, failed, failure, look, status, waiting, waits_for

REGISTERING: dict[str, Any] = {"phase": "Registering", "jobName": o.JOB, "jobUid": "job-uid"}


def collecting(*pods: dict[str, Any], condition: str = "", **more: Any) -> Case:
    job = o.job(condition, reason="BackoffLimitExceeded" if condition == "Failed" else "")
    job["metadata"] |= {"name": f"{o.JOB}-collect", "uid": "collect-uid"}
    return look(o.run(REGISTERING), o.job("Complete"), result_asked=True, collect_job=job, collect_pods=pods, **more)


def reader(phase: str, state: dict[str, Any], **more: Any) -> dict[str, Any]:
    pod = o.pod("c", phase, **more)
    del pod["status"]["initContainerStatuses"]
    pod["status"]["containerStatuses"] = [{"name": "collect", "state": state}]
    return pod


def invalid(message: str, code: int = 10) -> dict[str, Any]:
    return o.ended(code, {"failure": {"reason": "AdapterInvalid", "message": message}})


def test_what_was_read_and_does_not_fit_is_the_end() -> None:
    found = failed(collecting(reader("Failed", invalid("training_config.json does not exist")), condition="Failed"))
    assert found.reason == "AdapterInvalid"
    assert "does not exist" in found.message
    empty = failed(collecting(reader("Succeeded", o.ended(0, "?")), condition="Complete"))
    assert (empty.reason, empty.message.endswith(": ?")) == ("AdapterInvalid", True)


@pytest.mark.parametrize(
    "state",
    [
        o.ended(137),
        o.ended(143),
        o.ended(137, reason="OOMKilled"),
        o.ended(1, "Traceback: OSError: [Errno 5] Input/output error"),
        o.ended(1, {"failure": {"reason": "InternalError", "message": "disk went away"}}),
        o.ended(5, {"failure": {"reason": "AccessDenied", "message": "permission denied"}}),
        {},
    ],
)
def test_whatever_else_became_of_the_reader_is_no_verdict(state: dict[str, Any]) -> None:
    """Evicted, killed, never started: it is made anew, as often as it takes."""
    case = collecting(reader("Failed", state), condition="Failed")
    assert failure(case) is None
    assert failure(again(case, 10**7)) is None
    assert (action(case), waits_for(case)) == (None, "ResultUnread")
    assert action(again(case, 60 + o.SETTINGS.linger_seconds)) == decide.DeleteJob(f"{o.JOB}-collect", "collect-uid")


def test_a_reader_that_nobody_can_hear_any_more_is_made_anew() -> None:
    for condition in ("Complete", "Failed"):
        late = again(collecting(condition=condition), 60 + o.SETTINGS.linger_seconds)
        assert action(late) == decide.DeleteJob(f"{o.JOB}-collect", "collect-uid")


@pytest.mark.parametrize(
    ("pod", "events", "reason"),
    [
        (reader("Pending", o.waiting("ErrImagePull", "i/o timeout")), [], "ImagePullFailed"),
        (
            {
                **reader("Pending", {}),
                "status": {
                    "phase": "Pending",
                    "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes: taints"}],
                },
            },
            [],
            "Unschedulable",
        ),
        (reader("Pending", {}), [o.event("FailedAttachVolume", "Multi-Attach error")], "VolumeNotMounted"),
        (None, [o.event("FailedCreate", "Error creating: pods is forbidden: exceeded quota: pods")], "QuotaExceeded"),
        (
            None,
            [o.event("FailedCreate", 'Error creating: pods "x" is forbidden: violates PodSecurity "x"')],
            "PodCreationRefused",
        ),
        (reader("Running", o.running(), deletionTimestamp=o.stamp(50)), [], "Terminating"),
    ],
)
def test_what_the_reader_waits_for_is_said_and_never_ends_the_run(
    pod: dict[str, Any] | None, events: list[dict[str, Any]], reason: str
) -> None:
    case = collecting(*([pod] if pod else []), events=events)
    assert waits_for(case) == reason
    assert waiting(case).message
    assert failure(again(case, 10**7)) is None
    assert action(case) is None
    assert status(case).phase == "Registering"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (400, 'admission webhook "a.b" denied the request: no'),
        (403, 'jobs.batch "x" is forbidden: exceeded quota: jobs'),
        (422, 'Job.batch "x" is invalid: spec.template'),
        (500, 'Internal error occurred: failed calling webhook "a.b"'),
        (0, "no answer"),
    ],
)
def test_a_result_is_not_given_up_because_the_reader_is_refused(code: int, words: str) -> None:
    refusal = classify(code, words, about=f"Job/{o.JOB}-collect", doing=Doing.GO_ON)
    case = look(o.run(REGISTERING), o.job("Complete"), result_asked=True, refusal=refusal)
    assert failure(again(case, 10**7)) is None
    assert words in waiting(case).message


def test_the_reader_is_placed_and_as_patient_as_the_training() -> None:
    scheduling = {
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "priorityClassName": "high",
        "runtimeClassName": "nvidia",
    }
    job = build_collect_job(o.run(scheduling=scheduling), o.SETTINGS)["spec"]
    pod = job["template"]["spec"]
    assert {name: pod[name] for name in scheduling} == scheduling
    disruption = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert disruption in job["podFailurePolicy"]["rules"]
    assert "activeDeadlineSeconds" not in pod  # it would run while the volume is attached and the image is pulled
    assert "activeDeadlineSeconds" not in job
    assert job["backoffLimit"] >= 20


def test_a_reader_that_died_beside_a_sidecar_is_deleted_as_a_trainer_is() -> None:
    dead = o.beside(reader("Running", o.ended(137)), "istio-proxy", o.running())
    first = collecting(dead, seconds=100)
    assert (waits_for(first), action(first)) == ("SidecarRunning", None)
    assert action(again(first, 130)) == decide.DeletePod("c", "c-uid")
    done = o.beside(reader("Running", o.ended(0, o.RESULT)), "istio-proxy", o.running())
    assert action(collecting(done)) == decide.RegisterAdapter()


def test_a_trainer_that_has_ended_well_is_done_though_its_job_was_removed_before_anybody_said_so() -> None:
    """Its last words were empty, and neither the status nor the registry knows: the claim does."""
    silent = o.pod("p1", "Succeeded", export=o.ended(0), trainer=o.ended(0))
    case = look(o.run({"phase": "Training", "jobName": o.JOB}), None, silent, result_asked=True)
    assert failure(case) is None
    assert action(case) == decide.CreateCollectJob()
    assert status(case).phase == "Registering"


def test_a_claim_that_a_sidecar_keeps_from_the_reader_is_freed() -> None:
    """ReadWriteOnce: the reader's pod waits on another node for the claim of a pod that does not end by itself."""
    silent = o.beside(o.pod("p1", export=o.ended(0), trainer=o.ended(0, "?")), "mesh", o.running())
    collect = o.job()
    collect["metadata"] |= {"name": f"{o.JOB}-collect", "uid": "collect-uid"}
    event = o.event("FailedAttachVolume", 'Multi-Attach error for volume "pvc-1": Volume is already used by pod(s) p1')
    case = look(
        o.run(REGISTERING),
        o.job(),
        silent,
        result_asked=True,
        collect_job=collect,
        collect_pods=[reader("Pending", o.waiting("ContainerCreating"))],
        events=[event],
    )
    assert action(case) is None
    assert "Multi-Attach" in waiting(case).message
    assert action(again(case, 60 + o.SETTINGS.linger_seconds - 1)) is None
    late = again(case, 60 + o.SETTINGS.linger_seconds + 1)
    assert action(late) == decide.DeleteJob(o.JOB, "job-uid")
    gone = dataclasses.replace(late, seen=dataclasses.replace(late.seen, job=None, pods=()))
    assert (action(gone), failure(gone)) == (None, None)
