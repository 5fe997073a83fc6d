"""The process shell around kopf."""

from __future__ import annotations

import inspect

import kopf
import pytest
from kubernetes.aio import client

from finetune.clients.kubernetes import KubernetesClient
from finetune.clients.registry import RegistryClient
from finetune.controller.handlers import Operator
from tests.support import objects as o


@pytest.fixture
async def handlers() -> kopf.OperatorRegistry:
    """What the operator registers with kopf."""
    operator = Operator(
        settings=o.SETTINGS,
        kubernetes=KubernetesClient(configuration=client.Configuration()),
        registry=RegistryClient(base_url=o.SETTINGS.registry_url),
    )
    return operator._handlers()


async def test_no_handler_runs_in_a_thread(handlers: kopf.OperatorRegistry) -> None:
    """kopf runs plain functions in threads, where adding to the queue loses keys and wakes nobody."""
    registries = (handlers._watching, handlers._activities)
    functions = [handler.fn for registry in registries for handler in registry.get_all_handlers()]
    assert len(functions) >= 5
    assert [function for function in functions if not inspect.iscoroutinefunction(function)] == []
