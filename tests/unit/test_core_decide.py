"""What is done next for a run, from what was seen of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from finetune.controller.core import decide
from finetune.controller.core.failures import failure_of
from finetune.controller.core.manifests import build_job
from finetune.controller.core.messages import message_of
from finetune.controller.core.observe import AdapterView, DatasetView, Observation, event_views, job_view, pod_view
from tests.support import objects as o

ADAPTER = AdapterView(id="1", name="support", version=1, uri="pvc://adapters/x", sha256="a" * 64, bytes=10)


def observe(job: dict[str, Any] | None, *pods: dict[str, Any], **more: Any) -> Observation:
    return Observation(job=job_view(job) if job else None, pods=tuple(pod_view(pod) for pod in pods), **more)


def action(run: Any, seen: Observation, seconds: float = 60) -> object:
    return decide.next_action(decide.case_of(run, seen, o.SETTINGS, o.at(seconds)))


def failure(run: Any, seen: Observation, seconds: float = 60) -> Any:
    return failure_of(decide.case_of(run, seen, o.SETTINGS, o.at(seconds)))


def test_a_new_run_is_recorded_then_gets_its_claim_and_then_its_job() -> None:
    run = o.run(output={})
    assert action(run, Observation()) == decide.RecordRun()
    recorded = Observation(dataset=DatasetView(version=3))
    assert action(run, recorded) == decide.CreateClaim()
    assert action(run, dataclasses.replace(recorded, claim_exists=True)) == decide.CreateJob()


def test_a_named_claim_is_not_created() -> None:
    assert action(o.run(), Observation(dataset=DatasetView(version=3))) == decide.CreateJob()


NO_DATASET = Observation(dataset=DatasetView(missing='dataset "tickets" not found'))


NO_PARENT = Observation(dataset=DatasetView(version=3), parent_missing="adapter 'support' does not exist")


def test_no_job_without_its_parent_adapter() -> None:
    assert action(o.run(**o.PREFERENCE), NO_PARENT) is None
    run = o.run(accepted("False", since=5), **o.PREFERENCE)
    assert failure(run, NO_PARENT, 304) is None
    late = failure(run, NO_PARENT, 306)
    assert (late.reason, "adapter 'support'" in late.message) == ("ParentAdapterUnavailable", True)


def test_a_parent_of_the_same_base_model_is_trained_on() -> None:
    seen = Observation(dataset=DatasetView(version=3), parent=o.PARENT)
    assert action(o.run(**o.PREFERENCE), seen) == decide.CreateJob()


def test_a_parent_of_another_base_model_is_refused_before_there_is_a_job() -> None:
    seen = Observation(dataset=DatasetView(version=3), parent=dataclasses.replace(o.PARENT, base_model="org/other"))
    assert action(o.run(**o.PREFERENCE), seen) is None
    found = failure(o.run(**o.PREFERENCE), seen)
    assert found.reason == "InvalidSpec"
    assert "adapter support version 3 was trained on the base model org/other" in found.message
    assert "spec.baseModel is smollm2" in found.message


def accepted(status: str, since: float = 0) -> dict[str, Any]:
    """A status with this condition."""
    condition = {"type": "Accepted", "status": status, "reason": "X", "lastTransitionTime": o.stamp(since)}
    return {"conditions": [condition]}


def test_no_job_without_its_dataset() -> None:
    assert action(o.run(), NO_DATASET) is None
    run = o.run(accepted("False", since=5))
    assert failure(run, NO_DATASET, 304) is None
    late = failure(run, NO_DATASET, 306)
    assert (late.reason, "tickets" in late.message) == ("DatasetUnavailable", True)


@pytest.mark.parametrize("before", [{}, accepted("True"), accepted("Unknown")])
def test_a_dataset_is_waited_for_from_when_it_is_first_missed(before: dict[str, Any]) -> None:
    """Neither a suspension nor a registry that was away is part of the wait."""
    assert failure(o.run(before), NO_DATASET, 10_000) is None


def test_the_registry_may_be_away_for_ever() -> None:
    seen = Observation(registry_error="no answer")
    assert action(o.run(), seen, 10_000) is None
    assert failure(o.run(accepted("Unknown")), seen, 10_000) is None


@pytest.mark.parametrize(("message", "expires"), [("exceeded quota: jobs", False), ("webhook denied the Job", True)])
def test_a_job_that_is_refused(message: str, expires: bool) -> None:
    found = failure(o.run(accepted("False")), Observation(refused=message), 10_000)
    assert (found.reason if found else None) == ("PodCreationRefused" if expires else None)


def test_a_result_is_not_given_up_because_the_collect_job_is_refused() -> None:
    run = o.run({**accepted("False"), "phase": "Registering", "jobName": o.JOB})
    assert failure(run, observe(o.job("Complete"), refused="webhook denied the Job"), 10_000) is None


def test_a_suspended_run_starts_nothing() -> None:
    assert action(o.run(suspend=True), Observation()) is None


def test_suspending_keeps_the_active_time_and_resuming_takes_it_off_the_deadline() -> None:
    seen = observe(o.job(seconds=10))
    assert action(o.run(suspend=True), seen, 70) == decide.SuspendJob(active_seconds=60)
    suspended = o.job(suspend=True)
    suspended["metadata"]["annotations"] = {"finetune.dev/active-seconds": "60"}
    assert action(o.run(activeDeadlineSeconds=100), observe(suspended)) == decide.ResumeJob(40)
    assert action(o.run(), observe(suspended)) == decide.ResumeJob(None)


def test_a_failed_pod_is_not_a_failed_run() -> None:
    seen = observe(o.job(), o.failed_pod("p1", 137))
    assert failure(o.run(), seen) is None
    assert action(o.run(), seen) is None


def test_success_needs_the_adapter_first() -> None:
    done = o.pod("p1", "Succeeded", export=o.ended(0), trainer=o.ended(0, o.RESULT))
    seen = observe(o.job("Complete"), done)
    assert action(o.run(), seen) == decide.RegisterAdapter()
    assert action(o.run(), dataclasses.replace(seen, adapter=ADAPTER)) is None


def test_an_exit_0_before_the_job_is_complete_is_not_yet_a_success() -> None:
    done = o.pod("p1", "Succeeded", export=o.ended(0), trainer=o.ended(0, o.RESULT))
    assert action(o.run(), observe(o.job(), done)) is None


def test_the_result_is_looked_for_in_the_registry_and_then_on_the_claim() -> None:
    complete = observe(o.job("Complete"))
    assert (
        action(o.run(), dataclasses.replace(complete, stored_result=message_of(o.RESULT))) == decide.RegisterAdapter()
    )
    assert action(o.run(), complete) == decide.CreateCollectJob()
    collected = o.pod("c", "Succeeded", trainer=o.ended(0, o.RESULT))
    seen = dataclasses.replace(complete, collect_job=job_view(o.job("Complete")), collect_pods=(pod_view(collected),))
    assert action(o.run(), seen) == decide.RegisterAdapter()


def test_an_unreadable_result_fails_the_run() -> None:
    lost = o.pod("c", "Failed", trainer=o.ended(1, {"failure": {"reason": "InternalError", "message": "no such file"}}))
    seen = observe(o.job("Complete"), collect_job=job_view(o.job("Failed")), collect_pods=(pod_view(lost),))
    assert failure(o.run(), seen).reason == "AdapterInvalid"
    assert "no such file" in failure(o.run(), seen).message


def test_a_result_that_nobody_heard_is_read_once_more() -> None:
    seen = observe(o.job("Complete"), collect_job=job_view(o.job("Complete")))
    assert failure(o.run(), seen) is None
    assert action(o.run(), seen) == decide.DeleteJob(o.JOB)
    empty = dataclasses.replace(seen, collect_pods=(pod_view(o.pod("c", "Succeeded", trainer=o.ended(0, "?"))),))
    assert failure(o.run(), empty).reason == "AdapterInvalid"


def test_a_lost_job_is_never_created_again() -> None:
    run = o.run({"phase": "Training", "jobName": o.JOB})
    assert action(run, Observation()) is None
    assert failure(run, Observation()).reason == "JobLost"


def test_no_job_is_lost_while_the_registry_cannot_say_whether_the_training_was_done() -> None:
    run = o.run({"phase": "Training", "jobName": o.JOB})
    assert failure(run, Observation(registry_error="no answer")) is None


def test_a_job_lost_after_the_training_still_gives_its_adapter() -> None:
    run = o.run({"phase": "Registering", "jobName": o.JOB})
    assert failure(run, Observation()) is None
    assert action(run, Observation(stored_result=message_of(o.RESULT))) == decide.RegisterAdapter()
    assert action(run, Observation()) == decide.CreateCollectJob()


def finished(**more: Any) -> dict[str, Any]:
    condition = {"type": "Finished", "status": "True", "reason": "X", "lastTransitionTime": o.stamp(90)}
    return {"phase": "Succeeded", "jobName": o.JOB, "conditions": [condition], **more}


def test_a_finished_run_only_cleans_up() -> None:
    run = o.run(finished())
    assert action(run, Observation()) is None
    assert action(run, observe(o.job())) == decide.DeleteJob(o.JOB)
    assert action(run, observe(o.job("Complete", end=100)), 130) == decide.SetTTL(30 + 3600)
    assert action(run, observe(o.job("Complete", ttlSecondsAfterFinished=5))) is None


def test_another_objects_job_is_left_alone() -> None:
    assert action(o.run(), Observation(name_taken="taken")) is None
    assert failure(o.run(), Observation(name_taken="taken"), 10_000) is None


BACKOFF = {"reason": "BackoffLimitExceeded", "message": "Job has reached the specified backoff limit"}
POLICY = {"reason": "PodFailurePolicy", "message": "matching FailJob rule at index 1"}
WORDS = {"failure": {"reason": "DatasetInvalid", "message": "train.jsonl row 7: not valid JSON", "row": 7}}
EXPORT_FAILED = o.pod("p1", "Failed", export=o.ended(3, WORDS))


@pytest.mark.parametrize(
    ("job", "pods", "reason", "exit_code", "row"),
    [
        (POLICY, [EXPORT_FAILED], "DatasetInvalid", 3, 7),
        (POLICY, [o.failed_pod("p1", 6)], "Diverged", 6, None),
        (POLICY, [o.failed_pod("p1", 10)], "BaseModelUnavailable", 10, None),
        (POLICY, [o.pod("p1", "Failed", export=o.ended(10))], "DatasetUnavailable", 10, None),
        (BACKOFF, [o.failed_pod("p1", 137, reason="OOMKilled")], "OutOfMemory", 137, None),
        (BACKOFF, [o.failed_pod("p1", 137)], "InternalError", 137, None),
        (BACKOFF, [o.failed_pod("p1", 1, "Traceback: boom")], "InternalError", 1, None),
        (BACKOFF, [], "RetriesExhausted", None, None),
        (BACKOFF, [o.failed_pod("p1", 4), o.failed_pod("p2", 1, created=60)], "RetriesExhausted", None, None),
        (POLICY, [o.failed_pod("p1", 4), o.failed_pod("p2", 7, created=60)], "StorageFull", 7, None),
        ({"reason": "DeadlineExceeded"}, [o.failed_pod("p1", 143)], "DeadlineExceeded", None, None),
    ],
)
def test_the_reason_of_a_failed_job(
    job: dict[str, str], pods: list[dict[str, Any]], reason: str, exit_code: int | None, row: int | None
) -> None:
    found = failure(o.run(), observe(o.job("Failed", **job), *pods))
    assert (found.reason, found.exit_code, found.row) == (reason, exit_code, row)


def test_the_last_words_are_in_the_message() -> None:
    found = failure(o.run(), observe(o.job("Failed", **BACKOFF), o.failed_pod("p1", 1, "Traceback: boom")))
    assert "Traceback: boom" in found.message
    assert "trainer" in found.message


def unschedulable(message: str) -> dict[str, Any]:
    return o.pod("p1", "Pending", conditions=[{"type": "PodScheduled", "status": "False", "message": message}])


def mount_event(message: str) -> dict[str, Any]:
    return {"reason": "FailedMount", "message": message, "metadata": {}, "lastTimestamp": o.stamp(20)}


def claim_event(message: str) -> dict[str, Any]:
    """As `gather` gives it: with the claim's name in front."""
    return {**mount_event(f'PersistentVolumeClaim "adapters": {message}'), "reason": "ProvisioningFailed"}


