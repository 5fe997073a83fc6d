"""What Argo CD and kstatus make of a run in each moment of its life, on the real API server.

The same objects are stored as the test data of deploy/argocd; `WRITE_TESTDATA=1` writes them anew.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml

from tests.support import argocd, kstatus
from tests.support.argocd import TESTDATA
from tests.support.faults import Answer
from tests.support.heard import in_phase, newest, status, until, waiting
from tests.support.kubectl import Kubectl
from tests.support.kubelet import Attempt, Document, Play, Trouble
from tests.support.managed import Managed, result_of_pod
from tests.support.world import manifest

WRITE = bool(os.environ.get("WRITE_TESTDATA"))

FOR_EVER = Play(seconds=None, words=result_of_pod, sigterm_code=75, sigterm_words={"interrupted": {"step": 3}})
NO_NODE = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
BAD_ROW = {"failure": {"reason": "DatasetInvalid", "message": "row 17: completion is empty", "row": 17}}
DIVERGED = {"failure": {"reason": "Diverged", "message": "the loss of step 40 is not a number"}}

Reach = Callable[[Managed, str], Awaitable[Document]]


def when(check: Callable[[Document], bool]) -> Reach:
    """Wait until the run's object is so."""

    async def reach(managed: Managed, name: str) -> Document:
        return await until(managed.record, name, "it is as its row says", check)

    return reach


def suspended_while(phase: str) -> Reach:
    """Suspend it in that phase, and wait until no pod is left."""

    async def reach(managed: Managed, name: str) -> Document:
        await until(managed.record, name, phase, in_phase(phase))
        managed.world.kubectl.patch("trainingruns", name, {"spec": {"suspend": True}})
        return await until(managed.record, name, "it rests", lambda run: reason_of(run, "Suspended") == "Suspended")

    return reach


async def suspended_by_somebody_else(managed: Managed, name: str) -> Document:
    run = await until(managed.record, name, "Training", in_phase("Training"))
    managed.world.kubectl.patch("jobs", run["status"]["jobName"], {"spec": {"suspend": True}})
    return await until(managed.record, name, "it rests", lambda run: reason_of(run, "Suspended") == "SuspendedByOther")


async def saving_its_checkpoint(managed: Managed, name: str) -> Document:
    await until(managed.record, name, "Training", in_phase("Training"))
    managed.world.kubectl.patch("trainingruns", name, {"spec": {"suspend": True}})
    return await until(managed.record, name, "it saves", lambda run: reason_of(run, "Suspended") == "Suspending")


async def with_a_registry_that_refuses(managed: Managed, name: str) -> Document:
    run = await until(managed.record, name, "Training", in_phase("Training"))
    path = f"/runs/{run['metadata']['uid']}/adapter"
    managed.world.registry.faults.append(Answer("PUT", path, status=503, body="{}"))
    managed.kubelet.tell(name)
    return await until(managed.record, name, "it cannot register", lambda run: phase_and_wait(run)[1] != "")


def phase_and_wait(run: Document) -> tuple[str, str]:
    return status(run).get("phase", ""), waiting(run).get("reason", "")


def reason_of(run: Document, type_: str) -> str:
    listed = status(run).get("conditions") or []
    return next((str(each["reason"]) for each in listed if each["type"] == type_), "")


