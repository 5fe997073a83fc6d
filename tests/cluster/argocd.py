"""The real Argo CD, as processes beside an API server of this machine, over a Git repository of one's own.

with ArgoCD(kubeconfig=..., bin_dir=..., folder=...) as argo:
    argo.commit({"runs/run.yaml": "..."})
    argo.apply_application("runs", path="runs", namespace="ml")
    argo.wait_for("it is healthy", lambda: argo.health("runs")[0] == "Healthy")

Its pods' manifests are not used, but its CRDs, ConfigMaps and flags are; the programs are those of its release.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from tests.cluster import go_build, host
from tests.cluster.base import ClusterError
from tests.cluster.kube_api import MERGE, KubeApi
from tests.cluster.layout import FREE_PORTS, LOOPBACK, is_taken
from tests.cluster.supervise import Identity, stop

Document = dict[str, Any]

MODULE = "github.com/argoproj/argo-cd/v3"
NAMESPACE = "argocd"
IN_CLUSTER = "https://kubernetes.default.svc"
APPLICATIONS = f"/apis/argoproj.io/v1alpha1/namespaces/{NAMESPACE}/applications"
PROJECTS = f"/apis/argoproj.io/v1alpha1/namespaces/{NAMESPACE}/appprojects"
PATHS = {
    "ConfigMap": f"/api/v1/namespaces/{NAMESPACE}/configmaps",
    "Secret": f"/api/v1/namespaces/{NAMESPACE}/secrets",
    "CustomResourceDefinition": "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
}
CUSTOMIZATIONS = host.GO_SOURCES.parents[2] / "deploy" / "argocd" / "argocd-cm.yaml"
START_SECONDS = 120.0
STOP_SECONDS = 30.0
RESYNC_SECONDS = 5
"""How often Argo CD compares without a cause; three minutes on other people's clusters."""


