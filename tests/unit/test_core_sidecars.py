"""Containers that the cluster adds to the pod: the trainer decides, and whoever fails is named."""

from __future__ import annotations

from typing import Any

import pytest

from finetune.controller.core import decide
from finetune.controller.core.exits import claim_failure_policy, pod_failure_policy
from finetune.controller.core.views import AdapterView, pod_view
from tests.support import objects as o
from tests.support.cases import action, again, failed, failure, look, status, stored, waiting, waits_for

ADAPTER = AdapterView(id="1", name="support", version=1, uri="pvc://adapters/x", sha256="a" * 64, bytes=10)
BACKOFF: dict[str, Any] = {"reason": "BackoffLimitExceeded", "message": "Job has reached the specified backoff limit"}
POLICY: dict[str, Any] = {"reason": "PodFailurePolicy", "message": "matching FailJob rule at index 1"}


def training(name: str = "p1", phase: str = "Running", **more: Any) -> dict[str, Any]:
    return o.pod(name, phase, export=o.ended(0), **{"trainer": o.running(), **more})


def done(name: str = "p1", phase: str = "Running", **more: Any) -> dict[str, Any]:
    return training(name, phase, trainer=o.ended(0, o.RESULT), **more)


# The trainer is done


def test_a_trainer_that_is_done_does_not_wait_for_its_sidecar() -> None:
    alive = o.beside(done(), "istio-proxy", o.running())
    case = look(None, o.job(), alive, seconds=9_000)
    assert action(case) == decide.RegisterAdapter()
    assert (waiting(case).reason, '"istio-proxy"' in waiting(case).message) == ("SidecarRunning", True)
    registered = look(None, o.job(), alive, seconds=9_000, adapter=ADAPTER)
    assert action(registered) is None
    ended = stored(registered)
    assert ended.status.phase == "Succeeded"
    assert action(look(ended, o.job(), seconds=9_001)) == decide.MarkFinished()
    assert action(look(ended, o.job(), seconds=9_031, mark_refused=True)) == decide.DeleteJob(o.JOB, "job-uid")


@pytest.mark.parametrize("job", [BACKOFF, POLICY, {"reason": "DeadlineExceeded", "message": "too long"}])
@pytest.mark.parametrize("code", [143, 2, 1, 137])
def test_a_sidecar_that_ends_badly_does_not_undo_a_finished_training(job: dict[str, Any], code: int) -> None:
    """The proxy gets SIGTERM once the trainer is done and ends with 143: the pod is Failed, the result is there."""
    pods = [
        o.beside(done(f"p{number}", "Failed", created=2 + 40 * number), "proxy", o.ended(code)) for number in range(4)
    ]
    case = look(None, o.job("Failed", **job), *pods)
    assert failure(case) is None
    assert action(case) == decide.RegisterAdapter()
    assert [attempt.reason for attempt in case.attempts] == ["Completed"] * 4
    assert status(case).phase == "Registering"


def test_a_done_trainer_without_words_is_read_from_the_claim_though_its_pod_failed() -> None:
    pod = o.beside(training(phase="Failed", trainer=o.ended(0)), "proxy", o.ended(2))
    case = look(None, o.job("Failed", **BACKOFF), pod, result_asked=True)
    assert failure(case) is None
    assert action(case) == decide.CreateCollectJob()


# The trainer died


def test_a_crash_beside_a_sidecar_is_a_crash() -> None:
    """The Job cannot see it: the pod is said, and after half a minute deleted, so that the next attempt starts."""
    dead = o.beside(training(trainer=o.ended(137)), "istio-proxy", o.running())
    first = look(None, o.job(), dead, seconds=100)
    assert (waiting(first).reason, action(first)) == ("SidecarRunning", None)
    assert "exit code 137" in waiting(first).message
    assert '"istio-proxy"' in waiting(first).message
    assert action(again(first, 129)) is None
    assert action(again(first, 130)) == decide.DeletePod("p1", "p1-uid")
    assert failure(again(first, 100_000)) is None
    assert status(first).warnings


@pytest.mark.parametrize("code", [1, 75, 4, 6])
def test_whatever_the_dead_trainers_exit_code_is(code: int) -> None:
    dead = o.beside(training(trainer=o.ended(code)), "agent", o.running())
    assert action(again(look(None, o.job(), dead), 95)) == decide.DeletePod("p1", "p1-uid")


def test_a_pod_that_goes_by_itself_is_not_deleted_again() -> None:
    leaving = o.beside(training(trainer=o.ended(137), deletionTimestamp=o.stamp(90)), "agent", o.running())
    assert action(again(look(None, o.job(), leaving), 200)) is None


