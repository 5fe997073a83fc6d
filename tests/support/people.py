"""What people's commands need of a cluster: a registry behind a Service, a person's kubeconfig, a kubelet with logs."""

from __future__ import annotations

import contextlib
import io
import socket
import socketserver
import ssl
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest
import yaml

from finetune.cli.main import main
from finetune.registry.access import REGISTRY_AUDIENCE, Access, KubernetesAccess
from finetune.registry.reviews import KubernetesReviews
from tests.cluster.kube_api import KubeApi
from tests.support.registry import adapter_document, run_document, serving

REGISTRY = "finetune-operator-registry"
REGISTRY_LABELS = {"app.kubernetes.io/name": "finetune-operator", "app.kubernetes.io/component": "registry"}
ABSENT = ("FINETUNE_REGISTRY_URL", "FINETUNE_REGISTRY_SERVICE", "FINETUNE_TOKEN_FILE", "XDG_CONFIG_HOME")


@dataclass(frozen=True)
class Said:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


@dataclass
class Person:
    """Somebody at a terminal, with a home and a kubeconfig."""

    environment: dict[str, str]

    def __call__(self, *arguments: str, stdin: str = "") -> Said:
        """Run `finetune ARGUMENTS`."""
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            for name in (
                "FINETUNE_REGISTRY_URL",
                "FINETUNE_REGISTRY_SERVICE",
                "FINETUNE_TOKEN_FILE",
                "XDG_CONFIG_HOME",
            ):
                patch.delenv(name, raising=False)
            for name, value in self.environment.items():
                patch.setenv(name, value)
            patch.setattr("sys.stdin", io.StringIO(stdin))
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    code = main(list(arguments))
                except SystemExit as ended:  # argparse
                    code = int(ended.code or 0)
        return Said(code, out.getvalue(), err.getvalue())


def own_address() -> str:
    """An address of this machine that is not the loopback's: the API server passes nothing on to that."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # nothing is sent
        return str(probe.getsockname()[0])


@dataclass(frozen=True)
class Installed:
    """A registry behind a Service of an API server, whose tokens it checks."""

    api: KubeApi
    namespace: str
    url: str

    def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object; one that exists is left as it is."""
        code, answer = self.api.request("POST", path, body)
        assert code in {200, 201, 409}, answer
        return dict(answer)

    def token(self, account: str) -> str:
        """A token of an account of the registry's namespace, of the registry's audience."""
        path = f"/api/v1/namespaces/{self.namespace}/serviceaccounts/{account}/token"
        return str(self.create(path, {"spec": {"audiences": [REGISTRY_AUDIENCE]}})["status"]["token"])


