"""Namespaces that come and go under an operator whose rights are Roles in them, as the chart grants them."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.clients.registry import RegistryClient
from tests.support.faults import Reset, WatchError
from tests.support.kubectl import Kubectl
from tests.support.ports import free_port
from tests.support.processes import Server
from tests.support.world import ROWS, a_world, eventually, manifest, wait_until_ready

Document = dict[str, Any]

ACCOUNT = "operator"
RULES = [
    {"apiGroups": ["finetune.dev"], "resources": ["trainingruns", "trainingruns/status"], "verbs": ["*"]},
    {"apiGroups": ["batch"], "resources": ["jobs", "jobs/status"], "verbs": ["*"]},
    {"apiGroups": [""], "resources": ["pods", "persistentvolumeclaims", "events"], "verbs": ["*"]},
]


class Team:
    """One namespace, with or without the Role that lets the operator serve it."""

    def __init__(self, kubectl: Kubectl, account: Document) -> None:
        self.kubectl = kubectl
        self.account = account

    def admit(self) -> None:
        head = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": ACCOUNT}}
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": ACCOUNT}
        self.kubectl.apply({**head, "kind": "Role", "rules": RULES})
        self.kubectl.apply({**head, "kind": "RoleBinding", "roleRef": role, "subjects": [self.account]})

    def leave(self) -> None:
        """What the deletion of the namespace does to the operator's rights."""
        self.kubectl("delete", "role,rolebinding", ACCOUNT)

    async def is_served(self, name: str) -> None:
        self.kubectl.apply(manifest(name))
        await eventually(f"a Job of {name}", lambda: self.kubectl.items("jobs", f"finetune.dev/run={name}"))


class Watched:
    """Two namespaces, a registry, and the operator as the service account that both admit."""

    def __init__(self, red: Team, blue: Team, operator: Server) -> None:
        self.red = red
        self.blue = blue
        self.operator = operator

    def logged(self, words: str) -> int:
        return self.operator.log.read_text().count(words)


@pytest.fixture
async def watched(
    everywhere: Kubectl, kubectl: Kubectl, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Watched]:
    """The parameter: whether the operator's process is started as the image starts it."""
    kubectl("create", "serviceaccount", ACCOUNT)
    account = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": kubectl.namespace}
    token = kubectl("create", "token", ACCOUNT).strip()
    teams = []
    for color in ("red", "blue"):
        name = f"{color}-{uuid.uuid4().hex[:8]}"
        teams.append(Team(everywhere.create_namespace(name), account))
        teams[-1].admit()
    port = free_port()
    arguments = ["registry", "serve", f"--database-url=sqlite:///{tmp_path}/registry.db", "--host=127.0.0.1"]
    registry = Server(*arguments, f"--port={port}", "--auth=none", environment={}, log=tmp_path / "registry.log")
    environment = {
        "KUBECONFIG": str(kubeconfig_of(kubectl.kubeconfig, token, tmp_path / "kubeconfig")),
        "FINETUNE_REGISTRY_URL": f"http://127.0.0.1:{port}",
        "FINETUNE_TRAINER_IMAGE": "trainer:1",
        "FINETUNE_WATCH_NAMESPACES": ",".join(team.kubectl.namespace for team in teams),
        "FINETUNE_RESYNC_SECONDS": "2",
    }
    fresh = getattr(request, "param", False)
    operator = Server("operator", environment=environment, log=tmp_path / "operator.log", fresh=fresh)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(registry.serving())
        client = await stack.enter_async_context(RegistryClient(base_url=f"http://127.0.0.1:{port}"))
        await wait_until_ready(f"http://127.0.0.1:{port}/readyz")
        rows = tmp_path / "rows.jsonl"
        rows.write_bytes(ROWS)
        for team in teams:
            await client.push_dataset(team.kubectl.namespace, "tickets", rows)
        await stack.enter_async_context(operator.serving())
        yield Watched(*teams, operator)


