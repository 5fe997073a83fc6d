"""What the registry knows of runs: the truth in the end, also of what happened while somebody was away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune.controller.core.names import FINISHED_ANNOTATION
from tests.support.databases import lose_the_database
from tests.support.faults import Answer
from tests.support.world import EXPORTED, World, eventually, terminated, wait_until_ready


async def training(world: World) -> None:
    """A run that trains."""
    world.apply()
    await eventually("the Job", world.job_of)
    world.start_pod()
    await world.phase("Training")


def fail(world: World, **failure: Any) -> None:
    """The trainer ends with this failure, for good."""
    world.set_pod_status("support", "Failed", terminated(0, EXPORTED), terminated(6, {"failure": failure}))
    world.set_job_condition("support", "Failed", reason="PodFailurePolicy", message="exit code 6")


async def test_each_phase_and_the_result_are_told(world: World) -> None:
    await training(world)
    run = await world.told("Training")
    assert run.outcome is not None
    assert (run.outcome.ended, run.outcome.attempts, run.base_model) == (False, 1, "m")
    world.finish_pod()
    done = await world.phase("Succeeded")
    outcome = (await world.told("Succeeded")).outcome
    assert outcome is not None
    assert (outcome.ended, outcome.evaluation_loss, outcome.reason) == (True, "1.6", None)
    assert outcome.completion_time is not None
    assert outcome.completion_time.isoformat()[:19] == done["status"]["completionTime"][:19]
    assert await world.client.list_unfinished() == []


async def test_a_failure_is_told_with_all_that_helps(world: World) -> None:
    await training(world)
    fail(world, reason="Diverged", message="the loss is NaN", row=7)
    await world.phase("Failed")
    outcome = (await world.told("Failed")).outcome
    assert outcome is not None
    assert (outcome.ended, outcome.reason, outcome.row) == (True, "Diverged", 7)
    assert "the loss is NaN" in (outcome.message or "")
    assert "learningRate" in (outcome.hint or "")


async def test_a_run_that_never_was_recorded_is_known_when_it_has_failed(world: World) -> None:
    world.apply(dataset={"registry": {"name": "nothing-here"}})
    await world.phase("Failed")
    run = await world.told("Failed")
    assert run.outcome is not None
    assert (run.outcome.reason, run.dataset_name) == ("DatasetUnavailable", None)


async def test_a_run_that_never_was_recorded_is_told_of_by_the_next_operator(world: World) -> None:
    with world.registry.faulty(Answer("PUT", r"/runs/[^/]+/status$", status=503)):
        world.apply(dataset={"registry": {"name": "nothing-here"}})
        await world.phase("Failed")
        await world.operator.kill()
    await world.operator.start()
    assert (await world.told("Failed")).dataset_name is None
    await eventually("its mark", lambda: FINISHED_ANNOTATION in (world.run() or {})["metadata"].get("annotations", {}))


async def test_a_run_that_is_deleted_while_it_trains_does_not_seem_to_train_for_ever(world: World) -> None:
    await training(world)
    await world.told("Training")
    world.kubectl("delete", "trainingrun", "support")
    run = await world.told("Deleted")
    assert run.outcome is not None
    assert (run.outcome.ended, run.outcome.reason, run.outcome.attempts) == (True, "ObjectDeleted", 1)
    assert run.outcome.message == "the TrainingRun was deleted while it was Training"


async def test_what_happens_while_the_registry_is_away_is_told_when_it_is_back(world: World) -> None:
    await training(world)
    await world.registry_server.kill()
    fail(world, reason="Diverged", message="the loss is NaN")
    await world.phase("Failed")
    await world.registry_server.start()
    await world.told("Failed")


async def test_what_happens_while_both_are_away_is_told_after_all(world: World) -> None:
    """One run ends and its operator dies before the registry is back, one is deleted while nobody watches."""
    await training(world)
    world.apply("other")
    await eventually("its Job", lambda: world.job_of("other"))
    await world.told("Pending", "other")
    await world.registry_server.kill()
    fail(world, reason="Diverged", message="the loss is NaN")
    await world.phase("Failed")
    await world.operator.kill()
    world.kubectl("delete", "trainingrun", "other")
    await world.registry_server.start()
    await wait_until_ready(f"{world.registry.url}/readyz")
    await world.operator.start()
    await world.told("Failed")
    await world.told("Deleted", "other")


async def test_other_rows_under_the_number_of_a_runs_dataset_are_not_its_lineage(world: World, tmp_path: Path) -> None:
    """A registry that lost its database gives numbers again."""
    await training(world)
    recorded = (await world.client.get_run(world.kubectl.namespace, "support")).dataset_sha256
    assert (world.run() or {})["status"]["dataset"]["sourceSha256"] == recorded
    await lose_the_database(world, tmp_path)
    rows = tmp_path / "others.jsonl"
    rows.write_bytes(b'{"prompt": "c", "completion": "d"}\n')
    version, _ = await world.client.push_dataset(world.kubectl.namespace, "tickets", rows)
    assert version.version == 1
    world.finish_pod()
    await world.phase("Succeeded")
    adapter = await world.client.get_adapter_version(world.kubectl.namespace, "support")
    assert adapter.dataset_name is None, "it was not trained on these rows"
    assert adapter.dataset.sha256 == "d" * 64
