"""The operator and the registry as processes, against a real API server.

There is no kubelet here: the test writes what the Job controller and the kubelet would write, so that every moment of a
run's life can be chosen. What they really write is proved on the cluster, in tests/e2e.
"""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path

import pytest
from aiohttp import ClientSession

from finetune.controller.core import names
from tests.support.heard import waiting
from tests.support.kubectl import Kubectl, is_true
from tests.support.processes import Server
from tests.support.proxy import Write
from tests.support.world import (
    DEADLINE_SECONDS,
    DIGEST,
    ROWS,
    World,
    a_world,
    eventually,
    frozen_jobs,
    manifest,
    stamp,
    terminated,
)


@pytest.mark.parametrize("world", [True], indirect=True, ids=["as the images start it"])
async def test_a_run_from_apply_to_the_registered_adapter(world: World) -> None:
    world.apply()
    pending = await world.phase("Pending")
    assert is_true(pending, "Accepted")
    job = await eventually("the Job", world.job_of)
    assert job["metadata"]["name"] == names.job_name("support", pending["metadata"]["uid"])
    world.start_pod()
    training = await world.phase("Training")
    assert is_true(training, "DatasetReady")
    world.finish_pod()
    done = await world.phase("Succeeded")
    assert is_true(done, "Succeeded")
    assert is_true(done, "Finished")
    assert done["status"]["result"]["finalLoss"] == "1.5"
    adapter = await world.client.get_adapter_version(world.kubectl.namespace, "support")
    assert (adapter.run_uid, adapter.version, adapter.sha256) == (done["metadata"]["uid"], 1, DIGEST)
    assert adapter.uri == done["status"]["result"]["adapter"]["uri"]
    ttl = await eventually("the Job's time to live", lambda: world.job_of()["spec"].get("ttlSecondsAfterFinished"))
    assert 3600 <= ttl < 3660
    said = world.kubectl("events", "--for=trainingrun/support")
    assert all(word in said for word in ("JobCreated", "DatasetExported", "TrainingStarted", "AdapterRegistered"))


@pytest.mark.long
async def test_killed_after_each_of_its_writes_it_still_makes_one_of_each(kubectl: Kubectl, tmp_path: Path) -> None:
    """Every single write of a run's life is the operator's last; a fresh process goes on each time."""
    async with a_world(kubectl, tmp_path) as world:
        killed: list[Write] = []

        async def kill(write: Write) -> None:
            repeated = write in killed and not write.path.endswith("/status")  # a registration is simply made again
            if not write.path.endswith("/events") and not repeated and world.operator.running:
                killed.append(write)
                await world.operator.kill()

        world.kubernetes.on_write = world.registry.on_write = kill
        keeper = asyncio.create_task(keep_running(world.operator))
        try:
            world.apply()
            await eventually("the Job", world.job_of)
            await world.phase("Pending")
            world.start_pod()
            await world.phase("Training")
            world.finish_pod()
            await world.phase("Succeeded")
            await eventually("the time to live", lambda: world.job_of()["spec"].get("ttlSecondsAfterFinished"))
        finally:
            keeper.cancel()
        said = [f"{write.method} {write.path.rsplit('/', 1)[-1]}" for write in killed]
        assert said.count("POST jobs") == 1
        assert said.count("POST persistentvolumeclaims") == 1
        assert said.count("PUT status") >= 3
        assert "PUT adapter" in said
        found = await world.client.list_adapter_versions(kubectl.namespace, "support")
        assert [adapter.version for adapter in found] == [1]
        final = world.run()
        assert final is not None
        assert final["status"]["result"]["adapter"]["id"] == found[0].id


async def test_two_operators_at_once_make_one_of_each(kubectl: Kubectl, tmp_path: Path) -> None:
    """Safety does not depend on who is the leader: names and the registry's unique key are the locks."""
    async with a_world(kubectl, tmp_path) as world:
        twin = Server("operator", environment=world.operator.environment, log=tmp_path / "twin.log")
        async with twin.serving():
            runs = [f"run-{number}" for number in range(5)]
            kubectl.apply(*(manifest(name) for name in runs))
            for name in runs:
                await eventually("the Job", functools.partial(world.job_of, name))
                world.start_pod(name)
                world.finish_pod(name)
                await world.phase("Succeeded", name)

        def all_jobs() -> list[str] | None:
            found = sorted(job["metadata"]["labels"][names.RUN_LABEL] for job in kubectl.items("jobs"))
            return found if len(found) == 2 * len(runs) else None

        jobs = await eventually("a training and a sending Job of each run", all_jobs)
        made = [write for write in world.writes if write.path.endswith("/jobs")]
        assert len(made) == len(jobs)
        assert jobs == sorted(runs * 2)
        for name in runs:
            assert len(await world.client.list_adapter_versions(kubectl.namespace, name)) == 1
        assert b"Traceback" not in (tmp_path / "twin.log").read_bytes()


