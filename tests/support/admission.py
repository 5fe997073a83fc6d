"""What a cluster's administrator puts between us and the API server: policies, and a webhook in the test's own process.

    async with AdmissionServer(folder).serving() as server:
        server.rules["support"] = Deny("label cost-center is required")
        await server.register(kubectl, "pods")

What the webhook does is decided by the label of the run; what has no rule passes as it is. It speaks https, with a
certificate of its own.
"""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.support.certificates import self_signed
from tests.support.kubectl import Kubectl
from tests.support.kubelet import RUN_LABEL
from tests.support.world import eventually

Document = dict[str, Any]

API = "admissionregistration.k8s.io/v1"
GROUPS = {"jobs": "batch", "pods": "", "persistentvolumeclaims": ""}
NOBODY = {"url": "https://127.0.0.1:9/"}
"""The server of a webhook that is away: nobody listens there."""
PROBE = "probe"
NO_PROBES = "nobody probes here"


@dataclass(frozen=True)
class Deny:
    """Refuse; without a code the API server makes 400 of it."""

    message: str
    code: int | None = None

    def response(self) -> Document:
        """The answer."""
        status: Document = {"status": "Failure", "message": self.message}
        if self.code is not None:
            status["code"] = self.code
        return {"allowed": False, "status": status}


@dataclass(frozen=True)
class Inject:
    """Add a container to the pods: plain, init, or native (an init container that is always restarted)."""

    name: str
    init: bool = False
    native: bool = False

    def response(self) -> Document:
        """The answer."""
        container: Document = {"name": self.name, "image": "mesh:1"}
        if self.native:
            container["restartPolicy"] = "Always"
        path = "/spec/initContainers/0" if self.init or self.native else "/spec/containers/-"
        patch = json.dumps([{"op": "add", "path": path, "value": container}])
        return {"allowed": True, "patchType": "JSONPatch", "patch": base64.b64encode(patch.encode()).decode()}


class AdmissionServer:
    """The webhook.

    Parameters
    ----------
    folder: where its key and certificate are made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._certificate = folder / "webhook.crt"
        self.rules: dict[str, Deny | Inject] = {}
        """What becomes of new objects, by the run's name, or by their kind and it: `jobs/support`."""
        self.url = ""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[AdmissionServer]:
        """Listen on a free loopback port, see `url`."""
        made = self_signed(self._folder, "webhook")
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(made.certificate, made.key)
        application = web.Application()
        application.router.add_post("/", self._review)
        runner = web.AppRunner(application, shutdown_timeout=1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
            self.url = f"https://127.0.0.1:{runner.addresses[0][1]}/"
            yield self
        finally:
            await runner.cleanup()

    async def register(self, kubectl: Kubectl, resource: str, *, mutating: bool = False) -> None:
        """Let the API server ask it about new objects of a kind in the namespace; from this call's end on it does."""
        bundle = base64.b64encode(self._certificate.read_bytes()).decode()
        client = {"url": self.url, "caBundle": bundle}
        kubectl.apply(configuration(kubectl.namespace, resource, client, mutating=mutating))
        self.rules[PROBE] = Deny(NO_PROBES)
        await in_force(kubectl, resource, NO_PROBES)

    async def _review(self, request: web.Request) -> web.Response:
        review = await request.json()
        asked = review["request"]
        run = (asked["object"]["metadata"].get("labels") or {}).get(RUN_LABEL, "")
        rule = self.rules.get(f"{asked['resource']['resource']}/{run}") or self.rules.get(run)
        answer = {"uid": asked["uid"], **(rule.response() if rule is not None else {"allowed": True})}
        return web.json_response({"apiVersion": review["apiVersion"], "kind": "AdmissionReview", "response": answer})


def configuration(
    namespace: str, resource: str, client: Document, *, mutating: bool = False, run: str = ""
) -> Document:
    """A webhook configuration for new objects of one kind in one namespace, or of one run of it."""
    kind = "Mutating" if mutating else "Validating"
    hook: Document = {
        "name": f"{resource}.webhook.example.com",
        "clientConfig": client,
        "rules": [
            {"apiGroups": [GROUPS[resource]], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": [resource]}
        ],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "failurePolicy": "Fail",
        "sideEffects": "None",
        "timeoutSeconds": 5,
        "admissionReviewVersions": ["v1"],
    }
    if run:
        hook["objectSelector"] = _either(run)
    metadata = {"name": _name(namespace, resource, run)}
    return {"apiVersion": API, "kind": f"{kind}WebhookConfiguration", "metadata": metadata, "webhooks": [hook]}


def policy(namespace: str, resource: str, *, run: str, message: str, reason: str = "") -> list[Document]:
    """A ValidatingAdmissionPolicy that refuses a run's new objects of one kind, with one of the API's reasons."""
    name = _name(namespace, resource, run)
    rule = {"apiGroups": [GROUPS[resource]], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": [resource]}
    matched = {
        "resourceRules": [rule],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "objectSelector": _either(run),
    }
    validation = {"expression": "false", "message": message, **({"reason": reason} if reason else {})}
    head = {"apiVersion": API, "metadata": {"name": name}}
    spec = {"matchConstraints": matched, "validations": [validation]}
    binding = {"policyName": name, "validationActions": ["Deny"]}
    return [
        {**head, "kind": "ValidatingAdmissionPolicy", "spec": spec},
        {**head, "kind": "ValidatingAdmissionPolicyBinding", "spec": binding},
    ]


def _name(namespace: str, resource: str, run: str) -> str:
    return "-".join(part for part in (namespace, resource, run) if part)


def _either(run: str) -> Document:
    """Objects of the run, and the probe that tells whether the rule is in force."""
    return {"matchExpressions": [{"key": RUN_LABEL, "operator": "In", "values": [run, f"{PROBE}-{run}"]}]}


async def in_force(kubectl: Kubectl, resource: str, words: str, *, run: str = "") -> None:
    """Wait until the API server refuses a probe of the kind with these words."""
    document = _probe(resource, f"{PROBE}-{run}" if run else PROBE)
    await eventually(f"{resource} are refused: {words}", lambda: words in kubectl.dry_run(document))


def _probe(resource: str, run: str) -> Document:
    containers = {"containers": [{"name": "c", "image": "i"}], "restartPolicy": "Never"}
    size = {"resources": {"requests": {"storage": "1Gi"}}, "accessModes": ["ReadWriteOnce"]}
    version, kind, spec = {
        "jobs": ("batch/v1", "Job", {"template": {"spec": containers}}),
        "pods": ("v1", "Pod", containers),
        "persistentvolumeclaims": ("v1", "PersistentVolumeClaim", size),
    }[resource]
    return {"apiVersion": version, "kind": kind, "metadata": {"name": PROBE, "labels": {RUN_LABEL: run}}, "spec": spec}
