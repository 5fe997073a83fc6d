"""What a run says of the claims that its pod waits for, against a real API server and without a kubelet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.kubectl import Kubectl
from tests.support.world import World, a_world, eventually, stamp

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
