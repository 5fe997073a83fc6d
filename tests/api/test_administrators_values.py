"""What an administrator sets in the chart, on real controllers: runs end well in a namespace that limits everything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import go_build
from tests.support.chart import CHART
from tests.support.kubectl import Kubectl
from tests.support.kubelet import Attempt, Play
from tests.support.managed import a_managed_world
from tests.support.world import eventually

POD: dict[str, Any] = {
    "labels": {"cost-centre": "ml"},
    "annotations": {"sidecar.istio.io/inject": "false", "price": "$5 $(HOME)"},
    "ephemeralStorage": {"request": "1Gi", "limit": "10Gi"},
    "proxy": {"https": "http://proxy.example:3128"},
    "caBundle": {"configMap": "trusted"},
}
VALUES = {"trainer": {"cpuLimit": 4, "pod": POD}}
HARD = {
    "limits.cpu": "64",
    "limits.memory": "640Gi",
    "requests.cpu": "64",
    "requests.ephemeral-storage": "64Gi",
    "limits.ephemeral-storage": "640Gi",
    "requests.storage": "640Gi",
}
RANGE = {
    "type": "Container",
    "min": {"cpu": "1m", "memory": "4Mi", "ephemeral-storage": "1Mi"},
    "max": {"cpu": "4", "memory": "64Gi", "ephemeral-storage": "10Gi"},
}


def settings() -> dict[str, str]:
    """The operator's variables for these values, as its container sees them."""
    helm = Kubectl(kubeconfig=Path("/dev/null"), bin_dir=go_build.build(go_build.CLIENTS))
    command = ["helm", "template", "finetune", str(CHART), "--show-only=templates/operator-deployment.yaml"]
    text = helm.command(*command, "--values=-", stdin=json.dumps(VALUES))
    (container,) = yaml.safe_load(text)["spec"]["template"]["spec"]["containers"]
    return {each["name"]: each["value"].replace("$$", "$") for each in container["env"] if "value" in each}


async def test_runs_end_well_under_a_quota_and_a_limit_range_and_their_pods_are_as_the_chart_says(
    managed_kubectl: Kubectl, tmp_path: Path
) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "all"}, "spec": {"hard": HARD}}
    limits = {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "all"}, "spec": {"limits": [RANGE]}}
    managed_kubectl.apply(quota, limits)
    await eventually("the quota counts", lambda: managed_kubectl.json("get", "resourcequota", "all")["status"])
    given = settings()
    limit, defaults = given["FINETUNE_CPU_LIMIT"], given["FINETUNE_POD_DEFAULTS"]
    async with a_managed_world(
        managed_kubectl, tmp_path, FINETUNE_CPU_LIMIT=limit, FINETUNE_POD_DEFAULTS=defaults
    ) as managed:
        managed.kubelet.script("silent", Attempt(trainer=Play(seconds=0.1, words="")))
        for name in ("told", "silent"):  # the second's result is read from its claim, by a Job of its own
            managed.world.apply(name)
        for name in ("told", "silent"):
            await managed.world.phase("Succeeded", name)
        pods = [pod for _, pod in managed.record.of("pods")]  # those of small Jobs go with them
    assert {pod["metadata"]["labels"]["finetune.dev/role"] for pod in pods} >= {"train", "collect"}
    for pod in pods:
        check(pod)


def check(pod: dict[str, Any]) -> None:
    """A run's pod has what the values say, for whatever it is there."""
    assert pod["metadata"]["labels"].items() >= POD["labels"].items()
    assert pod["metadata"]["annotations"].items() >= POD["annotations"].items()
    for container in [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]:
        limits = container["resources"]["limits"]
        assert (limits["cpu"], limits["ephemeral-storage"]) == ("4", "10Gi")
        variables = {each["name"]: each.get("value", "") for each in container["env"]}
        assert variables["HTTPS_PROXY"] == "http://proxy.example:3128"
        assert "127.0.0.1" in variables["NO_PROXY"].split(",")  # where the registry is in this test
        assert variables["SSL_CERT_FILE"] == "/etc/finetune/ca/ca-certificates.crt"
