"""Operator and registry seen from outside, on a real API server: by probes, by a real Prometheus, in their logs."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientError, ClientSession

from tests.support.faults import Answer, status_document
from tests.support.kubectl import Kubectl
from tests.support.kubelet import Attempt, Play
from tests.support.managed import a_managed_world, result_of_pod
from tests.support.ports import free_port
from tests.support.prometheus import find, scraping
from tests.support.world import DEADLINE_SECONDS, World, a_world, eventually, wait_until_ready
from tests.unit.test_alerts import RULES

Document = dict[str, Any]

SECRET = "hunter2-of-the-spec"
LISTS = r"/trainingruns\?"
DATABASE = {"name": "database", "key": "url"}

needs_prometheus = pytest.mark.skipif(
    find("prometheus") is None,
    reason="prometheus is not on PATH, and `python -m tests.support.prometheus` has not fetched it",
)


async def status_of(url: str) -> int:
    """The HTTP status of a GET; 0 while nobody answers."""
    try:
        async with ClientSession() as session, session.get(url) as answer:
            return answer.status
    except (ClientError, OSError):
        return 0


async def query(prometheus: str, expression: str) -> dict[str, float]:
    """What an expression is now, by its one label."""
    async with (
        ClientSession() as session,
        session.get(f"{prometheus}/api/v1/query", params={"query": expression}) as answer,
    ):
        found = (await answer.json())["data"]["result"]
    return {"".join(each["metric"].values()): float(each["value"][1]) for each in found}


async def until(prometheus: str, expression: str, wanted: dict[str, float]) -> None:
    """Wait until an expression is what is wanted."""
    seen: dict[str, float] = {}
    async with asyncio.timeout(DEADLINE_SECONDS):
        while seen != wanted:
            seen = await query(prometheus, expression)
            await asyncio.sleep(0.2)


async def eventually_all_rules_are_healthy(prometheus: str) -> None:
    """Wait until Prometheus has evaluated every alert, and found nothing wrong with it."""
    health: set[str] = set()
    async with asyncio.timeout(DEADLINE_SECONDS), ClientSession() as session:
        while health != {"ok"}:
            async with session.get(f"{prometheus}/api/v1/rules") as answer:
                groups = (await answer.json())["data"]["groups"]
            health = {rule["health"] for group in groups for rule in group["rules"]}
            await asyncio.sleep(0.2)


def lines_of(log: Path) -> list[Document]:
    """The lines of a log; each must be a JSON object."""
    return [json.loads(line) for line in log.read_text().splitlines()]


def hostname(url: str) -> str:
    return url.partition("://")[2]


@needs_prometheus
async def test_a_real_prometheus_sees_what_became_of_runs(managed_kubectl: Kubectl, tmp_path: Path) -> None:
    port = free_port()
    async with a_managed_world(managed_kubectl, tmp_path, FINETUNE_HEALTH_PORT=str(port)) as managed:
        await wait_until_ready(f"http://127.0.0.1:{port}/readyz")
        targets = {"operator": f"127.0.0.1:{port}", "registry": hostname(managed.world.registry.url)}
        async with scraping(targets, tmp_path, rules=RULES) as prometheus:
            await wait_until_ready(f"{prometheus}/-/ready")
            await until(prometheus, "sum by (job) (up)", {"operator": 1, "registry": 1})
            said = {"failure": {"reason": "Diverged", "message": f"the loss of {SECRET} is NaN"}}
            managed.kubelet.script("bad", Attempt(trainer=Play(code=6, words=said)))
            saved = Play(seconds=None, sigterm_code=75, sigterm_words={"interrupted": {"step": 3}})
            managed.kubelet.script("good", Attempt(trainer=saved), Attempt())
            for name in ("bad", "good"):
                managed.world.apply(name)
            await managed.world.phase("Training", "good")
            await until(prometheus, 'sum by (phase) (finetune_operator_runs{phase="Training"})', {"Training": 1})
            await managed.kubelet.evict("good")
            for name, phase in (("bad", "Failed"), ("good", "Succeeded")):
                await managed.world.phase(phase, name)
            ends = "sum by (reason) (finetune_operator_runs_finished_total) > 0"
            await until(prometheus, ends, {"AdapterRegistered": 1, "Diverged": 1})
            attempts = "sum by (reason) (finetune_operator_attempts_ended_total) > 0"
            await until(prometheus, attempts, {"Interrupted": 1, "Completed": 1, "Diverged": 1})
            await until(prometheus, "sum(finetune_operator_runs)", {"": 0})
            await until(prometheus, "sum(finetune_operator_tokens_trained_total)", {"": 9})
            created = 'sum(finetune_operator_kubernetes_requests_total{verb="create",resource="jobs",code="201"})'
            await until(prometheus, created, {"": 3})  # of two trainings, and one that sends what the trainer did not
            assert await query(prometheus, "sum(finetune_operator_run_acceptance_seconds_count)") == {"": 2}
            routes = 'count(finetune_registry_requests_total{method="PUT",code="201"})'
            assert (await query(prometheus, routes))[""] >= 2
            await eventually_all_rules_are_healthy(prometheus)
            assert await query(prometheus, 'ALERTS{alertstate="firing"}') == {}
    for name in ("operator.log", "registry.log"):
        assert SECRET not in (tmp_path / name).read_text()


async def test_the_operator_is_ready_once_the_runs_were_listed(kubectl: Kubectl, tmp_path: Path) -> None:
    port = free_port()
    away = Answer("GET", LISTS, status=503, body=status_document(503, "ServiceUnavailable", SECRET))
    async with a_world(kubectl, tmp_path, FINETUNE_HEALTH_PORT=str(port)) as world:
        await wait_until_ready(f"http://127.0.0.1:{port}/readyz")
        with world.kubernetes.faulty(away):
            await world.operator.kill()
            await world.operator.start()
            await wait_until_ready(f"http://127.0.0.1:{port}/healthz")
            await eventually("the list was refused twice", lambda: away.hits >= 2)
            assert await status_of(f"http://127.0.0.1:{port}/readyz") == 503
        await wait_until_ready(f"http://127.0.0.1:{port}/readyz")
    assert SECRET not in (tmp_path / "operator.log").read_text()


async def test_a_life_is_a_line_for_each_transition_and_no_content(managed_kubectl: Kubectl, tmp_path: Path) -> None:
    async with a_managed_world(managed_kubectl, tmp_path) as managed:
        said = {"failure": {"reason": "DatasetInvalid", "message": f"row 7: {SECRET}", "row": 7}}
        managed.kubelet.script("bad", Attempt(export=Play(code=3, words=said)))
        managed.kubelet.script("good", Attempt(trainer=Play(seconds=0.5, words=result_of_pod)))
        refused = status_document(422, "Invalid", f"Invalid value: {SECRET}")
        with managed.world.kubernetes.faulty(Answer("POST", "/jobs$", times=2, status=422, body=refused)):
            for name in ("bad", "good"):
                managed.world.apply(name, dataset={"sql": {"query": f"select '{SECRET}'", "urlSecretRef": DATABASE}})
            await managed.world.phase("Failed", "bad")
            await managed.world.phase("Succeeded", "good")
        uids = {name: _uid(managed.world, name) for name in ("bad", "good")}
    lines = lines_of(tmp_path / "operator.log")
    told = [line for line in lines if line["logger"].endswith("transitions")]
    for name, last in (("bad", ("Failed", "DatasetInvalid")), ("good", ("Succeeded", "AdapterRegistered"))):
        own = [line for line in told if line["run"] == name]
        assert {line["uid"] for line in own} == {uids[name]}
        assert {line["namespace"] for line in own} == {managed_kubectl.namespace}
        assert all(line["seconds"] >= 0 for line in own)
        assert own[0]["phase"] == "Pending"
        assert (own[-1]["phase"], own[-1]["reason"], own[-1]["attempt"]) == (*last, 1)
        states = [(line["phase"], line["reason"]) for line in own]
        assert all(before != after for before, after in itertools.pairwise(states))
    assert all(not line["logger"].startswith("kopf") for line in lines), "kopf's lines for each event are gone"
    requests = [line for line in lines_of(tmp_path / "registry.log") if "route" in line]
    assert {"PUT", "POST"} <= {line["method"] for line in requests}
    for name in ("operator.log", "registry.log"):
        assert SECRET not in (tmp_path / name).read_text()


def _uid(world: World, name: str) -> str:
    run = world.run(name)
    assert run is not None
    return str(run["metadata"]["uid"])
