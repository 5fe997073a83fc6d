"""A namespace of a real API server with the operator and the registry as processes, and no kubelet.

The test writes what the Job controller and the kubelet would write, so that every moment of a run's life can be chosen.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from aiohttp import ClientSession

from finetune.clients.registry import RegistryClient, RegistryNotFound, RegistryUnavailable
from finetune.clients.registry import Run as RecordedRun
from tests.support.kubectl import CommandError, Kubectl
from tests.support.ports import free_port
from tests.support.processes import Server, client_tls, plain_kubeconfig
from tests.support.proxy import RecordingProxy, Write
from tests.support.schema import provide_schema

Document = dict[str, Any]

DEADLINE_SECONDS = 180.0
"""A condition that is not met by then never will be, also on a machine that does ten other things."""
LOG_FORMAT = "--log-format=json"
PLURALS = {"job": "jobs", "pod": "pods", "pvc": "persistentvolumeclaims"}
ROWS = b'{"prompt": "a", "completion": "b"}\n' * 4
FILES = [{"path": "adapter_model.safetensors", "bytes": 3, "sha256": "b" * 64}]
DIGEST = hashlib.sha256(f"{'b' * 64}  adapter_model.safetensors\n".encode()).hexdigest()


async def eventually(what: str, check: Callable[[], Any]) -> Any:
    """What a check gives once that is true; it is asked 20 times a second, and less often the longer it takes."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    pause = 0.05
    while True:
        value = await asyncio.to_thread(check)
        if value:
            return value
        assert time.monotonic() < deadline, f"{what}: not within {DEADLINE_SECONDS:.0f} s"
        await asyncio.sleep(pause)
        pause = min(pause * 1.05, 0.2)


class World:
    """One namespace of the API server, a registry, and an operator whose every request is seen."""

    def __init__(
        self, kubectl: Kubectl, operator: Server, kubernetes: RecordingProxy, registry: RecordingProxy, server: Server
    ) -> None:
        self.kubectl = kubectl
        self.operator = operator
        self.kubernetes = kubernetes
        self.registry = registry
        self.registry_server = server
        self.client = RegistryClient(base_url=registry.url)

    @property
    def writes(self) -> list[Write]:
        """What the operator has changed, Events and what it tells the registry of runs left out."""
        seen = [*self.kubernetes.writes, *self.registry.writes]
        return [w for w in seen if not w.path.endswith("/events") and "/datasets/" not in w.path and not _is_outcome(w)]

    def run(self, name: str = "support") -> Document | None:
        return self.kubectl.find("trainingruns", name)

    def apply(self, name: str = "support", **spec: Any) -> str:
        return self.kubectl.apply(manifest(name, **spec))

    def job_of(self, name: str = "support") -> Document | None:
        found = self.kubectl.items("jobs", f"finetune.dev/run={name},finetune.dev/role=train")
        assert len(found) <= 1, "more than one Job"
        return found[0] if found else None

    async def phase(self, phase: str, name: str = "support") -> Document:
        try:
            found = await eventually(
                f"{name} is {phase}",
                lambda: (run := self.run(name)) and (run.get("status") or {}).get("phase") == phase and run,
            )
        except AssertionError as error:
            raise AssertionError(f"{error}; {(self.run(name) or {}).get('status')}") from None
        return dict(found)

    async def told(self, phase: str, name: str = "support") -> RecordedRun:
        """The run as the registry knows it, once its outcome has that phase."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        run: RecordedRun | None = None
        while time.monotonic() < deadline:
            try:
                run = await self.client.get_run(self.kubectl.namespace, name)
            except (RegistryNotFound, RegistryUnavailable):
                run = None
            if run is not None and run.outcome is not None and run.outcome.phase == phase:
                return run
            await asyncio.sleep(0.05)
        raise AssertionError(f"the registry was not told that {name} is {phase}: {run and run.outcome}")

    def start_pod(self, name: str = "support") -> None:
        """Do what the Job controller and the kubelet do up to the moment at which the trainer runs."""
        self.create_pod(name)
        running = {"running": {"startedAt": stamp()}}
        self.set_pod_status(name, "Running", terminated(0, EXPORTED), running)

    def create_pod(self, name: str = "support") -> None:
        """Do what the Job controller does."""
        job = self.job_of(name)
        assert job is not None
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job["metadata"]["name"], "controller": True}
        pod: Document = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": f"{job['metadata']['name']}-abcde",
                "labels": job["spec"]["template"]["metadata"]["labels"],
                "ownerReferences": [{**owner, "uid": job["metadata"]["uid"]}],
            },
            "spec": {**job["spec"]["template"]["spec"], "nodeName": "node-1"},
        }
        pod["spec"]["volumes"] = [v for v in pod["spec"]["volumes"] if "projected" not in v]
        for container in [*pod["spec"]["initContainers"], *pod["spec"]["containers"]]:
            container["volumeMounts"] = [m for m in container["volumeMounts"] if m["name"] != "token"]
        self.kubectl.apply(pod)

    def finish_pod(self, name: str = "support", message: Document | None = None) -> None:
        """The trainer ends well and the Job is complete."""
        self.set_pod_status(name, "Succeeded", terminated(0), terminated(0, message or self.result(name)))
        self.set_job_condition(name, "Complete")

    def result(self, name: str = "support") -> Document:
        run = self.run(name)
        assert run is not None
        return result_of(run["metadata"]["uid"])

    def set_pod_status(self, name: str, phase: str, export: Document, trainer: Document) -> None:
        pod = self.kubectl.items("pods", f"finetune.dev/run={name}")[0]
        status = {
            "phase": phase,
            "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": stamp()}],
            "initContainerStatuses": [container_status("export", export)],
            "containerStatuses": [container_status("trainer", trainer)],
        }
        self.patch_status("pod", pod["metadata"]["name"], status)

    def set_job_condition(self, name: str, type_: str, **more: str) -> None:
        job = self.job_of(name)
        assert job is not None
        now = stamp()
        interim = "SuccessCriteriaMet" if type_ == "Complete" else "FailureTarget"
        conditions = [{"type": t, "status": "True", "lastTransitionTime": now, **more} for t in (interim, type_)]
        status: Document = {"startTime": now, "conditions": conditions}
        if type_ == "Complete":
            status |= {"completionTime": now, "succeeded": 1}
        self.patch_status("job", job["metadata"]["name"], status)

    def accepts(self, *arguments: str) -> bool:
        """Whether the API server does what kubectl asks for."""
        try:
            self.kubectl(*arguments, "--overwrite")
        except CommandError:
            return False
        return True

    def patch_status(self, kind: str, name: str, status: Document) -> None:
        self.kubectl.patch(PLURALS[kind], name, {"status": status}, subresource="status")


def manifest(name: str, **spec: Any) -> Document:
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": name},
        "spec": {
            "method": "SFT",
            "baseModel": {"volume": {"claimName": "base-models", "path": "m"}},
            "dataset": {"registry": {"name": "tickets"}},
            **spec,
        },
    }


def _is_outcome(write: Write) -> bool:
    return "/runs/" in write.path and write.path.endswith("/status")


EXPORTED = {"dataset": {"version": 1, "rows": 3, "evaluationRows": 1}}
"""The last words of an export that went well."""


def result_of(uid: str) -> Document:
    """The last words of a trainer that went well."""
    result = {"runUid": uid, "finalLoss": "1.5", "evaluationLoss": "1.6", "steps": 5, "tokens": 9}
    adapter = {"sha256": DIGEST, "bytes": 3, "files": FILES}
    dataset = {"version": 1, "rows": 3, "evaluationRows": 1, "sha256": "d" * 64}
    return {"result": {**result, "adapter": adapter}, "dataset": dataset}


def frozen_jobs(namespace: str) -> list[Document]:
    """An admission policy that refuses every change of a Job in the namespace."""
    rule = {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["jobs"]}
    selector = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    head = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": namespace}}
    spec = {
        "matchConstraints": {"resourceRules": [rule], "namespaceSelector": selector},
        "validations": [{"expression": "false", "message": "not now"}],
    }
    binding = {"policyName": namespace, "validationActions": ["Deny"]}
    return [
        {**head, "kind": "ValidatingAdmissionPolicy", "spec": spec},
        {**head, "kind": "ValidatingAdmissionPolicyBinding", "spec": binding},
    ]


def stamp(seconds: float = 0) -> str:
    """The time so many seconds from now, as the API writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))


