"""A run on several sources, from apply to the adapter, on a real API server and a real registry."""

from __future__ import annotations

import json
from typing import Any

from tests.support.world import World, eventually, stamp, terminated

MIX: list[dict[str, Any]] = [
    {"registry": {"name": "tickets"}, "weight": 3},
    {"name": "chats", "volume": {"claimName": "chats", "path": "a/*.jsonl"}, "weight": 1},
]
SOURCES = [
    {"name": "tickets/1", "version": 1, "rows": 2, "evaluationRows": 1, "found": 3, "dropped": 0},
    {"name": "chats", "rows": 1, "evaluationRows": 0, "found": 90, "dropped": 0},
]


async def test_each_source_is_told_and_the_one_of_the_registry_pinned(world: World) -> None:
    world.apply(dataset={"mix": MIX})
    job = await eventually("the Job", world.job_of)
    (export,) = job["spec"]["template"]["spec"]["initContainers"]
    given = [json.loads(a.removeprefix("--mix=")) for a in export["args"] if a.startswith("--mix=")]
    assert [entry.get("path") for entry in given] == [None, "/source/1/a/*.jsonl"]
    world.create_pod()
    exported = {"dataset": {"version": 1, "rows": 3, "evaluationRows": 1, "sources": SOURCES}}
    world.set_pod_status("support", "Running", terminated(0, exported), {"running": {"startedAt": stamp()}})
    training = await world.phase("Training")
    assert training["status"]["dataset"]["sources"] == SOURCES
    recorded = await world.client.get_run(world.kubectl.namespace, training["metadata"]["uid"])
    assert (recorded.dataset_name, recorded.dataset_version) == ("tickets", 1)
    message = world.result()
    message["dataset"]["sources"] = SOURCES
    world.finish_pod(message=message)
    done = await world.phase("Succeeded")
    assert done["status"]["dataset"]["sources"] == SOURCES
    adapter = await world.client.get_adapter_version(world.kubectl.namespace, "support")
    assert adapter.dataset.sources is not None
    assert [source.model_dump(by_alias=True, exclude_none=True) for source in adapter.dataset.sources] == SOURCES


async def test_a_source_that_the_registry_lacks_is_waited_for_and_then_named(world: World) -> None:
    world.apply(dataset={"mix": [{"registry": {"name": "nothing-here"}, "weight": 1}, MIX[1]]})
    failed = await world.phase("Failed")
    assert failed["status"]["failure"]["reason"] == "DatasetUnavailable"
    assert "nothing-here" in failed["status"]["failure"]["message"]
    assert world.job_of() is None
