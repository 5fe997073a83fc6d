"""The chart's policy on the operator's account, on a real API server: only what is like a run passes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune.controller.core import names
from finetune.controller.core.manifests import build_claim, build_collect_job, build_job
from tests.cluster import go_build
from tests.cluster.api_server import ApiServerOnly
from tests.cluster.kube_api import KubeApi
from tests.support import objects
from tests.support.impersonation import Account
from tests.support.kubectl import Kubectl

CHART = str(Path(__file__).parents[2] / "charts" / "finetune-operator")
SYSTEM = "policy-system"
NAMESPACE = "guarded"
OPERATOR = "guarded-operator"
ACCOUNT = f"system:serviceaccount:{SYSTEM}:{OPERATOR}"
SERVED = "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy"
JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
CLAIMS = f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims"
STORED = "stored"
"""Where objects are really made; elsewhere they are only tried."""
STORED_JOBS = f"/apis/batch/v1/namespaces/{STORED}/jobs"
STORED_PODS = f"/api/v1/namespaces/{STORED}/pods"
VALUES = (
    *("--set", f"fullnameOverride={OPERATOR}", "--set", "trainer.image.repository=trainer"),
    *("--set-string", "trainer.image.tag=1"),
    *("--set", "operator.admissionPolicy.images={mirror.local/trainer:1}"),
    *("--set", "trainer.allowed.images={special:1,team.example.com/ml/*}"),
    *("--set", "trainer.allowed.serviceAccountNames={reader}", "--set", f"trainer.serviceAccountNames.{NAMESPACE}=own"),
)

Document = dict[str, Any]
Change = Callable[[Document], None]


class Operator(Account):
    """The API server as the operator's account sees it; nothing that it writes is stored."""

    def create(self, document: Document) -> str:
        """It makes an object in the run's namespace."""
        path = CLAIMS if document["kind"] == "PersistentVolumeClaim" else JOBS
        return self("POST", path, {**document, "metadata": {**document["metadata"], "namespace": NAMESPACE}})


@pytest.fixture(scope="module")
def operator(api_server: ApiServerOnly, api: KubeApi) -> Iterator[Operator]:
    """The operator's account, with its role and its policy in force."""
    kubectl = Kubectl(kubeconfig=api_server.kubeconfig, bin_dir=go_build.build(go_build.CLIENTS), namespace=SYSTEM)
    shown = ("--show-only=templates/operator-rbac.yaml", "--show-only=templates/admission-policy.yaml")
    options = ("--namespace", SYSTEM, "--api-versions", SERVED, *shown, *VALUES)
    rendered = kubectl.command("helm", "template", "release", CHART, *options)
    for namespace in (SYSTEM, NAMESPACE, STORED):
        kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    kubectl("apply", "-f", "-", stdin=rendered)  # a worker may come back to this file
    operator = Operator(api, ACCOUNT)
    unlike = job(REFUSED["no labels"][0])
    # Role and policy reach the authorizer and the admission a moment later.
    kubectl.wait_for("the policy is in force", lambda: "labels of a run" in operator.create(unlike))
    yield operator
    kubectl("delete", "-f", "-", stdin=rendered)
    kubectl.at(STORED)("delete", "jobs,pods", "--all", "--force", "--grace-period=0")


def job(change: Change = lambda _: None) -> Document:
    """The Job that the operator makes for a run, changed in one place."""
    document = copy.deepcopy(build_job(objects.run(output={"claimName": "adapters"}), objects.SETTINGS))
    document["metadata"]["namespace"] = NAMESPACE
    change(document)
    return document


def pod_of(document: Document) -> Document:
    spec: Document = document["spec"]["template"]["spec"]
    return spec


def trainer_of(document: Document) -> Document:
    container: Document = pod_of(document)["containers"][0]
    return container


def test_what_the_operator_makes_passes(operator: Operator) -> None:
    run = objects.run()
    owned = objects.run(output={"claim": {"retain": False}})
    mirrored = job(_set(trainer_of, image="mirror.local/trainer:1"))
    for image in ("special:1", "team.example.com/ml/trainer:7"):
        assert operator.create(job(_set_images(image))) == ""
    for account in ("default", "reader", "own"):
        assert operator.create(job(_set(pod_of, serviceAccountName=account))) == ""
    claims = (build_claim(each, objects.SETTINGS) for each in (run, owned))
    for made in (job(), mirrored, build_collect_job(run, objects.SETTINGS), *claims):
        assert operator.create(made) == ""


def _volume(source: Document) -> Change:
    return lambda each: pod_of(each)["volumes"].append({"name": "extra", **source})


def _set(part: Callable[[Document], Document], **values: object) -> Change:
    return lambda each: part(each).update(values)


def _set_images(image: str) -> Change:
    def change(each: Document) -> None:
        for container in (*pod_of(each)["initContainers"], *pod_of(each)["containers"]):
            container["image"] = image

    return change


