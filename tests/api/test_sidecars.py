"""Pods with company: containers that somebody else adds to them, on the real Job controller.

A small webhook server injects them, as a mesh, a secret store or a log shipper does. Whatever they do, the trainer's
own end decides, and what they do wrong is said in their name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.admission import AdmissionServer, Inject
from tests.support.heard import all_of, in_phase, newest, status, until, waiting
from tests.support.kubectl import Kubectl
from tests.support.kubelet import Attempt, Document, Play, Trouble
from tests.support.managed import a_managed_world, result_of_pod
from tests.support.scenes import Scene, Step, heal, nothing
from tests.support.world import eventually, manifest

TRAINED = Play(seconds=0.2, words=result_of_pod)
SAVES = Play(seconds=None, sigterm_code=75, sigterm_words={"interrupted": {"step": 3}})
FOREVER = Play(seconds=None)
MESH, NATIVE, INIT = Inject("mesh"), Inject("mesh", native=True), Inject("mesh", init=True)


async def evict(scene: Scene, name: str) -> None:
    """Drain its node while it trains."""
    await until(scene.managed.record, name, "it trains", in_phase("Training"))
    await scene.managed.kubelet.evict(name)


async def let_the_claim_speak(scene: Scene, name: str) -> None:
    """The small Job that reads the result has the same company."""
    reads = Attempt(plays={"collect": TRAINED, "mesh": FOREVER})
    scene.managed.kubelet.script(name, reads, role="collect")


async def end_the_init_container(scene: Scene, name: str) -> None:
    scene.managed.kubelet.tell(name, "mesh")


async def end_the_training(scene: Scene, name: str) -> None:
    """It went on beside the container that could not start."""
    scene.managed.kubelet.heal(name)
    scene.managed.kubelet.tell(name)


@dataclass(frozen=True)
class Row:
    """A run with company, and how it ends.

    Parameters
    ----------
    attempts: what its pods do; all of them end in a success.
    says: reason and words of what it waits for at some time, if anything.
    reasons: how its attempts ended, in order.
    during, end: what happens to it at first, and once it has said what it waits for.
    """

    injected: Inject
    attempts: tuple[Attempt, ...]
    reasons: tuple[str, ...] = ("Completed",)
    says: tuple[str, ...] = ()
    during: Step = nothing
    end: Step = nothing
    spec: Mapping[str, Any] = field(default_factory=dict)


def beside(trainer: Play, mesh: Play) -> Attempt:
    """A trainer, and a container beside it."""
    return Attempt(trainer=trainer, plays={"mesh": mesh})


TABLE: dict[str, Row] = {
    "goes-on": Row(MESH, (beside(TRAINED, FOREVER),)),
    "deaf": Row(MESH, (beside(TRAINED, Play(seconds=None, after_sigterm=None)),)),
    "ends-143": Row(MESH, (beside(TRAINED, Play(seconds=1, code=143)),)),
    "ends-2": Row(MESH, (beside(TRAINED, Play(seconds=1, code=2)),)),
    "ended-2-before": Row(MESH, (beside(Play(seconds=2, words=result_of_pod), Play(code=2)),)),
    "speechless": Row(MESH, (beside(Play(seconds=1), FOREVER),), during=let_the_claim_speak),
    "crash": Row(
        MESH,
        (beside(Play(code=1, words="KeyError"), FOREVER), beside(TRAINED, FOREVER)),
        ("InternalError", "Completed"),
        ("SidecarRunning", "exit code 1", '"mesh"'),
    ),
    "crash-and-2": Row(
        MESH,
        (beside(Play(code=1), Play(seconds=None, sigterm_code=2)), beside(TRAINED, FOREVER)),
        ("InternalError", "Completed"),
        ("SidecarRunning", "exit code 1"),
    ),
    "fails-with-2": Row(MESH, (beside(Play(code=1), Play(code=2)), Attempt()), ("InternalError", "Completed")),
    "evicted": Row(MESH, (beside(SAVES, FOREVER), Attempt()), ("Interrupted", "Completed"), during=evict),
    "evicted-and-2": Row(
        MESH,
        (beside(SAVES, Play(seconds=None, sigterm_code=2)), Attempt()),
        ("Interrupted", "Completed"),
        during=evict,
    ),
    "native": Row(NATIVE, (beside(TRAINED, FOREVER),)),
    "native-2": Row(NATIVE, (beside(TRAINED, Play(seconds=None, sigterm_code=2)),)),
    "native-crash": Row(
        NATIVE, (beside(Play(code=1), FOREVER), beside(TRAINED, FOREVER)), ("InternalError", "Completed")
    ),
    "native-evicted": Row(NATIVE, (beside(SAVES, FOREVER), Attempt()), ("Interrupted", "Completed"), during=evict),
    "init-fails": Row(INIT, (Attempt(plays={"mesh": Play(code=2)}), Attempt()), ("SidecarFailed", "Completed")),
    "init-image": Row(
        INIT,
        (Attempt(trouble=Trouble("mesh", "ErrImagePull", 'failed to pull "mesh:1": denied')),),
        says=("ImagePullFailed", 'init container "mesh"', "denied"),
        end=heal,
    ),
    "image": Row(
        MESH,
        (
            Attempt(
                trainer=Play(seconds=None, words=result_of_pod),
                trouble=Trouble("mesh", "ImagePullBackOff", 'Back-off pulling image "mesh:1"'),
            ),
        ),
        says=("ImagePullFailed", 'container "mesh"', "Back-off"),
        end=end_the_training,
    ),
    "init-slow": Row(
        INIT,
        (Attempt(plays={"mesh": FOREVER}),),
        says=("InitContainerRunning", 'init container "mesh"'),
        end=end_the_init_container,
    ),
    "init-secret": Row(
        INIT,
        (Attempt(trouble=Trouble("mesh", "CreateContainerConfigError", 'secret "mesh-ca" not found')),),
        says=("PodNotStarted", 'init container "mesh"', 'secret "mesh-ca" not found'),
        end=heal,
    ),
}


OF_EACH_KIND = ("goes-on", "ends-2", "crash", "evicted", "native", "init-fails", "image")


@pytest.mark.parametrize("others", [False, pytest.param(True, marks=pytest.mark.long)], ids=["each kind", "others"])
async def test_whatever_runs_beside_the_trainer_it_alone_decides(
    managed_kubectl: Kubectl, tmp_path: Path, others: bool
) -> None:
    chosen = {name: row for name, row in TABLE.items() if (name not in OF_EACH_KIND) is others}
    async with (
        AdmissionServer(tmp_path).serving() as admission,
        a_managed_world(
            managed_kubectl,
            tmp_path,
            FINETUNE_PENDING_SECONDS="1",
            FINETUNE_TERMINATION_GRACE_SECONDS="5",
            FINETUNE_LINGER_SECONDS="5",
        ) as managed,
    ):
        admission.rules |= {name: row.injected for name, row in chosen.items()}
        await admission.register(managed_kubectl, "pods", mutating=True)
        for name, row in chosen.items():
            managed.kubelet.script(name, *row.attempts)
        managed_kubectl.apply(*(manifest(name, **row.spec) for name, row in chosen.items()))
        scene = Scene(managed, admission, tmp_path)
        await all_of(*(story(scene, name) for name in chosen))
        await managed.check(names=tuple(chosen))


async def story(scene: Scene, name: str) -> list[str]:
    """Live with company; what is wrong with how it went."""
    row, record = TABLE[name], scene.managed.record
    await row.during(scene, name)
    if row.says:
        await until(record, name, f"it says {row.says}", lambda run: tells(run, row.says))
    await row.end(scene, name)
    run = await until(record, name, "it succeeds", in_phase("Succeeded"))
    await eventually(f"the pods of {name} are over", lambda: over(scene.kubectl, name))
    found = tuple(each.get("reason") for each in status(newest(record, name))["attemptHistory"])
    before, after = found[: len(row.reasons) - 1], set(found[len(row.reasons) - 1 :])
    problems = []
    if before != row.reasons[:-1] or not after <= {"Completed", None}:  # what ends well may be started once more
        problems.append(f"{name}: its attempts were {found}")
    if run["status"]["result"]["adapter"]["version"] != 1:
        problems.append(f"{name}: registered as {run['status']['result']['adapter']}")
    return problems


def tells(run: Document, wanted: Iterable[str]) -> bool:
    """Whether it says what it waits for, reason first."""
    reason, *words = wanted
    told = waiting(run)
    return told.get("reason") == reason and all(word in told["message"] for word in words)


def over(kubectl: Kubectl, name: str) -> bool:
    """No pod of the run holds anything any more."""
    pods = kubectl.items("pods", f"finetune.dev/run={name}")
    return all(pod["status"].get("phase") in ("Succeeded", "Failed") for pod in pods)
