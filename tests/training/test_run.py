"""Whole runs of the trainer, in processes of their own: what they leave behind, and what interruptions do to them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model.training import cli
from tests.training.harness import BASE_MODEL_NAME, TERMINATION_LOG, Run
from tests.training.programs import run_program

STEPS = 24


@pytest.fixture(scope="module")
def reference(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nobody interrupts."""
    from tests.training.conftest import make_rows

    run = Run(tmp_path_factory.mktemp("reference"), base_model, max_steps=STEPS, gpus=1, pretended_gpus="true")
    assert run.export(make_rows(30)).train() == 0
    return run


@pytest.fixture
def run(reference: Run, tmp_path: Path) -> Run:
    """The same run before its first step."""
    (tmp_path / "output").mkdir()
    shutil.copytree(reference.directory / "dataset", tmp_path / "output" / "dataset")
    same = Run(tmp_path, Path(reference.flags["base_model"]))
    same.flags = reference.flags | {"run_directory": same.directory}
    return same


def test_a_run_says_what_it_made(reference: Run) -> None:
    said = reference.said()
    manifest = json.loads((reference.directory / "dataset" / "manifest.json").read_text())
    assert said["result"]["runUid"] == "uid-1"
    assert said["result"]["steps"] == STEPS
    assert said["result"]["resumedFromStep"] == 0
    assert said["dataset"]["rows"] == manifest["rows"]
    assert said["dataset"]["sha256"] == manifest["sha256"]
    assert float(said["result"]["evaluationLoss"]) < float(said["result"]["baseEvaluationLoss"])
    assert [point["step"] for point in said["lossHistory"]] == list(range(1, STEPS + 1))
    assert said["timings"]["startTime"] < said["timings"]["modelLoadedTime"] < said["timings"]["firstStepTime"]

    recorded = json.loads((reference.directory / "training_config.json").read_text())
    assert {key: recorded[key] for key in said} == said
    assert recorded["schemaVersion"] == 1
    assert recorded["config"]["learningRate"] == 0.01
    assert recorded["config"]["precision"] in ("BFloat16", "Float32")
    assert recorded["baseModel"]["name"] == BASE_MODEL_NAME


def test_the_reported_losses_are_those_of_the_steps(reference: Run) -> None:
    lines = reference.events("train")
    losses = [line["loss"] for line in lines[-10:]]
    said = reference.said()
    assert min(losses) < float(said["result"]["finalLoss"]) < max(losses)
    assert sum(line["tokens"] for line in lines) == said["result"]["tokens"]
    assert lines[-1]["loss"] < lines[0]["loss"] / 2
    assert float(said["lossHistory"][0]["loss"]) == pytest.approx(lines[0]["loss"], abs=1e-6)