async def test_a_paused_operator_starts_no_run_until_later(kubectl: Kubectl, tmp_path: Path) -> None:
    async with a_world(kubectl, tmp_path, FINETUNE_PAUSED="true") as world:
        world.apply()
        await world.phase("Pending")
        await eventually("Paused", lambda: waiting(world.run("support") or {}).get("reason") == "Paused")
        assert "operator.paused of the chart" in waiting(world.run("support") or {})["message"]
        assert world.job_of() is None
        await world.operator.kill()
        world.operator.environment["FINETUNE_PAUSED"] = "false"
        await world.operator.start()
        await eventually("the Job", world.job_of)


async def keep_running(operator: Server) -> None:
    """Start the operator again whenever it is dead, as its Deployment does."""
    while True:
        if not operator.running:
            await operator.start()
        await asyncio.sleep(0.05)


async def test_a_dataset_that_does_not_exist_is_waited_for_and_then_named(world: World) -> None:
    world.apply(dataset={"registry": {"name": "nothing-here"}})
    failed = await world.phase("Failed")
    assert failed["status"]["failure"]["reason"] == "DatasetUnavailable"
    assert "nothing-here" in failed["status"]["failure"]["message"]
    assert failed["status"]["failure"]["hint"]
    assert is_true(failed, "Stalled")
    assert world.job_of() is None


async def test_a_dataset_that_comes_later_is_in_time(kubectl: Kubectl, tmp_path: Path) -> None:
    async with a_world(kubectl, tmp_path, FINETUNE_REFERENCE_TIMEOUT_SECONDS="60") as world:
        world.apply(dataset={"registry": {"name": "later"}})
        waiting = await world.phase("Pending")
        ready = next(c for c in waiting["status"]["conditions"] if c["type"] == "DatasetReady")
        assert (ready["status"], ready["reason"]) == ("False", "DatasetUnavailable")
        rows = tmp_path / "later.jsonl"
        rows.write_bytes(ROWS)
        await world.client.push_dataset(kubectl.namespace, "later", rows)
        job = await eventually("the Job", world.job_of)
        assert job["spec"]["backoffLimit"] == 3


async def test_the_registry_killed_while_a_run_finishes_loses_nothing(world: World) -> None:
    world.apply()
    await eventually("the Job", world.job_of)
    world.start_pod()
    await world.phase("Training")
    await world.registry_server.kill()
    world.finish_pod()
    waiting = await world.phase("Registering")
    assert not is_true(waiting, "Finished")
    await world.registry_server.start()
    done = await world.phase("Succeeded")
    assert done["status"]["result"]["adapter"]["version"] == 1


async def test_a_restart_with_finished_runs_writes_nothing(kubectl: Kubectl, tmp_path: Path) -> None:
    async with a_world(kubectl, tmp_path) as world:
        runs = [f"run-{number:02}" for number in range(15)]
        kubectl.apply(*(manifest(name, dataset={"registry": {"name": "missing"}}) for name in runs))
        marked = names.FINISHED_ANNOTATION
        await eventually(
            "finished runs, marked",
            lambda: all(marked in (r["metadata"].get("annotations") or {}) for r in kubectl.items("trainingruns")),
        )
        for name in runs:
            await world.told("Failed", name)  # beside the passes, and maybe after the mark
        await world.operator.kill()
        before = len(world.kubernetes.writes), len(world.registry.writes)
        await world.operator.start()
        probe = manifest("z-probe", suspend=True)
        kubectl.apply(probe)  # last in the list, and needs one write: when it is there, all others had their turn
        uid = (await world.phase("Suspended", "z-probe"))["metadata"]["uid"]
        after = [w.path for w in [*world.kubernetes.writes[before[0] :], *world.registry.writes[before[1] :]]]
        others = [path for path in after if "probe" not in path and uid not in path]
        assert [path for path in others if not path.endswith("/events")] == []


async def test_applying_twice_changes_nothing(world: World) -> None:
    world.apply()
    await eventually("the Job", world.job_of)
    before = await world.phase("Pending")
    assert "unchanged" in world.apply()
    after = world.run()
    assert after is not None
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


