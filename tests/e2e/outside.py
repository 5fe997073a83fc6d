"""What is outside of the cluster, in a pod: a proxy that writes down what leaves, and is every object store itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.installation import CHART, NAMESPACE, RELEASE, Installation
from tests.support.kubectl import Kubectl

NAME, PORT = "outside", 3128
SCRIPT = """
import os, re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        print(self.command, self.path, flush=True)
        content = os.environ["ROWS"].encode()
        first, last = map(int, re.findall("[0-9]+", self.headers.get("Range", "bytes=0-99999999")))
        body = content[first : last + 1]
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Range", f"bytes {first}-{first + len(body) - 1}/{len(content)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def do_CONNECT(self):
        print(self.command, self.path, flush=True)
        self.send_error(502)

    def log_message(self, *arguments):
        pass

ThreadingHTTPServer(("", 3128), Handler).serve_forever()
"""


def provide(team: Kubectl, image: str, rows: str) -> str:
    """The proxy's URL, once it answers; it serves these rows as every object that it is asked for."""
    limited = {"cpu": "500m", "memory": "128Mi"}
    restricted = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {
        "name": "proxy",
        "image": image,
        "command": ["python", "-c", SCRIPT],
        "env": [{"name": "ROWS", "value": rows}],
        "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": limited},
        "securityContext": restricted,
    }
    pod = {
        "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }
    labels = {"app": NAME}
    team.apply(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": NAME, "labels": labels}, "spec": pod},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": NAME},
            "spec": {"selector": labels, "ports": [{"port": PORT}]},
        },
    )
    team("wait", "--for=condition=Ready", f"pod/{NAME}", "--timeout=60s", timeout=70)
    return f"http://{NAME}.{team.namespace}.svc:{PORT}"


def asked(team: Kubectl) -> list[tuple[str, str]]:
    """Method and address of each request that has left."""
    lines = team.log(NAME, "proxy").splitlines()
    return [(method, address) for method, _, address in (line.partition(" ") for line in lines)]


@contextmanager
def changed(installation: Installation, values: dict[str, Any]) -> Iterator[None]:
    """Other values of the chart for the time of the block; the operator is started anew before and after."""
    helm = installation.kubectl.command
    waits = ("--namespace", NAMESPACE, "--wait", "--timeout=120s")
    upgrade = ("helm", "upgrade", RELEASE, str(CHART), *waits, "--reset-then-reuse-values", "--values=-")
    helm(*upgrade, stdin=json.dumps(values))
    try:
        yield
    finally:
        helm("helm", "rollback", RELEASE, *waits)
