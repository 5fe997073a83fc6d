"""kubectl as a person uses it, for tests and the demo: one process a call, answers as text or JSON.

What is done again and again goes through one `kubectl proxy`, as the request that kubectl would make: a process for
each takes a fifth of a second of a core, and those who wait would take it from what they wait for.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import os
import re
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.2
REQUEST_SECONDS = 30.0
MERGE = "application/merge-patch+json"
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"

Document = dict[str, Any]

GROUPS = {
    "deployments": "apis/apps/v1",
    "jobs": "apis/batch/v1",
    "persistentvolumeclaims": "api/v1",
    "pods": "api/v1",
    "trainingruns": "apis/finetune.dev/v1alpha1",
    "workloads": "apis/kueue.x-k8s.io/v1beta2",
}
"""Where the API has the kinds that tests wait for."""


class CommandError(Exception):
    """A command failed; the message holds the command and what it printed."""

    def __init__(self, argv: Sequence[str], code: int, output: str) -> None:
        self.output = output
        super().__init__(f"{' '.join(argv)}: exit code {code}: {output.strip()[-4000:]}")


@dataclass(frozen=True)
class Resource:
    """Where the API has a kind: `apis/batch/v1`, `jobs`, and whether its objects are in namespaces."""

    group: str
    plural: str
    namespaced: bool


class Proxy:
    """A `kubectl proxy` on the loopback, started by the first question and ended with its last user.

    Parameters
    ----------
    environment: in which kubectl finds the cluster.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._url = ""
        self._resources: dict[tuple[str, str], Resource] = {}

    def get(self, path: str, **query: str) -> str | None:
        """The answer to a GET; None when there is no such object. Raises CommandError."""
        code, answer = self.request("GET", path, **query)
        if code == 404:
            return None
        if code >= 400:
            raise CommandError(["GET", path], code, answer)
        return answer

    def request(
        self, method: str, path: str, document: Any = None, *, type_: str = "application/json", **query: str
    ) -> tuple[int, str]:
        """The HTTP code and the text of an answer. Raises CommandError where none came.

        Parameters
        ----------
        document: what is sent, as JSON of this content type.
        """
        url = f"{self._started()}/{path}?{urllib.parse.urlencode(query)}"
        data = None if document is None else json.dumps(document).encode()
        asked = urllib.request.Request(url, data, {"Content-Type": type_}, method=method)
        try:
            with urllib.request.urlopen(asked, timeout=REQUEST_SECONDS) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            raise CommandError([method, path], 1, str(error)) from error

    def resource(self, document: Document) -> Resource:
        """Where the API has the kind of an object. Raises CommandError when it does not serve it."""
        version, kind = document["apiVersion"], document["kind"]
        group = f"apis/{version}" if "/" in version else f"api/{version}"
        if (version, kind) not in self._resources:
            listed = json.loads(self.get(group) or '{"resources": []}')["resources"]
            self._resources |= {
                (version, each["kind"]): Resource(group, each["name"], each["namespaced"])
                for each in listed
                if "/" not in each["name"]  # a subresource
            }
        if (version, kind) not in self._resources:
            raise CommandError(["GET", group], 404, f'no matches for kind "{kind}" in version "{version}"')
        return self._resources[version, kind]

    def _started(self) -> str:
        if not self._url:
            # Our own kubectl also ends when the pipe's other end is closed, however this process ends.
            read_end, write_end = os.pipe()
            process, self._url = serving(
                ["kubectl", "proxy", "--port=0"],
                {**self._environment, "LIFELINE_FD": str(read_end)},
                pass_fds=(read_end,),
            )
            os.close(read_end)
            weakref.finalize(self, _end, process, write_end)
        return self._url


def serving(
    argv: Sequence[str], environment: Mapping[str, str], *, pass_fds: Sequence[int] = ()
) -> tuple[subprocess.Popen[str], str]:
    """A process that says at which port of the loopback it listens, and its URL. Raises CommandError."""
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment, pass_fds=pass_fds)
    line = process.stdout.readline() if process.stdout else ""
    found = re.search(r"127\.0\.0\.1:(\d+)", line)
    if found is None:
        process.terminate()
        raise CommandError(argv, process.wait(10), f"no port in {line!r}")
    return process, f"http://127.0.0.1:{found.group(1)}"