def pending(export: dict[str, Any]) -> dict[str, Any]:
    return o.pod("p1", "Pending", export=export)


@pytest.mark.parametrize(
    ("pod", "events", "reason", "text", "expires"),
    [
        (pending(o.waiting("ErrImagePull", "not found: x")), [], "ImagePullFailed", "not found: x", True),
        (pending(o.waiting("InvalidImageName", "bad")), [], "ImagePullFailed", "bad", True),
        (
            pending(o.waiting("CreateContainerConfigError", 'secret "hub" not found')),
            [],
            "AccessDenied",
            'Secret "hub"',
            True,
        ),
        (
            pending(o.waiting("PodInitializing")),
            [mount_event('MountVolume.SetUp failed for volume "source" : configmap "rows" not found')],
            "DatasetUnavailable",
            'ConfigMap "rows" not found in namespace "ml"',
            True,
        ),
        (
            unschedulable('persistentvolumeclaim "base-models" not found'),
            [],
            "BaseModelUnavailable",
            '"base-models"',
            True,
        ),
        (unschedulable('persistentvolumeclaim "adapters" not found'), [], "Unschedulable", '"adapters"', True),
        (unschedulable("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."), [], "Unschedulable", "gpu", False),
        (unschedulable("pod has unbound immediate PersistentVolumeClaims"), [], "Unschedulable", "adapters", False),
        (
            unschedulable("pod has unbound immediate PersistentVolumeClaims"),
            [claim_event('storageclass.storage.k8s.io "nope" not found')],
            "Unschedulable",
            '"adapters": storageclass.storage.k8s.io "nope" not found',
            True,
        ),
        (
            unschedulable("pod has unbound immediate PersistentVolumeClaims"),
            [claim_event("no space left in the pool")],
            "Unschedulable",
            "no space left in the pool",
            False,
        ),
        (pending(o.waiting("CreateContainerError", "no space")), [], "InternalError", "no space", False),
        (
            pending({}),
            [{**mount_event("Multi-Attach error for volume"), "reason": "FailedAttachVolume"}],
            "Unschedulable",
            "Multi-Attach",
            False,
        ),
        (
            None,
            [{"reason": "FailedCreate", "message": "exceeded quota: gpus", "metadata": {}}],
            "PodCreationRefused",
            "quota",
            False,
        ),
        (
            None,
            [{"reason": "FailedCreate", "message": 'violates PodSecurity "restricted"', "metadata": {}}],
            "PodCreationRefused",
            "PodSecurity",
            True,
        ),
    ],
)
def test_what_a_pending_run_waits_for(
    pod: dict[str, Any] | None, events: list[dict[str, Any]], reason: str, text: str, expires: bool
) -> None:
    pods = [pod] if pod else []
    seen = observe(o.job(), *pods, events=event_views(events))
    problem = decide.case_of(o.run(), seen, o.SETTINGS, o.at(60)).problem
    assert problem is not None
    assert (problem.reason, problem.expires) == (reason, expires)
    assert text in problem.message
    assert failure(o.run(), seen, 60) is None
    late = failure(o.run(), seen, 400)
    assert (late.reason if late else None) == (reason if expires else None)


