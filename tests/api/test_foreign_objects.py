"""What others do to a run's objects: it costs nobody's training, and the operator touches only what is its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.controller.core import names
from tests.support.kubectl import CommandError, Kubectl, is_true
from tests.support.kubelet import Attempt, Play
from tests.support.managed import Managed, a_managed_world, result_of_pod
from tests.support.world import DIGEST, eventually, terminated

UNTIL_TOLD = Attempt(trainer=Play(seconds=None, words=result_of_pod, sigterm_code=75))


def patch(managed: Managed, kind: str, name: str, document: Any, *more: str, how: str = "merge") -> None:
    managed.world.kubectl("patch", kind, name, f"--type={how}", f"--patch={json.dumps(document)}", *more)


async def training(managed: Managed, name: str = "support") -> dict[str, Any]:
    """A run whose trainer runs until it is told to end; gives its Job."""
    managed.kubelet.script(name, UNTIL_TOLD)
    managed.world.apply(name)
    await managed.world.phase("Training", name)
    job = managed.world.job_of(name)
    assert job is not None
    return job


async def test_a_foreign_job_of_our_name_is_left_alone_and_waited_for(managed: Managed) -> None:
    world = managed.world
    world.apply(suspend=True)
    run = await world.phase("Suspended")
    name = names.job_name("support", run["metadata"]["uid"])
    world.kubectl("create", "job", name, "--image=theirs")
    theirs = world.kubectl.find("jobs", name)
    world.apply()
    waiting = await eventually(
        "it says so", lambda: (r := world.run()) and "JobNameTaken" in str(r["status"].get("waiting")) and r
    )
    assert name in waiting["status"]["waiting"]["message"]
    now = world.kubectl.find("jobs", name)
    assert theirs is not None
    assert now is not None
    assert (now["metadata"]["uid"], now["spec"]) == (theirs["metadata"]["uid"], theirs["spec"])
    world.kubectl("delete", "job", name)
    await world.phase("Succeeded")
    await managed.check(names=("support",))


async def test_a_foreign_job_with_the_name_of_the_one_that_reads_the_result_is_left_alone(managed: Managed) -> None:
    """It has even ended, so that it could be taken for a reading that nobody heard."""
    world = managed.world
    managed.kubelet.script("support", Attempt(trainer=Play(seconds=None)))
    managed.kubelet.script("support", Attempt(plays={"collect": Play(words=result_of_pod)}), role="collect")
    world.apply()
    run = await world.phase("Training")
    name = names.collect_job_name(names.job_name("support", run["metadata"]["uid"]))
    world.kubectl("create", "job", name, "--image=theirs")
    await eventually("theirs has ended", lambda: is_true(world.kubectl.find("jobs", name) or {}, "Complete"))
    theirs = world.kubectl.find("jobs", name)
    managed.kubelet.tell("support", code=0, words="")
    waiting = await eventually(
        "it says so", lambda: (r := world.run()) and "JobNameTaken" in str(r["status"].get("waiting")) and r
    )
    assert name in waiting["status"]["waiting"]["message"]
    assert waiting["status"]["phase"] == "Registering"
    now = world.kubectl.find("jobs", name)
    assert theirs is not None
    assert now is not None
    assert now["metadata"]["uid"] == theirs["metadata"]["uid"]
    world.kubectl("delete", "job", name)
    await world.phase("Succeeded")
    await managed.check(names=("support",))


async def test_labels_and_owners_that_somebody_takes_off_cost_no_training(managed: Managed) -> None:
    world = managed.world
    unlabelled, owned = await training(managed, "unlabelled"), await training(managed, "owned")
    patch(managed, "job", unlabelled["metadata"]["name"], {"metadata": {"labels": None}})
    owner = world.kubectl.json("create", "configmap", "other")
    swapped = {"apiVersion": "v1", "kind": "ConfigMap", "name": "other", "uid": owner["metadata"]["uid"]}
    reference = owned["metadata"]["ownerReferences"]
    name = owned["metadata"]["name"]
    patch(managed, "job", name, {"metadata": {"ownerReferences": [{**swapped, "controller": True}]}})
    await eventually("it says so", lambda: "JobNameTaken" in str((world.run("owned") or {})["status"].get("waiting")))
    patch(managed, "job", name, {"metadata": {"ownerReferences": reference}})
    for each in ("unlabelled", "owned"):
        managed.kubelet.tell(each)
        done = await world.phase("Succeeded", each)
        assert done["status"]["attempts"] == 1
    await managed.check(names=("unlabelled", "owned"))


GARBAGE: dict[str, Any] = {
    "wiped": {},
    "says-succeeded": {"phase": "Succeeded"},
    "says-failed": {"phase": "Failed", "failure": {"reason": "OfTomorrow", "message": "x", "hint": "y"}},
    "unknown-words": {"phase": "Dreaming", "waiting": None, "attempts": 7000},
}


async def test_a_status_that_somebody_rewrites_starts_nothing_again(managed_kubectl: Kubectl, tmp_path: Path) -> None:
    """The record is not judged: it is the test that lets numbers go back."""
    async with a_managed_world(managed_kubectl, tmp_path, judged=False) as managed:
        for name in GARBAGE:
            await training(managed, name)
        for name, status in GARBAGE.items():
            operation = {"op": "replace", "path": "/status", "value": status}
            patch(managed, "trainingrun", name, [operation], "--subresource=status", how="json")
        for name in GARBAGE:
            await managed.world.phase("Training", name)
            managed.kubelet.tell(name)
        for name in GARBAGE:
            done = await managed.world.phase("Succeeded", name)
            assert done["status"]["result"]["adapter"]["sha256"] == DIGEST
            assert managed.pods_of(name) == 1
            found = await managed.world.client.list_adapter_versions(managed_kubectl.namespace, name)
            assert [each.version for each in found] == [1]


async def test_a_finished_run_that_is_toggled_stays_as_it_is(managed: Managed) -> None:
    world = managed.world
    world.apply()
    await world.phase("Succeeded")
    for generation, suspend in ((2, True), (3, False)):
        world.apply(suspend=suspend)
        run = await eventually(
            "the generation is seen",
            lambda generation=generation: (r := world.run()) and r["status"]["observedGeneration"] == generation and r,
        )
        assert is_true(run, "Succeeded")
    assert managed.pods_of("support") == 1


async def test_an_orphaned_job_is_left_alone_when_its_run_comes_again(managed: Managed) -> None:
    world = managed.world
    old = await training(managed)
    world.kubectl("delete", "trainingrun", "support", "--cascade=orphan")
    await eventually("the Job has no owner", lambda: _owners(world.kubectl, old["metadata"]["name"]) == [])
    managed.kubelet.script("support", Attempt())
    world.apply()
    done = await world.phase("Succeeded")
    assert done["status"]["attempts"] == 1
    still = world.kubectl.find("jobs", old["metadata"]["name"])
    assert still is not None
    assert still["spec"] == old["spec"]
    assert not still["metadata"].get("deletionTimestamp")


def _owners(kubectl: Kubectl, job: str) -> list[Any] | None:
    found = kubectl.find("jobs", job)
    return None if found is None else found["metadata"].get("ownerReferences") or []


async def test_a_run_that_is_deleted_in_the_foreground_goes_after_its_job(managed: Managed) -> None:
    await training(managed)
    managed.world.kubectl("delete", "trainingrun", "support", "--cascade=foreground", "--wait=false")
    await eventually("the run is gone", lambda: managed.world.run() is None)
    assert managed.world.job_of() is None
    assert managed.world.kubectl.items("pods", "finetune.dev/run=support") == []


@pytest.mark.long
async def test_a_namespace_that_is_deleted_in_mid_run_takes_all_of_it(managed_kubectl: Kubectl, tmp_path: Path) -> None:
    # The controller of namespaces looks again only after half of the grace that it has seen.
    async with a_managed_world(managed_kubectl, tmp_path, FINETUNE_TERMINATION_GRACE_SECONDS="4") as managed:
        await training(managed)
        managed_kubectl("delete", "namespace", managed_kubectl.namespace, "--wait=false")
        await eventually("the namespace is gone", lambda: _is_gone(managed_kubectl))
        assert managed.world.operator.running
        log = managed.world.operator.log.read_bytes()
        assert b"Traceback" not in log
        assert b'"frames"' not in log


def _is_gone(kubectl: Kubectl) -> bool:
    try:
        kubectl("get", "namespace", kubectl.namespace)
    except CommandError as error:
        return "not found" in error.output
    return False


@pytest.mark.parametrize("owned", [False, True], ids=["no owner", "another Job"])
async def test_a_pod_with_our_labels_that_is_not_ours_is_not_believed(managed: Managed, owned: bool) -> None:
    """Its last words are a forged result."""
    world = managed.world
    job = await training(managed)
    labels = job["spec"]["template"]["metadata"]["labels"]
    ours = {key: value for key, value in labels.items() if "finetune" in key + value and "batch" not in key}
    pod: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        # Without the labels of the Job's selector: the Job controller would adopt it, and then it is the Job's.
        "metadata": {"name": "a-forged-one", "labels": ours},
        "spec": {"containers": [{"name": "trainer", "image": "i"}], "nodeName": "node-1"},
    }
    if owned:
        template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "trainer", "image": "i"}]}}
        head = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "theirs"}}
        world.kubectl.apply({**head, "spec": {"suspend": True, "template": template}})
        theirs = world.kubectl.find("jobs", "theirs")
        assert theirs is not None
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "theirs", "uid": theirs["metadata"]["uid"]}
        pod["metadata"]["ownerReferences"] = [{**owner, "controller": True}]
    world.kubectl.apply(pod)
    words = world.result()
    words["result"]["adapter"]["sha256"] = "f" * 64
    state = {"name": "trainer", "image": "i", "imageID": "", "ready": False, "restartCount": 0}
    status = {"phase": "Succeeded", "containerStatuses": [{**state, "state": terminated(0, words)}]}
    world.patch_status("pod", "a-forged-one", status)
    managed.kubelet.tell("support")
    done = await world.phase("Succeeded")
    assert done["status"]["result"]["adapter"]["sha256"] == DIGEST
    assert done["status"]["attempts"] == 1
    await managed.check(names=("support",))


async def test_a_version_that_is_not_served_for_a_moment_costs_nothing(managed: Managed) -> None:
    world = managed.world
    job = await training(managed)

    def serve(value: bool) -> None:
        operation = {"op": "replace", "path": "/spec/versions/0/served", "value": value}
        patch(managed, "crd", "trainingruns.finetune.dev", [operation], how="json")

    serve(False)
    try:
        await eventually("it is not served", lambda: _refuses(world.kubectl, "get", "trainingruns"))
        await world.operator.kill()
        await world.operator.start()  # nothing that it remembers helps it
        asked = len(world.kubernetes.requests)
        patch(managed, "job", job["metadata"]["name"], {"metadata": {"labels": {"poke": "1"}}})
        await eventually(
            "the operator has asked for runs",
            lambda: any("/trainingruns" in each for each in world.kubernetes.requests[asked:]),
        )
        assert world.kubectl.find("jobs", job["metadata"]["name"]) is not None
    finally:
        serve(True)
    await eventually("it is served", lambda: not _refuses(world.kubectl, "get", "trainingruns"))
    managed.kubelet.tell("support")
    await world.phase("Succeeded")
    await managed.check(names=("support",))


def _refuses(kubectl: Kubectl, *arguments: str) -> bool:
    try:
        kubectl(*arguments)
    except CommandError:
        return True
    return False
