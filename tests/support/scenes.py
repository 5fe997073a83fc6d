"""Troubles around one run, brought about and ended: steps of the tests that wait them out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.admission import NOBODY, AdmissionServer, Deny, configuration, in_force
from tests.support.kubectl import Kubectl
from tests.support.managed import Managed


@dataclass(frozen=True)
class Scene:
    """What the steps act on; a step gets the name of the run."""

    managed: Managed
    admission: AdmissionServer
    folder: Path

    @property
    def kubectl(self) -> Kubectl:
        """In the namespace of the test."""
        return self.managed.world.kubectl


Step = Callable[[Scene, str], Awaitable[None]]


async def nothing(scene: Scene, name: str) -> None:
    """The trouble comes and goes by itself, or with the pod."""


async def heal(scene: Scene, name: str) -> None:
    """What its pod waits for is there."""
    scene.managed.kubelet.heal(name)


async def refuse_pods(scene: Scene, name: str) -> None:
    """The webhook refuses its pods; it leaves the code out, as many do."""
    scene.admission.rules[name] = Deny("label cost-center is required")


async def admit_pods(scene: Scene, name: str) -> None:
    """The webhook lets them pass again."""
    del scene.admission.rules[name]


def webhook_away(resource: str) -> Step:
    """A webhook for its Jobs or pods is registered, and nobody answers for it."""

    async def step(scene: Scene, name: str) -> None:
        scene.kubectl.apply(configuration(scene.kubectl.namespace, resource, NOBODY, run=name))
        await in_force(scene.kubectl, resource, "failed calling webhook", run=name)

    return step


def webhook_back(resource: str) -> Step:
    """That webhook is taken away."""

    async def step(scene: Scene, name: str) -> None:
        scene.kubectl("delete", "validatingwebhookconfiguration", f"{scene.kubectl.namespace}-{resource}-{name}")

    return step
