"""What a trainer says and how it ends when it cannot go on, and what it tells the registry."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model import exits
from tests.training import faults
from tests.training.harness import Run, finish
from tests.training.listener import Registry, listening


@pytest.fixture
def run(base_model: Path, tmp_path: Path, rows: list[dict[str, Any]]) -> Run:
    return Run(tmp_path, base_model, max_steps=4).export(rows)


@pytest.fixture
def own_base_model(run: Run, tmp_path: Path) -> Path:
    """A copy of the base model that a test may damage."""
    copy = tmp_path / "damaged"
    shutil.copytree(Path(run.flags["base_model"]), copy)
    run.flags |= {"base_model": copy}
    return copy


@pytest.fixture
def registry() -> Iterator[Registry]:
    with listening() as told:
        yield told


def assert_fails(run: Run, code: int, reason: str, *words: str) -> dict[str, Any]:
    assert run.train() == code
    failure: dict[str, Any] = run.said()["failure"]
    assert failure["reason"] == reason
    for word in words:
        assert word in failure["message"]
    assert not (run.directory / "training_config.json").exists()
    return failure


def test_a_base_model_that_does_not_exist(run: Run, tmp_path: Path) -> None:
    run.flags |= {"base_model": tmp_path / "models" / "nowhere"}
    assert_fails(run, exits.DOES_NOT_EXIST, "BaseModelUnavailable", str(tmp_path / "models" / "nowhere"))
    assert run.events("error")[0]["exitCode"] == exits.DOES_NOT_EXIST


def test_a_directory_without_a_model(run: Run, tmp_path: Path) -> None:
    run.flags |= {"base_model": tmp_path}
    assert_fails(run, exits.DOES_NOT_EXIST, "BaseModelUnavailable", "config.json")


def test_weights_that_are_cut_off(run: Run, own_base_model: Path) -> None:
    weights = own_base_model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert_fails(run, exits.DOES_NOT_EXIST, "BaseModelUnavailable", "its header says", "get it again")


def test_weights_that_are_missing(run: Run, own_base_model: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(own_base_model / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, own_base_model / "model.safetensors", {"format": "pt"})
    assert_fails(run, exits.DOES_NOT_EXIST, "BaseModelUnavailable", "model.layers.1.mlp.up_proj.weight")


def test_a_hub_that_cannot_be_reached(run: Run) -> None:
    run.flags |= {"base_model": "someone/some-model"}
    assert_fails(run, exits.UNAVAILABLE, "BaseModelUnavailable", "here is no directory of that name")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((404, "RepoNotFound"), (exits.DOES_NOT_EXIST, "does not exist on the hub")),
        ((403, "GatedRepo"), (exits.ACCESS_DENIED, "access to it must be granted")),
    ],
)
def test_a_hub_that_refuses(run: Run, registry: Registry, answer: tuple[int, str], expected: tuple[int, str]) -> None:
    """A real command line, because the hub's address is read when its library is imported."""
    registry.status, registry.headers = answer[0], {"X-Error-Code": answer[1]}
    run.flags |= {"base_model": "someone/some-model"}
    changes = {"HF_ENDPOINT": registry.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(run.path / "cache")}
    command = [sys.executable, "-m", "model.training.cli", *run.arguments()]
    environment = os.environ | changes | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, cwd=run.path, capture_output=True, env=environment, check=False)
    assert done.returncode == expected[0]
    assert expected[1] in run.said()["failure"]["message"]