@pytest.mark.parametrize(
    ("message", "reason", "text"),
    [
        ('persistentvolumeclaim "parents" not found', "ParentAdapterUnavailable", 'PersistentVolumeClaim "parents"'),
        ("pod has unbound immediate PersistentVolumeClaims", "Unschedulable", "adapters, base-models, parents"),
    ],
)
def test_the_parents_claim_is_one_of_those_that_a_pod_waits_for(message: str, reason: str, text: str) -> None:
    run = o.run(**o.PREFERENCE)
    made = {**o.job(), "spec": build_job(run, o.SETTINGS, o.PARENT)["spec"]}
    problem = decide.case_of(run, observe(made, unschedulable(message)), o.SETTINGS, o.at(60)).problem
    assert problem is not None
    assert (problem.reason, text in problem.message) == (reason, True), problem.message


def test_the_time_in_the_queue_is_not_a_wait_for_the_image() -> None:
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": o.stamp(9_000)}
    pod = o.pod("p1", "Pending", export=o.waiting("ErrImagePull", "i/o timeout"), conditions=[scheduled])
    assert failure(o.run(), observe(o.job(), pod), 9_010) is None
    assert failure(o.run(), observe(o.job(), pod), 9_301).reason == "ImagePullFailed"


def test_the_export_is_not_a_wait_for_the_trainers_secret() -> None:
    words = o.waiting("CreateContainerConfigError", 'secret "hub" not found')
    pod = o.pod("p1", "Pending", export=o.ended(0, seconds=2_000), trainer=words)
    assert failure(o.run(), observe(o.job(), pod), 2_010) is None
    assert failure(o.run(), observe(o.job(), pod), 2_301).reason == "AccessDenied"


