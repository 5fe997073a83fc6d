"""The chart on a real API server: Helm's objects are accepted, and the rights are what is needed and no more."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import go_build
from tests.cluster.api_server import ApiServerOnly
from tests.cluster.kube_api import KubeApi
from tests.support.chart import objects_of
from tests.support.kubectl import CommandError, Kubectl

CHART = str(Path(__file__).parents[2] / "charts" / "finetune-operator")
UPGRADES = Path(__file__).parents[2] / "docs" / "upgrades.md"
STORED_CHART = Path(__file__).parent / "stored_charts" / "0.1.0.yaml"
SYSTEM = "finetune-system"
WATCHED = "watched"
OPERATOR = "finetune-operator"
REGISTRY = "finetune-operator-registry"

Right = tuple[str, str, str]
"""Verb, resource with its group, namespace ("" for a right that has none)."""


@pytest.fixture(scope="module")
def helm(api_server: ApiServerOnly) -> Kubectl:
    """kubectl and helm, in the namespace of the release."""
    return Kubectl(kubeconfig=api_server.kubeconfig, bin_dir=go_build.build(go_build.CLIENTS), namespace=SYSTEM)


@pytest.fixture(scope="module")
def release(helm: Kubectl) -> Iterator[Kubectl]:
    """The chart, installed for one namespace; the CRD is there already and becomes the release's."""
    helm("create", "namespace", SYSTEM)
    helm("create", "namespace", WATCHED)
    helm.command("helm", "install", OPERATOR, CHART, *values())
    yield helm
    helm.command("helm", "uninstall", OPERATOR, "--namespace", SYSTEM)


def values() -> tuple[str, ...]:
    chosen = f"trainer.preload.enabled=true,watch.namespaces={{{WATCHED}}}"
    return ("--namespace", SYSTEM, "--set", chosen, "--take-ownership")


def allowed(api: KubeApi, account: str, right: Right) -> bool:
    """What the API server's authorizer says about a service account."""
    verb, resource, namespace = right
    name, _, group = resource.partition(".")
    plural, _, subresource = name.partition("/")
    attributes = {"verb": verb, "resource": plural, "subresource": subresource, "group": group, "namespace": namespace}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": f"system:serviceaccount:{SYSTEM}:{account}", "resourceAttributes": attributes},
    }
    code, answer = api.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
    assert code == 201, answer
    return bool(answer["status"]["allowed"])


@pytest.mark.usefixtures("release")
@pytest.mark.parametrize(
    ("account", "right"),
    [
        (OPERATOR, ("watch", "trainingruns.finetune.dev", WATCHED)),
        (OPERATOR, ("patch", "trainingruns.finetune.dev", WATCHED)),
        (OPERATOR, ("update", "trainingruns/status.finetune.dev", WATCHED)),
        (OPERATOR, ("patch", "jobs/status.batch", WATCHED)),
        (OPERATOR, ("delete", "pods", WATCHED)),
        (OPERATOR, ("patch", "workloads.kueue.x-k8s.io", WATCHED)),
        (OPERATOR, ("create", "jobs.batch", WATCHED)),
        (OPERATOR, ("create", "persistentvolumeclaims", WATCHED)),
        (OPERATOR, ("delete", "persistentvolumeclaims", WATCHED)),
        (OPERATOR, ("list", "events", WATCHED)),
        (REGISTRY, ("create", "tokenreviews.authentication.k8s.io", "")),
        (REGISTRY, ("create", "subjectaccessreviews.authorization.k8s.io", "")),
        (REGISTRY, ("get", "pods", WATCHED)),
    ],
)
def test_what_is_needed_is_allowed(api: KubeApi, account: str, right: Right) -> None:
    deadline = time.monotonic() + 10  # the authorizer learns of new roles through a watch
    while not allowed(api, account, right):
        assert time.monotonic() < deadline, f"{account} may not {right}"


@pytest.mark.usefixtures("release")
@pytest.mark.parametrize("account", [OPERATOR, REGISTRY])
@pytest.mark.parametrize(
    "right",
    [
        ("get", "secrets", WATCHED),
        ("list", "secrets", SYSTEM),
        ("create", "pods", WATCHED),
        ("create", "pods/exec", WATCHED),
        ("update", "trainingruns.finetune.dev", WATCHED),
        ("patch", "trainingruns/status.finetune.dev", WATCHED),
        ("patch", "events", WATCHED),
        ("get", "pods/log", WATCHED),
        ("delete", "workloads.kueue.x-k8s.io", WATCHED),
        ("list", "persistentvolumeclaims", WATCHED),
        ("create", "jobs.batch", "default"),
        ("get", "pods", "default"),
        ("create", "roles.rbac.authorization.k8s.io", WATCHED),
    ],
    ids="-".join,
)
def test_what_is_not_needed_is_not_allowed(api: KubeApi, account: str, right: Right) -> None:
    assert not allowed(api, account, right)