def test_weights_that_are_no_numbers(run: Run, own_base_model: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(own_base_model / "model.safetensors")
    weights["model.norm.weight"].fill_(float("nan"))
    save_file(weights, own_base_model / "model.safetensors", {"format": "pt"})
    words = ("step 1 is no number, and the base model alone gives none for any of the rows (row ", "--base-model")
    assert_fails(run, exits.DIVERGED, "Diverged", *words)
    assert not list(run.directory.glob("checkpoints/*"))


def test_gpus_that_are_not_there(run: Run) -> None:
    run.flags |= {"gpus": 1}
    words = ("1 GPUs were requested and none is usable: torch says: ", "nvidia-smi", "resources.gpus")
    assert_fails(run, exits.GPU_UNAVAILABLE, "GPUUnavailable", *words)


def test_a_gpu_that_breaks(run: Run) -> None:
    assert finish(run.start(faults.broken_gpu, "micro-batch", 3)) == exits.GPU_UNAVAILABLE
    failure = run.said()["failure"]
    assert failure["reason"] == "GPUUnavailable"
    assert "CUDA error: uncorrectable ECC error encountered; check this machine's driver" in failure["message"]


def test_layers_that_the_model_does_not_have(run: Run) -> None:
    run.flags |= {"lora_target_modules": "q_proj,query"}
    assert_fails(run, exits.INVALID_CONFIGURATION, "InvalidSpec", "lora.targetModules", "query", "gate_proj")


def test_flags_that_are_wrong(run: Run) -> None:
    run.flags |= {"method": "PPO", "batch_size": 0, "learning_rte": 1}
    words = ("--method=PPO", "SFT", "DPO", "--batch-size=0", "did you mean --learning-rate?")
    assert_fails(run, exits.INVALID_CONFIGURATION, "InvalidSpec", *words)


def test_rows_that_were_never_exported(run: Run) -> None:
    shutil.rmtree(run.directory / "dataset")
    assert_fails(run, exits.DOES_NOT_EXIST, "DatasetUnavailable", "manifest.json")


def test_rows_that_were_changed_after_the_export(run: Run) -> None:
    path = run.directory / "dataset" / "train.jsonl"
    path.write_text(path.read_text().replace("really", "rarely"))
    assert_fails(run, exits.DATASET_INVALID, "DatasetInvalid", "changed after the export")


def test_a_row_that_is_too_long(run: Run) -> None:
    run.flags |= {"too_long": "Fail", "max_length": 40}
    failure = assert_fails(run, exits.DATASET_INVALID, "DatasetInvalid", "more than the 40 of maxLength")
    assert f"row {failure['row']}:" in failure["message"]


def test_rows_that_are_all_too_long(run: Run) -> None:
    run.flags |= {"too_long": "Drop", "max_length": 10}
    assert_fails(run, exits.DATASET_INVALID, "DatasetInvalid", "raise training.maxLength")


def test_a_full_disk(run: Run) -> None:
    (run.directory / "metrics.jsonl").symlink_to("/dev/full")
    assert_fails(run, exits.STORAGE_FULL, "StorageFull", "no space left on the volume at ", "larger claim")


@pytest.fixture
def told_run(run: Run, registry: Registry, tmp_path: Path) -> Run:
    (tmp_path / "token").write_text("secret\n")
    run.flags |= {"registry_url": registry.url, "registry_token_file": tmp_path / "token", "namespace": "ml"}
    return run


def test_the_registry_gets_the_progress_and_the_result(told_run: Run, registry: Registry) -> None:
    assert told_run.train() == 0
    posts = [body for method, path, token, body in registry.calls if method == "POST"]
    status = posts[-1]["trainerStatus"]
    metrics = {metric["name"]: metric["value"] for metric in status["metrics"]}
    assert status["progressPercentage"] == 100
    names = {"loss", "step", "totalSteps", "epoch", "learningRate", "tokensPerSecond", "checkpointStep"}
    names |= {"gradientNorm", "evaluationLoss", "tokens"}
    assert set(metrics) == names
    assert (metrics["step"], metrics["totalSteps"], metrics["checkpointStep"]) == ("4", "4", "4")
    assert float(metrics["gradientNorm"]) == pytest.approx(told_run.events("train")[-1]["gradientNorm"], abs=1e-5)
    assert float(metrics["evaluationLoss"]) == pytest.approx(told_run.events("evaluation")[0]["loss"], abs=1e-5)
    assert float(metrics["loss"]) == pytest.approx(told_run.events("train")[-1]["loss"], abs=1e-5)
    assert float(metrics["tokens"]) == sum(each["tokens"] for each in told_run.events("train"))  # all so far

    document = json.loads((told_run.directory / "training_config.json").read_text())
    assert registry.calls[-2:] == [
        ("PUT", "/api/v1/namespaces/ml/runs/uid-1/result", "Bearer secret", document),
        (
            "PUT",
            "/api/v1/namespaces/ml/runs/uid-1/files",
            "Bearer secret",
            {"files": document["result"]["adapter"]["files"]},
        ),
    ]


def test_a_registry_that_refuses_costs_nothing_but_its_own_copy(told_run: Run, registry: Registry) -> None:
    registry.status = 403
    assert told_run.train() == 0
    puts = [path.rpartition("/")[2] for method, path, *_ in registry.calls if method == "PUT"]
    assert puts == ["adapter", "result", "files"]  # of the evaluation at step 3, and at the end
    assert told_run.said()["result"]["steps"] == 4
