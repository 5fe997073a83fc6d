"""`finetune doctor`: what of an installation works for the person who asks, and what to do about the rest.

Each check is a question to the cluster or the registry; what it finds is one `Finding`. A check that cannot be made is
a finding, too: doctor never stops half way.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from .output import document, painted, printable
from .runs import brief
from .session import DEFAULT_SERVICE, Session, UsageError
from .views import dataset_of, model_of

if TYPE_CHECKING:
    from finetune.clients.cluster import Cluster

OK, WARN, FAIL = "ok", "warn", "fail"
MARKS = {OK: ("+", "green"), WARN: ("!", "yellow"), FAIL: ("x", "red")}
CRD_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/trainingruns.finetune.dev"
GPU_DOMAINS = ("nvidia.com/", "amd.com/", "gpu.intel.com/", "habana.ai/")
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
RIGHTS = (
    ("create", "finetune.dev", "trainingruns", FAIL, "make runs"),
    ("list", "finetune.dev", "trainingruns", FAIL, "see runs"),
    ("patch", "finetune.dev", "trainingruns", WARN, "suspend and resume runs"),
    ("delete", "finetune.dev", "trainingruns", WARN, "delete runs"),
    ("get", "", "pods/log", WARN, "read logs"),
    ("create", "", "serviceaccounts/token", WARN, "log in to the registry by `finetune login`"),
)

Document = dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """What one check has found."""

    level: str
    what: str
    message: str
    fix: str = ""


async def doctor(session: Session, arguments: argparse.Namespace) -> int:
    """Print what works and what does not; the exit code is 1 where something has to be mended."""
    findings = []
    async for finding in _examine(session, arguments.run):
        findings.append(finding)
        if arguments.output not in {"json", "yaml"}:
            print(shown(finding), flush=True)
    if arguments.output in {"json", "yaml"}:
        print(document([asdict(each) for each in findings], arguments.output))
    return 1 if any(each.level == FAIL for each in findings) else 0


def shown(finding: Finding, *, on: bool | None = None) -> str:
    """A finding as it is printed."""
    mark, colour = MARKS[finding.level]
    text = f"{painted(mark, colour, on=on)} {finding.what}: {printable(finding.message)}"
    return text + (f"\n    do: {printable(finding.fix)}" if finding.fix and finding.level != OK else "")


async def _examine(session: Session, run: str | None) -> AsyncIterator[Finding]:
    from finetune.clients.kubeconfig import KubeconfigError
    from finetune.clients.kubernetes_errors import KubernetesError

    try:
        cluster, namespace = await session.cluster(), session.namespace
        found = await cluster.get("/version")
    except KubeconfigError as error:
        yield Finding(FAIL, "kubeconfig", str(error), "make kubectl work first")
        async for finding in _registry(session):
            yield finding
        return
    except KubernetesError as error:
        yield Finding(FAIL, "cluster", brief(error), "make kubectl work first: kubectl version")
        return
    yield Finding(
        OK, "cluster", f"{cluster.connection.server}, Kubernetes {found.get('gitVersion')}, namespace {namespace}"
    )
    checks = (_definition(cluster), _rights(cluster, namespace), _nodes(cluster), _storage(cluster))
    for findings in await asyncio.gather(*(_made(check) for check in checks)):
        for finding in findings:
            yield finding
    async for finding in _registry(session):
        yield finding
    if run is not None:
        for finding in await _made(_run_needs(cluster, session, run)):
            yield finding


async def _made(check: Any) -> list[Finding]:
    """The findings of a check; what the API server does not say is a warning."""
    from finetune.clients.kubernetes_errors import KubernetesError

    try:
        return list(await check)
    except KubernetesError as error:
        return [Finding(WARN, error.path.rpartition("/")[2], f"cannot be seen: {brief(error)}")]


async def _definition(cluster: Cluster) -> list[Finding]:
    from finetune.clients.kubernetes_errors import ForbiddenError, NotFoundError

    try:
        crd = await cluster.get(CRD_PATH)
    except NotFoundError:
        return [
            Finding(FAIL, "TrainingRuns", "the cluster does not know them", "install the chart; see docs/install.md")
        ]
    except ForbiddenError:  # usual for people: discovery says enough
        await cluster.get("/apis/finetune.dev/v1alpha1")
        return [Finding(OK, "TrainingRuns", "served")]
    return [fields_known(crd)]


def fields_known(crd: Mapping[str, Any]) -> Finding:
    """Whether the cluster's definition has the fields that this command knows."""
    from finetune.api.trainingrun import TrainingRunSpec

    served = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    missing = sorted({field.alias or name for name, field in TrainingRunSpec.model_fields.items()} - set(served))
    if missing:
        message = (
            f"the cluster's definition is older than this command ({_ours()}): it lacks spec.{', spec.'.join(missing)}"
        )
        return Finding(WARN, "TrainingRuns", message, "upgrade the chart, or use the command of the chart's version")
    return Finding(OK, "TrainingRuns", f"served, with all fields of {_ours()}")


def _ours() -> str:
    return f"finetune-operator {version('finetune-operator')}"


