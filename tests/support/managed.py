"""A world whose Jobs live: the real Job controller makes their pods, a stand-in for the kubelet moves them on.

async with a_managed_world(kubectl, folder) as managed:
    managed.kubelet.script("support", Attempt(trainer=Play(code=1)), Attempt())
    managed.world.apply()
    await managed.world.phase("Succeeded")
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.kubectl import Kubectl
from tests.support.kubelet import RUN_LABEL, Document, Kubelet, Play
from tests.support.processes import client_tls
from tests.support.watching import ROLE, RUN_UID, Record, recording
from tests.support.world import EXPORTED, World, a_world, result_of


def result_of_pod(pod: Document) -> Document:
    """The last words of the trainer of a pod that went well."""
    return result_of(pod["metadata"]["labels"][RUN_UID])


USUAL = {
    "export": Play(words=EXPORTED),
    "trainer": Play(seconds=0.2, words=result_of_pod),
    "collect": Play(words=result_of_pod),
    "send": Play(),
}
"""What the project's containers do in a test that says nothing else."""


@dataclass
class Managed:
    """A world, its kubelet, and what a watch has seen of it."""

    world: World
    kubelet: Kubelet
    record: Record

    async def check(self, *, names: tuple[str, ...] = ()) -> None:
        """Raise AssertionError for every rule that was broken so far: of objects, and one version in the registry.

        Parameters
        ----------
        names: runs that must have succeeded, each with an adapter of its own name.
        """
        self.record.check()
        for name in names:
            found = await self.world.client.list_adapter_versions(self.world.kubectl.namespace, name)
            assert [each.version for each in found] == [1], f"{name} has {len(found)} versions"

    def pods_of(self, name: str) -> int:
        """How many pods a run has had, without those that send its files afterwards."""
        uids = {
            each["metadata"]["uid"]
            for _, each in self.record.of("pods")
            if (labels := each["metadata"].get("labels") or {}).get(RUN_LABEL) == name and labels.get(ROLE) != "send"
        }
        return len(uids)


@asynccontextmanager
async def a_managed_world(
    kubectl: Kubectl,
    folder: Path,
    *,
    kubelet_skew: float = 0.0,
    skew: float = 0.0,
    judged: bool = True,
    **settings: str,
) -> AsyncIterator[Managed]:
    """`a_world` on a server with controllers, with a kubelet beside it whose clock may be ahead too.

    `judged`: check at the end that nothing was broken; not where the test itself breaks it.
    """
    server, tls = client_tls(kubectl.kubeconfig)
    kubelet = Kubelet(server=server, tls=tls, namespace=kubectl.namespace, defaults=USUAL, skew=kubelet_skew)
    async with (
        recording(server, tls, kubectl.namespace) as record,
        kubelet.serving(),
        a_world(kubectl, folder, skew=skew, fresh=False, **settings) as world,
    ):
        yield Managed(world, kubelet, record)
        if judged:  # what holds of every managed world needs no word in its test
            record.check()
