"""What the API server refuses, and why: policies, webhooks, quotas, limits, rights, namespaces. All of them real."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.admission import AdmissionServer, Deny, in_force, policy
from tests.support.heard import all_of, has_waited, in_phase, newest, status, until, versions, waiting
from tests.support.kubectl import Kubectl
from tests.support.managed import a_managed_world
from tests.support.scenes import Scene, webhook_away, webhook_back
from tests.support.world import World, a_world, eventually, manifest

Document = dict[str, Any]

TIMEOUT = 2
"""The operator's referenceTimeoutSeconds, the default of these worlds."""
CLAIM = {"output": {"claimName": "mine"}}
"""For a run that makes no claim of its own."""
KINDS = ("persistentvolumeclaims", "jobs", "pods")
SENTENCE = "label cost-center is required"


@dataclass(frozen=True)
class Denial:
    """One rule of the cluster against new objects of one kind: a policy's reason, or a webhook's code."""

    resource: str
    reason: str = ""
    code: int | None = None
    webhook: bool = False


DENIALS: dict[str, Denial] = {
    **{
        f"{kind[:4]}-{reason.lower()}": Denial(kind, reason)
        for kind in KINDS
        for reason in ("Forbidden", "Invalid", "RequestEntityTooLarge")
    },
    **{
        f"{kind[:4]}-{code or 'none'}": Denial(kind, code=code, webhook=True)
        for kind in KINDS
        for code in (None, 400, 401, 403, 404, 409, 422)
    },
}


async def test_a_rule_of_the_cluster_is_said_and_ends_a_run_that_has_not_trained(
    managed_kubectl: Kubectl, tmp_path: Path
) -> None:
    namespace = managed_kubectl.namespace
    async with (
        AdmissionServer(tmp_path).serving() as admission,
        a_managed_world(managed_kubectl, tmp_path, FINETUNE_PENDING_SECONDS="1") as managed,
    ):
        for kind in KINDS:
            await admission.register(managed_kubectl, kind)
        admission.rules |= {
            f"{denial.resource}/{name}": Deny(SENTENCE, denial.code)
            for name, denial in DENIALS.items()
            if denial.webhook
        }
        policies = {name: denial for name, denial in DENIALS.items() if not denial.webhook}
        with removed(managed_kubectl, *policies):
            managed_kubectl.apply(
                *(
                    document
                    for name, denial in policies.items()
                    for document in policy(namespace, denial.resource, run=name, message=SENTENCE, reason=denial.reason)
                )
            )
            for name, denial in policies.items():
                await in_force(managed_kubectl, denial.resource, SENTENCE, run=name)
            managed_kubectl.apply(
                *(
                    manifest(name, **({} if denial.resource == "persistentvolumeclaims" else CLAIM))
                    for name, denial in DENIALS.items()
                )
            )
            await all_of(*(is_refused(Scene(managed, admission, tmp_path), name) for name in DENIALS))


@contextmanager
def removed(kubectl: Kubectl, *names: str) -> Iterator[None]:
    """Take the policies of these runs away at the end: they are asked about every object of the cluster."""
    try:
        yield
    finally:
        kinds = "validatingadmissionpolicy,validatingadmissionpolicybinding"
        documents = [f"{kubectl.namespace}-{DENIALS[name].resource}-{name}" for name in names]
        kubectl("delete", kinds, "--ignore-not-found", "--wait=false", *documents)


async def is_refused(scene: Scene, name: str) -> list[str]:
    """What is wrong with what a refused run says: first that it waits, then that it has failed."""
    denial, record = DENIALS[name], scene.managed.record
    await eventually(f"the end of {name}", lambda: in_phase("Failed")(newest(record, name)))
    said = {waiting(run).get("message", "") for run in versions(record, name)} - {""}
    problems = [] if any(SENTENCE in each and "denied" in each for each in said) else [f"{name}: said {said}"]
    failure = status(newest(record, name))["failure"]
    hint = "spec.output" if denial.resource == "persistentvolumeclaims" else "administrator"
    if failure["reason"] != "PodCreationRefused" or SENTENCE not in failure["message"] or hint not in failure["hint"]:
        problems.append(f"{name}: {failure}")
    return problems


