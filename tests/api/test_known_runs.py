"""What the operator takes from memory: few requests for a run that goes on, and no decision on what is old."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from aiohttp import ClientSession

from finetune.controller.core import names
from tests.support.faults import FrozenWatch
from tests.support.kubectl import Kubectl
from tests.support.kubelet import Attempt, Play
from tests.support.managed import Managed, a_managed_world
from tests.support.world import eventually

RARE = {"FINETUNE_RESYNC_SECONDS": "60"}
TRAINS = Attempt(trainer=Play(seconds=None, sigterm_code=75))


def counted(requests: list[str]) -> Counter[str]:
    """Requests by what they are; watches, and the lists of all runs, which no single run costs, are left out."""
    kinds: Counter[str] = Counter()
    for request in requests:
        method, path = request.split(" ", 1)
        if "watch=" in path or "/trainingruns?" in path or "/namespaces/" not in path:
            continue
        kinds["reads" if method == "GET" else "events" if "/events" in path else "writes"] += 1
    return kinds


async def test_a_short_run_costs_few_requests(managed_kubectl: Kubectl, tmp_path: Path) -> None:
    async with a_managed_world(managed_kubectl, tmp_path, **RARE) as managed:
        world = managed.world
        world.apply()
        await world.phase("Succeeded")
        await eventually(
            "the Job's time to live", lambda: (job := world.job_of()) and job["spec"].get("ttlSecondsAfterFinished")
        )
        cost = counted(world.kubernetes.requests)
        assert cost["reads"] <= 25, cost
        assert cost["events"] <= 4, cost
        assert cost["writes"] <= 10, cost


async def test_a_run_that_trains_is_not_read(managed_kubectl: Kubectl, tmp_path: Path) -> None:
    async with a_managed_world(managed_kubectl, tmp_path, **RARE) as managed:
        world = managed.world
        managed.kubelet.script("support", TRAINS)
        world.apply()
        run = await world.phase("Training")
        await progress(managed, run["metadata"]["uid"], 1)
        before = len(world.kubernetes.requests)
        await progress(managed, run["metadata"]["uid"], 2)
        assert counted(world.kubernetes.requests[before:]) == {"writes": 1}


async def progress(managed: Managed, uid: str, percent: int) -> None:
    """Post progress as the trainer does, and wait until the status has it."""
    world = managed.world
    path = f"api/v1/namespaces/{world.kubectl.namespace}/runs/{uid}/status"
    body = {"trainerStatus": {"progressPercentage": percent, "metrics": [{"name": "step", "value": str(percent)}]}}
    async with ClientSession() as session, session.post(f"{world.registry.url}/{path}", json=body) as answer:
        assert answer.status == 200
    await eventually(
        f"{percent} percent",
        lambda: ((world.run() or {}).get("status", {}).get("progress") or {}).get("percent") == percent,
    )


async def test_a_job_that_changed_unheard_is_suspended_as_it_is(managed_kubectl: Kubectl, tmp_path: Path) -> None:
    async with a_managed_world(managed_kubectl, tmp_path, **RARE) as managed:
        world, silence = managed.world, FrozenWatch(path="/jobs")
        managed.kubelet.script("support", TRAINS)
        world.apply()
        uid = (await world.phase("Training"))["metadata"]["uid"]
        with world.kubernetes.faulty(silence):
            world.kubernetes.cut()
            await eventually("nothing is heard of Jobs", lambda: silence.hits)
            await progress(managed, uid, 1)  # now the Job is known as it is
            world.kubectl("annotate", "job", names.job_name("support", uid), "example.com/x=1")
            before = len(world.kubernetes.requests)
            world.kubectl("patch", "trainingrun", "support", "--type=merge", '--patch={"spec":{"suspend":true}}')
            await eventually("the Job rests", lambda: (job := world.job_of()) and job["spec"]["suspend"])
            tried = [
                each for each in world.kubernetes.requests[before:] if each.startswith("PATCH") and "/jobs/" in each
            ]
        assert len(tried) >= 2, "the first names the version that was known, and the next comes after reading"


async def test_a_deletion_that_a_watch_has_missed_is_found(managed_kubectl: Kubectl, tmp_path: Path) -> None:
    async with a_managed_world(managed_kubectl, tmp_path, judged=False) as managed:
        world, silence = managed.world, FrozenWatch(path="/(jobs|pods)")
        managed.kubelet.script("support", TRAINS)
        world.apply()
        uid = (await world.phase("Training"))["metadata"]["uid"]
        with world.kubernetes.faulty(silence):
            world.kubernetes.cut()
            await eventually("nothing is heard of Jobs and pods", lambda: silence.hits >= 2)
            await progress(managed, uid, 1)
            world.kubectl("delete", "job", names.job_name("support", uid), "--cascade=background")
            failed = await world.phase("Failed")
        assert failed["status"]["failure"]["reason"] == "JobLost"
