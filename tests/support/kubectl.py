"""kubectl as a person uses it, for tests and the demo: one process a call, answers as text or JSON."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.2

Document = dict[str, Any]


class CommandError(Exception):
    """A command failed; the message holds the command and what it printed."""

    def __init__(self, argv: Sequence[str], code: int, output: str) -> None:
        self.output = output
        super().__init__(f"{' '.join(argv)}: exit code {code}: {output.strip()[-4000:]}")


class Kubectl:
    """kubectl and helm against one cluster.

    Parameters
    ----------
    kubeconfig: whose cluster and whose rights.
    bin_dir: where kubectl and helm are; looked at before PATH.
    namespace: for calls that name none.
    """

    def __init__(self, *, kubeconfig: Path, bin_dir: Path, namespace: str = "default") -> None:
        self.kubeconfig = kubeconfig
        self.bin_dir = bin_dir
        self.namespace = namespace

    def at(self, namespace: str) -> Kubectl:
        """The same cluster, another namespace."""
        return Kubectl(kubeconfig=self.kubeconfig, bin_dir=self.bin_dir, namespace=namespace)

    @property
    def environment(self) -> dict[str, str]:
        """Environment in which kubectl and helm find this cluster."""
        path = f"{self.bin_dir}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        return {**os.environ, "PATH": path, "KUBECONFIG": str(self.kubeconfig)}

    def __call__(self, *arguments: str, stdin: str | None = None, timeout: float = 120) -> str:
        """Standard output of `kubectl ARGUMENTS`. Raises CommandError."""
        return self.command("kubectl", "--namespace", self.namespace, *arguments, stdin=stdin, timeout=timeout)

    def command(self, *argv: str, stdin: str | None = None, timeout: float = 600) -> str:
        """Standard output of any command that needs the cluster, such as helm. Raises CommandError."""
        result = subprocess.run(
            argv, input=stdin, capture_output=True, text=True, env=self.environment, timeout=timeout, check=False
        )
        if result.returncode:
            raise CommandError(argv, result.returncode, result.stderr + result.stdout)
        return result.stdout

    def json(self, *arguments: str) -> Any:
        """The answer of `kubectl ARGUMENTS -o json`."""
        return json.loads(self(*arguments, "--output=json"))

    def find(self, kind: str, name: str) -> Document | None:
        """One object; None when it does not exist."""
        text = self("get", kind, name, "--ignore-not-found", "--output=json")
        found: Document | None = json.loads(text) if text.strip() else None
        return found

    def items(self, kind: str, selector: str = "") -> list[Document]:
        """The objects of a kind that match a label selector."""
        found: list[Document] = self.json("get", kind, f"--selector={selector}")["items"]
        return found

    def apply(self, *documents: Mapping[str, Any]) -> str:
        """`kubectl apply` of these objects. Raises CommandError with the API server's sentence."""
        return self("apply", "--filename=-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": documents}))

    def wait_for(self, what: str, check: Callable[[], Any], *, seconds: float = 60) -> Any:
        """Ask until `check` gives something true, and return that. Raises TimeoutError saying what never came."""
        deadline = time.monotonic() + seconds
        while True:
            value = check()
            if value:
                return value
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: not within {seconds:.0f} s; last seen: {value!r}")
            time.sleep(POLL_SECONDS)

    @contextlib.contextmanager
    def forward(self, service: str, port: int) -> Iterator[str]:
        """A port-forward to a Service, as the base URL on the loopback."""
        argv = ["kubectl", "--namespace", self.namespace, "port-forward", f"service/{service}", f":{port}"]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=self.environment) as process:
            try:
                line = process.stdout.readline() if process.stdout else ""
                found = re.search(r"127\.0\.0\.1:(\d+)", line)
                if found is None:
                    raise CommandError(argv, process.poll() or 0, f"no port in {line!r}")
                yield f"http://127.0.0.1:{found.group(1)}"
            finally:
                process.terminate()
                process.wait(10)


def is_true(run: Document | None, condition: str) -> bool:
    """The condition of an object is True."""
    found = ((run or {}).get("status") or {}).get("conditions") or []
    return any(c["type"] == condition and c["status"] == "True" for c in found)
