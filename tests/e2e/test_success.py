"""Runs that succeed, on real pods with a real model and real gradients."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import runs
from tests.support.installation import Installation
from tests.support.kubectl import Kubectl, is_true


def termination_message(team: Kubectl) -> dict[str, Any]:
    status = runs.pods(team)[-1]["status"]["containerStatuses"][0]
    message: dict[str, Any] = json.loads(status["state"]["terminated"]["message"])
    return message


@pytest.mark.usefixtures("registry_needed")
def test_a_supervised_run_ends_with_a_registered_adapter(
    installation: Installation, team: Kubectl, tmp_path: Path
) -> None:
    installation.provide_base_model(team)
    runs.push(installation, team, tmp_path, 48)
    training = {"batchSize": 4, "maxLength": 128, "maxSteps": 10, "checkpointSteps": 50, "learningRate": "5e-4"}
    run = runs.manifest(model=runs.SMOLLM2, training=training, adapter={"name": "sums"})
    team.apply(run)
    done = runs.succeeded(team)

    status, said = done["status"], termination_message(team)
    assert status["result"]["finalLoss"] == said["result"]["finalLoss"]
    assert status["result"]["adapter"]["sha256"] == said["result"]["adapter"]["sha256"]
    assert float(status["result"]["evaluationLoss"]) < float(status["result"]["baseEvaluationLoss"])
    assert status["dataset"]["rows"] + status["dataset"]["evaluationRows"] == 48
    for condition in ("Accepted", "DatasetReady", "Succeeded", "Finished"):
        assert is_true(done, condition)

    with installation.registry(team) as registry:
        listed = registry.json("adapters", "list", "sums")
        found = registry.json("adapters", "show", "sums")
    assert [version["version"] for version in listed] == [1]
    assert found["runUid"] == done["metadata"]["uid"]
    assert found["dataset"]["sha256"] == status["dataset"]["sha256"]
    assert found["baseModel"]["name"] == runs.SMOLLM2
    assert {file["path"] for file in found["files"]} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert found["uri"] == f"pvc://{status['output']['claimName']}/{status['output']['path']}/adapter"

    losses = [line["loss"] for line in runs.trainer_log(team) if line["event"] == "train"]
    assert len(losses) == 10
    assert statistics.mean(losses[-3:]) < statistics.mean(losses[:3])

    settled = runs.marked(team)
    assert "unchanged" in team.apply(run)
    assert (
        team.json("get", "trainingrun", "run")["metadata"]["resourceVersion"] == settled["metadata"]["resourceVersion"]
    )


def test_a_small_configmap_is_a_dataset_and_so_is_a_file_on_a_claim(tiny: Kubectl) -> None:
    """The rows that the first run has exported are the second run's dataset."""
    tiny.apply(runs.manifest("first", dataset=runs.config_map(tiny, runs.lines(runs.rows(24)))))
    first = runs.succeeded(tiny, "first")["status"]
    assert first["result"]["steps"] == 8
    output = first["output"]
    volume = {"claimName": output["claimName"], "path": f"{output['path']}/dataset/train.jsonl"}
    tiny.apply(runs.manifest("second", dataset={"volume": volume, "evaluation": {"percent": 0}}))
    done = runs.succeeded(tiny, "second")
    assert 0 < done["status"]["dataset"]["rows"] < 24
    assert "evaluationLoss" not in done["status"]["result"]


def chats(count: int) -> list[runs.Document]:
    """Rows of the shape `messages`."""
    return [
        {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]}
        for row in runs.rows(count)
    ]


@pytest.mark.usefixtures("registry_needed")
def test_preferences_on_top_of_an_adapter_for_chats(installation: Installation, tiny: Kubectl, tmp_path: Path) -> None:
    """The parent's claim is mounted read-only, the parent is trained further, and the lineage names it."""
    tiny.apply(runs.manifest("first", dataset=runs.config_map(tiny, runs.lines(chats(24))), lora={"rank": 4}))
    first = runs.succeeded(tiny, "first")["status"]
    assert first["dataset"]["rows"] > 0
    parent = first["result"]["adapter"]
    pairs = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": "I do not know."} for r in runs.rows(24)]
    path = tmp_path / "pairs.jsonl"
    path.write_text(runs.lines(pairs))
    with installation.registry(tiny) as registry:
        registry("datasets", "push", "pairs", str(path))
    dataset = {"registry": {"name": "pairs"}, "evaluation": {"maxRows": 8}}
    training = {"batchSize": 4, "maxLength": 128, "maxSteps": 6, "learningRate": "1e-2"}
    spec = {"parentAdapter": {"name": "first"}, "dpo": {"beta": "0.5"}, "dataset": dataset, "training": training}
    tiny.apply(runs.manifest("preferred", method="DPO", **spec))
    done = runs.succeeded(tiny, "preferred")

    status = done["status"]
    lineage = {key: parent[key] for key in ("name", "version", "sha256")}
    assert status["parentAdapter"] == lineage
    assert abs(float(status["result"]["baseEvaluationLoss"]) - math.log(2)) < 1e-3  # of the reference: the parent
    assert float(status["result"]["evaluationLoss"]) < float(status["result"]["baseEvaluationLoss"])
    assert 0 <= float(status["result"]["rewardAccuracy"]) <= 1
    with installation.registry(tiny) as registry:
        found = registry.json("adapters", "show", "preferred")
    assert (found["parent"], found["method"]) == (lineage, "DPO")
    trainer = runs.pods(tiny, "preferred")[-1]["spec"]["containers"][0]
    mounts = {mount["mountPath"]: mount for mount in trainer["volumeMounts"]}
    assert mounts["/models/parent"]["readOnly"] is True
