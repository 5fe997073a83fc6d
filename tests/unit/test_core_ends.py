"""How a run ends badly: its reason, its words, its exit code, and what is no end."""

from __future__ import annotations

from typing import Any

import pytest

from finetune.controller.core.status import hint_of
from tests.support import objects as o
from tests.support.cases import failed, failure, look, stored

BACKOFF: dict[str, Any] = {"reason": "BackoffLimitExceeded", "message": "Job has reached the specified backoff limit"}
POLICY: dict[str, Any] = {"reason": "PodFailurePolicy", "message": "matching FailJob rule at index 1"}
WORDS = {"failure": {"reason": "DatasetInvalid", "message": "train.jsonl row 7: not valid JSON", "row": 7}}
EXPORT_FAILED = o.pod("p1", "Failed", export=o.ended(3, WORDS))


@pytest.mark.parametrize(
    ("job", "pods", "reason", "exit_code", "row"),
    [
        (POLICY, [EXPORT_FAILED], "DatasetInvalid", 3, 7),
        (POLICY, [o.failed_pod("p1", 2)], "InvalidSpec", 2, None),
        (POLICY, [o.failed_pod("p1", 5)], "AccessDenied", 5, None),
        (POLICY, [o.failed_pod("p1", 6)], "Diverged", 6, None),
        (POLICY, [o.failed_pod("p1", 8)], "GPUOutOfMemory", 8, None),
        (POLICY, [o.failed_pod("p1", 10)], "BaseModelUnavailable", 10, None),
        (POLICY, [o.pod("p1", "Failed", export=o.ended(10))], "DatasetUnavailable", 10, None),
        (BACKOFF, [o.failed_pod("p1", 137, reason="OOMKilled")], "OutOfMemory", 137, None),
        (BACKOFF, [o.failed_pod("p1", 137)], "InternalError", 137, None),
        (BACKOFF, [o.failed_pod("p1", 1, "Traceback: boom")], "InternalError", 1, None),
        (BACKOFF, [o.failed_pod("p1", 4)], "BaseModelUnavailable", 4, None),
        (BACKOFF, [o.failed_pod("p1", 7), o.failed_pod("p2", 7, created=60)], "StorageFull", 7, None),
        (BACKOFF, [o.failed_pod("p1", 9), o.failed_pod("p2", 9, created=60)], "GPUUnavailable", 9, None),
        (BACKOFF, [o.failed_pod("p1", 11), o.failed_pod("p2", 11, created=60)], "Hung", 11, None),
        (BACKOFF, [], "RetriesExhausted", None, None),
        (BACKOFF, [o.failed_pod("p1", 4), o.failed_pod("p2", 1, created=60)], "RetriesExhausted", None, None),
        (POLICY, [o.failed_pod("p1", 4), o.failed_pod("p2", 6, created=60)], "Diverged", 6, None),
        ({"reason": "DeadlineExceeded"}, [o.failed_pod("p1", 143)], "DeadlineExceeded", None, None),
    ],
)
def test_the_reason_of_a_failed_job(
    job: dict[str, Any], pods: list[dict[str, Any]], reason: str, exit_code: int | None, row: int | None
) -> None:
    found = failed(look(None, o.job("Failed", **job), *pods))
    assert (found.reason, found.exit_code, found.row) == (reason, exit_code, row)


def test_the_last_words_are_in_the_message() -> None:
    found = failed(look(None, o.job("Failed", **BACKOFF), o.failed_pod("p1", 1, "Traceback: boom")))
    assert "Traceback: boom" in found.message
    assert "trainer" in found.message


def test_a_broken_gpu_names_its_node_and_a_full_claim_its_name() -> None:
    words = {"failure": {"reason": "GPUUnavailable", "message": "no CUDA device"}}
    found = failed(look(None, o.job("Failed", **BACKOFF), o.failed_pod("p1", 9, words)))
    assert "on node node-1" in found.message
    full = {"failure": {"reason": "StorageFull", "message": "no space left on device"}}
    found = failed(look(None, o.job("Failed", **BACKOFF), o.failed_pod("p1", 7, full)))
    assert "PersistentVolumeClaim adapters" in found.message
    hung = failed(look(None, o.job("Failed", **BACKOFF), o.failed_pod("p1", 11, "no step for 600 s")))
    assert "on node node-1" in hung.message


def test_attempts_that_ended_differently_are_listed_with_their_nodes() -> None:
    found = failed(look(None, o.job("Failed", **BACKOFF), o.failed_pod("p1", 9), o.failed_pod("p2", 137, created=60)))
    assert found.reason == "RetriesExhausted"
    assert "p1 on node-1: GPUUnavailable (exit code 9)" in found.message
    assert "p2 on node-1: InternalError (exit code 137)" in found.message


def test_the_status_remembers_the_cause_when_the_pods_are_gone() -> None:
    pods = [o.failed_pod(f"p{n}", 137, created=2 + 40 * n, reason="OOMKilled") for n in range(3)]
    run = stored(look(None, o.job(), *pods))
    found = failed(look(run, o.job("Failed", **BACKOFF)))
    assert (found.reason, found.exit_code) == ("OutOfMemory", 137)
    assert "pod p2 on node node-1 was the last of 3" in found.message


def test_a_killed_trainer_says_which_limit_it_passed() -> None:
    """The limit that a person can raise: the trainer's own, and the larger of two for the export."""
    run = o.run(resources={"memory": "300Mi", "sharedMemory": "64Mi"})
    trainer = failed(look(run, o.job("Failed", **BACKOFF), o.failed_pod("p1", 137, reason="OOMKilled")))
    assert "spec.resources.memory: 300Mi" in trainer.message
    export = o.pod("p1", "Failed", export=o.ended(137, reason="OOMKilled"))
    exporting = failed(look(run, o.job("Failed", **BACKOFF), export))
    assert "container export" in exporting.message
    assert "the larger of 1Gi and spec.resources.memory: 300Mi" in exporting.message
    assert "spec.resources.memory" in hint_of(exporting)


# Evictions


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
        assert [attempt.reason for attempt in look(None, o.job(), pod).attempts] == [reason]
        found = failed(look(None, o.job("Failed", **BACKOFF), pod))
        assert (found.reason, message.strip() in found.message) == (reason, True)
    # The Job does not count exit code 75, so that only this ends them.
    again = [evicted(f"p{n}", 75, message, created=2 + 40 * n) for n in range(21)]
    found = failed(look(None, o.job(), *again))
    assert (found.reason, message.strip() in found.message) == ("RetriesExhausted", True)


def test_interruptions_are_free_but_not_endless() -> None:
    def interrupted(count: int, step: int) -> list[dict[str, Any]]:
        words = {"interrupted": {"step": step}}
        return [o.failed_pod(f"s{step}-{n}", 75, words, created=2 + 40 * n) for n in range(count)]

    assert failure(look(None, o.job(), *interrupted(20, 5))) is None
    found = failed(look(None, o.job(), *interrupted(21, 5)))
    assert (found.reason, "21 times" in found.message) == ("RetriesExhausted", True)
    moving = [o.failed_pod(f"p{step}", 75, {"interrupted": {"step": step}}, created=2 + step) for step in range(30)]
    assert failure(look(None, o.job(), *moving)) is None