@pytest.mark.long
async def test_a_webhook_that_is_away_is_named_and_waited_for(managed_kubectl: Kubectl, tmp_path: Path) -> None:
    """However long it takes: an outage is no refusal."""
    async with a_managed_world(managed_kubectl, tmp_path, FINETUNE_PENDING_SECONDS="1") as managed:
        scene = Scene(managed, AdmissionServer(tmp_path), tmp_path)
        for kind in KINDS:
            await webhook_away(kind)(scene, kind)
        managed_kubectl.apply(*(manifest(kind) for kind in KINDS))
        await all_of(*(is_waited_for(scene, kind) for kind in KINDS))
        await managed.check(names=KINDS)


async def is_waited_for(scene: Scene, kind: str) -> list[str]:
    """What is wrong with what a run says while a webhook for its objects of this kind is away."""
    record = scene.managed.record
    long = has_waited(seconds=2 * TIMEOUT + 1, reason="WebhookUnavailable")
    run = await until(record, kind, "it waits for the webhook", long)
    message = waiting(run)["message"]
    problems = [] if f"{kind}.webhook.example.com" in message else [f"{kind}: says {message}"]
    await webhook_back(kind)(scene, kind)
    await until(record, kind, "it succeeds", in_phase("Succeeded"))
    return problems


@dataclass(frozen=True)
class Limit:
    """A namespace with a quota or limits in it, and what becomes of a run there.

    Parameters
    ----------
    object: the ResourceQuota's or LimitRange's kind and spec.
    says, words, hint: what the run waits for, or why it has failed.
    ends: it has failed; otherwise it goes on once the limit is gone.
    passes: the spec of a run that starts at once.
    """

    object: tuple[str, Document]
    says: str
    words: str
    hint: str
    ends: bool = False
    spec: Mapping[str, Any] = field(default_factory=dict)
    passes: Mapping[str, Any] | None = None


def quota(**hard: str) -> tuple[str, Document]:
    """A ResourceQuota; two underscores are a slash, one is a dot."""
    return "ResourceQuota", {"hard": {key.replace("__", "/").replace("_", "."): value for key, value in hard.items()}}


def limits(type_: str, **limit: Mapping[str, str]) -> tuple[str, Document]:
    """A LimitRange of one line."""
    return "LimitRange", {"limits": [{"type": type_, **limit}]}


SMALL = {"resources": {"cpu": "250m", "cpuLimit": "500m"}}
LIMITS: dict[str, Limit] = {
    "jobs": Limit(quota(count__jobs_batch="0"), "QuotaExceeded", "count/jobs.batch=0", "quota"),
    "pods": Limit(quota(pods="0"), "QuotaExceeded", "limited: pods=0", "quota"),
    "cpu": Limit(
        quota(limits_cpu="4"),
        "PodCreationRefused",
        "must specify limits.cpu",
        "spec.resources.cpuLimit",
        ends=True,
        passes=SMALL,
    ),
    "requests": Limit(quota(requests_cpu="100m"), "QuotaExceeded", "requests.cpu", "quota"),
    "storage": Limit(quota(requests_storage="1Gi"), "QuotaExceeded", "requests.storage", "spec.output.claim.size"),
    "maximum": Limit(
        limits("Container", max={"cpu": "500m"}),
        "PodCreationRefused",
        "maximum cpu usage per Container is 500m",
        "spec.resources.cpuLimit",
        ends=True,
        spec={"resources": {"cpu": "1", "cpuLimit": "1"}},
        passes=SMALL,
    ),
    "ratio": Limit(
        limits("Container", maxLimitRequestRatio={"memory": "2"}),
        "PodCreationRefused",
        "memory max limit to request ratio",
        "administrator",
        ends=True,
    ),
    "size": Limit(
        limits("PersistentVolumeClaim", max={"storage": "1Gi"}),
        "PodCreationRefused",
        "maximum storage usage per PersistentVolumeClaim is 1Gi",
        "spec.output.claim.size",
        ends=True,
        passes={"output": {"claim": {"size": "1Gi"}}},
    ),
}
PROFILES = ("restricted", "baseline")


