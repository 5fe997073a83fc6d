"""Runs that go on from an adapter of the registry, against a real API server and without a kubelet."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

from tests.support.kubectl import CommandError, Kubectl, is_true
from tests.support.world import DIGEST, World, a_world, eventually

PREFERENCE: dict[str, Any] = {"method": "DPO", "parentAdapter": {"name": "support"}}


async def succeeded(world: World, name: str, **spec: Any) -> dict[str, Any]:
    """Apply a run and take it to its end."""
    world.apply(name, **spec)
    await eventually("the Job", lambda: world.job_of(name))
    world.start_pod(name)
    await world.phase("Training", name)
    world.finish_pod(name)
    return await world.phase("Succeeded", name)


def trainer(job: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = job["spec"]["template"]["spec"]["containers"][0]
    return container


async def test_a_run_waits_for_its_parent_goes_on_from_it_and_names_it_in_its_lineage(
    kubectl: Kubectl, tmp_path: Path
) -> None:
    async with a_world(kubectl, tmp_path, FINETUNE_REFERENCE_TIMEOUT_SECONDS="300") as world:
        world.apply("preferred", **PREFERENCE)
        waiting = await world.phase("Pending", "preferred")
        accepted = next(c for c in waiting["status"]["conditions"] if c["type"] == "Accepted")
        assert (accepted["status"], accepted["reason"]) == ("False", "WaitingForReference")
        assert "adapter 'support' does not exist" in accepted["message"]
        parent = await succeeded(world, "support")
        done = await succeeded(world, "preferred", **PREFERENCE)
        check_lineage(world, parent, done)
        registered = await world.client.get_adapter_version(world.kubectl.namespace, "preferred")
        assert registered.parent is not None
        assert (registered.parent.name, registered.parent.version, registered.parent.sha256) == ("support", 1, DIGEST)


def check_lineage(world: World, parent: dict[str, Any], done: dict[str, Any]) -> None:
    job = world.job_of("preferred")
    assert job is not None
    volumes = {volume["name"]: volume for volume in job["spec"]["template"]["spec"]["volumes"]}
    claim = parent["status"]["output"]["claimName"]
    assert volumes["parent-adapter"]["persistentVolumeClaim"] == {"claimName": claim, "readOnly": True}
    mounted = {"name": "parent-adapter", "mountPath": "/models/parent", "readOnly": True}
    assert mounted in trainer(job)["volumeMounts"]
    folder = f"/models/parent/support/{parent['metadata']['uid']}/adapter"
    assert {f"--parent-adapter={folder}", "--parent-adapter-name=support/1"} <= set(trainer(job)["args"])
    assert done["status"]["parentAdapter"] == {"name": "support", "version": 1, "sha256": DIGEST}


async def test_a_parent_on_the_output_claim_needs_no_second_volume(world: World) -> None:
    world.kubectl.apply(claim("shared"))
    await succeeded(world, "support", output={"claimName": "shared"})
    world.apply("preferred", **PREFERENCE, output={"claimName": "shared"})
    job = await eventually("the Job", lambda: world.job_of("preferred"))
    assert [v for v in job["spec"]["template"]["spec"]["volumes"] if v["name"] == "parent-adapter"] == []
    assert any(a.startswith("--parent-adapter=/output/support/") for a in trainer(job)["args"])


def claim(name: str) -> dict[str, Any]:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}


async def test_the_version_is_found_once_even_when_a_newer_one_comes_before_the_job(world: World) -> None:
    """A quota keeps the Job away while the parent's next version is registered."""
    await succeeded(world, "one", adapter={"name": "support"})
    world.apply("two", adapter={"name": "support"})
    await eventually("the second Job", lambda: world.job_of("two"))
    world.start_pod("two")
    await world.phase("Training", "two")
    await refuse_jobs(world)
    world.apply("preferred", **PREFERENCE)
    waiting = await eventually("the pinned parent", lambda: pinned(world))
    assert waiting["status"]["parentAdapter"]["version"] == 1
    assert world.job_of("preferred") is None
    world.finish_pod("two")
    await world.phase("Succeeded", "two")
    world.kubectl("delete", "resourcequota", "q")
    job = await eventually("the Job", lambda: world.job_of("preferred"))
    assert "--parent-adapter-name=support/1" in trainer(job)["args"]
    newest = await world.client.get_adapter_version(world.kubectl.namespace, "support")
    assert newest.version == 2


