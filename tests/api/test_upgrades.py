"""From one version to the next: what is stored stays readable and writable, and runs in every phase go on.

`stored_runs/<version>/` holds runs as a released version stored them; a file there is never changed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.api.trainingrun import TrainingRun
from tests.cluster.kube_api import KubeApi
from tests.support.kubectl import Kubectl
from tests.support.world import World, a_world, eventually

STORED = sorted((Path(__file__).parent / "stored_runs").glob("*/*.yaml"))
OLD, NEW = "trainer:1", "trainer:2"

Document = dict[str, Any]


def without_defaults(given: Any, stored: Any) -> Any:
    """What of a stored object somebody has given: where later versions have more fields, these have their defaults."""
    if isinstance(given, dict) and isinstance(stored, dict):
        return {key: without_defaults(value, stored[key]) for key, value in given.items() if key in stored}
    if isinstance(given, list) and isinstance(stored, list):
        return [without_defaults(one, other) for one, other in zip(given, stored, strict=False)]
    return stored


@pytest.fixture
def runs(kubectl: Kubectl) -> str:
    return f"/apis/finetune.dev/v1alpha1/namespaces/{kubectl.namespace}/trainingruns"


@pytest.fixture
async def patient(kubectl: Kubectl, tmp_path: Path) -> AsyncIterator[World]:
    """A world whose operator waits for a dataset over a restart."""
    async with a_world(kubectl, tmp_path, FINETUNE_REFERENCE_TIMEOUT_SECONDS="300") as made:
        yield made


@pytest.mark.parametrize("file", STORED, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_a_run_of_every_version_is_kept_whole_and_read(api: KubeApi, runs: str, file: Path) -> None:
    given = yaml.safe_load(file.read_text(encoding="utf-8"))
    code, made = api.request("POST", f"{runs}?fieldValidation=Strict", given)
    assert code == 201, made
    assert without_defaults(given["spec"], made["spec"]) == given["spec"]
    if "status" in given:
        path = f"{runs}/{given['metadata']['name']}/status"
        code, made = api.request("PUT", path, {**made, "status": given["status"]})
        assert code == 200, made
        assert without_defaults(given["status"], made["status"]) == given["status"]
    read = TrainingRun.from_object(made)
    assert without_defaults(given.get("status", {}), read.status.to_dict()) == given.get("status", {})


async def test_runs_in_every_phase_go_on_with_the_next_version(patient: World) -> None:
    """The next version has another trainer's image: Jobs that are made keep theirs, others get the new one."""
    world = patient
    for name in ("pending", "exporting", "training", "suspended", "finished"):
        world.apply(name)
    world.apply("waiting", dataset={"registry": {"name": "later"}})
    made = ("pending", "exporting", "training", "suspended", "finished")
    jobs: dict[str, Document] = {}
    for name in made:
        jobs[name] = await eventually("the Job", partial(world.job_of, name))
    world.create_pod("exporting")
    running = {"running": {"startedAt": "2026-11-28T10:00:00Z"}}
    world.set_pod_status("exporting", "Pending", running, {"waiting": {"reason": "PodInitializing"}})
    await world.phase("Exporting", "exporting")
    for name in ("training", "finished"):
        world.start_pod(name)
        await world.phase("Training", name)
    world.finish_pod("finished")
    end = await world.phase("Succeeded", "finished")
    world.kubectl.patch("trainingruns", "suspended", {"spec": {"suspend": True}})
    await eventually("its Job is suspended", lambda: is_suspended(world))
    await eventually("it waits", lambda: (world.run("waiting") or {}).get("status", {}).get("waiting"))

    await world.operator.kill()
    world.operator.environment |= {"FINETUNE_TRAINER_IMAGE": NEW}
    await world.operator.start()

    rows = Path(world.operator.log).with_name("later.jsonl")
    rows.write_bytes(b'{"prompt": "a", "completion": "b"}\n' * 4)
    await world.client.push_dataset(world.kubectl.namespace, "later", rows)
    world.kubectl.patch("trainingruns", "suspended", {"spec": {"suspend": False}})
    await eventually("it is resumed", lambda: not is_suspended(world))
    for name in ("pending", "suspended", "waiting"):
        await eventually("the Job", partial(world.job_of, name))
        world.start_pod(name)
    for name in ("exporting", "training", "pending", "suspended", "waiting"):
        world.finish_pod(name)
        await world.phase("Succeeded", name)
    for name, job in jobs.items():
        now = world.job_of(name)
        assert now is not None
        assert now["metadata"]["uid"] == job["metadata"]["uid"]
        assert image_of(now) == OLD
    assert image_of(world.job_of("waiting") or {}) == NEW
    after = world.run("finished") or {}
    assert after["status"]["result"] == end["status"]["result"]
    adapters = await world.client.list_adapters(world.kubectl.namespace)
    assert sorted((each.name, each.version) for each in adapters) == sorted((name, 1) for name in (*made, "waiting"))


def is_suspended(world: World) -> bool:
    return bool((world.job_of("suspended") or {})["spec"].get("suspend"))


def image_of(job: Document) -> str:
    image: str = job["spec"]["template"]["spec"]["containers"][0]["image"]
    return image
