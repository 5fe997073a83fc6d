"""What the chart's policy on runs refuses, on a real API server: what is not allowed, too large, or not the author's.

A tenant who may only make runs in its own namespace gets nowhere else by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster import go_build
from tests.cluster.api_server import ApiServerOnly
from tests.cluster.kube_api import KubeApi
from tests.support.chart import CHART, POLICIES
from tests.support.impersonation import Account
from tests.support.kubectl import Kubectl

SYSTEM, OWN, OTHER = "run-policy-system", "tenant-a", "tenant-b"
TENANT = "alice"
VALUES = (
    *("--set", f"watch.namespaces={{{OWN}}}", "--set", "runPolicy.maxGPUs=4,runPolicy.maxClaimSize=500Gi"),
    *("--set", "runPolicy.readableSecrets=true", "--set", "trainer.allowed.images={team.example.com/ml/*,special:1}"),
    *("--set", "trainer.allowed.serviceAccountNames={reader}", "--set", "trainer.allowed.podLabelPrefixes={cost.a.b/}"),
)

Spec = dict[str, Any]


def runs(namespace: str) -> str:
    return f"/apis/finetune.dev/v1alpha1/namespaces/{namespace}/trainingruns"


def run(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": "support"},
        "spec": {
            "method": "SFT",
            "baseModel": {"volume": {"claimName": "models", "path": "m"}},
            "dataset": {"registry": {"name": "tickets"}},
            **spec,
        },
    }


def role(namespace: str, *rules: dict[str, Any]) -> list[dict[str, Any]]:
    """These rights for the tenant in one namespace."""
    api = "rbac.authorization.k8s.io"
    head = {"apiVersion": f"{api}/v1", "metadata": {"name": TENANT, "namespace": namespace}}
    return [
        {**head, "kind": "Role", "rules": list(rules)},
        {
            **head,
            "kind": "RoleBinding",
            "roleRef": {"apiGroup": api, "kind": "Role", "name": TENANT},
            "subjects": [{"apiGroup": api, "kind": "User", "name": TENANT}],
        },
    ]


@pytest.fixture(scope="module")
def tenant(api_server: ApiServerOnly, api: KubeApi) -> Iterator[Account]:
    """Somebody who may make runs in one namespace and read one Secret of it, with the policy in force."""
    kubectl = Kubectl(kubeconfig=api_server.kubeconfig, bin_dir=go_build.build(go_build.CLIENTS), namespace=SYSTEM)
    options = ("--namespace", SYSTEM, *POLICIES, "--show-only=templates/run-policy.yaml", *VALUES)
    rendered = kubectl.command("helm", "template", "release", str(CHART), *options)
    for namespace in (SYSTEM, OWN, OTHER):
        kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    own = {"apiGroups": ["finetune.dev"], "resources": ["trainingruns"], "verbs": ["get", "list", "create", "delete"]}
    secret = {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["hers"], "verbs": ["get"]}
    kubectl.apply(*role(OWN, own, secret))
    kubectl("apply", "-f", "-", stdin=rendered)
    account = Account(api, TENANT)
    kubectl.wait_for("the role is known", lambda: account("POST", runs(OWN), run()) == "")
    refused = run(image="miner:1")
    kubectl.wait_for(
        "the policy is in force", lambda: "spec.image is not allowed" in account("POST", runs(OWN), refused)
    )
    policies = kubectl.json("get", "validatingadmissionpolicies")["items"]
    for policy in policies:
        assert not (policy.get("status") or {}).get("typeChecking", {}).get("expressionWarnings"), policy["status"]
    yield account
    kubectl("delete", "-f", "-", stdin=rendered)


def secret_of(name: str) -> Spec:
    return {"name": name, "key": "k"}


HUB = {"repository": "a/b", "tokenSecretRef": secret_of("theirs")}
SQL = {"urlSecretRef": secret_of("theirs"), "query": "select 1"}
STORE = {"uri": "s3://bucket/rows", "credentialsSecretRef": {"name": "theirs"}}
NOT_READABLE = f"{TENANT} may not read all of the Secrets that the run names (theirs)"
ALLOWED: dict[str, Spec] = {
    "an image of a prefix": {"image": "team.example.com/ml/trainer:2"},
    "an image of the list": {"image": "special:1"},
    "a service account": {"serviceAccountName": "reader"},
    "a label": {"podLabels": {"cost.a.b/team": "x"}},
    "as many GPUs": {"resources": {"gpus": 4}, "training": {"batchSize": 4}},
    "so large a claim": {"output": {"claim": {"size": "500Gi"}}},
    "somebody's claim": {"output": {"claimName": "mine"}},
    "her own Secret": {"dataset": {"sql": {**SQL, "urlSecretRef": secret_of("hers")}}},
}
REFUSED: dict[str, tuple[Spec, str]] = {
    "another image": ({"image": "team.example.com/mlx:1"}, "spec.image is not allowed"),
    "another service account": ({"serviceAccountName": "admin"}, "spec.serviceAccountName is not allowed"),
    "another label": ({"podLabels": {"cost.a.c/x": "y"}}, "spec.podLabels has a key that is not allowed"),
    "more GPUs": ({"resources": {"gpus": 5}, "training": {"batchSize": 8}}, "must be at most 4"),
    "a larger claim": ({"output": {"claim": {"size": "1Ti"}}}, "must be at most 500Gi"),
    "a Secret of the base model": ({"baseModel": {"hub": HUB}}, NOT_READABLE),
    "a Secret of a hub": ({"dataset": {"hub": HUB}}, NOT_READABLE),
    "a Secret of a database": ({"dataset": {"sql": SQL}}, NOT_READABLE),
    "a Secret of a store": ({"dataset": {"objectStore": STORE}}, NOT_READABLE),
    "a Secret in a mix": (
        {"dataset": {"mix": [{"name": "a", "registry": {"name": "t"}}, {"name": "b", "sql": SQL}]}},
        NOT_READABLE,
    ),
    "another namespace's dataset": ({"dataset": {"registry": {"name": "t", "namespace": OTHER}}}, "unknown field"),
    "another namespace's claim": (
        {"baseModel": {"volume": {"claimName": "m", "path": "m", "namespace": OTHER}}},
        "unknown field",
    ),
    "another namespace's Secret": (
        {"dataset": {"sql": {**SQL, "urlSecretRef": {**secret_of("hers"), "namespace": OTHER}}}},
        "unknown field",
    ),
    "another namespace's adapter": ({"parentAdapter": {"name": f"{OTHER}/support"}}, "parentAdapter.name"),
    "another's folder of a claim": ({"baseModel": {"volume": {"claimName": "m", "path": "../other"}}}, "no '..'"),
    "a folder above its own": ({"experiment": ".."}, "experiment"),
    "a pod of her own": ({"template": {"spec": {"hostNetwork": True}}}, "unknown field"),
}


@pytest.mark.parametrize("what", ALLOWED)
def test_what_is_allowed_passes(tenant: Account, what: str) -> None:
    assert tenant("POST", runs(OWN), run(**ALLOWED[what])) == ""


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_is_refused_in_words(tenant: Account, what: str) -> None:
    spec, message = REFUSED[what]
    assert message in tenant("POST", runs(OWN), run(**spec))


CORE, BATCH = "/api/v1/namespaces", "/apis/batch/v1/namespaces"
POD = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}


@pytest.mark.parametrize("namespace", [OWN, OTHER])
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", f"{CORE}/%s/secrets/theirs", None),
        ("GET", f"{CORE}/%s/persistentvolumeclaims/adapters", None),
        ("GET", f"{CORE}/%s/pods/p/log", None),
        ("POST", f"{CORE}/%s/pods", POD),
        ("POST", f"{BATCH}/%s/jobs", {"metadata": {"name": "j"}, "spec": {"template": {"spec": POD["spec"]}}}),
        ("POST", f"{CORE}/%s/serviceaccounts/default/token", {"spec": {"audiences": ["finetune.dev/registry"]}}),
        ("PATCH", "/apis/finetune.dev/v1alpha1/namespaces/%s/trainingruns/support/status", {"status": {}}),
    ],
)
def test_rights_on_runs_are_no_other_rights(
    tenant: Account, namespace: str, method: str, path: str, body: object
) -> None:
    assert "forbidden" in tenant(method, path % namespace, body)


def test_runs_of_another_namespace_are_out_of_reach(tenant: Account) -> None:
    for method, path, body in (
        ("POST", runs(OTHER), run()),
        ("GET", runs(OTHER), None),
        ("DELETE", f"{runs(OTHER)}/support", None),
    ):
        assert "forbidden" in tenant(method, path, body)


@pytest.mark.usefixtures("tenant")
def test_runs_that_are_served_by_others_are_not_spoken_of(api: KubeApi) -> None:
    code, answer = api.request("POST", f"{runs(OTHER)}?dryRun=All", run(image="anything:1"))
    assert code == 201, answer
