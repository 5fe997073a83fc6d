"""The adapter of each evaluation, as the registry gets it while the run trains."""

from __future__ import annotations

import hashlib
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from model.result import decimal
from tests.training.harness import Run
from tests.training.listener import Registry, listening

WEIGHTS = "adapter_model.safetensors"


def announced(registry: Registry) -> dict[int, dict[str, Any]]:
    """What was said of each step's adapter, by step, the last word."""
    return {
        int(path.split("/")[-2]): body
        for method, path, _, body in registry.calls
        if method == "PUT" and path.endswith("/adapter")
    }


def digest_of(document: dict[str, Any], path: str) -> str:
    """The digest of a file that was announced."""
    return next(str(file["sha256"]) for file in document["files"] if file["path"] == path)


def trained(path: Path, base_model: Path, rows: list[dict[str, Any]], registry: Registry, **flags: Any) -> Run:
    path.mkdir()
    return Run(path, base_model, registry_url=registry.url, namespace="ml", **flags).export(rows)


@pytest.mark.parametrize("method", ["SFT", "KTO"])
def test_each_evaluation_s_adapter_is_the_checkpoint_s_with_its_losses(
    base_model: Path, tmp_path: Path, rows: list[dict[str, Any]], method: str
) -> None:
    if method == "KTO":
        rows = [{**row, "label": number % 2 == 0} for number, row in enumerate(rows)]
    with listening() as registry:
        run = trained(tmp_path / "run", base_model, rows, registry, method=method, max_steps=5, checkpoint_steps=3)
        assert run.train() == 0
    evaluations = {event["step"]: event["loss"] for event in run.events("evaluation") if "final" not in event}
    document = json.loads((run.directory / "training_config.json").read_text())
    found = announced(registry)
    assert found.keys() == evaluations.keys() == {3}
    said = found[3]
    assert said["evaluationLoss"] == decimal(evaluations[3])
    assert said["baseEvaluationLoss"] == document["result"]["baseEvaluationLoss"]
    assert (said["attempt"], said["startStep"]) == (1, 0)
    losses = [event["loss"] for event in run.events("train") if event["step"] <= 3]
    assert min(losses) <= float(said["trainLoss"]) <= max(losses)
    for file in said["files"]:
        assert hashlib.sha256(registry.blobs[file["sha256"]]).hexdigest() == file["sha256"]
    checkpoint = (run.directory / "checkpoints" / "checkpoint-3" / WEIGHTS).read_bytes()
    assert registry.blobs[digest_of(said, WEIGHTS)] == checkpoint
    assert digest_of(said, "adapter_config.json") == digest_of(document["result"]["adapter"], "adapter_config.json")
    assert not (run.directory / "interim.tmp").exists()


def test_what_is_sent_changes_nothing_of_the_training(
    base_model: Path, tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    with listening() as registry:
        told = trained(tmp_path / "told", base_model, rows, registry, max_steps=16)
        assert told.stop_at(4, signal.SIGTERM) == 75
        assert told.train() == 0
    alone = Run(tmp_path / "alone", base_model, max_steps=16)
    alone.path.mkdir()
    assert alone.export(rows).train() == 0
    results = [json.loads((run.directory / "training_config.json").read_text())["result"] for run in (told, alone)]
    for result in results:
        result.pop("resumedFromStep")
        result["adapter"] = digest_of(result["adapter"], WEIGHTS)
    assert results[0] == results[1]
    attempts = {(said["attempt"], said["startStep"] > 0) for said in announced(registry).values()}
    assert (2, True) in attempts