@contextlib.contextmanager
def installed(
    api: KubeApi, kubeconfig: Path, folder: Path, *, namespace: str, database: str = ""
) -> Iterator[Installed]:
    """Serve a registry, over SQLite or a given database, and put it behind a Service with the chart's labels."""
    operator = f"system:serviceaccount:{namespace}:operator"

    async def access() -> Access:
        from kubernetes.aio import client, config

        configuration = client.Configuration()
        await config.load_kube_config(config_file=str(kubeconfig), client_configuration=configuration)
        return KubernetesAccess(KubernetesReviews(configuration), operator_user=operator)

    with serving(database or f"sqlite:///{folder}/registry.db", access=access, host=own_address()) as url:
        made = Installed(api=api, namespace=namespace, url=url)
        made.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
        made.create(f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": "operator"}})
        address = urlsplit(url)
        port = {"name": "http", "port": address.port, "protocol": "TCP"}
        service = {
            "metadata": {"name": REGISTRY, "labels": REGISTRY_LABELS},
            "spec": {"ports": [{"name": "http", "port": 8080, "targetPort": address.port}]},
        }
        made.create(f"/api/v1/namespaces/{namespace}/services", service)
        _registry_pod(made, str(address.hostname))
        target = {"kind": "Pod", "namespace": namespace, "name": REGISTRY}
        subset = {"addresses": [{"ip": address.hostname, "targetRef": target}], "ports": [port]}
        endpoints = {"metadata": {"name": REGISTRY}, "subsets": [subset]}
        made.create(f"/api/v1/namespaces/{namespace}/endpoints", endpoints)
        yield made
        api.request("DELETE", f"/api/v1/namespaces/{namespace}/services/{REGISTRY}")  # a cluster has one


def a_person(registry: Installed, kubeconfig: Path, namespace: str, home: Path) -> Person:
    """An administrator whose context has the namespace, where the account `finetune` may use the registry."""
    document = yaml.safe_load(kubeconfig.read_text())
    for each in document["contexts"]:
        each["context"]["namespace"] = namespace
    (home / "kubeconfig").write_text(yaml.safe_dump(document))
    rules = [{"apiGroups": ["finetune.dev"], "resources": ["*"], "verbs": ["*"]}]
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    registry.create(f"{rbac}/roles", {"metadata": {"name": "finetune"}, "rules": rules})
    registry.create(
        f"{rbac}/rolebindings",
        {
            "metadata": {"name": "finetune"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "finetune"},
            "subjects": [{"kind": "ServiceAccount", "name": "finetune", "namespace": namespace}],
        },
    )
    return Person({"KUBECONFIG": str(home / "kubeconfig"), "HOME": str(home), "NO_COLOR": "1"})


def record(registry: Installed, namespace: str, name: str, *, outcome: dict[str, Any] | None = None) -> str:
    """Record a run as the operator does, with an adapter where it has no other outcome; its uid."""
    uid, operator = str(uuid.uuid4()), {"Authorization": f"Bearer {registry.token('operator')}"}
    root = f"{registry.url}/api/v1/namespaces/{namespace}/runs/{uid}"
    said = outcome or {"phase": "Succeeded", "evaluationLoss": "1.9011", "baseEvaluationLoss": "2.77"}
    calls = [("", run_document(name=name)), ("/status", {**said, "ended": True, "version": 1})]
    if outcome is None:
        calls.insert(1, ("/adapter", adapter_document(uid)))
    for path, body in calls:
        answer = httpx.put(root + path, json=body, headers=operator, timeout=30)
        assert answer.status_code < 300, answer.text
    return uid


@contextlib.contextmanager
def relayed(url: str) -> Iterator[int]:
    """A port of the loopback behind which a server is, as a port-forward makes one."""
    target = urlsplit(url)

    class Relay(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection((target.hostname, target.port)) as there:
                back = threading.Thread(target=copied, args=(there, self.request))
                back.start()
                copied(self.request, there)
                back.join()

    def copied(source: socket.socket, to: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while block := source.recv(65536):
                to.sendall(block)
        with contextlib.suppress(OSError):
            to.shutdown(socket.SHUT_WR)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Relay) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), name="relay")
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def _registry_pod(made: Installed, address: str) -> None:
    """A pod with the registry's address: the API server passes calls on to addresses of pods only."""
    pods = f"/api/v1/namespaces/{made.namespace}/pods"
    spec = {"nodeName": "nowhere", "containers": [{"name": "registry", "image": "i"}]}
    made.create(pods, {"metadata": {"name": REGISTRY}, "spec": spec})
    status = {"status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}}
    patch = "application/merge-patch+json"
    code, answer = made.api.request("PATCH", f"{pods}/{REGISTRY}/status", status, content_type=patch)
    assert code == 200, answer


@dataclass
class LogServer:
    """What of a kubelet the API server asks for a container's log."""

    logs: dict[str, str] = field(default_factory=dict)
    """By `pod/container`."""
    cuts: dict[str, Callable[[], None]] = field(default_factory=dict)
    """Containers whose next answer ends after a line, as where a proxy has cut it; what is called then."""
    port: int = 0

    def answer(self, container: str, query: Mapping[str, str]) -> str:
        """A log; with times each line has a second of its own."""
        lines = self.logs.get(container, "").splitlines(keepends=True)
        if query.get("timestamps") == "true":
            stamps = [f"2026-11-28T09:00:{number:02}.123456789Z" for number in range(len(lines))]
            since = query.get("sinceTime", "")[:19]
            lines = [f"{stamp} {line}" for stamp, line in zip(stamps, lines, strict=True) if stamp[:19] >= since]
        if (cut := self.cuts.pop(container, None)) is not None:
            cut()
            return lines[0]
        return "".join(lines)

    @contextlib.contextmanager
    def serving(self, certificate: Path) -> Iterator[LogServer]:
        """Serve on the loopback; `certificate` is any pair, for the API server does not check it here."""
        kubelet = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = urlsplit(self.path)
                text = kubelet.answer("/".join(asked.path.split("/")[3:5]), dict(parse_qsl(asked.query))).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the standard library's name
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), name="logs")
        thread.start()
        self.port = server.server_address[1]
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