class ArgoCD:
    """Argo CD for as long as this block lasts.

    Parameters
    ----------
    kubeconfig: an administrator's, of an API server that this machine reaches.
    bin_dir: a folder with ``kubectl`` and ``helm``.
    folder: for its logs, its working copies and the Git repository; it must exist.
    """

    def __init__(self, *, kubeconfig: Path, bin_dir: Path, folder: Path) -> None:
        self.api = KubeApi.from_kubeconfig(kubeconfig)
        self._kubeconfig, self._bin_dir, self._root = kubeconfig, bin_dir, folder
        free = (port for port in random.sample(FREE_PORTS, len(FREE_PORTS)) if not is_taken(LOOPBACK, port))
        names = ("redis", "repo-server", "repo-metrics", "metrics", "server", "server-metrics")
        self._ports = dict(zip(names, free, strict=False))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def repository(self) -> Path:
        """The Git repository that Argo CD reads."""
        return self._root / "repository"

    def log(self, program: str) -> Path:
        """What one of the processes has written."""
        return self._root / f"{program}.log"

    def commit(self, files: Mapping[str, str | None], message: str = "change") -> str:
        """Write files of the repository, remove those that are None, and commit. The commit's digest."""
        if not self.repository.exists():
            self.repository.mkdir()
            self._git("init", "--quiet", "--initial-branch=main")
        for name, text in files.items():
            path = self.repository / name
            if text is None:
                path.unlink()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        self._git("add", "--all")
        self._git(
            "-c", "user.name=team", "-c", "user.email=team@example.com", "commit", "--quiet", f"--message={message}"
        )
        return self._git("rev-parse", "HEAD").strip()

    def apply_application(self, name: str, *, path: str, namespace: str, **spec: Any) -> None:
        """An Application over a folder of the repository; keyword arguments replace parts of its spec."""
        document = {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Application",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "project": "default",
                "source": {"repoURL": self.repository.as_uri(), "path": path, "targetRevision": "main"},
                "destination": {"server": IN_CLUSTER, "namespace": namespace},
                "syncPolicy": {"automated": {"prune": True, "selfHeal": True}},
                **spec,
            },
        }
        self.api.apply(APPLICATIONS, document)

    def refresh(self, name: str) -> None:
        """Have Argo CD look at Git now, as its webhook does."""
        self.patch(name, {"metadata": {"annotations": {"argocd.argoproj.io/refresh": "normal"}}})

    def patch(self, name: str, patch: Document) -> None:
        """Merge something into an Application."""
        self._checked("PATCH", f"{APPLICATIONS}/{name}", patch)

    def application(self, name: str) -> Document:
        """The Application with its status; empty when there is none."""
        return self.api.get(f"{APPLICATIONS}/{name}") or {}

    def status(self, name: str) -> Document:
        """An Application's status."""
        return dict(self.application(name).get("status") or {})

    def health(self, name: str) -> str:
        """Healthy, Progressing, Degraded, Suspended, Missing or Unknown; empty at first."""
        return str((self.status(name).get("health") or {}).get("status", ""))

    def sync(self, name: str) -> str:
        """Synced, OutOfSync or Unknown; empty at first."""
        return str((self.status(name).get("sync") or {}).get("status", ""))

    def said_of(self, application: str, kind: str, name: str) -> Document:
        """Health and sync of one resource, as Argo CD's own API shows it."""
        shown = json.loads(self.cli("app", "get", application, "--output=json"))
        found = [each for each in shown["status"].get("resources", ()) if (each["kind"], each["name"]) == (kind, name)]
        return dict(found[0]) if found else {}

    def cli(self, *arguments: str, timeout: float = 120) -> str:
        """The command `argocd` against this Argo CD's server. Raises ClusterError."""
        server = f"--server={LOOPBACK}:{self._ports['server']}"
        argv: list[str | Path] = [self._program(), *arguments, server, "--plaintext"]
        return host.run(argv, env=self._environment("argocd"), timeout=timeout)

    def delete(self, name: str, *, cascade: bool = True) -> None:
        """Delete an Application, and what it has made."""
        if cascade:
            self.patch(name, {"metadata": {"finalizers": ["resources-finalizer.argocd.argoproj.io"]}})
        self._checked("DELETE", f"{APPLICATIONS}/{name}")

    def wait_for(self, what: str, condition: Callable[[], object], seconds: float = 180) -> None:
        """Wait until something is so. Raises ClusterError with the ends of the logs."""
        try:
            host.wait_until(f"Argo CD: {what}", condition, seconds=seconds, check=self._check_running)
        except TimeoutError as error:
            raise ClusterError(f"{error}\n{self._tails()}") from error

    def up(self) -> None:
        """Install its kinds and settings, with the project's customizations, and start it."""
        self.api.apply("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        for document in self._manifests():
            self.api.apply(PATHS[document["kind"]], document)
        served = (APPLICATIONS, PROJECTS)
        self.wait_for("its kinds are served", lambda: all(self.api.get(path) for path in served), START_SECONDS)
        project = {"destinations": [{"server": "*", "namespace": "*"}], "sourceRepos": ["*"]}
        everything = [{"group": "*", "kind": "*"}]
        self.api.apply(
            PROJECTS,
            {
                "apiVersion": "argoproj.io/v1alpha1",
                "kind": "AppProject",
                "metadata": {"name": "default", "namespace": NAMESPACE},
                "spec": {**project, "clusterResourceWhitelist": everything},
            },
        )
        self._start_redis()
        self._start(
            "argocd-repo-server",
            f"--address={LOOPBACK}",
            f"--port={self._ports['repo-server']}",
            f"--metrics-address={LOOPBACK}",
            f"--metrics-port={self._ports['repo-metrics']}",
            "--disable-tls",
        )
        self.wait_for("it reads Git", lambda: is_taken(LOOPBACK, self._ports["repo-server"]), START_SECONDS)
        self._start(
            "argocd-application-controller",
            f"--repo-server={LOOPBACK}:{self._ports['repo-server']}",
            "--repo-server-plaintext",
            f"--metrics-port={self._ports['metrics']}",
            f"--app-resync={RESYNC_SECONDS}",
            "--app-hard-resync=0",
            f"--namespace={NAMESPACE}",
        )
        self._start(
            "argocd-server",
            f"--address={LOOPBACK}",
            f"--port={self._ports['server']}",
            f"--metrics-address={LOOPBACK}",
            f"--metrics-port={self._ports['server-metrics']}",
            f"--repo-server={LOOPBACK}:{self._ports['repo-server']}",
            "--repo-server-plaintext",
            "--insecure",
            "--disable-auth",
            f"--namespace={NAMESPACE}",
        )
        self.wait_for("its server answers", lambda: is_taken(LOOPBACK, self._ports["server"]), START_SECONDS)

    def down(self) -> None:
        """End the processes and remove what was installed; Applications must be gone before."""
        self.stop()
        for document in self._manifests():
            if document["kind"] == "CustomResourceDefinition":
                self._checked("DELETE", f"{PATHS[document['kind']]}/{document['metadata']['name']}")
        self._checked("DELETE", f"/api/v1/namespaces/{NAMESPACE}")

    def stop(self) -> None:
        """End the processes that this one has started."""
        alive = [identity for each in self._processes.values() if (identity := Identity.of(each.pid)) is not None]
        stop(alive)
        for each in self._processes.values():
            each.wait(STOP_SECONDS)
        self._processes.clear()

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

    def _manifests(self) -> list[Document]:
        """Its own CRDs, ConfigMaps and Secret, and in argocd-cm what the project tells people to merge into it."""
        module = json.loads(
            host.run(
                ["go", "mod", "download", "-json", MODULE],
                cwd=host.GO_SOURCES / go_build.ARGOCD.module,
                env={"GOWORK": "off"},
            )
        )
        folder = Path(module["Dir"]) / "manifests"
        files = [
            *sorted((folder / "crds").glob("*-crd.yaml")),
            *sorted((folder / "base" / "config").glob("argocd-*.yaml")),
        ]
        documents: list[Document] = [yaml.safe_load(file.read_text()) for file in files]
        customized = yaml.safe_load(CUSTOMIZATIONS.read_text())["data"]
        for document in documents:
            if document["metadata"]["name"] == "argocd-cm":
                # Resources that Argo CD leaves out by itself would hide nothing of ours; events of Git come by polling.
                document["data"] = {**customized, "timeout.reconciliation": f"{RESYNC_SECONDS}s"}
            if document["kind"] == "Secret":
                document["stringData"] = {"server.secretkey": "of this test alone"}
        return documents

    def _start_redis(self) -> None:
        host.install({"redis-server": "redis-server"})
        port = self._ports["redis"]
        self._spawn("redis", ["redis-server", "--port", str(port), "--bind", LOOPBACK, "--save", ""], {})
        self.wait_for("its cache answers", lambda: is_taken(LOOPBACK, port), START_SECONDS)

    def _start(self, program: str, *arguments: str) -> None:
        argv: list[str | Path] = [
            self._program(),
            *arguments,
            f"--redis={LOOPBACK}:{self._ports['redis']}",
            "--loglevel=warn",
        ]
        self._spawn(program, argv, self._environment(program))

    def _program(self) -> Path:
        return go_build.build((go_build.ARGOCD,)) / "argocd"

    def _environment(self, program: str) -> dict[str, str]:
        temporary = self._root / "tmp"
        temporary.mkdir(exist_ok=True)
        return {
            "ARGOCD_BINARY_NAME": program,
            "ARGOCD_FAKE_IN_CLUSTER": "true",  # KUBECONFIG is the cluster that kubernetes.default.svc means
            "ARGOCD_GPG_ENABLED": "false",
            "HOME": str(self._root),
            "KUBECONFIG": str(self._kubeconfig),
            "PATH": f"{self._bin_dir}:{os.environ['PATH']}",
            "TMPDIR": str(temporary),
        }

    def _spawn(self, name: str, argv: list[str | Path], environment: Mapping[str, str]) -> None:
        # The kernel ends it with this process, however that ends.
        command = ["setpriv", "--pdeathsig", "KILL", "--", *argv]
        with self.log(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._root,
                env={**os.environ, **environment},
                start_new_session=True,
            )

    def _check_running(self) -> None:
        ended = [name for name, process in self._processes.items() if process.poll() is not None]
        if ended:
            raise ClusterError(f"{', '.join(ended)} ended\n{self._tails()}")

    def _tails(self) -> str:
        parts = [f"-- {name}\n" + "\n".join(self._tail(name)) for name in self._processes]
        return "\n".join(parts)

    def _tail(self, name: str) -> list[str]:
        return self.log(name).read_text(errors="replace").splitlines()[-15:]

    def _git(self, *arguments: str) -> str:
        return host.run(["git", *arguments], cwd=self.repository)

    def _checked(self, method: str, path: str, body: Document | None = None) -> Document:
        code, answer = self.api.request(method, path, body, content_type=MERGE)
        if code not in {200, 201, 202, 404}:
            raise ClusterError(f"the API server refused {method} {path}: {code} {answer}")
        return dict(answer)