async def _rights(cluster: Cluster, namespace: str) -> list[Finding]:
    questions = (cluster.may(verb, group, kind, namespace=namespace) for verb, group, kind, _, _ in RIGHTS)
    answers = await asyncio.gather(*questions)
    lacking = [right for right, allowed in zip(RIGHTS, answers, strict=True) if not allowed]
    fix = f"kubectl create rolebinding NAME --clusterrole=edit --user=YOU --namespace={namespace}"
    found = [
        Finding(level, "rights", f"you may not {what} in {namespace} ({verb} {kind})", fix)
        for verb, _, kind, level, what in lacking
    ]
    return found or [Finding(OK, "rights", f"you may make, see, change and delete runs in {namespace}")]


async def _nodes(cluster: Cluster) -> list[Finding]:
    return [gpus_of(await cluster.items("/api/v1/nodes"))]


def gpus_of(nodes: Iterable[Mapping[str, Any]]) -> Finding:
    """How many GPUs the nodes offer."""
    offered: dict[str, int] = {}
    for node in nodes:
        for resource, amount in ((node.get("status") or {}).get("allocatable") or {}).items():
            if resource.startswith(GPU_DOMAINS) and str(amount).isdigit() and int(amount):
                offered[resource] = offered.get(resource, 0) + int(amount)
    if offered:
        return Finding(OK, "GPUs", ", ".join(f"{count} {resource}" for resource, count in sorted(offered.items())))
    fix = "install the device plugin of your GPUs, or train on CPUs: --gpus=0"
    return Finding(WARN, "GPUs", "no node offers one", fix)


async def _storage(cluster: Cluster) -> list[Finding]:
    return [default_class(await cluster.items("/apis/storage.k8s.io/v1/storageclasses"))]


def default_class(classes: Iterable[Mapping[str, Any]]) -> Finding:
    """Whether a run's own claim gets a volume."""
    names = {each["metadata"]["name"]: each["metadata"].get("annotations") or {} for each in classes}
    defaults = sorted(name for name, notes in names.items() if notes.get(DEFAULT_CLASS) == "true")
    if defaults:
        return Finding(OK, "storage", f"claims are made with StorageClass {', '.join(defaults)}")
    if names:
        known = f"no StorageClass is the default; there are {', '.join(sorted(names))}"
        return Finding(
            WARN, "storage", known, "set trainer.storageClassName in the chart, or spec.output.claim.storageClassName"
        )
    return Finding(WARN, "storage", "there is no StorageClass", "install a provisioner, or set spec.output.claimName")


async def _registry(session: Session) -> AsyncIterator[Finding]:
    from finetune.clients.kubernetes_errors import KubernetesError
    from finetune.clients.registry_errors import RegistryDenied, RegistryError

    try:
        registry = await session.registry()
        where = await session.registry_name()
        await registry.list_datasets(session.namespace)
    except UsageError as error:
        yield Finding(FAIL, "registry", str(error))
    except RegistryDenied as error:
        text = str(error)
        proxied = "services/proxy" in text or "API server" in text
        fix = (
            "ask for the right to use the registry's service proxy, or --registry-url" if proxied else "finetune login"
        )
        yield Finding(FAIL, "registry", text, fix)
    except (RegistryError, KubernetesError) as error:
        yield Finding(
            FAIL, "registry", brief(error), f"is it up? --registry-service names it; default: {DEFAULT_SERVICE}"
        )
    else:
        yield Finding(OK, "registry", f"{where} answers and knows you")


async def _run_needs(cluster: Cluster, session: Session, name: str) -> list[Finding]:
    """Whether what a run refers to is there."""
    from finetune.clients.cluster import runs_path
    from finetune.clients.kubernetes_errors import NotFoundError

    obj = await cluster.get(runs_path(session.namespace, name))
    spec, found = obj["spec"], []
    for path, word in references(spec):
        try:
            await cluster.get(path.format(session.namespace))
        except NotFoundError:
            fix = f"make it, or make another run: finetune run --from {name} --set ..."
            found.append(Finding(FAIL, name, f"{word} does not exist in {session.namespace}", fix))
    return found or [Finding(OK, name, f"what it refers to is there: {model_of(spec)}, {dataset_of(spec)}")]


def references(spec: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Paths of the objects that a spec names, with the namespace to be filled in, and what to call them."""
    kinds = {"claimName": "persistentvolumeclaims", "configMap": "configmaps"}
    found: dict[str, str] = {}

    def visit(value: object, key: str) -> None:
        if isinstance(value, Mapping):
            for inner, each in value.items():
                visit(each, str(inner))
            name = value.get("name")
            if key == "configMap" and isinstance(name, str):
                found[f"/api/v1/namespaces/{{}}/{kinds[key]}/{name}"] = f"ConfigMap {name}"
            if key.endswith("SecretRef") and isinstance(name, str):
                found[f"/api/v1/namespaces/{{}}/secrets/{name}"] = f"Secret {name}"
        elif isinstance(value, list):
            for each in value:
                visit(each, key)
        elif key == "claimName" and isinstance(value, str):
            found[f"/api/v1/namespaces/{{}}/{kinds[key]}/{value}"] = f"claim {value}"

    visit(spec, "")
    return list(found.items())