def test_a_second_attempt_that_is_refused_says_so_and_waits() -> None:
    refusal = {"reason": "FailedCreate", "message": "webhook denied the pod", "metadata": {}}
    for seconds, text in ((50, "webhook denied the pod"), (1, None)):
        events = event_views([{**refusal, "lastTimestamp": o.stamp(seconds)}])
        case = decide.case_of(
            o.run(), observe(o.job(), o.failed_pod("p1", 137), events=events), o.SETTINGS, o.at(9_000)
        )
        assert (case.problem.message if case.problem else None) == text
        assert failure_of(case) is None


SHARED_MEMORY = 'Usage of EmptyDir volume "shared-memory" exceeds the limit "2Gi". '
DISK = 'Container trainer exceeded its local ephemeral storage limit "1Gi". '


def evicted(name: str, code: int, message: str, **more: Any) -> dict[str, Any]:
    found = o.failed_pod(name, code, {"interrupted": {"step": 5}} if code == 75 else None, **more)
    return {**found, "status": {**found["status"], "reason": "Evicted", "message": message}}


@pytest.mark.parametrize(
    ("message", "reason"), [(SHARED_MEMORY, "OutOfMemory"), (DISK, "StorageFull")], ids=["memory", "disk"]
)
def test_a_pod_evicted_for_its_own_use_is_no_interruption(message: str, reason: str) -> None:
    for code in (75, 137):
        pod = evicted("p1", code, message)
        case = decide.case_of(o.run(), observe(o.job(), pod), o.SETTINGS, o.at(60))
        assert [attempt.reason for attempt in case.attempts] == [reason]
        found = failure(o.run(), observe(o.job("Failed", **BACKOFF), pod))
        assert (found.reason, message.strip() in found.message) == (reason, True)
    # The Job does not count exit code 75, so that only this ends them.
    again = [evicted(f"p{n}", 75, message, created=2 + 40 * n) for n in range(21)]
    found = failure(o.run(), observe(o.job(), *again))
    assert (found.reason, message.strip() in found.message) == ("RetriesExhausted", True)


def test_interruptions_are_free_but_not_endless() -> None:
    def interrupted(count: int, step: int) -> list[dict[str, Any]]:
        words = {"interrupted": {"step": step}}
        return [o.failed_pod(f"s{step}-{n}", 75, words, created=2 + 40 * n) for n in range(count)]

    assert failure(o.run(), observe(o.job(), *interrupted(20, 5))) is None
    found = failure(o.run(), observe(o.job(), *interrupted(21, 5)))
    assert (found.reason, "21 times" in found.message) == ("RetriesExhausted", True)
    moving = [pod for step in range(30) for pod in [o.failed_pod(f"p{step}", 75, {"interrupted": {"step": step}})]]
    assert failure(o.run(), observe(o.job(), *moving)) is None
