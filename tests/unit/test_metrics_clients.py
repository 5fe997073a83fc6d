"""What the clients and the queue tell the metrics: every call once, also those without an answer."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from kubernetes.aio import client

from finetune.clients.breaker import Breaker
from finetune.clients.kubernetes import KubernetesClient, KubernetesError
from finetune.clients.registry import RegistryClient, RegistryError
from finetune.controller.workqueue import Key, Line, Lines, QueueState
from tests.support.registry import serving

NOWHERE = "http://127.0.0.1:1"


async def test_a_request_without_an_answer_is_told_with_status_0() -> None:
    told: list[tuple[str, str, int]] = []
    kubernetes = KubernetesClient(
        configuration=client.Configuration(host=NOWHERE),
        on_answered=lambda asked, status, _seconds: told.append((asked.verb, asked.resource, status)),
    )
    with pytest.raises(KubernetesError):
        await kubernetes.get_run("ml", "support-1")
    await kubernetes.close()
    assert told == [("GET", "trainingruns", 0)]


async def test_a_call_to_the_registry_is_told_with_its_error(tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []
    with serving(f"sqlite:///{tmp_path}/registry.db") as url:
        registry = RegistryClient(base_url=url)
        registry.on_answered = lambda method, error, _seconds: told.append((method, type(error).__name__))
        await registry.list_datasets("ml")
        with pytest.raises(RegistryError):
            await registry.get_run("ml", str(uuid.uuid4()))
        await registry.close()
    assert told == [("GET", "NoneType"), ("GET", "RegistryNotFound")]


async def test_a_silent_registry_is_told_as_silent_and_then_as_not_called() -> None:
    told: list[str] = []
    registry = RegistryClient(base_url=NOWHERE, breaker=Breaker())
    registry.on_answered = lambda _method, error, _seconds: told.append(type(error).__name__)
    assert not registry.is_silent
    for _ in range(2):
        with pytest.raises(RegistryError):
            await registry.list_datasets("ml")
    assert registry.is_silent
    await registry.close()
    assert told == ["RegistrySilent", "RegistryUnavailable"]


def test_the_queue_tells_how_many_wait_and_for_how_long() -> None:
    now = 100.0
    lines = Lines(clock=lambda: now)
    assert lines.state(running=0) == QueueState(0, 0, 0, 0.0)
    lines.put(Key("ml", "a"), Line.ROUTINE)
    now = 103.0
    lines.put(Key("ml", "b"), Line.NEWS)
    lines.put(Key("ml", "a"), Line.ROUTINE)  # it keeps its place, and since when
    now = 107.0
    assert lines.state(running=2) == QueueState(1, 1, 2, 7.0)
    assert lines.take({}) == (Key("ml", "b"), Line.NEWS)
    assert lines.state(running=3) == QueueState(0, 1, 3, 7.0)
