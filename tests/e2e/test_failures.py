"""Runs that fail: each with its own reason, what exactly is wrong, and what to change."""

from __future__ import annotations

import json

import pytest

from tests.e2e import runs
from tests.support.kubectl import CommandError, Kubectl, is_true


def failed(team: Kubectl, reason: str, name: str = "run") -> dict[str, object]:
    """The failure of a run, which must have this reason."""
    run = runs.finish(team, name)
    assert is_true(run, "Stalled")
    failure: dict[str, object] = run["status"]["failure"]
    assert failure["reason"] == reason, json.dumps(failure, indent=2)
    assert failure["hint"]
    return failure


def test_a_manifest_without_a_dataset_is_refused_with_the_remedy(team: Kubectl) -> None:
    run = runs.manifest()
    del run["spec"]["dataset"]
    with pytest.raises(CommandError, match=r"add spec\.dataset with exactly one source"):
        team.apply(run)


@pytest.mark.usefixtures("registry_needed")
def test_bad_datasets_and_models_end_in_their_own_reason(tiny: Kubectl) -> None:
    """Five runs side by side, as a user who gets it wrong in five ways."""
    seventh = [*runs.rows(6), '{"prompt": "broken', *runs.rows(3)]
    empty, malformed = runs.config_map(tiny, "", "empty"), runs.config_map(tiny, runs.lines(seventh), "malformed")
    good = runs.config_map(tiny, runs.lines(runs.rows(24)), "good")
    nowhere = {"volume": {"claimName": "base-models", "path": "no/such/model"}}
    tiny.apply(
        runs.manifest("no-dataset", dataset={"registry": {"name": "never-pushed"}}),
        runs.manifest("no-configmap", dataset={"configMap": {"name": "absent", "key": "train.jsonl"}}),
        runs.manifest("empty", dataset=empty),
        runs.manifest("malformed", dataset=malformed),
        runs.manifest("no-model", dataset=good, baseModel=nowhere),
    )
    assert "never-pushed" in str(failed(tiny, "DatasetUnavailable", "no-dataset")["message"])
    assert "absent" in str(failed(tiny, "DatasetUnavailable", "no-configmap")["message"])
    assert "no rows" in str(failed(tiny, "DatasetInvalid", "empty")["message"])
    row = failed(tiny, "DatasetInvalid", "malformed")
    assert (row["row"], row["exitCode"]) == (7, 3)
    assert "no/such/model" in str(failed(tiny, "BaseModelUnavailable", "no-model")["message"])


def test_a_claim_or_a_storage_class_that_does_not_exist_is_named(tiny: Kubectl) -> None:
    dataset = runs.config_map(tiny, runs.lines(runs.rows(24)))
    tiny.apply(
        runs.manifest("no-claim", dataset=dataset, output={"claimName": "not-there"}),
        runs.manifest("no-class", dataset=dataset, output={"claim": {"size": "1Gi", "storageClassName": "no-class"}}),
    )
    assert "not-there" in str(failed(tiny, "Unschedulable", "no-claim")["message"])
    message = str(failed(tiny, "Unschedulable", "no-class")["message"])
    assert 'storageclass.storage.k8s.io "no-class" not found' in message
    assert "PersistentVolumeClaim" in message


def test_too_little_memory_is_out_of_memory(tiny: Kubectl) -> None:
    dataset = runs.config_map(tiny, runs.lines(runs.rows(24)))
    resources = {"gpus": 0, "cpu": "200m", "memory": "150Mi", "sharedMemory": "16Mi"}
    tiny.apply(runs.manifest(dataset=dataset, resources=resources, retries=0))
    assert failed(tiny, "OutOfMemory")["exitCode"] == 137
