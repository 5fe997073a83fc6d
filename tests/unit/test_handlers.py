"""The process shell around kopf."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from kubernetes.aio import client

from finetune.clients.kubernetes import KubernetesClient
from finetune.clients.registry import RegistryClient
from finetune.controller.core.settings import Settings
from finetune.controller.handlers import Operator, line_of
from finetune.controller.watch import handlers
from finetune.controller.workqueue import Line

FINISHED = {"phase": "Failed", "conditions": [{"type": "Finished", "status": "True"}]}


async def test_no_handler_runs_in_a_thread() -> None:
    """kopf runs plain functions in threads, where adding to the queue loses keys and wakes nobody."""
    operator = Operator(
        settings=Settings(registry_url="http://127.0.0.1:1", trainer_image="trainer:1"),
        kubernetes=KubernetesClient(configuration=client.Configuration()),
        registry=RegistryClient(base_url="http://127.0.0.1:1"),
    )
    registered = handlers(operator)
    registries = (registered._watching, registered._activities)
    functions = [handler.fn for registry in registries for handler in registry.get_all_handlers()]
    assert len(functions) == 4
    assert [function for function in functions if not inspect.iscoroutinefunction(function)] == []


@pytest.mark.parametrize(
    ("status", "event", "line"),
    [
        (None, {}, Line.BIRTH),
        ({}, {"listed": True}, Line.BIRTH),
        ({"phase": "Training"}, {"listed": True}, Line.NEWS),
        (FINISHED, {"listed": True}, Line.ROUTINE),
        (FINISHED, {}, Line.NEWS),
        ({"phase": "Training"}, {"changed": True}, Line.WISH),
        ({}, {"changed": True}, Line.WISH),
    ],
)
def test_new_runs_come_before_news_and_changes_before_both(
    status: dict[str, Any] | None, event: dict[str, bool], line: Line
) -> None:
    run = {"metadata": {}} if status is None else {"metadata": {}, "status": status}
    assert line_of(run, **({"listed": False, "changed": False} | event)) is line