FOREIGN_OWNER = [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "a", "uid": "a", "controller": True}]
REFUSED: dict[str, tuple[Change, str]] = {
    "no labels": (lambda each: each["metadata"].update(labels={"a": "b"}), "labels of a run"),
    "another manager": (
        lambda each: each["metadata"]["labels"].update({names.MANAGED_BY_LABEL: "x"}),
        "labels of a run",
    ),
    "no owner": (lambda each: each["metadata"].pop("ownerReferences"), "that a TrainingRun owns"),
    "another owner": (lambda each: each["metadata"].update(ownerReferences=FOREIGN_OWNER), "that a TrainingRun owns"),
    "an owner that does not control": (
        lambda each: each["metadata"]["ownerReferences"][0].update(controller=False),
        "that a TrainingRun owns",
    ),
    "the node's network": (_set(pod_of, hostNetwork=True), "the node's network"),
    "the node's processes": (_set(pod_of, hostPID=True), "the node's network"),
    "the node's memory": (_set(pod_of, hostIPC=True), "the node's network"),
    "the node's disk": (_volume({"hostPath": {"path": "/"}}), "nothing of the node"),
    "a Secret": (_volume({"secret": {"secretName": "x"}}), "nothing of the node"),
    "a projected Secret": (_volume({"projected": {"sources": [{"secret": {"name": "x"}}]}}), "nothing of the node"),
    "a token for the API server": (
        _volume({"projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}),
        "nothing of the node",
    ),
    "another account": (_set(pod_of, serviceAccountName="admin"), "the service account default or reader"),
    "an image that begins otherwise": (_set(trainer_of, image="team.example.com/mlx"), "the image trainer:1"),
    "the account's token": (_set(pod_of, automountServiceAccountToken=True), "without its token"),
    "another image": (_set(trainer_of, image="miner:1"), "the image trainer:1 or mirror.local/trainer:1 or special:1"),
    "another init container": (
        lambda each: pod_of(each)["initContainers"].append({**trainer_of(each), "name": "x", "image": "miner:1"}),
        "the image trainer:1 or mirror.local/trainer:1 or special:1",
    ),
    "privileges": (_set(trainer_of, securityContext={"privileged": True}), "must not be privileged"),
    "no security": (lambda each: trainer_of(each).pop("securityContext"), "must not be privileged"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_job_that_is_no_runs_is_refused(operator: Operator, what: str) -> None:
    change, message = REFUSED[what]
    assert message in operator.create(job(change))


def test_a_claim_without_a_runs_labels_is_refused(operator: Operator) -> None:
    claim = build_claim(objects.run(), objects.SETTINGS)
    claim["metadata"]["labels"] = {}
    assert "labels of a run" in operator.create(claim)


@pytest.mark.usefixtures("operator")
def test_others_are_not_spoken_of(api: KubeApi) -> None:
    code, answer = api.request("POST", f"{JOBS}?dryRun=All", job(REFUSED["another image"][0]))
    assert code == 201, answer


@pytest.fixture(scope="module")
def stored(operator: Operator) -> tuple[str, str]:
    """Names of a run's Job and of one that has its labels only, as somebody else made them."""
    foreign = job(REFUSED["no owner"][0])
    foreign["metadata"]["name"] = "foreign"
    mine = job()
    for document in (mine, foreign):
        document["metadata"]["namespace"] = STORED
        document["spec"]["suspend"] = True
        make(operator.api, STORED_JOBS, document)
    return mine["metadata"]["name"], "foreign"


def make(api: KubeApi, path: str, document: Document) -> None:
    """Somebody else stores an object."""
    code, answer = api.request("POST", path, document)
    assert code == 201, answer


def test_only_what_does_not_change_the_pod_may_be_patched(operator: Operator, stored: tuple[str, str]) -> None:
    mine, foreign = (f"{STORED_JOBS}/{name}" for name in stored)
    for subresource, body in (
        ("", {"spec": {"suspend": False}}),
        ("", {"spec": {"activeDeadlineSeconds": 60}}),
        ("", {"spec": {"ttlSecondsAfterFinished": 9}}),
        ("", {"metadata": {"annotations": {names.SUSPENDED_BY_ANNOTATION: objects.UID}}}),
        ("/status", {"status": {"startTime": None}}),
    ):
        assert operator("PATCH", f"{mine}{subresource}", body) == ""
        assert "that a TrainingRun owns" in operator("PATCH", f"{foreign}{subresource}", body)
    elsewhere = {"spec": {"template": {"spec": {"nodeSelector": {"a": "b"}}}}}
    assert "may not change what a Job runs" in operator("PATCH", mine, elsewhere)


def test_only_a_runs_claim_may_be_deleted(operator: Operator) -> None:
    claims = f"/api/v1/namespaces/{STORED}/persistentvolumeclaims"
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    labels = names.run_labels("support", objects.UID, names.ROLE_TRAIN)
    for name, own in (("mine", labels), ("yours", {})):
        make(operator.api, claims, {"metadata": {"name": name, "labels": own}, "spec": spec})
    assert operator("DELETE", f"{claims}/mine") == ""
    assert "labels of a run" in operator("DELETE", f"{claims}/yours")
    for name in ("mine", "yours"):
        operator.api.request("DELETE", f"{claims}/{name}")


def test_only_what_belongs_to_runs_may_be_deleted(operator: Operator, stored: tuple[str, str]) -> None:
    """An orphan may be: whoever took its owner away left the GPU to it."""
    labels = names.run_labels("support", objects.UID, names.ROLE_TRAIN)
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": stored[0], "uid": "u", "controller": True}
    spec = {"containers": [{"name": "c", "image": "i"}], "restartPolicy": "Never"}
    for name, owners in (("plain", []), ("owned", [owner])):
        make(
            operator.api,
            STORED_PODS,
            {"metadata": {"name": name, "labels": labels, "ownerReferences": owners}, "spec": spec},
        )
    make(operator.api, STORED_JOBS, {"metadata": {"name": "other"}, "spec": {"template": {"spec": spec}}})
    for name in stored:
        assert operator("DELETE", f"{STORED_JOBS}/{name}") == ""
    assert operator("DELETE", f"{STORED_PODS}/owned") == ""
    assert "only pods of Jobs" in operator("DELETE", f"{STORED_PODS}/plain")
    assert "labels of a run" in operator("DELETE", f"{STORED_JOBS}/other")