@dataclass(frozen=True)
class State:
    """A moment: how it comes about, and what is then said of it.

    Parameters
    ----------
    words: what Argo CD's message must name.
    """

    health: str
    kstatus: kstatus.Kstatus
    actions: frozenset[str]
    reach: Reach
    words: tuple[str, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    spec: Mapping[str, Any] = field(default_factory=dict)


GOING, RESTING, FAILED = frozenset({"suspend"}), frozenset({"resume"}), frozenset({"retry"})
ENDED: frozenset[str] = frozenset()

STATES = {
    "waits-for-dataset": State(
        "Progressing",
        "InProgress",
        GOING,
        when(lambda run: phase_and_wait(run) == ("Pending", "DatasetUnavailable")),
        ("Pending", "nothing-here"),
        spec={"dataset": {"registry": {"name": "nothing-here"}}},
    ),
    "waits-for-node": State(
        "Progressing",
        "InProgress",
        GOING,
        when(lambda run: phase_and_wait(run) == ("Pending", "Unschedulable")),
        ("Pending", NO_NODE),
        (Attempt(unschedulable=NO_NODE),),
    ),
    "waits-for-image": State(
        "Progressing",
        "InProgress",
        GOING,
        when(lambda run: phase_and_wait(run) == ("Pending", "ImagePullFailed")),
        ("ImagePullBackOff", "trainer:1"),
        (Attempt(trouble=Trouble("export", "ImagePullBackOff", 'Back-off pulling image "trainer:1"')),),
    ),
    "queued": State(
        "Progressing",
        "InProgress",
        GOING,
        when(in_phase("Queued")),
        ("Queued", "gpus"),
        spec={"scheduling": {"queueName": "gpus"}},
    ),
    "exporting": State(
        "Progressing",
        "InProgress",
        GOING,
        when(in_phase("Exporting")),
        ("Exporting",),
        (Attempt(export=FOR_EVER),),
    ),
    "training": State(
        "Progressing", "InProgress", GOING, when(in_phase("Training")), ("Training",), (Attempt(trainer=FOR_EVER),)
    ),
    "registering": State(
        "Progressing",
        "InProgress",
        GOING,
        with_a_registry_that_refuses,
        ("Registering",),
        (Attempt(trainer=FOR_EVER),),
    ),
    "suspending": State(
        "Progressing",
        "InProgress",
        RESTING,
        saving_its_checkpoint,
        ("Suspending: the pod is saving its checkpoint",),
        (Attempt(trainer=Play(seconds=None, after_sigterm=None, sigterm_code=75)),),
    ),
    "suspended": State(
        "Suspended",
        "Current",
        RESTING,
        suspended_while("Training"),
        ("spec.suspend is true",),
        (Attempt(trainer=FOR_EVER),),
    ),
    "suspended-by-other": State(
        "Suspended",
        "Current",
        GOING,
        suspended_by_somebody_else,
        ("was suspended, and not by this run",),
        (Attempt(trainer=FOR_EVER),),
    ),
    "succeeded": State(
        "Healthy", "Current", ENDED, when(in_phase("Succeeded")), ("adapter succeeded version 1",), (Attempt(),)
    ),
    "failed-before-training": State(
        "Degraded",
        "Failed",
        FAILED,
        when(in_phase("Failed")),
        ("DatasetInvalid", "row 17: completion is empty", "What to do: "),
        (Attempt(export=Play(code=3, words=BAD_ROW)),),
    ),
    "failed-in-training": State(
        "Degraded",
        "Failed",
        FAILED,
        when(in_phase("Failed")),
        ("Diverged", "step 40", "learningRate"),
        (Attempt(trainer=Play(seconds=2.5, code=6, words=DIVERGED)),),
    ),
}


async def test_every_moment_of_a_run_is_what_argo_cd_and_kstatus_say(managed: Managed) -> None:
    for name, state in STATES.items():
        managed.kubelet.script(name, *state.attempts)
    managed.world.kubectl.apply(*(manifest(name, **state.spec) for name, state in STATES.items()))
    reached = await asyncio.gather(*(state.reach(managed, name) for name, state in STATES.items()))
    wrong = [line for name, run in zip(STATES, reached, strict=True) for line in problems(name, STATES[name], run)]
    assert not wrong, "\n".join(wrong)
    for name, run in zip(STATES, reached, strict=True):
        stored(name, run)


def problems(name: str, state: State, run: Document) -> list[str]:
    """What is not as the row says."""
    said = argocd.health(run)
    found = [
        (state.health, said["status"]),
        (state.kstatus, kstatus.compute(run)),
        (state.actions, argocd.enabled_actions(run)),
    ]
    wrong = [f"{name}: {seen} is not {expected}" for expected, seen in found if seen != expected]
    return wrong + [
        f"{name}: {word!r} is not in {said['message']!r}" for word in state.words if word not in said["message"]
    ]


def stored(name: str, run: Document) -> None:
    """The stored object says the same; written anew when asked for."""
    path = TESTDATA / f"{name}.yaml"
    if WRITE:
        path.write_text(yaml.safe_dump(without_managed_fields(run), sort_keys=False, width=120))
    assert outline(argocd.stored_run(name)) == outline(run), f"{path.name} is not what a run is today: WRITE_TESTDATA=1"


def without_managed_fields(run: Document) -> Document:
    return {**run, "metadata": {key: value for key, value in run["metadata"].items() if key != "managedFields"}}


def outline(run: Document) -> Document:
    """What the scripts read, without times, names of pods and the like."""
    said = status(run)
    return {
        "phase": said["phase"],
        "observed": said["observedGeneration"] == run["metadata"]["generation"],
        "conditions": [(each["type"], each["status"], each["reason"]) for each in said["conditions"]],
        "failure": (said.get("failure") or {}).get("reason"),
        "trained": "trainingStartTime" in said,
    }


@pytest.mark.long
async def test_a_retried_run_goes_on_from_where_it_failed(managed: Managed) -> None:
    """Argo CD creates what the action returns."""
    diverges = Attempt(trainer=Play(seconds=2.5, code=6, words=DIVERGED))
    managed.kubelet.script("support", diverges)
    managed.world.apply()
    failed = await until(managed.record, "support", "it fails", in_phase("Failed"))
    (created,) = argocd.run_script("actions/retry/action.lua", failed)
    assert created["operation"] == "create"
    name = created["resource"]["metadata"]["name"]
    managed.world.kubectl.apply(created["resource"])
    run = await until(
        managed.record, name, "it has its Job", lambda run: bool((run.get("status") or {}).get("jobName"))
    )
    assert run["spec"]["resumeFrom"] == {"run": "support"}
    done = await until(managed.record, name, "it succeeds", in_phase("Succeeded"))
    assert done["status"]["result"]["adapter"]["name"] == "support"
    assert newest(managed.record, "support")["status"]["phase"] == "Failed"


async def test_nothing_is_said_of_a_run_that_no_operator_has_seen(kubectl: Kubectl) -> None:
    kubectl.apply(manifest("new"))
    run = kubectl.find("trainingruns", "new")
    assert run is not None
    if WRITE:
        (TESTDATA / "new.yaml").write_text(yaml.safe_dump(without_managed_fields(run), sort_keys=False, width=120))
    assert argocd.health(run) == {
        "status": "Progressing",
        "message": "No status yet; if this stays so, look at the operator's pod.",
    }
    assert argocd.stored_run("new")["status"] == run["status"]