def _end(process: subprocess.Popen[str], lifeline: int) -> None:
    process.terminate()
    process.communicate(timeout=10)
    os.close(lifeline)


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
        self._proxy = Proxy(self.environment)

    def at(self, namespace: str) -> Kubectl:
        """The same cluster, another namespace."""
        other = copy.copy(self)
        other.namespace = namespace
        return other

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
        """One object of a kind, in the plural; None when it does not exist. Raises CommandError."""
        text = self._proxy.get(f"{self._path(kind)}/{name}")
        found: Document | None = json.loads(text) if text else None
        return found

    def items(self, kind: str, selector: str = "") -> list[Document]:
        """The objects of a kind, in the plural, that match a label selector. Raises CommandError."""
        text = self._proxy.get(self._path(kind), labelSelector=selector)
        if text is None:
            raise CommandError(["GET", kind], 404, f"the API server does not serve {kind}")
        found: list[Document] = json.loads(text)["items"]
        return found

    def log(self, pod: str, container: str) -> str:
        """What a container has written so far; nothing where it has not started. Raises CommandError."""
        return self._proxy.get(f"{self._path('pods')}/{pod}/log", container=container) or ""

    def apply(self, *documents: Document) -> str:
        """`kubectl apply` of these objects, and what it says. Raises CommandError with the API server's sentence.

        It is asked itself only about objects that exist: what it does about others is one request.
        """
        said = ""
        for exists, group in itertools.groupby(documents, self._exists):
            if exists:
                items = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(group)})
                said += self("apply", "--filename=-", stdin=items)
            else:
                said += "".join(map(self._create, group))
        return said

    def patch(self, kind: str, name: str, change: Document, *, subresource: str = "") -> None:
        """`kubectl patch --type=merge` of an object of a kind, in the plural. Raises CommandError."""
        path = f"{self._path(kind)}/{name}" + (f"/{subresource}" if subresource else "")
        self._accepted("PATCH", path, change, type_=MERGE, fieldManager="kubectl-patch")

    def create_namespace(self, name: str) -> Kubectl:
        """`kubectl create namespace`; the same cluster, in it. Raises CommandError."""
        document = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        self._accepted("POST", "api/v1/namespaces", document, fieldManager="kubectl-create")
        return self.at(name)

    def delete_namespace(self) -> None:
        """`kubectl delete namespace --wait=false --ignore-not-found`, of this one. Raises CommandError."""
        code, answer = self._proxy.request("DELETE", f"api/v1/namespaces/{self.namespace}")
        if code >= 400 and code != 404:
            raise CommandError(["DELETE", self.namespace], code, answer)

    def dry_run(self, document: Document) -> str:
        """What the API server makes of a new object, which it does not keep: its JSON, or the sentence against it."""
        code, answer = self._proxy.request("POST", self._place(document), document, dryRun="All")
        return answer if code < 400 else str(json.loads(answer)["message"])

    def _exists(self, document: Document) -> bool:
        return self._proxy.get(f"{self._place(document)}/{document['metadata']['name']}") is not None

    def _create(self, document: Document) -> str:
        """Create an object as `kubectl apply` does, which also notes there what was applied."""
        noted = copy.deepcopy(document)
        metadata = noted["metadata"]
        metadata.setdefault("annotations", {}).pop(LAST_APPLIED, None)
        if self._proxy.resource(document).namespaced:
            metadata.setdefault("namespace", self.namespace)
        text = json.dumps(noted, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
        metadata["annotations"][LAST_APPLIED] = re.sub("[<>&]", lambda found: f"\\u{ord(found[0]):04x}", text)
        query = {"fieldManager": "kubectl-client-side-apply", "fieldValidation": "Strict"}
        self._accepted("POST", self._place(document), noted, **query)
        return f"{document['kind'].lower()}/{metadata['name']} created\n"

    def _accepted(
        self, method: str, path: str, document: Document, *, type_: str = "application/json", **query: str
    ) -> str:
        code, answer = self._proxy.request(method, path, document, type_=type_, **query)
        if code >= 400:
            raise CommandError([method, path], code, json.loads(answer).get("message", answer))
        return answer

    def _place(self, document: Document) -> str:
        """The path of an object's kind, in its namespace."""
        found = self._proxy.resource(document)
        namespace = document["metadata"].get("namespace", self.namespace)
        return "/".join([found.group, *(("namespaces", namespace) if found.namespaced else ()), found.plural])

    def _path(self, kind: str) -> str:
        return f"{GROUPS[kind]}/namespaces/{self.namespace}/{kind}"

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
        process, url = serving(argv, self.environment)
        try:
            yield url
        finally:
            process.terminate()
            process.communicate(timeout=10)


def is_true(run: Document | None, condition: str) -> bool:
    """The condition of an object is True."""
    found = ((run or {}).get("status") or {}).get("conditions") or []
    return any(c["type"] == condition and c["status"] == "True" for c in found)