def test_a_failed_export_beside_a_native_sidecar_ends_by_itself() -> None:
    """Kubernetes stops a sidecar that it knows as one; nothing has to be deleted."""
    pod = o.pod("p1", "Pending", export=o.ended(4))
    native = o.beside(pod, "istio-proxy", o.running(), init=True, always=True)
    assert action(again(look(None, o.job(), native), 200)) is None


def test_a_sidecar_that_kubernetes_stops_by_itself_keeps_nothing_alive() -> None:
    native = o.beside(training(trainer=o.ended(137)), "istio-proxy", o.running(), init=True, always=True)
    assert waits_for(look(None, o.job(), native)) is None


# The sidecar's own end


def test_only_our_containers_exit_codes_end_the_job() -> None:
    """Cloud SQL's proxy ends with 2 after SIGTERM; 2 is InvalidSpec here, and the first rule that matches wins."""
    rules = pod_failure_policy()["rules"]
    named = [rule["onExitCodes"].get("containerName") for rule in rules if "onExitCodes" in rule]
    assert set(named) == {"export", "trainer"}
    collecting = [rule for rule in claim_failure_policy("collect")["rules"] if "onExitCodes" in rule]
    assert [rule["onExitCodes"]["containerName"] for rule in collecting] == ["collect"]


def test_the_trainers_code_is_the_trainers_whatever_the_sidecar_answers() -> None:
    """The pod was deleted, the trainer saved and ended with 75, the proxy answered SIGTERM with 2."""
    pod = o.beside(training(phase="Failed", trainer=o.ended(75, {"interrupted": {"step": 9}})), "proxy", o.ended(2))
    case = look(None, o.job(), pod)
    assert failure(case) is None
    assert [(a.reason, a.exit_code, a.step) for a in case.attempts] == [("Interrupted", 75, 9)]


def test_a_sidecar_that_fails_the_pod_is_named() -> None:
    pod = o.beside(training(phase="Failed", trainer={}), "vault-agent", o.ended(1, "permission denied"))
    found = failed(look(None, o.job("Failed", **BACKOFF), pod))
    assert found.reason == "SidecarFailed"
    assert 'container "vault-agent" of pod p1' in found.message
    assert "permission denied" in found.message


def test_an_init_container_that_fails_the_pod_is_named() -> None:
    pod = o.beside(o.pod("p1", "Failed"), "istio-init", o.ended(1, "iptables: not permitted"), init=True)
    found = failed(look(None, o.job("Failed", **BACKOFF), pod))
    assert (found.reason, found.exit_code) == ("SidecarFailed", 1)
    assert 'init container "istio-init"' in found.message
    assert "iptables: not permitted" in found.message


def test_an_init_container_that_runs_before_ours_is_said() -> None:
    pod = o.beside(o.pod("p1", "Pending"), "istio-init", o.running(), init=True)
    case = look(None, o.job(), pod)
    assert (waiting(case).reason, '"istio-init"' in waiting(case).message) == ("InitContainerRunning", True)
    assert failure(again(case, 100_000)) is None


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("ImagePullBackOff", "ImagePullFailed"),
        ("ErrImagePull", "ImagePullFailed"),
        ("CreateContainerConfigError", "PodNotStarted"),
        ("CreateContainerError", "PodNotStarted"),
        ("CrashLoopBackOff", "PodNotStarted"),
    ],
)
def test_an_injected_container_that_cannot_start_is_named_and_ends_no_run(reason: str, expected: str) -> None:
    words = 'secret "mesh" not found'
    for init in (True, False):
        pod = o.beside(o.pod("p1", "Pending"), "linkerd", o.waiting(reason, words), init=init)
        case = look(None, o.job(), pod)
        assert waiting(case).reason == expected
        assert '"linkerd"' in waiting(case).message
        assert words in waiting(case).message
        assert failure(again(case, 100_000)) is None


def test_a_sidecar_that_cannot_start_beside_a_running_trainer_is_said() -> None:
    pod = o.beside(training(), "log-shipper", o.waiting("CrashLoopBackOff", "back-off 5m0s"))
    case = look(None, o.job(), pod)
    assert '"log-shipper"' in waiting(case).message
    assert status(case).phase == "Training"
    assert failure(again(case, 100_000)) is None


def test_ours_come_before_injected_ones_in_what_is_said() -> None:
    pod = o.beside(o.pod("p1", "Pending", export=o.waiting("ErrImagePull", "ours")), "agent", o.waiting("ErrImagePull"))
    assert waiting(look(None, o.job(), pod)).message == "ErrImagePull: ours"


def test_containers_are_found_by_name_wherever_a_webhook_puts_its_own() -> None:
    pod = training()
    pod["status"]["containerStatuses"].insert(0, {"name": "a-proxy", "state": o.ended(3)})
    view = pod_view(pod)
    assert (view.trainer.name, view.export.name) == ("trainer", "export")
    assert [each.name for each in view.injected] == ["a-proxy"]