async def test_suspend_and_resume_go_to_the_job(world: World) -> None:
    world.apply(activeDeadlineSeconds=1000)
    job = await eventually("the Job", world.job_of)
    name = job["metadata"]["name"]
    world.patch_status("job", name, {"startTime": stamp(-100)})
    await eventually("the active time", lambda: (world.run() or {})["status"].get("active"))
    world.apply(activeDeadlineSeconds=1000, suspend=True)
    await eventually("the suspended Job", lambda: world.job_of()["spec"]["suspend"])
    held = {"type": "Suspended", "status": "True", "lastTransitionTime": stamp(), "reason": "JobSuspended"}
    world.patch_status("job", name, {"startTime": stamp(-100), "conditions": [held]})
    suspended = await world.phase("Suspended")
    assert is_true(suspended, "Suspended")
    await eventually("no start time", lambda: "startTime" not in world.job_of()["status"])
    world.apply(activeDeadlineSeconds=1000)
    job = await eventually("the resumed Job", lambda: (job := world.job_of()) and not job["spec"]["suspend"] and job)
    assert 1000 - 100 - DEADLINE_SECONDS < job["spec"]["activeDeadlineSeconds"] <= 1000 - 100


async def test_a_job_that_cannot_be_changed_for_now_does_not_fail_its_run_and_says_so(world: World) -> None:
    world.apply()
    job = await eventually("the Job", world.job_of)
    await world.phase("Pending")
    name = world.kubectl.namespace
    world.kubectl.apply(*frozen_jobs(name))
    await eventually("frozen Jobs", lambda: not world.accepts("annotate", "job", job["metadata"]["name"], "a=b"))
    world.apply(suspend=True)
    said = await eventually("what it waits for", lambda: (world.run() or {})["status"].get("waiting"))
    assert "denied request: not now" in said["message"]
    run = world.run()
    assert run is not None
    assert (run["status"]["phase"], is_true(run, "Suspended")) == ("Pending", False)
    world.kubectl("delete", "validatingadmissionpolicy,validatingadmissionpolicybinding", name)
    await world.phase("Suspended")
    assert world.job_of()["spec"]["suspend"]


async def test_a_finished_run_follows_its_generation(world: World) -> None:
    world.apply(dataset={"registry": {"name": "missing"}})
    await world.phase("Failed")
    world.apply(dataset={"registry": {"name": "missing"}}, suspend=True)
    run = await eventually(
        "the new generation", lambda: (r := world.run()) and r["status"]["observedGeneration"] == 2 and r
    )
    assert {c["observedGeneration"] for c in run["status"]["conditions"]} == {2}
    assert run["status"]["phase"] == "Failed"


async def test_a_deleted_job_ends_the_run_and_is_not_created_again(world: World) -> None:
    world.apply()
    job = await eventually("the Job", world.job_of)
    await world.phase("Pending")
    world.kubectl("delete", "job", job["metadata"]["name"], "--cascade=background")
    failed = await world.phase("Failed")
    assert failed["status"]["failure"]["reason"] == "JobLost"
    assert world.job_of() is None


async def test_what_the_trainer_posts_becomes_the_progress(world: World) -> None:
    world.apply()
    await eventually("the Job", world.job_of)
    world.start_pod()
    run = await world.phase("Training")
    metrics = [
        {"name": name, "value": value} for name, value in (("step", "7"), ("totalSteps", "55"), ("loss", "2.91"))
    ]
    status = {"progressPercentage": 12, "estimatedRemainingSeconds": 130, "metrics": metrics}
    posted = {"trainerStatus": status, "attempt": 1}
    path = f"api/v1/namespaces/{world.kubectl.namespace}/runs/{run['metadata']['uid']}/status"
    async with ClientSession() as session, session.post(f"{world.registry.url}/{path}", json=posted) as answer:
        assert answer.status == 200
    shown = await eventually("progress", lambda: (r := world.run()) and r["status"].get("progress"))
    assert (shown["step"], shown["totalSteps"], shown["percent"], shown["loss"]) == (7, 55, 12, "2.91")
    assert shown["remainingSeconds"] == 130


async def test_the_last_words_of_a_failed_container_are_in_the_status(world: World) -> None:
    world.apply()
    await eventually("the Job", world.job_of)
    world.start_pod()
    await world.phase("Training")
    words = {"failure": {"reason": "Diverged", "message": "the loss became NaN at step 12"}}
    world.set_pod_status("support", "Failed", terminated(0), terminated(6, words))
    world.set_job_condition("support", "Failed", reason="PodFailurePolicy", message="rule 1")
    failed = await world.phase("Failed")
    assert failed["status"]["failure"] | {"hint": ""} == {
        "reason": "Diverged",
        "message": "the loss became NaN at step 12",
        "exitCode": 6,
        "hint": "",
    }
