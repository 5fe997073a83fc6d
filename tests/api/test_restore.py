"""Runs that have lost their status, or come back from a backup as new objects: what is done does not train again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune.controller.core import names
from tests.support.databases import lose_the_database
from tests.support.kubectl import is_true
from tests.support.world import World, eventually

Document = dict[str, Any]


async def finished(world: World) -> Document:
    """A run that has succeeded and is marked."""
    world.apply()
    await eventually("the Job", world.job_of)
    world.start_pod()
    await world.phase("Training")
    world.finish_pod()
    await world.phase("Succeeded")
    done = await eventually("the mark", lambda: (run := world.run()) and _mark(run) and run)
    return dict(done)


def _mark(run: Document) -> str:
    return str((run["metadata"].get("annotations") or {}).get(names.FINISHED_ANNOTATION, ""))


def restored(run: Document, **metadata: Any) -> Document:
    """What a backup gives back without its status: the object with a new uid."""
    kept = {"name": run["metadata"]["name"], **metadata}
    return {"apiVersion": run["apiVersion"], "kind": run["kind"], "metadata": kept, "spec": run["spec"]}


def forget(world: World, name: str = "support") -> None:
    """Delete the run and its children, as a namespace's deletion does; there is no garbage collector here."""
    world.kubectl("delete", "trainingrun", name)
    world.kubectl("delete", "jobs,pods", f"--selector=finetune.dev/run={name}", "--force", "--grace-period=0")


async def is_done_without_a_job(world: World, before: Document) -> None:
    """The run is finished again, has the same adapter, and nothing was started for it."""
    again = await world.phase("Succeeded")
    assert is_true(again, "Finished")
    kept = {key: value for key, value in before["status"]["result"]["adapter"].items() if key != "stored"}
    assert again["status"]["result"]["adapter"] == kept  # its files are sent by the Job that was there, or never
    assert world.job_of() is None
    found = await world.client.list_adapter_versions(world.kubectl.namespace, "support")
    assert [version.version for version in found] == [1]


async def test_a_status_that_was_wiped_comes_back(world: World) -> None:
    done = await finished(world)
    world.kubectl("delete", "jobs,pods", "--all", "--force", "--grace-period=0")
    world.kubectl("patch", "trainingrun", "support", "--subresource=status", "--type=json",
                  '--patch=[{"op":"replace","path":"/status","value":{}}]')  # fmt: skip
    await is_done_without_a_job(world, done)


async def test_a_status_that_was_wiped_with_the_mark_comes_back_from_the_registry(world: World) -> None:
    done = await finished(world)
    world.kubectl("delete", "jobs,pods", "--all", "--force", "--grace-period=0")
    await world.operator.kill()
    world.kubectl("annotate", "trainingrun", "support", f"{names.FINISHED_ANNOTATION}-")
    world.kubectl("patch", "trainingrun", "support", "--subresource=status", "--type=json",
                  '--patch=[{"op":"replace","path":"/status","value":{}}]')  # fmt: skip
    await world.operator.start()
    await is_done_without_a_job(world, done)


async def test_a_restored_run_with_its_annotations_is_done(world: World) -> None:
    done = await finished(world)
    forget(world)
    world.kubectl.apply(restored(done, annotations={names.FINISHED_ANNOTATION: _mark(done)}))
    await is_done_without_a_job(world, done)


async def test_a_restored_run_that_was_under_way_when_it_was_saved_is_done(world: World) -> None:
    """It has no mark, but Velero's label; the registry knows what the same run has made under its former uid."""
    done = await finished(world)
    forget(world)
    world.kubectl.apply(restored(done, labels={names.RESTORED_LABEL: "monday"}))
    await is_done_without_a_job(world, done)


async def test_a_failed_run_stays_failed(world: World) -> None:
    world.apply(dataset={"registry": {"name": "nothing-here"}})
    await world.phase("Failed")
    failed = await eventually("the mark", lambda: (run := world.run()) and _mark(run) and run)
    forget(world)
    world.kubectl.apply(restored(failed, annotations={names.FINISHED_ANNOTATION: _mark(failed)}))
    again = await world.phase("Failed")
    assert again["status"]["failure"] == failed["status"]["failure"]
    assert is_true(again, "Stalled")


async def test_a_copy_under_another_name_is_another_run(world: World) -> None:
    done = await finished(world)
    copy = restored(done, annotations={names.FINISHED_ANNOTATION: _mark(done)})
    copy["metadata"]["name"] = "copy"
    world.kubectl.apply(copy)
    await eventually("its own Job", lambda: world.job_of("copy"))


async def test_the_same_name_with_another_spec_is_another_run(world: World) -> None:
    done = await finished(world)
    forget(world)
    other = restored(json.loads(json.dumps(done)), annotations={names.FINISHED_ANNOTATION: _mark(done)})
    other["spec"]["training"]["seed"] = 7
    world.kubectl.apply(other)
    await eventually("its own Job", world.job_of)


async def test_a_registry_that_lost_its_database_and_the_dataset_still_takes_the_adapter(
    world: World, tmp_path: Path
) -> None:
    """The rows' digest stays with the adapter; a version of a dataset that is not there is not claimed."""
    world.apply()
    await eventually("the Job", world.job_of)
    world.start_pod()
    await world.phase("Training")
    await lose_the_database(world, tmp_path)
    world.finish_pod()
    done = await world.phase("Succeeded")
    found = await world.client.get_adapter_version(world.kubectl.namespace, "support")
    assert (found.version, found.run_uid, found.dataset.sha256) == (1, done["metadata"]["uid"], "d" * 64)
    run = await world.client.get_run(world.kubectl.namespace, done["metadata"]["uid"])
    assert (run.dataset_name, run.dataset_version) == (None, None)