def terminated(code: int, message: Document | None = None) -> Document:
    words = json.dumps(message) if message else ""
    times = {"startedAt": stamp(), "finishedAt": stamp()}
    return {
        "terminated": {"exitCode": code, "reason": "Completed" if code == 0 else "Error", "message": words, **times}
    }


def container_status(name: str, state: Document) -> Document:
    return {"name": name, "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": state}


@contextlib.asynccontextmanager
async def a_world(
    kubectl: Kubectl, folder: Path, *, skew: float = 0.0, fresh: bool = False, **settings: str
) -> AsyncIterator[World]:
    """Registry, proxies and operator for one namespace; the operator is started, and killed at the end.

    `skew`: seconds by which the operator's clock is ahead. `fresh`: started as the images start them.
    """
    port = free_port()
    database = f"sqlite:///{folder}/registry.db"
    if not fresh:
        provide_schema(database)
    arguments = ["registry", "serve", "--database-url", database, "--host=127.0.0.1", f"--port={port}", "--auth=none"]
    arguments.append(LOG_FORMAT)
    upstream, tls = client_tls(kubectl.kubeconfig)
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            Server(*arguments, environment={}, log=folder / "registry.log", fresh=fresh).serving()
        )
        kubernetes = await stack.enter_async_context(RecordingProxy(upstream=upstream, tls=tls).serving())
        registry = await stack.enter_async_context(RecordingProxy(upstream=f"http://127.0.0.1:{port}").serving())
        await wait_until_ready(f"http://127.0.0.1:{port}/readyz")
        environment = {
            "KUBECONFIG": str(plain_kubeconfig(folder / "kubeconfig", kubernetes.url)),
            "FINETUNE_REGISTRY_URL": registry.url,
            "FINETUNE_TRAINER_IMAGE": "trainer:1",
            "FINETUNE_WATCH_NAMESPACES": kubectl.namespace,
            "FINETUNE_RESYNC_SECONDS": "2",
            "FINETUNE_PROGRESS_SECONDS": "1",
            "FINETUNE_REFERENCE_TIMEOUT_SECONDS": "2",
            **settings,
        }
        log = folder / "operator.log"
        operator = Server("operator", LOG_FORMAT, environment=environment, log=log, skew=skew, fresh=fresh)
        made = World(kubectl, operator, kubernetes, registry, server)
        stack.push_async_callback(made.client.close)
        rows = folder / "rows.jsonl"
        rows.write_bytes(ROWS)
        await made.client.push_dataset(kubectl.namespace, "tickets", rows)
        await stack.enter_async_context(operator.serving())
        yield made


async def wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    async with ClientSession() as session:
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                async with session.get(url) as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.05)
    raise TimeoutError(f"{url} is not ready")