def kubeconfig_of(administrators: Path, token: str, path: Path) -> Path:
    """The administrator's kubeconfig with a token in the place of the certificate."""
    document = yaml.safe_load(administrators.read_text())
    document["users"] = [{"name": user["name"], "user": {"token": token}} for user in document["users"]]
    path.write_text(yaml.safe_dump(document))
    return path


async def test_a_namespace_that_goes_is_a_line_in_the_log_and_one_that_comes_back_is_served(watched: Watched) -> None:
    red, blue = watched.red, watched.blue
    await red.is_served("before")
    await blue.is_served("before")
    red.leave()
    gone = f'namespace "{red.kubectl.namespace}" is not served for now'
    await eventually("the line", lambda: watched.logged(gone))
    await blue.is_served("meanwhile")
    red.kubectl.apply(manifest("after"))
    red.admit()
    await red.is_served("after")
    again = f'namespace "{red.kubectl.namespace}" is served again'
    await eventually("the line", lambda: watched.logged(again))
    await blue.is_served("after")
    assert watched.operator.running
    assert (watched.logged(gone), watched.logged(again), watched.logged("Traceback")) == (1, 1, 0)


async def test_a_namespace_that_is_not_there_at_the_start_keeps_nobody_waiting(watched: Watched) -> None:
    watched.red.leave()
    await watched.operator.kill()
    await watched.operator.start()
    await watched.blue.is_served("first")
    watched.red.admit()
    await watched.red.is_served("late")
    assert watched.logged("Traceback") == 0


@pytest.mark.parametrize("watched", [True], indirect=True, ids=["as the image starts it"])
async def test_sigterm_ends_the_operator_at_once(watched: Watched) -> None:
    await watched.blue.is_served("first")
    start = time.monotonic()
    async with asyncio.timeout(10):
        assert await watched.operator.kill(signal.SIGTERM) == 0
    assert time.monotonic() - start < 4
    assert watched.logged("Traceback") == 0


async def test_a_version_that_is_not_served_for_a_moment_ends_nothing(watched: Watched, everywhere: Kubectl) -> None:
    blue = watched.blue
    await blue.is_served("alive")
    await eventually("its status", lambda: (blue.kubectl.find("trainingruns", "alive") or {}).get("status"))
    job = blue.kubectl.items("jobs", "finetune.dev/run=alive")[0]

    def serve(served: str) -> None:
        patch = f'[{{"op": "replace", "path": "/spec/versions/0/served", "value": {served}}}]'
        everywhere("patch", "crd", "trainingruns.finetune.dev", "--type=json", f"--patch={patch}")

    serve("false")
    try:
        gone = f'namespace "{blue.kubectl.namespace}" is not served for now'
        await eventually("the line", lambda: watched.logged(gone))
        blue.kubectl("label", "job", job["metadata"]["name"], "poke=1")
        await eventually("a try", lambda: watched.logged("404"))
    finally:
        serve("true")
    await eventually("the line", lambda: watched.logged(f'namespace "{blue.kubectl.namespace}" is served again'))
    await blue.is_served("next")
    [still] = blue.kubectl.items("jobs", "finetune.dev/run=alive")
    assert still["metadata"]["uid"] == job["metadata"]["uid"]
    assert "deletionTimestamp" not in still["metadata"]
    assert watched.operator.running


async def test_watches_that_end_for_any_reason_are_started_again(kubectl: Kubectl, tmp_path: Path) -> None:
    """Cluster-wide, and by the events alone: the next list is a minute away."""
    async with a_world(kubectl, tmp_path, FINETUNE_WATCH_NAMESPACES="", FINETUNE_RESYNC_SECONDS="60") as world:
        world.apply("before")
        await eventually("a Job", lambda: world.job_of("before"))
        broken = WatchError(code=500, reason="InternalError", times=3)
        with world.kubernetes.faulty(broken, Reset(watches=True, times=3)):
            world.kubernetes.cut()
            await eventually("three errors", lambda: broken.hits == 3)
        await eventually("the line", lambda: "is not watched for a moment" in world.operator.log.read_text())
        for name in ("after-1", "after-2"):
            world.apply(name)
            await eventually("a Job", lambda name=name: world.job_of(name))
        assert world.operator.running
