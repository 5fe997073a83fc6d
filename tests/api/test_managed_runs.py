"""Whole runs on the real Job controller, with a stand-in for the kubelet: pods fail, are evicted, and have company."""

from __future__ import annotations

from tests.support.kubectl import is_true
from tests.support.kubelet import Attempt, Play
from tests.support.managed import Managed, result_of_pod
from tests.support.world import eventually


async def test_a_run_from_apply_to_its_adapter(managed: Managed) -> None:
    managed.world.apply()
    done = await managed.world.phase("Succeeded")
    assert done["status"]["attempts"] == 1
    await managed.check(names=("support",))


async def test_a_trainer_that_crashes_is_started_again(managed: Managed) -> None:
    managed.kubelet.script("support", Attempt(trainer=Play(code=1)), Attempt())
    managed.world.apply()
    done = await managed.world.phase("Succeeded")
    assert done["status"]["attempts"] == 2
    await managed.check(names=("support",))


async def test_an_evicted_trainer_goes_on_in_another_pod(managed: Managed) -> None:
    saved = Play(seconds=None, sigterm_code=75, sigterm_words={"interrupted": {"step": 3}})
    managed.kubelet.script("support", Attempt(trainer=saved), Attempt())
    managed.world.apply()
    await managed.world.phase("Training")
    await managed.kubelet.evict("support")
    done = await managed.world.phase("Succeeded")
    job = managed.world.job_of()
    assert job is not None
    assert "failed" not in job["status"]
    assert managed.pods_of("support") == 2
    assert is_true(done, "Succeeded")
    await managed.check(names=("support",))


async def test_a_result_that_only_the_claim_has_is_collected(managed: Managed) -> None:
    managed.kubelet.script("support", Attempt(trainer=Play(words="")))
    managed.kubelet.script("support", Attempt(plays={"collect": Play(words=result_of_pod)}), role="collect")
    managed.world.apply()
    await managed.world.phase("Succeeded")
    await managed.check(names=("support",))


async def test_a_deleted_run_takes_its_job_and_pods_with_it(managed: Managed) -> None:
    managed.kubelet.script("support", Attempt(trainer=Play(seconds=None, sigterm_code=75)))
    managed.world.apply()
    await managed.world.phase("Training")
    managed.world.kubectl("delete", "trainingrun", "support", "--wait=false")
    await eventually("nothing is left", lambda: not managed.world.kubectl.items("pods") and not managed.world.job_of())
