"""What a run says of the claims that its pod waits for, against a real API server and without a kubelet."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import ClientSession

from finetune.controller.core.names import FINISHED_ANNOTATION
from tests.support.kubectl import Kubectl
from tests.support.world import World, a_world, container_status, eventually, stamp, terminated

UNBOUND = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."


def claim(name: str) -> dict[str, Any]:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}


def refusal(world: World, name: str, message: str) -> dict[str, Any]:
    """The Event of a claim for which no volume could be made."""
    made = world.kubectl.find("persistentvolumeclaims", name)
    assert made is not None
    about = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": name, "uid": made["metadata"]["uid"]}
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{name}-refused"},
        "involvedObject": {**about, "namespace": world.kubectl.namespace},
        "reason": "ProvisioningFailed",
        "message": message,
        "lastTimestamp": stamp(),
    }


def waits_for(world: World) -> str:
    """What the run's condition says that it waits for."""
    run = world.run() or {}
    conditions = (run.get("status") or {}).get("conditions") or []
    return next((str(each["message"]) for each in conditions if each["type"] == "Succeeded"), "")


async def test_a_claim_that_has_its_volume_by_now_is_not_what_a_pod_waits_for(kubectl: Kubectl, tmp_path: Path) -> None:
    """Events outlive their cause by an hour; what was mended must not be named, nor end the run."""
    async with a_world(
        kubectl, tmp_path, FINETUNE_PENDING_SECONDS="0", FINETUNE_REFERENCE_TIMEOUT_SECONDS="300"
    ) as world:
        for name in ("shared", "base-models"):
            world.kubectl.apply(claim(name))
        world.patch_status("pvc", "shared", {"phase": "Bound"})
        world.kubectl.apply(refusal(world, "shared", 'storageclass.storage.k8s.io "mended" not found'))
        world.apply(output={"claimName": "shared"})
        await eventually("the Job", world.job_of)
        world.start_pod()
        unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": UNBOUND}
        pod = world.kubectl.items("pods", "finetune.dev/run=support")[0]["metadata"]["name"]
        world.patch_status(
            "pod",
            pod,
            {"phase": "Pending", "conditions": [unscheduled], "initContainerStatuses": [], "containerStatuses": []},
        )
        assert await eventually("the claims", lambda: "PersistentVolumeClaim" in (m := waits_for(world)) and m) == (
            f"{UNBOUND} (the run's claims: shared, base-models)"
        )
        world.kubectl.apply(refusal(world, "base-models", 'storageclass.storage.k8s.io "missing" not found'))
        await eventually("the StorageClass", lambda: '"base-models": storageclass' in waits_for(world))


def fail_in_the_export(world: World, name: str) -> None:
    """The dataset has a row that is none; the Job controller gives up at once."""
    world.create_pod(name)
    refused = {"error": {"reason": "DatasetInvalid", "message": "row 7: not valid JSON", "row": 7}}
    world.set_pod_status(name, "Failed", terminated(3, refused), {"waiting": {"reason": "PodInitializing"}})
    world.set_job_condition(name, "Failed", reason="PodFailurePolicy")


async def tell_of_a_step(world: World, name: str) -> None:
    uid = (world.run(name) or {})["metadata"]["uid"]
    path = f"api/v1/namespaces/{world.kubectl.namespace}/runs/{uid}/status"
    body = {"trainerStatus": {"metrics": [{"name": "step", "value": "5"}]}}
    async with ClientSession() as session, session.post(f"{world.registry.url}/{path}", json=body) as answer:
        assert answer.status == 200


def is_marked(world: World, name: str) -> bool:
    return FINISHED_ANNOTATION in ((world.run(name) or {})["metadata"].get("annotations") or {})


async def test_a_run_that_failed_before_it_trained_leaves_no_claim_unless_another_run_names_it(world: World) -> None:
    runs = ("alone", "shared", "trained", "used", "unseen")
    for name in runs:
        world.apply(name)
    claims = {}
    for name in runs:
        job = await eventually("the Job", partial(world.job_of, name))
        claims[name] = job["metadata"]["name"]  # the claim has the Job's name
    world.apply("second", output={"claimName": claims["shared"]}, suspend=True)
    world.apply("ended", output={"claimName": claims["used"]})
    await eventually("the Job", partial(world.job_of, "ended"))
    world.start_pod("ended")
    world.finish_pod("ended")  # its adapter is on the claim that was made for the other
    await world.phase("Succeeded", "ended")
    world.start_pod("trained")
    await world.phase("Training", "trained")
    pod = world.kubectl.items("pods", "finetune.dev/run=trained")[0]["metadata"]["name"]
    world.patch_status(
        "pod", pod, {"phase": "Failed", "containerStatuses": [container_status("trainer", terminated(6))]}
    )
    world.set_job_condition("trained", "Failed", reason="BackoffLimitExceeded")
    await tell_of_a_step(world, "unseen")  # by a pod that is gone, while no operator looked
    for name in ("alone", "shared", "used", "unseen"):
        fail_in_the_export(world, name)
    for name in runs:
        await world.phase("Failed", name)
        await eventually("the mark", partial(is_marked, world, name))

    def goes(name: str) -> bool:
        claim = world.kubectl.find("persistentvolumeclaims", claims[name])
        return claim is None or "deletionTimestamp" in claim["metadata"]  # it waits for the pods that use it

    assert [name for name in runs if goes(name)] == ["alone"]
