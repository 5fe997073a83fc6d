"""The chart's Role for people, on a real API server: it lets them reach the registry's Service, and no other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from finetune.registry.access import REGISTRY_AUDIENCE
from tests.cluster.api_server import ApiServerOnly
from tests.cluster.kube_api import KubeApi
from tests.support.chart import SYSTEM, render
from tests.support.kubectl import Kubectl
from tests.support.people import REGISTRY, Installed, Person, installed
from tests.unit.test_chart_render import needs_helm

ACCOUNT = "scientist"


@pytest.fixture
def registry(api_server: ApiServerOnly, api: KubeApi, tmp_path: Path) -> Iterator[Installed]:
    with installed(api, api_server.kubeconfig, tmp_path, namespace=SYSTEM) as made:
        yield made


def scientist(registry: Installed, kubeconfig: Path, namespace: str, home: Path) -> Person:
    """Somebody whom the cluster lets list adapters in the namespace, and nothing else."""
    account = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    registry.create(account, {"metadata": {"name": ACCOUNT}})
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    rules = [{"apiGroups": ["finetune.dev"], "resources": ["adapters"], "verbs": ["list"]}]
    registry.create(f"{rbac}/roles", {"metadata": {"name": ACCOUNT}, "rules": rules})
    subject = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": ACCOUNT}
    binding = {"metadata": {"name": ACCOUNT}, "roleRef": role, "subjects": [subject]}
    registry.create(f"{rbac}/rolebindings", binding)

    def token(audiences: list[str]) -> str:
        return str(registry.create(f"{account}/{ACCOUNT}/token", {"spec": {"audiences": audiences}})["status"]["token"])

    document = yaml.safe_load(kubeconfig.read_text())
    for each in document["users"]:
        each["user"] = {"token": token([])}
    for each in document["contexts"]:
        each["context"]["namespace"] = namespace
    (home / "kubeconfig").write_text(yaml.safe_dump(document))
    (home / "token").write_text(token([REGISTRY_AUDIENCE]))
    environment = {"KUBECONFIG": str(home / "kubeconfig"), "FINETUNE_TOKEN_FILE": str(home / "token")}
    return Person({**environment, "HOME": str(home), "NO_COLOR": "1"})


@needs_helm
def test_a_group_reaches_the_registry_and_nothing_beside_it(
    registry: Installed, api_server: ApiServerOnly, kubectl: Kubectl, tmp_path: Path
) -> None:
    person = scientist(registry, api_server.kubeconfig, kubectl.namespace, tmp_path)
    listing = ("adapters", "list", f"--registry-service={SYSTEM}/{REGISTRY}")
    refused = person(*listing)
    assert (refused.code, "finetune login" in refused.err) == (1, True), refused.err
    group = f"system:serviceaccounts:{kubectl.namespace}"
    for each in render("--set", f"fullnameOverride=finetune-operator,rbac.registryGroups={{{group}}}"):
        if each["metadata"]["name"] == f"{REGISTRY}-users":
            kind = {"Role": "roles", "RoleBinding": "rolebindings"}[each["kind"]]
            registry.create(f"/apis/rbac.authorization.k8s.io/v1/namespaces/{SYSTEM}/{kind}", each)
    kubectl.wait_for("the right", lambda: person(*listing).code == 0)
    assert person(*listing).out.startswith("NAME")
    denied = person("datasets", "list", f"--registry-service={SYSTEM}/{REGISTRY}")
    assert (denied.code, "datasets" in denied.err) == (1, True)  # by the registry, which was reached
    other = {"metadata": {"name": "other"}, "spec": {"ports": [{"name": "http", "port": 8080}]}}
    registry.create(f"/api/v1/namespaces/{SYSTEM}/services", other)
    beside = person("adapters", "list", f"--registry-service={SYSTEM}/other")
    assert (beside.code, 'cannot get resource "services/proxy"' in beside.err) == (1, True), beside.err
