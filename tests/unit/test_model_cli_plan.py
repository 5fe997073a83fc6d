"""The plan's micro-batch is that of the training: for the memory that there is, and for several processes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from model.exits import FailureError
from model.files import RunDirectory
from model.training import cli
from model.training.commands import plan, probe
from model.training.config import TrainSettings
from model.training.local import PlanCommand, export_dataset
from model.training.loop.footprint import HEAP, LOGITS_CHUNK_BYTES
from model.training.weights.files import ModelFiles, read_model
from tests.support.safetensors_files import write_base

GIB = 1 << 30


@pytest.fixture
def base(tmp_path: Path) -> ModelFiles:
    write_base(tmp_path / "base")
    return read_model(tmp_path / "base")


def settings(**changes: Any) -> TrainSettings:
    values = {"method": "SFT", "run_directory": Path("r"), "run_uid": "u", "base_model": "base", **changes}
    return TrainSettings.model_validate({"precision": "Float32", **values}).resolved()


def test_the_micro_batch_is_lowered_to_the_memory(base: ModelFiles) -> None:
    roomy = plan.rows_at_once(settings(), base, 200, cuda=False, room=8 * GIB)
    assert roomy == plan.rows_at_once(settings(), base, 200, cuda=False, room=None) == 10
    memory = plan.memory_by_part(settings(), base, 10 * 200, cuda=False)
    room = round((sum(memory.values()) - 0.65 * memory["activations"]) / 0.9)
    assert plan.rows_at_once(settings(), base, 200, cuda=False, room=room) == 3
    assert plan.rows_at_once(settings(), base, 200, cuda=False, room=GIB // 2) == 1
    assert plan.rows_at_once(settings(micro_batch_size=8), base, 200, cuda=False, room=GIB // 2) == 8
    assert plan.rows_at_once(settings(gpus=1), base, 200, cuda=True, room=GIB // 2) == 16


def test_a_wide_vocabulary_takes_a_chunk_of_logits_however_many_rows_there_are(base: ModelFiles) -> None:
    memory = plan.memory_by_part(settings(), wide(base), 10 * 200, cuda=False)
    assert memory["logits"] == pytest.approx(HEAP * LOGITS_CHUNK_BYTES[False], rel=0.01)  # less what the way back takes
    room = round(sum(memory.values()) / 0.9) + 1
    assert plan.rows_at_once(settings(), wide(base), 200, cuda=False, room=room) == 10


def wide(base: ModelFiles) -> ModelFiles:
    """The same model with a million words."""
    return dataclasses.replace(base, config={**base.config, "vocab_size": 1 << 20})


def test_a_step_is_dealt_over_the_processes(base: ModelFiles) -> None:
    assert plan.rows_at_once(settings(batch_size=6, processes=4), base, 20, cuda=False, room=None) == 2
    assert plan.rows_at_once(settings(batch_size=16, gpus=4), base, 20, cuda=True, room=None) == 4
    alone, two = (plan.share_of_memory(settings(processes=count)) for count in (1, 2))
    assert alone is not None
    assert two is not None
    assert two < 0.75 * alone


def test_a_plan_says_what_is_meant_for_each_process(
    base: ModelFiles, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(base.directory.parent)
    arguments = ["plan", "--method=SFT", "--base-model=base", "--no-probe", "--batch-size=8"]
    assert cli.main([*arguments, "--processes=4"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["processes"], found["microBatchSize"], found["warnings"]) == (4, 2, [])
    assert cli.main([*arguments, "--gpus=2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["processes"], found["microBatchSize"]) == (2, 4)
    assert "tries up to 4 times as many rows" in found["warnings"][0]
    command = PlanCommand.model_validate(
        {"method": "SFT", "base_model": "base", "processes": 2, "batch_size": 8, "max_length": 99}
    )
    text = plan.make_plan(command, probe=False).text()
    assert "4 at once in each of 2 processes" in text


def test_a_plan_leaves_a_run_s_directory_as_it_is(base: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(base.directory.parent)
    rows = [json.dumps({"prompt": f"{n}?", "completion": f"{n}."}) + "\n" for n in range(3)]
    Path("rows.jsonl").write_text("".join(rows))
    run, scratch = RunDirectory(Path("run")), RunDirectory(Path("scratch"))
    values = {"method": "SFT", "base_model": "base"}
    export_dataset(PlanCommand.model_validate(values | {"dataset": "rows.jsonl"}), run.path)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    scratch.path.mkdir()
    plan.bring_dataset(PlanCommand.model_validate(values | {"run_directory": run.path}), scratch)
    assert scratch.train_rows.read_bytes() == run.train_rows.read_bytes()
    (scratch.dataset / "tokens.json").touch()
    (scratch.dataset / "tokens.json").replace(scratch.manifest)  # as files are written here
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def words(line: bytes) -> list[int]:
    """Take words for tokens, and leave out lines of more than six."""
    size = len(line.split())
    return [size] if size <= 6 else []


def test_the_probe_takes_the_rows_that_are_longest_in_tokens_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    lines = [b"a b c\n", b"left out for more than six words is this\n", b"looooooooooong\n", b"a b c d\n", b"a b\n"]
    path.write_bytes(b"".join(lines))
    sizes = [size for line in lines for size in words(line)]
    assert probe.longest_lines(path, sizes, 2, words) == {0, 3}
    assert probe.longest_lines(path, sizes, 9, words) == {0, 2, 3, 4}


def test_a_probe_that_does_not_end_is_told(base: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "PROBE_SECONDS", 0.01)
    command = PlanCommand.model_validate({"method": "SFT", "base_model": str(base.directory)})
    with pytest.raises(FailureError, match=r"were not done after 0 s: .*--no-probe only calculates") as caught:
        plan.make_plan(command, probe=True)
    assert caught.value.reason == "ProbeFailed"
