"""The real Kueue, a process beside an API server of this machine, for the tests of queues.

with Kueue(kubeconfig=..., bin_dir=..., folder=...) as kueue:
    kueue.api.apply(...)  # a namespace with the label JOBS, queues, Jobs; the namespace goes before Kueue does

Nothing else on the API server meets it: it is asked about Jobs only in namespaces that carry the label ``JOBS``.
"""

from __future__ import annotations

import base64
import json
import os
import random
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from tests.cluster import go_build, host
from tests.cluster.base import ClusterError
from tests.cluster.kube_api import KubeApi
from tests.cluster.layout import FREE_PORTS, LOOPBACK, is_taken
from tests.cluster.supervise import Identity, stop

Document = dict[str, Any]

MODULE = "sigs.k8s.io/kueue"
SYSTEM = "kueue-system"
SECRET = f"/api/v1/namespaces/{SYSTEM}/secrets/kueue-webhook-server-cert"
JOBS = "tests.finetune.dev/kueue"
"""Label of a namespace whose Jobs Kueue is asked about."""
NAMED = "named"
"""Value of ``JOBS``: Kueue manages the Jobs that name a queue, or get one because a LocalQueue `default` exists."""
EVERY = "every"
"""Value of ``JOBS``: Kueue manages every Job (its `manageJobsWithoutQueueName`)."""

START_SECONDS = 90.0
STOP_SECONDS = 30.0

HOOKED = {"jobs", "clusterqueues", "cohorts", "resourceflavors", "workloads"}
"""The kinds whose webhooks are registered; those of other frameworks would be asked about objects that nobody has."""
WEBHOOKS = ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
PATHS = {
    "CustomResourceDefinition": "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
    "MutatingWebhookConfiguration": "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
    "Namespace": "/api/v1/namespaces",
    "Secret": f"/api/v1/namespaces/{SYSTEM}/secrets",
    "Service": f"/api/v1/namespaces/{SYSTEM}/services",
    "ValidatingWebhookConfiguration": "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
}
FINALIZED = ("clusterqueues", "resourceflavors")
"""What Kueue itself must let go of, in this order, before it is stopped."""


@dataclass(frozen=True)
class KueuePorts:
    """TCP ports on the loopback."""

    webhook: int
    health: int

    @classmethod
    def free(cls) -> KueuePorts:
        """Ports that nobody uses at the moment."""
        candidates = (port for port in random.sample(FREE_PORTS, len(FREE_PORTS)) if not is_taken(LOOPBACK, port))
        return cls(webhook=next(candidates), health=next(candidates))


def configuration(ports: KueuePorts, certificates: Path) -> Document:
    """Kueue's configuration: its defaults, on ports of the loopback, for Jobs alone.

    The selector decides about Jobs without a queue's name; by default since 0.15 it would decide about all others, too.
    """
    return {
        "apiVersion": "config.kueue.x-k8s.io/v1beta2",
        "kind": "Configuration",
        "namespace": SYSTEM,
        "health": {"healthProbeBindAddress": f"{LOOPBACK}:{ports.health}"},
        "metrics": {"bindAddress": "0"},
        "webhook": {"host": LOOPBACK, "port": ports.webhook, "certDir": str(certificates)},
        "leaderElection": {"leaderElect": False},
        "integrations": {"frameworks": ["batch/job"]},
        "manageJobsWithoutQueueName": True,
        "managedJobsNamespaceSelector": {"matchLabels": {JOBS: EVERY}},
        "featureGates": {"ManagedJobsNamespaceSelectorAlwaysRespected": False, "VisibilityOnDemand": False},
    }


def manifests(documents: Iterable[Document], ports: KueuePorts) -> list[Document]:
    """What of Kueue's own manifests a process beside the API server needs, changed so that it is reached there."""
    return [made for document in documents if (made := _adapted(document, ports)) is not None]


def _adapted(document: Document, ports: KueuePorts) -> Document | None:
    name = document["metadata"]["name"]
    match document["kind"]:
        case "Namespace" | "Secret":
            return document
        case "CustomResourceDefinition":
            conversion = document["spec"].get("conversion")
            if conversion:
                conversion["webhook"]["clientConfig"]["service"]["port"] = ports.webhook
            return document
        case "Service" if name == "kueue-webhook-service":
            # The API server calls the host that this type names, and expects the certificate of the Service's name.
            return document | {"spec": {"type": "ExternalName", "externalName": LOOPBACK}}
        case kind if kind in WEBHOOKS:
            hooks = [hook for hook in document["webhooks"] if _resources(hook) & HOOKED]
            for hook in hooks:
                hook["clientConfig"]["service"]["port"] = ports.webhook
                if "jobs" in _resources(hook):
                    hook["namespaceSelector"] = {"matchExpressions": [{"key": JOBS, "operator": "Exists"}]}
            return document | {"webhooks": hooks}
    return None


def _resources(hook: Document) -> set[str]:
    groups = {group for rule in hook["rules"] for group in rule["apiGroups"]}
    if not groups <= {"batch", "kueue.x-k8s.io"}:
        return set()
    return {resource.partition("/")[0] for rule in hook["rules"] for resource in rule["resources"]}


