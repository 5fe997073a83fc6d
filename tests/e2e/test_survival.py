"""What must not matter: killed operators, a registry that is away, deleted runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.controller.core import names
from tests.cluster.base import Cluster
from tests.e2e import outside, runs
from tests.support.installation import RELEASE, Installation
from tests.support.kubectl import Kubectl

REGISTRY = f"deployment/{RELEASE}-registry"
OPERATOR = f"deployment/{RELEASE}"


def scale(installation: Installation, deployment: str, replicas: int) -> None:
    """Scale a deployment of the release and wait until it is so."""
    system = installation.system
    system("scale", deployment, f"--replicas={replicas}")
    if replicas:
        system("rollout", "status", deployment, "--timeout=90s")
        return
    name = deployment.removeprefix("deployment/")
    system.wait_for(
        f"{deployment} is away",
        lambda: not [p for p in system.items("pods") if p["metadata"]["name"].rsplit("-", 2)[0] == name],
    )


def left_of_runs(team: Kubectl) -> list[runs.Document]:
    """The Jobs and the pods of all runs."""
    return [each for kind in ("jobs", "pods") for each in team.items(kind, "finetune.dev/run")]


@pytest.mark.long
@pytest.mark.usefixtures("registry_needed")
def test_an_operator_that_is_killed_again_and_again(
    cluster: Cluster, installation: Installation, tiny: Kubectl, tmp_path: Path
) -> None:
    runs.push(installation, tiny, tmp_path)
    tiny.apply(runs.manifest())
    for phase in ("Pending", "Exporting", "Training"):
        runs.in_phase(tiny, phase, "Training", "Registering", "Succeeded")
        runs.kill_process(cluster, tiny, "finetune.* operator ")
    done = runs.succeeded(tiny)
    assert len(tiny.items("jobs", "finetune.dev/run=run")) == 1
    with installation.registry(tiny) as registry:
        versions = registry.json("adapters", "list", "run")
    assert [version["id"] for version in versions] == [done["status"]["result"]["adapter"]["id"]]


@pytest.mark.usefixtures("registry_needed")
def test_deleting_a_run_removes_its_pods_also_while_the_operator_is_away(
    installation: Installation, tiny: Kubectl, tmp_path: Path
) -> None:
    runs.push(installation, tiny, tmp_path)
    kept = {"claim": {"size": "1Gi", "retain": True}}
    tiny.apply(runs.manifest("done", output=kept))
    done = runs.succeeded(tiny, "done")
    tiny.apply(runs.manifest("running", training={**runs.LONG, "maxSteps": 5000}))
    runs.first_steps(tiny, name="running")
    scale(installation, OPERATOR, 0)
    try:
        tiny("delete", "trainingrun", "done", "running", "--timeout=10s")
        tiny.wait_for("no Job and no pod", lambda: not left_of_runs(tiny), seconds=60)  # a trainer saves first
    finally:
        scale(installation, OPERATOR, 1)
    assert tiny.find("persistentvolumeclaims", done["status"]["output"]["claimName"])
    with installation.registry(tiny) as registry:
        found = registry.json("adapters", "show", "done")
    assert found["sha256"] == done["status"]["result"]["adapter"]["sha256"]


@pytest.mark.usefixtures("registry_to_myself")
def test_with_the_registry_the_pod_and_the_operator_gone_the_claim_still_has_the_result(
    installation: Installation, tiny: Kubectl, tmp_path: Path
) -> None:
    runs.push(installation, tiny, tmp_path)
    tiny.apply(runs.manifest(training=runs.LONG))
    runs.first_steps(tiny)
    scale(installation, REGISTRY, 0)
    try:
        waiting = runs.in_phase(tiny, "Registering")
        assert "result" not in waiting["status"]
        scale(installation, OPERATOR, 0)
        tiny("delete", "pods", "--selector=finetune.dev/run=run")
    finally:
        scale(installation, OPERATOR, 1)
        scale(installation, REGISTRY, 1)
    done = runs.succeeded(tiny)
    assert done["status"]["result"]["adapter"]["version"] == 1
    reader = names.collect_job_name(done["status"]["jobName"])  # gone by now; what the Job controller said of it is not
    told = [each for each in tiny.json("get", "events")["items"] if each["involvedObject"]["name"] == reader]
    assert "SuccessfulCreate" in {each["reason"] for each in told}


LIMITS = (
    {"kind": "ResourceQuota", "spec": {"hard": {"limits.cpu": "8", "limits.memory": "64Gi"}}},
    {"kind": "LimitRange", "spec": {"limits": [{"type": "Container", "min": {"cpu": "1m"}, "max": {"cpu": "2"}}]}},
)


@pytest.mark.usefixtures("registry_needed")
def test_a_run_in_a_limited_namespace_leaves_the_cluster_by_the_proxy_alone(
    installation: Installation, tiny: Kubectl
) -> None:
    """Values that an upgrade brings and a rollback takes back: the operator is away for both."""
    proxy = outside.provide(tiny, installation.images.operator, runs.lines(runs.rows(24)))
    tiny.apply(*({"apiVersion": "v1", "metadata": {"name": "all"}, **limit} for limit in LIMITS))
    annotations = {"sidecar.istio.io/inject": "false"}
    pod = {"annotations": annotations, "labels": {"cost-centre": "ml"}, "proxy": {"http": proxy, "https": proxy}}
    store = {"uri": "s3://data/rows.jsonl", "endpoint": "http://store.example:9000"}
    with outside.changed(installation, {"trainer": {"cpuLimit": 2, "pod": pod}}):
        tiny.apply(runs.manifest(dataset={"objectStore": store, "evaluation": {"percent": 10}}))
        done = runs.succeeded(tiny)
    assert done["status"]["result"]["adapter"]["version"] == 1  # the registry was told all the same
    asked = outside.asked(tiny)
    assert {method for method, _ in asked} == {"HEAD", "GET"}
    assert {address for _, address in asked} == {"http://store.example:9000/data/rows.jsonl"}
    for each in runs.pods(tiny):
        assert each["metadata"]["annotations"].items() >= annotations.items()
        assert each["metadata"]["labels"]["cost-centre"] == "ml"
        assert all(container["resources"]["limits"]["cpu"] == "2" for container in each["spec"]["containers"])
