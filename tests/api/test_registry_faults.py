"""Troubles between the operator and the registry: a run succeeds once all the same, and no other run waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.faults import GATEWAY_PAGE, Answer, Delay, Edit, Fault, Hang, Reset
from tests.support.kubectl import Kubectl
from tests.support.kubelet import Attempt, Play
from tests.support.managed import Managed, a_managed_world, result_of_pod
from tests.support.world import eventually, manifest

SAID_SECONDS = 15.0
SUSPEND_SECONDS = 10.0
"""On a machine with much else to do; thirty calls that time out, one after the other, would take minutes."""
WORDS = "the words of the registry"
ADAPTER, RUN = "/runs/[^/]*/adapter$", "/runs/[^/]*$"


def error(reason: str) -> str:
    return json.dumps({"error": {"reason": reason, "message": WORDS, "hint": "wait"}})


def passing_faults() -> dict[str, list[Fault]]:
    """Faults of some requests, or of all for the time of one run."""
    return {
        "slow": [Delay("PUT", seconds=1)],
        "500": [Answer("PUT", times=4, status=500, body=error("InternalError"))],
        "503": [Answer("PUT", times=4, status=503, body=error("Unavailable"))],
        "html": [Answer("PUT", times=4, status=502, body=GATEWAY_PAGE)],
        "html-200": [Answer("PUT", times=4, status=200, body=GATEWAY_PAGE)],
        "cut-json": [Reset("PUT", times=2, body='{"uid": "')],
        "lost-run": [Reset("PUT", RUN, times=1, after=True)],
        "lost-adapter": [Reset("PUT", ADAPTER, times=1, after=True)],
        "newer": [Edit("PUT", change=lambda answer: {**answer, "aFieldOfTomorrow": {"x": 1}})],
    }


LASTING: dict[str, tuple[str, int, str]] = {
    "adapter-401": (ADAPTER, 401, error("Unauthenticated")),
    "adapter-403": (ADAPTER, 403, error("Forbidden")),
    "adapter-404": (ADAPTER, 404, json.dumps({"detail": WORDS})),
    "adapter-413": (ADAPTER, 413, error("TooLarge")),
    "adapter-422": (ADAPTER, 422, error("Invalid")),
    "adapter-429": (ADAPTER, 429, error("Busy")),
    "adapter-500": (ADAPTER, 500, error("InternalError")),
    "adapter-507": (ADAPTER, 507, error("StorageFull")),
    "run-409": (RUN, 409, error("SomethingOfTomorrow")),
    "run-422": (RUN, 422, error("Invalid")),
    "run-500": (RUN, 500, error("InternalError")),
    "run-page": (RUN, 404, f"<html>{WORDS}</html>"),
}
"""What the registry answers, to which call: path, status and body."""


@pytest.mark.long
async def test_faults_that_pass_cost_a_run_nothing(managed_kubectl: Kubectl, tmp_path: Path) -> None:
    async with a_managed_world(managed_kubectl, tmp_path, FINETUNE_REFERENCE_TIMEOUT_SECONDS="60") as managed:
        for name, faults in passing_faults().items():
            with managed.world.registry.faulty(*faults):
                managed.world.apply(name)
                await managed.world.phase("Succeeded", name)
            assert all(fault.hits for fault in faults), f"{name}: the fault was never met"
        await managed.check(names=tuple(passing_faults()))


async def test_what_lasts_is_said_in_the_registrys_words_and_ends_no_run(
    managed_kubectl: Kubectl, tmp_path: Path
) -> None:
    async with a_managed_world(managed_kubectl, tmp_path, FINETUNE_REFERENCE_TIMEOUT_SECONDS="60") as managed:
        world = managed.world
        world.kubectl.apply(*(manifest(name, suspend=True) for name in LASTING))  # it is told of a run that starts
        faults = []
        for name, (path, status, body) in LASTING.items():
            uid = (world.run(name) or {})["metadata"]["uid"]
            faults.append(Answer("PUT", path.replace("[^/]*", uid), status=status, body=body))
        with world.registry.faulty(*faults):
            world.kubectl.apply(*(manifest(name) for name in LASTING))
            heard = await asyncio.gather(*(said(managed, name, WORDS) for name in LASTING))
        silent = [name for name, yes in zip(LASTING, heard, strict=True) if not yes]
        assert not silent, "\n".join(f"{name}: {(world.run(name) or {}).get('status')}" for name in silent)
        for name in LASTING:
            await world.phase("Succeeded", name)
        await managed.check(names=tuple(LASTING))


async def said(managed: Managed, name: str, words: str) -> bool:
    """Whether the run says in time that it waits for the registry, in these words."""
    began = time.monotonic()

    def heard() -> bool:
        status = (managed.world.run(name) or {}).get("status") or {}
        waiting = status.get("waiting") or {}
        return words in waiting.get("message", "") and waiting.get("reason", "").startswith("Registry")

    while time.monotonic() - began < SAID_SECONDS:
        if await asyncio.to_thread(heard):
            return True
        await asyncio.sleep(0.1)
    return False


@pytest.mark.parametrize("count", [6, pytest.param(30, marks=pytest.mark.long)])
async def test_a_registry_that_hangs_holds_up_no_other_run(
    managed_kubectl: Kubectl, tmp_path: Path, count: int
) -> None:
    many = [f"run-{number:02}" for number in range(count)]
    async with a_managed_world(managed_kubectl, tmp_path) as managed:
        world = managed.world
        waiting = Attempt(trainer=Play(seconds=None, sigterm_code=75))
        for name in many:
            managed.kubelet.script(name, Attempt(trainer=_as_usual(seconds=None)))
        managed.kubelet.script("healthy", waiting)
        managed.kubelet.script("broken", Attempt(trainer=Play(seconds=None, code=6)))
        for name in (*many, "healthy", "broken"):
            world.apply(name)
        for name in (*many, "healthy", "broken"):
            await world.phase("Training", name)
        with world.registry.faulty(Hang()):
            for name in many:
                managed.kubelet.tell(name)
            await eventually("the registry is asked", lambda: "Registering" in _phases(managed, many))
            world.apply("healthy", suspend=True)
            began = time.monotonic()
            await eventually("its Job is suspended", lambda: world.job_of("healthy")["spec"]["suspend"])
            assert time.monotonic() - began < SUSPEND_SECONDS
            await world.phase("Suspended", "healthy")
            managed.kubelet.tell("broken", code=6)
            await world.phase("Failed", "broken")
            assert await said(managed, many[0], "")
        for name in many:
            await world.phase("Succeeded", name)
        await managed.check(names=tuple(many))


def _as_usual(**changes: Any) -> Play:
    return Play(words=result_of_pod, **changes)


def _phases(managed: Managed, names: list[str]) -> set[str]:
    runs = managed.world.kubectl.items("trainingruns")
    return {each["status"]["phase"] for each in runs if each["metadata"]["name"] in names}


@pytest.mark.long
async def test_a_locked_database_is_waited_for(managed: Managed, tmp_path: Path) -> None:
    managed.kubelet.script("support", Attempt(trainer=_as_usual(seconds=None)))
    managed.world.apply()
    await managed.world.phase("Training")
    with locked(tmp_path / "registry.db"):
        managed.kubelet.tell("support")
        assert await said(managed, "support", "")
    await managed.world.phase("Succeeded")
    await managed.check(names=("support",))


@contextlib.contextmanager
def locked(database: Path) -> Iterator[None]:
    """Hold SQLite's only write lock."""
    connection = sqlite3.connect(database, timeout=20, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")
    finally:
        connection.close()


async def test_a_full_disk_of_the_registry_is_waited_for(managed: Managed) -> None:
    managed.kubelet.script("support", Attempt(trainer=_as_usual(seconds=None)))
    managed.world.apply()
    await managed.world.phase("Training")
    with full_disk(managed.world.registry_server.pid):
        managed.kubelet.tell("support")
        assert await said(managed, "support", "")
        managed.world.apply("another")
        assert await said(managed, "another", "")
    await managed.world.phase("Succeeded")
    await managed.world.phase("Succeeded", "another")
    await managed.check(names=("support", "another"))


@contextlib.contextmanager
def full_disk(pid: int) -> Iterator[None]:
    """Let no file of a process grow: what a full disk does to it, without one."""
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


async def test_a_registry_that_is_away_is_waited_for(managed: Managed) -> None:
    managed.kubelet.script("support", Attempt(trainer=_as_usual(seconds=None)))
    managed.world.apply()
    await managed.world.phase("Training")
    async with managed.world.registry.away():
        managed.kubelet.tell("support")
        managed.world.apply("another")
        assert await said(managed, "support", "")
        assert await said(managed, "another", "")
    await managed.world.phase("Succeeded")
    await managed.world.phase("Succeeded", "another")
    await managed.check(names=("support", "another"))
