"""Pods with company: containers that somebody else adds to them, on the real Job controller."""

from __future__ import annotations

from tests.support.injection import inject
from tests.support.kubelet import Attempt, Play
from tests.support.managed import Managed
from tests.support.world import eventually


async def test_a_trainer_that_ended_well_is_registered_though_a_sidecar_goes_on(managed: Managed) -> None:
    await inject(managed.world.kubectl)
    managed.kubelet.script("support", Attempt(plays={"mesh": Play(seconds=None)}))
    managed.world.apply()
    await managed.world.phase("Succeeded")
    await managed.check(names=("support",))
    await eventually("its GPU is free", lambda: not managed.world.kubectl.items("pods", "finetune.dev/run=support"))
