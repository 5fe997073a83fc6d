"""What Events, pods and nodes say, and what of it is history."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.support import objects as o
from tests.support.cases import again, failed, failure, look, stored, waiting, waits_for

NO_ROWS = 'MountVolume.SetUp failed for volume "source" : configmap "rows" not found'
ROWS: dict[str, Any] = {"dataset": {"configMap": {"name": "rows", "key": "train.jsonl"}}}


def mount_event(message: str, seconds: float = 20) -> dict[str, Any]:
    return o.event("FailedMount", message, seconds)


# Events that are history


@pytest.mark.parametrize("newer", ["Pulling", "Pulled", "Created", "Started"])
def test_a_volume_that_is_mounted_by_now_is_not_waited_for(newer: str) -> None:
    """The ConfigMap came ten seconds late; the Event lives for an hour, and the image takes its time."""
    events = [mount_event(NO_ROWS, 4), o.event(newer, "x", 15, warning=False)]
    case = look(o.run(**ROWS), o.job(), o.pending(o.waiting("PodInitializing")), events=events, seconds=304)
    assert waits_for(case) is None
    assert failure(again(case, 10_000)) is None


def test_a_volume_that_is_missing_again_is() -> None:
    events = [o.event("Pulled", "x", 3, warning=False), mount_event(NO_ROWS, 4)]
    case = look(o.run(**ROWS), o.job(), o.pending(o.waiting("PodInitializing")), events=events)
    assert waits_for(case) == "DatasetUnavailable"


def test_a_started_pod_waits_for_no_volume() -> None:
    for pod in (o.pending(o.running()), o.pending(o.ended(0)), o.pod("p1", export=o.ended(0), trainer=o.running())):
        assert waits_for(look(o.run(**ROWS), o.job(), pod, events=[mount_event(NO_ROWS)])) is None


def test_a_refusal_of_the_jobs_first_pod_is_history_once_it_made_one_or_was_resumed() -> None:
    refused = o.event("FailedCreate", "Error creating: exceeded quota: gpus", 5)
    for newer in ("SuccessfulCreate", "Suspended", "Resumed"):
        events = [refused, o.event(newer, "x", 50, warning=False)]
        assert waits_for(look(None, o.job(), events=events)) is None, newer
        assert waits_for(look(None, o.job(), o.failed_pod("p1", 137), events=events)) is None, newer


def test_a_refusal_of_the_jobs_pod_is_not_said_of_a_job_that_rests_or_has_ended() -> None:
    events = [o.event("FailedCreate", "Error creating: exceeded quota: gpus", 5)]
    assert waits_for(look(o.run(suspend=True), o.job(suspend=True, suspended_by=o.UID), events=events)) is None
    assert waits_for(look(None, o.job("Complete"), events=events, result_asked=True)) is None


def test_a_second_attempt_that_is_refused_says_so_and_waits() -> None:
    denied = [o.event("FailedCreate", 'Error creating: admission webhook "x" denied the request: no', 50)]
    case = look(None, o.job(), o.failed_pod("p1", 137), events=denied)
    assert (waiting(case).reason, "denied the request" in waiting(case).message) == ("PodCreationRefused", True)
    assert failure(again(case, 9_000)) is None
    made = [o.event("FailedCreate", "denied the request", 1), o.event("SuccessfulCreate", "p1", 2, warning=False)]
    assert waits_for(look(None, o.job(), o.failed_pod("p1", 137), events=made)) is None


# Pods and nodes


def test_a_pod_on_a_node_that_does_not_report_is_said_with_its_node() -> None:
    pod = o.pod("p1", export=o.ended(0), trainer=o.running())
    pod["status"]["conditions"].append({"type": "Ready", "status": "False", "reason": "PodFailed"})
    pod["status"]["containerStatuses"][0]["ready"] = True
    case = look(None, o.job(), pod)
    assert (waiting(case).reason, waiting(case).object) == ("NodeNotReady", "Node/node-1")
    assert failure(again(case, 10_000)) is None


def test_a_pod_that_saves_is_no_trouble_until_its_node_is_probably_lost() -> None:
    stuck = o.pod("p1", export=o.ended(0), trainer=o.running(), deletionTimestamp=o.stamp(10))
    first = look(None, o.job(), stuck, seconds=60)
    assert "saves its checkpoint" in waiting(first).message
    late = again(first, 60 + 181)
    assert "still terminating" in waiting(late).message
    assert "node-1" in waiting(late).message
    assert "out-of-service" in waiting(late).hint
    assert failure(again(first, 10**6)) is None


def test_whatever_else_the_kubelet_warns_of_is_said() -> None:
    events = [o.event("FailedCreatePodSandBox", "no IPs left", 20)]
    assert "FailedCreatePodSandBox: no IPs left" in waiting(look(None, o.job(), o.pending({}), events=events)).message
    progressed = [*events, o.event("Pulling", "x", 30, warning=False)]
    assert waits_for(look(None, o.job(), o.pending({}), events=progressed)) is None


def test_the_policies_look_at_the_collect_jobs_pod_as_at_any_other() -> None:
    trained = o.pod("p1", "Succeeded", export=o.ended(0), trainer=o.ended(0))
    case = look(
        None,
        o.job("Complete"),
        trained,
        result_asked=True,
        collect_job=o.job(),
        collect_pods=[o.pod("c", "Pending", export={}, trainer=o.waiting("ErrImagePull", "i/o timeout"))],
    )
    assert waits_for(case) == "ImagePullFailed"
    assert dataclasses.replace(case, now=o.at(10**6)).trained
    assert failure(again(case, 10**6)) is None


def test_a_kubelet_that_sums_up_does_not_hide_why_nor_start_the_clock_again() -> None:
    """It says both in turn; only one of them names what is missing."""
    summary = "Unable to attach or mount volumes: unmounted volumes=[source]: timed out waiting for the condition"
    pod = o.pending(o.waiting("PodInitializing"))
    first = look(o.run(**ROWS), o.job(), pod, events=[mount_event(NO_ROWS, 20)], seconds=30)
    both = look(stored(first), o.job(), pod, events=[mount_event(NO_ROWS, 100), mount_event(summary, 123)], seconds=125)
    assert waiting(both).key == waiting(first).key
    assert failed(again(first, 330, before=both)).reason == "DatasetUnavailable"
    alone = look(o.run(**ROWS), o.job(), pod, events=[mount_event(summary, 123)])
    assert waits_for(alone) == "VolumeNotMounted"
    old = look(o.run(**ROWS), o.job(), pod, events=[mount_event(NO_ROWS, 20), mount_event(summary, 400)], seconds=401)
    assert waits_for(old) == "VolumeNotMounted"


def test_a_pod_with_readiness_gates_is_on_a_node_that_is_well() -> None:
    pod = o.pod("p1", export=o.ended(0), trainer=o.running())
    pod["status"]["conditions"].append({"type": "Ready", "status": "False", "reason": "ReadinessGatesNotReady"})
    pod["status"]["containerStatuses"][0]["ready"] = True
    assert waits_for(look(None, o.job(), pod)) is None