def test_the_adapter_works_with_plain_peft_and_has_the_reported_loss(reference: Run, tokenizer: Any) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from model.training.rows.tokens import IGNORED, RowEncoder

    directory = reference.directory / "adapter"
    dtype = {"BFloat16": torch.bfloat16, "Float32": torch.float32}[reference.events("start")[0]["precision"]]
    base = AutoModelForCausalLM.from_pretrained(reference.flags["base_model"], dtype=dtype)
    model = PeftModel.from_pretrained(base, directory).eval()
    encoder = RowEncoder(tokenizer, max_length=1024, too_long="Fail")
    lines = (reference.directory / "dataset" / "evaluation.jsonl").read_bytes().splitlines(keepends=True)
    dataset = encoder.encode(iter(lines), "evaluation").as_dataset()
    total, tokens = 0.0, 0
    for row in dataset:
        labels = torch.tensor(row["labels"][1:])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED))
        tokens += int((labels != IGNORED).sum())
    assert float(reference.said()["result"]["evaluationLoss"]) == pytest.approx(total / tokens, rel=1e-3)

    config = json.loads((directory / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == BASE_MODEL_NAME
    assert {path.name for path in directory.iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o644}


def test_the_adapters_digest_is_what_sha256sum_prints(reference: Run) -> None:
    script = "sha256sum $(ls | LC_ALL=C sort) | sha256sum"
    shown = subprocess.run(["sh", "-c", script], cwd=reference.directory / "adapter", capture_output=True, check=True)
    assert shown.stdout.split()[0].decode() == reference.said()["result"]["adapter"]["sha256"]


def test_a_finished_run_is_not_trained_again(reference: Run) -> None:
    said, steps = reference.said(), reference.steps()
    assert reference.train() == 0
    assert reference.said() == said
    assert reference.steps() == steps


def test_collect_repeats_the_last_words(reference: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERMINATION_LOG", str(tmp_path / TERMINATION_LOG))
    assert cli.main(["collect", f"--run-directory={reference.directory}"]) == 0
    assert json.loads((tmp_path / TERMINATION_LOG).read_text()) == reference.said()


def test_an_adapter_that_was_changed_is_not_taken_for_finished(reference: Run, tmp_path: Path) -> None:
    copy = Run(tmp_path, Path(reference.flags["base_model"]))
    copy.flags = reference.flags | {"run_directory": copy.directory}
    shutil.copytree(reference.directory, copy.directory)
    weights = copy.directory / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with contextlib.chdir(tmp_path):
        assert cli.main(["collect", f"--run-directory={copy.directory}"]) == 1
    assert copy.said()["failure"]["reason"] == "AdapterInvalid"
    assert copy.train() == 0
    assert copy.said()["result"]["adapter"] == reference.said()["result"]["adapter"]


def test_sigkill_costs_no_more_than_the_steps_since_the_checkpoint(reference: Run, run: Run) -> None:
    assert run.stop_at(7, signal.SIGKILL) == -signal.SIGKILL
    assert run.train() == 0
    resumed = run.events("resume")[0]["step"]
    assert resumed % 4 == 0
    assert resumed >= 4
    assert_same_result(run, reference)


def test_a_broken_checkpoint_is_skipped_for_an_older_one(reference: Run, run: Run) -> None:
    run.stop_at(9, signal.SIGKILL)
    older, newest = sorted(run.directory.glob("checkpoints/checkpoint-*[0-9]"), key=lambda path: path.stat().st_mtime)
    weights = newest / "optimizer.pt"
    weights.write_bytes(weights.read_bytes()[:1000])
    (run.directory / "checkpoints" / "checkpoint-20").mkdir()
    assert run.train() == 0
    skipped = {event["skipped"]: event["reason"] for event in run.events("resume") if "skipped" in event}
    assert "optimizer.pt" in skipped[newest.name]
    assert "checkpoint.json" in skipped["checkpoint-20"]
    assert run.events("resume")[-1]["step"] == int(older.name.rpartition("-")[2])
    assert_same_result(run, reference)


def test_a_checkpoint_of_other_settings_is_not_continued(run: Run) -> None:
    run.stop_at(5, signal.SIGTERM)
    run.flags = run.flags | {"seed": 7}
    assert run.train() == 0
    assert "seed 42" in run.events("resume")[0]["reason"]
    assert run.said()["result"]["resumedFromStep"] == 0


def test_a_base_model_that_was_replaced_is_not_trained_on_with_its_checkpoint(run: Run) -> None:
    base = shutil.copytree(run.flags["base_model"], run.path / "base")
    run.flags = run.flags | {"base_model": base}
    run.stop_at(5, signal.SIGTERM)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"remark": 1}))
    assert run.train() == 0
    assert "base_model_files" in run.events("resume")[0]["reason"]
    assert run.said()["result"]["resumedFromStep"] == 0


def test_two_checkpoints_are_kept(reference: Run) -> None:
    names = {path.name for path in (reference.directory / "checkpoints").iterdir()}
    assert names == {f"checkpoint-{STEPS - 4}", f"checkpoint-{STEPS}"}


def test_training_stops_early_and_the_result_is_the_best_adapter(run: Run) -> None:
    from safetensors.torch import load_file

    run.flags = run.flags | {"learning_rate": "0.3", "evaluation_steps": 1, "early_stopping_patience": 2}
    run.flags |= {"precision": "Float32"}  # in bfloat16 it goes down for longer
    assert run.train() == 0
    said = run.said()["result"]
    evaluations = [event["loss"] for event in run.events("evaluation") if "final" not in event]
    best = evaluations.index(min(evaluations)) + 1
    assert best == len(evaluations) - 2
    assert said["steps"] == len(evaluations) < STEPS
    assert said["bestStep"] == best
    assert float(said["evaluationLoss"]) == pytest.approx(min(evaluations), abs=1e-6)
    assert run.said()["lossHistory"][-1]["step"] == len(evaluations)
    saved = load_file(run.directory / "checkpoints" / f"checkpoint-{best}" / "adapter_model.safetensors")
    adapter = load_file(run.directory / "adapter" / "adapter_model.safetensors")
    assert all(adapter[name].equal(weight) for name, weight in saved.items())