def test_the_pods_pass_the_restricted_standard(release: Kubectl) -> None:
    """The API server's own admission decides, on the pods as Deployments and the DaemonSet would make them."""
    release("label", "namespace", SYSTEM, "pod-security.kubernetes.io/enforce=restricted", "--overwrite")
    owners = release.json("get", "deployments,daemonsets")["items"]
    assert len(owners) == 3
    for owner in owners:
        template = owner["spec"]["template"]
        pod: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": owner["metadata"]["name"], "labels": template["metadata"]["labels"]},
            "spec": template["spec"],
        }
        release("create", "--dry-run=server", "--filename=-", stdin=json.dumps(pod))
        pod["spec"]["containers"][0]["securityContext"].pop("capabilities")
        with pytest.raises(CommandError, match="violates PodSecurity"):
            release("create", "--dry-run=server", "--filename=-", stdin=json.dumps(pod))


def test_an_upgrade_with_the_same_values_changes_nothing(release: Kubectl) -> None:
    def objects() -> dict[str, Any]:
        kinds = "deployments,services,serviceaccounts,persistentvolumeclaims,roles,rolebindings"
        chosen = f"--selector=app.kubernetes.io/instance={OPERATOR}"
        listed = release.json("get", kinds, "--all-namespaces", chosen)["items"]
        for each in [*listed, definition := release.json("get", "crd", "trainingruns.finetune.dev")]:
            # Server-side apply of a claim that changes nothing makes a new version all the same.
            each["metadata"].pop("resourceVersion")
        return {f"{each['kind']}/{each['metadata']['name']}": each for each in [*listed, definition]}

    before = objects()
    release.command("helm", "upgrade", OPERATOR, CHART, *values())
    assert len(before) >= 8
    assert objects() == before


def test_an_older_version_is_upgraded_as_the_documentation_says(release: Kubectl, tmp_path: Path) -> None:
    """What was set stays, and what the older version did not know has the new version's defaults."""
    (tmp_path / "Chart.yaml").write_text("{apiVersion: v2, name: finetune-operator, version: 0.0.1}")
    (tmp_path / "values.yaml").write_text("{watch: {namespaces: []}, crds: {enabled: true}, image: {tag: old}}")
    settings = ("--namespace", SYSTEM, "--set", f"watch.namespaces={{{WATCHED}}},crds.enabled=false")
    release.command("helm", "install", "older", str(tmp_path), *settings)
    said = next(line for line in UPGRADES.read_text().splitlines() if line.startswith("helm upgrade"))
    command = ["older" if word == "finetune-operator" else word for word in said.split() if word != "--wait"]
    release.command(*(CHART if word == "charts/finetune-operator" else word for word in command))
    deployment = release.json("get", "deployment", "older-finetune-operator")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    variables = {each["name"]: each.get("value") for each in container["env"]}
    assert (variables["FINETUNE_WATCH_NAMESPACES"], variables["FINETUNE_PAUSED"]) == (WATCHED, "false")
    assert not container["image"].endswith(":old")
    release.command("helm", "uninstall", "older", "--namespace", SYSTEM)


def test_what_an_older_chart_has_made_is_upgraded_and_comes_back(release: Kubectl, tmp_path: Path) -> None:
    """Nothing that cannot change has changed, and a rollback brings every object back as it was."""
    (tmp_path / "templates").mkdir()
    (tmp_path / "Chart.yaml").write_text("{apiVersion: v2, name: finetune-operator, version: 0.1.0}")
    (tmp_path / "templates" / "all.yaml").write_text(STORED_CHART.read_text().replace(SYSTEM, "stored"))
    release("create", "namespace", "stored")
    stored = release.at("stored")
    helm, place = release.command, ("--namespace", "stored")
    helm("helm", "install", "finetune", str(tmp_path), *place)
    before = lasting(stored)
    helm("helm", "upgrade", "finetune", CHART, *place, "--set", "fullnameOverride=finetune-operator,crds.enabled=false")
    after = lasting(stored)
    assert after.keys() == before.keys()
    assert {name: each["metadata"]["uid"] for name, each in after.items()} == {
        name: each["metadata"]["uid"] for name, each in before.items()
    }
    helm("helm", "rollback", "finetune", *place)
    assert {name: each["spec"] for name, each in lasting(stored).items()} == {
        name: each["spec"] for name, each in before.items()
    }
    helm("helm", "uninstall", "finetune", *place)


def lasting(stored: Kubectl) -> dict[str, dict[str, Any]]:
    """What of a release has a spec that must live on: the Deployments, the Service and the claim."""
    listed = stored.json("get", "deployments,services,persistentvolumeclaims")["items"]
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in listed}


def test_the_whole_chart_is_accepted_when_it_serves_every_namespace(release: Kubectl) -> None:
    options = ("--namespace", SYSTEM, "--set", "networkPolicy.enabled=true", "--set", "crds.enabled=false")
    text = release.command("helm", "template", "other", CHART, *options)
    assert len(objects_of(text)) >= 15
    release("create", "--dry-run=server", "--validate=strict", "--filename=-", stdin=text)


def test_uninstalling_keeps_the_runs_and_the_registrys_data(release: Kubectl) -> None:
    release("create", "namespace", "leaving")
    leaving = release.at("leaving")
    release.command("helm", "install", "leaving", CHART, "--namespace", "leaving", "--take-ownership")
    release.command("helm", "uninstall", "leaving", "--namespace", "leaving")
    assert leaving.items("deployments") == []
    assert [each["metadata"]["name"] for each in leaving.items("persistentvolumeclaims")] == [
        "leaving-finetune-operator-registry"
    ]
    assert leaving.items("trainingruns") == []  # and not an error: they are still served
    leaving("get", "crd", "trainingruns.finetune.dev")