@pytest.mark.long
async def test_a_full_quota_is_waited_for_and_a_missing_limit_is_named(
    managed_kubectl: Kubectl, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        spaces = {name: stack.enter_context(a_namespace(managed_kubectl)) for name in (*LIMITS, *PROFILES)}
        for name, limit in LIMITS.items():
            kind, spec = limit.object
            spaces[name].apply({"apiVersion": "v1", "kind": kind, "metadata": {"name": "limit"}, "spec": spec})
        for profile in PROFILES:
            label = f"pod-security.kubernetes.io/enforce={profile}"
            managed_kubectl("label", "namespace", spaces[profile].namespace, label)
        quotas = [spaces[name] for name, limit in LIMITS.items() if limit.object[0] == "ResourceQuota"]
        await eventually("the quotas count", lambda: all(map(counts, quotas)))
        watched = ",".join(space.namespace for space in spaces.values())
        async with a_world(managed_kubectl, tmp_path, FINETUNE_WATCH_NAMESPACES=watched, FINETUNE_PENDING_SECONDS="1"):
            for name, space in spaces.items():
                apply_runs(space, LIMITS.get(name))
            await all_of(
                *(is_limited(spaces[name], name) for name in LIMITS), *(is_admitted(spaces[each]) for each in PROFILES)
            )


@contextmanager
def a_namespace(kubectl: Kubectl) -> Iterator[Kubectl]:
    """Another namespace."""
    name = f"limit-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    try:
        yield kubectl.at(name)
    finally:
        kubectl("delete", "namespace", name, "--wait=false")


def counts(space: Kubectl) -> bool:
    """The quota's controller has seen it: it is enforced from then on."""
    return bool(space.json("get", "resourcequota", "limit").get("status", {}).get("hard"))


ROWS = {"configMap": {"name": "rows", "key": "rows.jsonl"}}


def apply_runs(space: Kubectl, limit: Limit | None) -> None:
    """The run that meets the limit, and the one that passes."""
    space.apply(manifest("support", dataset=ROWS, **(limit.spec if limit else {})))
    if limit is not None and limit.passes is not None:
        space.apply(manifest("passes", dataset=ROWS, **limit.passes))


async def is_limited(space: Kubectl, name: str) -> list[str]:
    """What is wrong with what becomes of the runs in a namespace with a limit."""
    limit = LIMITS[name]
    if limit.ends:
        await eventually(f"{name}: its end", lambda: in_phase("Failed")(run_of(space)))
        told = status(run_of(space))["failure"]
    else:
        long = has_waited(seconds=2 * TIMEOUT, reason=limit.says)
        await eventually(f"{name}: a long wait", lambda: long(run_of(space)))
        told = waiting(run_of(space))
        space("delete", limit.object[0], "limit")
        await is_admitted(space)
    if limit.passes is not None:
        await is_admitted(space, "passes")
    right = told["reason"] == limit.says and limit.words in told["message"] and limit.hint in told["hint"]
    return [] if right else [f"{name}: {told}"]


def run_of(space: Kubectl) -> Document:
    """The run as it is now."""
    return space.find("trainingruns", "support") or {}


async def is_admitted(space: Kubectl, run: str = "support") -> list[str]:
    """Its pod is made."""
    await eventually(f"a pod of {run} in {space.namespace}", lambda: space.items("pods", f"finetune.dev/run={run}"))
    return []


RIGHTS = [
    {"apiGroups": ["finetune.dev"], "resources": ["trainingruns", "trainingruns/status"], "verbs": ["*"]},
    {"apiGroups": ["batch"], "resources": ["jobs/status"], "verbs": ["*"]},
    {"apiGroups": [""], "resources": ["pods", "persistentvolumeclaims", "events"], "verbs": ["*"]},
]
JOBS = {"apiGroups": ["batch"], "resources": ["jobs"]}


@pytest.mark.parametrize("verbs", [("get", "list", "watch"), ()])
@pytest.mark.long
async def test_rights_that_are_taken_away_for_a_while_end_nothing(
    managed_kubectl: Kubectl, tmp_path: Path, verbs: tuple[str, ...]
) -> None:
    """The operator as a service account with a Role; at first it may not create Jobs, or not even read them."""
    managed_kubectl("create", "serviceaccount", "operator")
    grant(managed_kubectl, "get", "list", "watch", "create", "patch", "delete")
    token = managed_kubectl("create", "token", "operator").strip()
    path = kubeconfig_of(managed_kubectl.kubeconfig, token, tmp_path / "account")
    async with a_managed_world(managed_kubectl, tmp_path, KUBECONFIG=str(path)) as managed:
        managed.world.apply("before")
        await until(managed.record, "before", "it succeeds", in_phase("Succeeded"))
        grant(managed_kubectl, *verbs)
        managed.world.apply()
        long = has_waited(seconds=2 * TIMEOUT + 1, reason="OperatorForbidden")
        run = await until(managed.record, "support", "it says what the operator lacks", long)
        assert "cannot" in waiting(run)["message"]
        assert 'resource "jobs"' in waiting(run)["message"]
        assert "administrator" in waiting(run)["hint"]
        grant(managed_kubectl, "get", "list", "watch", "create", "patch", "delete")
        await until(managed.record, "support", "it succeeds", in_phase("Succeeded"))


def kubeconfig_of(administrators: Path, token: str, path: Path) -> Path:
    """The administrator's kubeconfig with a token in the place of the certificate."""
    document = yaml.safe_load(administrators.read_text())
    document["users"] = [{"name": user["name"], "user": {"token": token}} for user in document["users"]]
    path.write_text(yaml.safe_dump(document))
    return path


def grant(kubectl: Kubectl, *verbs: str) -> None:
    """Let the operator's account do this with Jobs, and everything with the rest."""
    head = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "operator"}}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "operator"}
    account = {"kind": "ServiceAccount", "name": "operator", "namespace": kubectl.namespace}
    rules = [*RIGHTS, {**JOBS, "verbs": list(verbs)}] if verbs else RIGHTS
    kubectl.apply(
        {**head, "kind": "Role", "rules": rules},
        {**head, "kind": "RoleBinding", "roleRef": role, "subjects": [account]},
    )


async def test_a_namespace_that_is_being_deleted_is_named(kubectl: Kubectl, world: World) -> None:
    """On a server whose namespaces are never emptied; on another one, the run would be gone in a moment."""
    world.apply(suspend=True)
    await world.phase("Suspended")
    kubectl("delete", "namespace", kubectl.namespace, "--wait=false")
    await eventually("the end", lambda: "deletionTimestamp" in kubectl.json("get", "ns", kubectl.namespace)["metadata"])
    kubectl("patch", "trun", "support", "--type=merge", '--patch={"spec":{"suspend":false}}')
    await eventually("what it waits for", lambda: waiting(world.run() or {}).get("reason") == "NamespaceTerminating")
    told = waiting(world.run() or {})
    assert "is being terminated" in told["message"]
    start = time.monotonic()
    await eventually("a while", lambda: time.monotonic() - start > 2 * TIMEOUT)
    assert waiting(world.run() or {}) == told
