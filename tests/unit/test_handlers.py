"""The process shell around kopf."""

from __future__ import annotations

import inspect

from kubernetes.aio import client

from finetune.clients.kubernetes import KubernetesClient
from finetune.clients.registry import RegistryClient
from finetune.controller.core.settings import Settings
from finetune.controller.handlers import Operator
from finetune.controller.watch import handlers


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
