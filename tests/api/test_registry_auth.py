"""Who may call the registry, on a real API server: TokenReview, SubjectAccessReview and the pod that a token names.

Nothing runs here, but tokens, roles and pods are real; the registry itself has a service account with no more rights
than it needs.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from finetune.controller.core import names
from finetune.registry.access import REGISTRY_AUDIENCE, Access, KubernetesAccess
from finetune.registry.cache import ShortCache
from finetune.registry.reviews import REFUSALS, KubernetesReviews
from tests.cluster.api_server import ApiServerOnly
from tests.cluster.kube_api import KubeApi
from tests.support.registry import adapter_document, pairs, run_document, serving

RBAC = "/apis/rbac.authorization.k8s.io/v1"
OPERATOR_USER = "system:serviceaccount:registry-auth:operator"

REGISTRY_RULES = [
    {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
    {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]},
    {"apiGroups": [""], "resources": ["pods", "namespaces"], "verbs": ["get"]},
    {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get"]},
]


class Clock:
    """Moves only when a test says so: then everything that was remembered is forgotten."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class World:
    """An API server with a registry beside it."""

    api: KubeApi
    registry: str
    clock: Clock

    def create(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        code, answer = self.api.request("POST", path, body)
        assert code in {200, 201, 409}, answer
        return dict(answer)

    def account(self, namespace: str, name: str) -> None:
        """A namespace with a service account."""
        self.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
        self.create(f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": name}})

    def token(
        self, namespace: str, account: str, *, audience: str = REGISTRY_AUDIENCE, pod: dict[str, Any] | None = None
    ) -> str:
        """A token of a service account, bound to a pod when one is given."""
        spec: dict[str, Any] = {"audiences": [audience]}
        if pod is not None:
            metadata = pod["metadata"]
            spec["boundObjectRef"] = {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": metadata["name"],
                "uid": metadata["uid"],
            }
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        return str(self.create(path, {"spec": spec})["status"]["token"])

    def job(self, namespace: str, *, name: str, owner: dict[str, Any] | None) -> dict[str, Any]:
        """A Job that nobody carries out."""
        template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "trainer", "image": "none"}]}}
        metadata = {"name": name, "ownerReferences": [owner] if owner else []}
        body = {"metadata": metadata, "spec": {"suspend": True, "template": template}}
        return self.create(f"/apis/batch/v1/namespaces/{namespace}/jobs", body)

    def pod(self, namespace: str, *, uid: str, owner: dict[str, Any] | None) -> dict[str, Any]:
        """A pod that nobody runs, and that says to be of the run `uid`."""
        spec = {"serviceAccountName": "trainer", "containers": [{"name": "trainer", "image": "none"}]}
        metadata = {
            "name": f"pod-{uuid.uuid4().hex[:8]}",
            "labels": {"finetune.dev/run-uid": uid},
            "ownerReferences": [owner] if owner else [],
        }
        return self.create(f"/api/v1/namespaces/{namespace}/pods", {"metadata": metadata, "spec": spec})

    def allow(self, namespace: str, account: str, *, resource: str, verbs: list[str]) -> str:
        """A Role for a service account, in its own namespace; returns the binding's path."""
        name = f"{account}-{resource.replace('/', '-')}-{uuid.uuid4().hex[:6]}"
        rules = [{"apiGroups": ["finetune.dev"], "resources": [resource], "verbs": verbs}]
        self.create(f"{RBAC}/namespaces/{namespace}/roles", {"metadata": {"name": name}, "rules": rules})
        binding = {
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
        }
        self.create(f"{RBAC}/namespaces/{namespace}/rolebindings", binding)
        return f"{RBAC}/namespaces/{namespace}/rolebindings/{name}"

    def call(self, method: str, path: str, token: str | None = None, **arguments: Any) -> httpx.Response:
        """One call to the registry."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.request(method, f"{self.registry}/api/v1/{path}", headers=headers, timeout=30, **arguments)


def kubeconfig_of(server: Path, token: str, folder: Path) -> Path:
    """The same API server, with a token instead of the administrator's certificate."""
    cluster = yaml.safe_load(server.read_text())["clusters"][0]["cluster"]
    assert base64.b64decode(cluster["certificate-authority-data"])
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "registry", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "registry"}}],
        "current-context": "test",
    }
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture(scope="module")
def world(api_server: ApiServerOnly, api: KubeApi, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("registry-auth")
    clock = Clock()
    setup = World(api=api, registry="", clock=clock)
    for name in ("registry", "operator"):
        setup.account("registry-auth", name)
    setup.create(f"{RBAC}/clusterroles", {"metadata": {"name": "registry-auth"}, "rules": REGISTRY_RULES})
    binding = {
        "metadata": {"name": "registry-auth"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "registry-auth"},
        "subjects": [{"kind": "ServiceAccount", "name": "registry", "namespace": "registry-auth"}],
    }
    setup.create(f"{RBAC}/clusterrolebindings", binding)
    own_token = setup.token("registry-auth", "registry", audience="https://kubernetes.default.svc.cluster.local")
    kubeconfig = kubeconfig_of(api_server.kubeconfig, own_token, folder)

    async def access() -> Access:
        from kubernetes.aio import client, config

        configuration = client.Configuration()
        await config.load_kube_config(config_file=str(kubeconfig), client_configuration=configuration)
        reviews = KubernetesReviews(configuration, cache=ShortCache(clock=clock, refusals=REFUSALS))
        return KubernetesAccess(reviews, operator_user=OPERATOR_USER)

    with serving(f"sqlite:///{folder}/registry.db", access=access) as url:
        yield World(api=api, registry=url, clock=clock)


@pytest.fixture(autouse=True)
def _nothing_is_remembered_from_the_test_before(world: World) -> None:
    world.clock.now += 1000


@pytest.fixture
def namespace(world: World) -> str:
    name = f"ml-{uuid.uuid4().hex[:8]}"
    world.account(name, "trainer")
    return name


@pytest.fixture
def operator(world: World) -> str:
    return world.token("registry-auth", "operator")


@pytest.fixture
def uid(world: World, namespace: str, operator: str) -> str:
    """A recorded run."""
    uid = str(uuid.uuid4())
    answer = world.call("PUT", f"namespaces/{namespace}/runs/{uid}", operator, json=run_document())
    assert answer.status_code == 201, answer.text
    return uid


def error_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["reason"]


def test_the_operator_records_runs_and_registers_adapters(
    world: World, namespace: str, operator: str, uid: str
) -> None:
    path = f"namespaces/{namespace}/runs/{uid}"
    assert world.call("GET", path, operator).json()["uid"] == uid
    assert world.call("PUT", f"{path}/adapter", operator, json=adapter_document(uid)).status_code == 201
    assert world.call("GET", f"progress?runs={uid}", operator).json() == {"items": {}}
    assert world.call("GET", f"namespaces/{namespace}/datasets", operator).status_code == 200
    # Its rights end there: pushing datasets is for people.
    pushed = world.call("POST", f"namespaces/{namespace}/datasets/d/versions", operator, content=pairs(1))
    assert error_of(pushed) == (403, "Forbidden")


@pytest.mark.parametrize("kind", ["none", "garbage", "invented", "of the API server", "of another audience"])
def test_a_token_that_is_not_for_the_registry_is_none(world: World, namespace: str, kind: str) -> None:
    audiences = {
        "of the API server": "https://kubernetes.default.svc.cluster.local",
        "of another audience": "finetune.dev/runs/some-uid",
    }
    token = {"none": None, "garbage": "abc", "invented": "e30.e30.c2ln"}.get(kind)
    if kind in audiences:
        token = world.token("registry-auth", "operator", audience=audiences[kind])
    answer = world.call("PUT", f"namespaces/{namespace}/runs/some-uid", token, json=run_document())
    assert error_of(answer) == (401, "Unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "finetune.dev/registry" in answer.json()["error"]["hint"]


def test_somebody_else_is_not_the_operator(world: World, namespace: str, uid: str) -> None:
    world.account(namespace, "operator")
    world.allow(namespace, "operator", resource="*", verbs=["*"])
    token = world.token(namespace, "operator")
    for method, path, body in (
        ("PUT", f"namespaces/{namespace}/runs/{uid}", run_document()),
        ("PUT", f"namespaces/{namespace}/runs/{uid}/adapter", adapter_document(uid)),
        ("GET", f"progress?runs={uid}", None),
    ):
        assert error_of(world.call(method, path, token, json=body)) == (403, "Forbidden")


def test_people_may_do_what_their_roles_allow(world: World, namespace: str) -> None:
    world.account(namespace, "alice")
    alice = world.token(namespace, "alice")
    path = f"namespaces/{namespace}/datasets/tickets/versions"
    refused = world.call("POST", path, alice, content=pairs(1))
    assert error_of(refused) == (403, "Forbidden")
    assert f"may not create datasets.finetune.dev in namespace '{namespace}'" in refused.json()["error"]["message"]
    assert "verb 'create' on 'datasets'" in refused.json()["error"]["hint"]

    world.allow(namespace, "alice", resource="datasets", verbs=["create", "get"])
    world.clock.now += 2.1  # so long a refusal is remembered
    assert world.call("POST", path, alice, content=pairs(1)).status_code == 201
    assert world.call("GET", f"{path}/1", alice).status_code == 200
    assert error_of(world.call("GET", f"{path}/1/rows", alice)) == (403, "Forbidden")  # what is known, not the rows
    world.allow(namespace, "alice", resource="datasets/rows", verbs=["get"])
    world.clock.now += 2.1
    assert world.call("GET", f"{path}/1/rows", alice).content == pairs(1)
    assert error_of(world.call("GET", f"namespaces/{namespace}/datasets", alice)) == (403, "Forbidden")
    assert error_of(world.call("GET", f"namespaces/{namespace}/adapters", alice)) == (403, "Forbidden")
    assert error_of(world.call("GET", f"namespaces/{namespace}/runs", alice)) == (403, "Forbidden")
    elsewhere = world.call("GET", "namespaces/another/datasets/tickets", alice)
    assert error_of(elsewhere) == (403, "Forbidden")


def test_a_right_that_is_taken_away_ends_within_the_caches_time(world: World, namespace: str) -> None:
    world.account(namespace, "alice")
    binding = world.allow(namespace, "alice", resource="datasets", verbs=["list"])
    alice = world.token(namespace, "alice")
    assert world.call("GET", f"namespaces/{namespace}/datasets", alice).status_code == 200
    assert world.api.request("DELETE", binding)[0] == 200
    assert world.call("GET", f"namespaces/{namespace}/datasets", alice).status_code == 200
    world.clock.now += 11
    assert error_of(world.call("GET", f"namespaces/{namespace}/datasets", alice)) == (403, "Forbidden")


def owned_by(kind: str, name: str, uid: str) -> dict[str, Any]:
    version = "batch/v1" if kind == "Job" else "finetune.dev/v1alpha1"
    return {"apiVersion": version, "kind": kind, "name": name, "uid": uid, "controller": True}


def pod_token(world: World, namespace: str, uid: str) -> tuple[dict[str, Any], str]:
    """A pod of the run's Job, and its token; the Job is made when it is not there."""
    name = names.job_name("run-1", uid)
    code, job = world.api.request("GET", f"/apis/batch/v1/namespaces/{namespace}/jobs/{name}")
    if code != 200:
        job = world.job(namespace, name=name, owner=owned_by("TrainingRun", "run-1", uid))
    pod = world.pod(namespace, uid=uid, owner=owned_by("Job", name, job["metadata"]["uid"]))
    return pod, world.token(namespace, "trainer", audience=f"finetune.dev/runs/{uid}", pod=pod)


def status() -> dict[str, Any]:
    return {"trainerStatus": {"progressPercentage": 5, "metrics": [{"name": "loss", "value": "2.5"}]}}


def test_a_runs_pod_may_do_its_runs_work(world: World, namespace: str, operator: str, uid: str) -> None:
    _, token = pod_token(world, namespace, uid)
    path = f"namespaces/{namespace}/runs/{uid}"
    assert world.call("POST", f"{path}/status", token, json=status()).status_code == 200
    assert world.call("PUT", f"{path}/result", token, json={"result": {"runUid": uid}}).status_code == 204
    assert world.call("GET", f"{path}/result", operator).json() == {"result": {"runUid": uid}}
    progress = world.call("GET", f"progress?runs={uid}", operator).json()["items"]
    assert progress[uid]["progressPercentage"] == 5
    assert error_of(world.call("GET", f"{path}/dataset", token)) == (404, "NotFound")  # this run has none


def test_a_result_is_read_by_who_may_read_runs(world: World, namespace: str, uid: str) -> None:
    _, token = pod_token(world, namespace, uid)
    path = f"namespaces/{namespace}/runs/{uid}/result"
    assert world.call("PUT", path, token, json={"result": {"runUid": uid}}).status_code == 204
    for name, resource, status in (("reader", "trainingruns", 200), ("other", "adapters", 403)):
        world.account(namespace, name)
        world.allow(namespace, name, resource=resource, verbs=["get"])
        assert world.call("GET", path, world.token(namespace, name)).status_code == status
        assert world.call("PUT", path, world.token(namespace, name), json={}).status_code in (401, 403)


def test_a_runs_pod_reads_the_dataset_that_was_recorded(world: World, namespace: str, operator: str) -> None:
    world.account(namespace, "alice")
    world.allow(namespace, "alice", resource="datasets", verbs=["create"])
    pushed = f"namespaces/{namespace}/datasets/tickets/versions"
    assert world.call("POST", pushed, world.token(namespace, "alice"), content=pairs(3)).status_code == 201
    uid = str(uuid.uuid4())
    path = f"namespaces/{namespace}/runs/{uid}"
    assert world.call("PUT", path, operator, json=run_document(datasetName="tickets")).status_code == 201
    _, token = pod_token(world, namespace, uid)
    assert world.call("GET", f"{path}/dataset", token).json()["version"] == 1
    assert world.call("GET", f"{path}/dataset/rows", token).content == pairs(3)
    # Only so far: the datasets themselves are for people.
    assert error_of(world.call("GET", f"{pushed}/1/rows", token)) == (401, "Unauthorized")


def test_a_runs_pod_may_not_touch_another_run(world: World, namespace: str, operator: str, uid: str) -> None:
    other = str(uuid.uuid4())
    runs = f"namespaces/{namespace}/runs"
    assert world.call("PUT", f"{runs}/{other}", operator, json=run_document(name="run-2")).status_code == 201
    _, token = pod_token(world, namespace, other)
    assert error_of(world.call("POST", f"{runs}/{uid}/status", token, json=status())) == (401, "Unauthorized")
    # Nor what is the operator's, on its own run.
    own = f"{runs}/{other}"
    assert error_of(world.call("PUT", own, token, json=run_document())) == (401, "Unauthorized")
    registered = world.call("PUT", f"{own}/adapter", token, json=adapter_document(other))
    assert error_of(registered) == (401, "Unauthorized")


def test_a_token_of_the_right_audience_is_not_enough(world: World, namespace: str, uid: str) -> None:
    path = f"namespaces/{namespace}/runs/{uid}/status"
    audience = f"finetune.dev/runs/{uid}"
    not_in_a_pod = world.token(namespace, "trainer", audience=audience)
    other = str(uuid.uuid4())
    another_runs_pod, _ = pod_token(world, namespace, other)
    elsewhere = f"{namespace}-b"
    world.account(elsewhere, "trainer")
    _, another_namespaces_pod = pod_token(world, elsewhere, uid)
    named = names.job_name("run-1", uid)
    ours = world.job(namespace, name="mine", owner=owned_by("TrainingRun", "run-1", uid))["metadata"]["uid"]
    nobodys = world.job(namespace, name=f"{named}-collect", owner=None)["metadata"]["uid"]
    invented = str(uuid.uuid4())
    forged = [
        None,
        owned_by("Job", "mine", ours),  # a Job that anybody may make
        owned_by("Job", f"{named}-collect", nobodys),  # of the right name, and no run's
        owned_by("Job", named, invented),  # there is no such Job
        owned_by("ReplicaSet", named, invented),
    ]
    tokens = [
        world.token(namespace, "trainer", audience=audience, pod=world.pod(namespace, uid=uid, owner=owner))
        for owner in forged
    ]
    tokens.append(world.token(namespace, "trainer", audience=audience, pod=another_runs_pod))
    for token in (not_in_a_pod, another_namespaces_pod, *tokens):
        assert error_of(world.call("POST", path, token, json=status())) == (403, "Forbidden")
    _, token = pod_token(world, namespace, uid)
    assert world.call("POST", path, token, json=status()).status_code == 200


def test_a_pod_that_has_ended_may_nothing(world: World, namespace: str, uid: str) -> None:
    pod, token = pod_token(world, namespace, uid)
    name = pod["metadata"]["name"]
    patch = {"status": {"phase": "Succeeded"}}
    path = f"/api/v1/namespaces/{namespace}/pods/{name}/status"
    body = {**pod, **patch}
    assert world.api.request("PUT", path, body)[0] == 200
    answer = world.call("POST", f"namespaces/{namespace}/runs/{uid}/status", token, json=status())
    assert error_of(answer) == (403, "Forbidden")


def test_the_end_of_a_run_is_the_end_of_what_its_pod_may_say(
    world: World, namespace: str, operator: str, uid: str
) -> None:
    _, token = pod_token(world, namespace, uid)
    path = f"namespaces/{namespace}/runs/{uid}"
    assert world.call("PUT", f"{path}/result", token, json={"result": {"runUid": uid}}).status_code == 204
    ended = {"phase": "Failed", "reason": "Diverged", "ended": True}
    assert error_of(world.call("PUT", f"{path}/status", token, json=ended)) == (401, "Unauthorized")
    assert world.call("PUT", f"{path}/status", operator, json=ended).status_code == 200
    assert error_of(world.call("POST", f"{path}/status", token, json=status())) == (409, "RunEnded")
    assert error_of(world.call("PUT", f"{path}/result", token, json={"result": {"runUid": uid}, "a": 1})) == (
        409,
        "RunEnded",
    )
    assert world.call("PUT", f"{path}/result", token, json={"result": {"runUid": uid}}).status_code == 204


def test_the_token_may_come_in_a_header_that_the_api_servers_proxy_passes_on(world: World, namespace: str) -> None:
    world.account(namespace, "alice")
    world.allow(namespace, "alice", resource="datasets", verbs=["list"])
    headers = {"X-Finetune-Token": world.token(namespace, "alice")}
    url = f"{world.registry}/api/v1/namespaces/{namespace}/datasets"
    assert httpx.get(url, headers=headers, timeout=30).status_code == 200
    # The proxy's own caller is somebody else; what is said to the registry counts.
    headers["Authorization"] = "Basic YTpi"
    assert httpx.get(url, headers=headers, timeout=30).status_code == 200


def test_a_namespace_that_comes_back_inherits_nothing(world: World, operator: str) -> None:
    namespace = f"ml-{uuid.uuid4().hex[:8]}"
    world.account(namespace, "alice")
    world.allow(namespace, "alice", resource="*", verbs=["*"])
    alice = world.token(namespace, "alice")
    path = f"namespaces/{namespace}/datasets/tickets/versions"
    assert world.call("POST", path, alice, content=pairs(1)).status_code == 201
    uid = str(uuid.uuid4())
    assert world.call("PUT", f"namespaces/{namespace}/runs/{uid}", operator, json=run_document()).status_code == 201
    assert any(each["uid"] == uid for each in world.call("GET", "unfinished", operator).json()["items"])

    delete_namespace(world, namespace)
    world.clock.now += 11
    world.account(namespace, "bob")
    world.allow(namespace, "bob", resource="*", verbs=["*"])
    bob = world.token(namespace, "bob")
    assert error_of(world.call("GET", f"{path}/latest", bob)) == (404, "NotFound")
    assert world.call("GET", f"namespaces/{namespace}/runs", bob).json()["items"] == []
    assert error_of(world.call("GET", f"namespaces/{namespace}/runs/{uid}", bob)) == (404, "NotFound")
    assert world.call("POST", path, bob, content=pairs(2)).json()["version"] == 1
    assert all(each["uid"] != uid for each in world.call("GET", "unfinished", operator).json()["items"])


def delete_namespace(world: World, name: str) -> None:
    """Delete a namespace as its controller would, which does not run here."""
    path = f"/api/v1/namespaces/{name}"
    for collection in (f"{path}/serviceaccounts", f"{RBAC}/namespaces/{name}/rolebindings"):
        assert world.api.request("DELETE", collection)[0] == 200
    assert world.api.request("DELETE", path)[0] in {200, 202}
    code, found = world.api.request("GET", path)
    if code == 200:
        found["spec"]["finalizers"] = []
        assert world.api.request("PUT", f"{path}/finalize", found)[0] == 200
    assert world.api.request("GET", path)[0] == 404


def test_a_pod_that_is_gone_may_nothing(world: World, namespace: str, uid: str) -> None:
    pod, token = pod_token(world, namespace, uid)
    path = f"namespaces/{namespace}/runs/{uid}/status"
    assert world.call("POST", path, token, json=status()).status_code == 200
    assert world.api.request("DELETE", f"/api/v1/namespaces/{namespace}/pods/{pod['metadata']['name']}")[0] == 200
    world.clock.now += 11
    # The API server accepts the token for some seconds more; the registry looks for the pod itself.
    assert world.call("POST", path, token, json=status()).status_code in {401, 403}


def test_a_pod_of_the_same_name_is_another_pod(world: World, namespace: str, uid: str) -> None:
    pod, token = pod_token(world, namespace, uid)
    name = pod["metadata"]["name"]
    pods = f"/api/v1/namespaces/{namespace}/pods"
    assert world.api.request("DELETE", f"{pods}/{name}")[0] == 200
    kept = {key: pod["metadata"][key] for key in ("name", "labels", "ownerReferences")}
    again = {"metadata": kept, "spec": pod["spec"]}
    assert world.create(pods, again)["metadata"]["uid"] != pod["metadata"]["uid"]
    path = f"namespaces/{namespace}/runs/{uid}/status"
    assert world.call("POST", path, token, json=status()).status_code in {401, 403}


async def test_without_the_api_server_nobody_is_let_in(tmp_path: Path) -> None:
    async def access() -> Access:
        from kubernetes.aio import client

        return KubernetesAccess(
            KubernetesReviews(client.Configuration(host="https://127.0.0.1:9")), operator_user=OPERATOR_USER
        )

    with serving(f"sqlite:///{tmp_path}/registry.db", access=access) as url:
        async with httpx.AsyncClient() as http:
            headers = {"Authorization": "Bearer e30.e30.c2ln"}
            answer = await http.get(f"{url}/api/v1/namespaces/ml/datasets", headers=headers, timeout=30)
    assert error_of(answer) == (503, "Unavailable")