QUOTA_STATUS = '{"status": {"hard": {"count/jobs.batch": "0"}, "used": {"count/jobs.batch": "2"}}}'
"""What the quota controller, which is not there, would write."""


async def refuse_jobs(world: World) -> None:
    """A quota that keeps every further Job away, once the API server, which learns of it by watching, refuses one."""
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}}
    world.kubectl.apply({**quota, "spec": {"hard": {"count/jobs.batch": "0"}}})
    world.kubectl("patch", "resourcequota", "q", "--subresource=status", "--type=merge", f"--patch={QUOTA_STATUS}")

    def refused() -> bool:
        try:
            world.kubectl("create", "job", "probe", "--image=none", "--dry-run=server")
        except CommandError as error:
            return "exceeded quota" in str(error)
        return False

    await eventually("the quota", refused)


def pinned(world: World) -> dict[str, Any] | None:
    """The run once its parent is in its status."""
    run = world.run("preferred")
    return run if run and run.get("status", {}).get("parentAdapter") else None


async def test_another_adapter_in_the_place_of_the_recorded_one_is_not_trained_on(world: World, tmp_path: Path) -> None:
    """As after a registry was restored from an old backup, and the number was given to another run's adapter."""
    await succeeded(world, "support")
    await refuse_jobs(world)
    world.apply("preferred", **PREFERENCE)
    await eventually("the pinned parent", lambda: pinned(world))
    with contextlib.closing(sqlite3.connect(tmp_path / "registry.db")) as database, database:
        database.execute("UPDATE adapter_versions SET sha256 = ?", ("0" * 64,))
    failed = await world.phase("Failed", "preferred")
    world.kubectl("delete", "resourcequota", "q")
    assert failed["status"]["failure"]["reason"] == "ParentAdapterUnavailable"
    assert f"SHA-256 was {DIGEST}, and now is {'0' * 64}" in failed["status"]["failure"]["message"]
    assert failed["status"]["parentAdapter"]["sha256"] == DIGEST
    assert world.job_of("preferred") is None


async def test_parents_that_cannot_be_trained_on_are_named(world: World) -> None:
    """One that does not exist, one of another base model, and one whose claim is gone."""
    parent = await succeeded(world, "support")
    gone = parent["status"]["output"]["claimName"]
    world.apply("missing", **{**PREFERENCE, "parentAdapter": {"name": "support", "version": 7}})
    world.apply("other", **PREFERENCE, baseModel={"hub": {"repository": "org/other"}})
    other = await world.phase("Failed", "other")
    world.kubectl("patch", "pvc", gone, "--type=merge", '--patch={"metadata":{"finalizers":null}}')
    world.kubectl("delete", "pvc", gone)
    world.apply("unreachable", **PREFERENCE)
    missing, unreachable = await world.phase("Failed", "missing"), await world.phase("Failed", "unreachable")
    for run, reason, words in (
        (missing, "ParentAdapterUnavailable", "adapter 'support' in namespace"),
        (other, "InvalidSpec", "trained on the base model m, and spec.baseModel is org/other"),
        (unreachable, "ParentAdapterUnavailable", f'PersistentVolumeClaim "{gone}", which holds the parent adapter'),
    ):
        failure = run["status"]["failure"]
        assert (failure["reason"], words in failure["message"]) == (reason, True), failure
        assert is_true(run, "Stalled")
        assert world.job_of(run["metadata"]["name"]) is None
    assert "spec.parentAdapter" in missing["status"]["failure"]["hint"]
    assert other["status"]["parentAdapter"]["version"] == 1