def test_stopping_early_needs_rows_to_compare_on(run: Run, rows: list[dict[str, Any]]) -> None:
    run.export(rows, percent=0)
    run.flags = run.flags | {"early_stopping_patience": 2}
    assert run.train() == 2
    assert run.said()["failure"]["reason"] == "InvalidSpec"
    assert "training.earlyStoppingPatience" in run.said()["failure"]["message"]
    assert not run.steps()


def test_tokens_are_counted_in_three_ways(reference: Run) -> None:
    said, lines = reference.said()["result"], reference.events("train")
    for key in ("tokens", "learnedTokens", "paddedTokens"):
        assert said[key] == sum(line[key] for line in lines)
    assert said["learnedTokens"] < said["tokens"] == said["paddedTokens"]  # joined rows have no padding


def test_padding_is_counted_where_rows_are_padded(run: Run) -> None:
    run.flags = run.flags | {"max_steps": 2, "packing": "Disabled"}
    assert run.train() == 0
    said = run.said()["result"]
    assert said["tokens"] < said["paddedTokens"]


def test_standard_output_is_json_lines_and_nothing_else(run: Run) -> None:
    run.flags = run.flags | {"max_steps": 2}
    command = [sys.executable, "-m", "model.training.cli", *run.arguments()]
    done = subprocess.run(command, cwd=run.path, capture_output=True, text=True, check=True, env=environment())
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()] == [
        "tokens", "start", "warning", "train", "train", "checkpoint", "evaluation", "end",
    ]  # fmt: skip
    assert "evaluations will take about " in done.stdout  # two steps are hardly more than the two evaluations
    assert done.stdout == (run.directory / "metrics.jsonl").read_text()


def test_chat_answers_with_and_without_the_adapter(reference: Run, tmp_path: Path) -> None:
    adapter = f"--adapter={reference.directory / 'adapter'}"
    flags = [adapter, "--prompt=What is 3 times 3?", "--prompt=One, two?", "--max-new-tokens=8"]
    done = run_program(tmp_path, "chat", f"--base-model={reference.flags['base_model']}", *flags)
    assert done.code == 0, done.errors
    answers = [json.loads(line) for line in done.output.splitlines()]
    assert [answer["prompt"] for answer in answers] == ["What is 3 times 3?", "One, two?"]
    assert answers[0]["adapter"].startswith("It is")
    assert not answers[0]["base"].startswith("It is")


def assert_same_result(run: Run, reference: Run) -> None:
    said, expected = run.said()["result"], reference.said()["result"]
    assert said["adapter"]["sha256"] == expected["adapter"]["sha256"]
    for key in ("finalLoss", "evaluationLoss", "baseEvaluationLoss", "steps", "tokens"):
        assert said[key] == expected[key]
    assert run.said()["lossHistory"] == reference.said()["lossHistory"]


def environment() -> dict[str, str]:
    import os

    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def test_what_accelerate_reads_in_the_environment_changes_nothing(reference: Run, run: Run) -> None:
    """`accelerate launch`, or an image's ENV, may leave any of these behind."""
    left = {"MIXED_PRECISION": "bf16", "USE_DEEPSPEED": "true", "TORCH_DEVICE": "meta", "DYNAMO_BACKEND": "EAGER"}
    environment = {**os.environ, **{f"ACCELERATE_{name}": value for name, value in left.items()}}
    command = [sys.executable, "-m", "model.training.cli", *run.arguments()]
    done = subprocess.run(command, cwd=run.path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert losses(run) == losses(reference)


def losses(run: Run) -> list[float]:
    """The loss of each step."""
    lines = map(json.loads, (run.directory / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["event"] == "train"]