class Kueue:
    """Kueue for as long as this block lasts; it may be stopped and started again in between.

    Parameters
    ----------
    kubeconfig: an administrator's, of an API server that runs on this machine.
    bin_dir: a folder with ``kubectl``.
    folder: for its log, its configuration and its certificate; it must exist.
    """

    def __init__(self, *, kubeconfig: Path, bin_dir: Path, folder: Path) -> None:
        self.api = KubeApi.from_kubeconfig(kubeconfig)
        self._kubeconfig = kubeconfig
        self._bin_dir = bin_dir
        self._ports = KueuePorts.free()
        self._root = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """What Kueue has written."""
        return self._root / "kueue.log"

    @property
    def running(self) -> bool:
        """The process has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def up(self) -> None:
        """Install its kinds and webhooks, start it, and wait until it answers for Jobs."""
        for manifest in manifests(self._own_manifests(), self._ports):
            self.api.apply(PATHS[manifest["kind"]], manifest)
        self.start()

    def down(self) -> None:
        """Remove everything of it from a cluster that lives on, once the namespaces that it was asked about are gone.

        What it holds by a finalizer goes before it does. Raises ClusterError.
        """
        if not self.running:
            self.start()
        self._wait_until(
            "the tests' namespaces are gone", lambda: not self._items(f"/api/v1/namespaces?labelSelector={JOBS}")
        )
        for kind in WEBHOOKS:
            self._delete(
                f"{PATHS[kind]}/kueue-{kind.removesuffix('WebhookConfiguration').lower()}-webhook-configuration"
            )
        for plural in FINALIZED:
            self._empty(f"/apis/kueue.x-k8s.io/v1beta2/{plural}")
        self.stop()
        for definition in self._items(PATHS["CustomResourceDefinition"]):
            if definition["spec"]["group"] == "kueue.x-k8s.io":
                self._delete(f"{PATHS['CustomResourceDefinition']}/{definition['metadata']['name']}")
        self._delete(f"{PATHS['Namespace']}/{SYSTEM}")

    def start(self) -> None:
        """Start the process and wait until its webhooks answer. Raises ClusterError."""
        certificates = self._root / "certificates"
        certificates.mkdir(exist_ok=True)
        settings = self._root / "configuration.yaml"
        settings.write_text(yaml.safe_dump(configuration(self._ports, certificates)))
        program = go_build.build((go_build.KUEUE,)) / "kueue"
        # The kernel ends it with this process, however that ends.
        argv: list[str | Path] = ["setpriv", "--pdeathsig", "KILL", "--", program]
        argv += [f"--config={settings}", "--zap-log-level=2"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "KUBECONFIG": str(self._kubeconfig)},
                start_new_session=True,
            )
        self._wait_until("its certificate is there", lambda: self._copy_certificate(certificates))
        self._wait_until("it is ready", lambda: host.answers(f"http://{LOOPBACK}:{self._ports.health}/readyz"))
        self._wait_until("its webhooks answer", self._is_asked)

    def stop(self) -> None:
        """End the process, as a node does that dies: what it has registered stays."""
        if self._process is None:
            return
        identity = Identity.of(self._process.pid)
        if identity is not None:
            stop([identity])
        self._process.wait(STOP_SECONDS)
        self._process = None

    def __enter__(self) -> Self:
        try:
            self.up()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def _own_manifests(self) -> list[Document]:
        """Every manifest of Kueue's own installation, from its pinned source."""
        module = json.loads(
            host.run(
                ["go", "mod", "download", "-json", MODULE],
                cwd=host.GO_SOURCES / go_build.KUEUE.module,
                env={"GOWORK": "off"},
            )
        )
        text = host.run([self._bin_dir / "kubectl", "kustomize", f"{module['Dir']}/config/default"])
        return list(yaml.load_all(text, Loader=yaml.CSafeLoader))

    def _copy_certificate(self, folder: Path) -> bool:
        """Do what a mounted Secret does: Kueue makes the certificate, and waits for it as a file."""
        data = (self.api.get(SECRET) or {}).get("data") or {}
        for name in ("tls.key", "tls.crt"):  # it looks for the latter
            if not data.get(name):
                return False
            (folder / name).write_bytes(base64.b64decode(data[name]))
        return True

    def _is_asked(self) -> bool:
        """Whether an object comes back that both webhooks have to agree to."""
        flavor = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "ResourceFlavor", "metadata": {"name": "probe"}}
        path = "/apis/kueue.x-k8s.io/v1beta2/resourceflavors?dryRun=All"
        return self.api.request("POST", path, flavor)[0] == 201

    def _wait_until(self, what: str, condition: Callable[[], object]) -> None:
        def check() -> None:
            if not self.running:
                raise ClusterError(f"Kueue ended before {what}:\n{self._tail()}")

        try:
            host.wait_until(f"Kueue: {what}", condition, seconds=START_SECONDS, check=check)
        except TimeoutError as error:
            raise ClusterError(f"{error}:\n{self._tail()}") from error

    def _tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])

    def _delete(self, path: str) -> None:
        code, answer = self.api.request("DELETE", path)
        if code not in {200, 202, 404}:
            raise ClusterError(f"the API server did not delete {path}: {code} {answer}")

    def _empty(self, path: str) -> None:
        """Delete the objects of a kind and wait until Kueue has let go of them."""
        self._delete(path)
        self._wait_until(f"{path} is empty", lambda: not self._items(path))

    def _items(self, path: str) -> list[Document]:
        code, answer = self.api.request("GET", path)
        if code != 200:
            raise ClusterError(f"the API server did not list {path}: {code} {answer}")
        found: list[Document] = answer["items"]
        return found
