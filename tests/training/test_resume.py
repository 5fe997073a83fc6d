"""Runs that go on from a checkpoint end as if nothing had happened, and say what they went on from."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from model import exits
from tests.chaos.kills import Plan, Uninterrupted, carry_out
from tests.training import faults
from tests.training.harness import Run, finish

KILLS: dict[tuple[str, signal.Signals], int] = {}
"""The first seed of tests/chaos for each kind of run and each signal that is sent first."""
for _seed in range(100):
    _plan = Plan.of(_seed)
    KILLS.setdefault((_plan.scenario, _plan.kills[0].number), _seed)


@pytest.fixture(scope="module")
def uninterrupted(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    """Runs that nobody interrupts."""
    return Uninterrupted(tmp_path_factory.mktemp("uninterrupted"), base_model)


@pytest.fixture
def run(base_model: Path, tmp_path: Path, rows: list[dict[str, Any]]) -> Run:
    return Run(tmp_path, base_model, max_steps=6, evaluation_steps=3, checkpoint_steps=2).export(rows)


@pytest.mark.parametrize("seed", KILLS.values(), ids=[f"{kind}-{number.name}" for kind, number in KILLS])
def test_a_killed_run_ends_with_the_same_bits(seed: int, uninterrupted: Uninterrupted, tmp_path: Path) -> None:
    carry_out(Plan.of(seed), uninterrupted, tmp_path)


def test_a_step_stays_cut_as_it_was_when_the_memory_ran_out(run: Run) -> None:
    """The first attempt halves the second step's batch; without a word about it, the next would sum differently."""
    run.flags |= {"micro_batch_size": 4}
    assert finish(run.start(faults.memory, {2})) == 0
    expected, steps = run.said()["result"], run.events("train")
    shutil.rmtree(run.directory / "checkpoints" / "checkpoint-6")
    for path in (run.directory / "training_config.json", run.directory / "metrics.jsonl"):
        path.unlink()
    assert run.train() == 0
    assert run.events("resume")[0]["step"] == 4
    assert run.said()["result"] == {**expected, "resumedFromStep": 4}
    assert [line["loss"] for line in run.events("train")] == [line["loss"] for line in steps[4:]]


def test_a_micro_batch_that_was_found_stays(run: Run) -> None:
    assert run.stop_at(2, signal.SIGTERM) == exits.INTERRUPTED
    newest = max(run.directory.glob("checkpoints/checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    state = json.loads((newest / "run_state.json").read_text())
    assert state["micro_batch_size"] == run.events("start")[0]["microBatchSize"] == 4
    assert state["micro_batch_tokens"] == run.events("start")[0]["microBatchTokens"]
    rewrite(newest, "run_state.json", {**state, "micro_batch_size": 2, "micro_batch_tokens": 77})
    assert run.train() == 0
    assert (run.events("start")[1]["microBatchSize"], run.events("start")[1]["microBatchTokens"]) == (2, 77)
    assert json.loads((run.directory / "training_config.json").read_text())["arithmetic"]["microBatchTokens"] == 77


def test_a_checkpoint_that_was_computed_in_another_way_is_told(run: Run) -> None:
    assert run.stop_at(2, signal.SIGTERM) == exits.INTERRUPTED
    newest = max(run.directory.glob("checkpoints/checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    state = json.loads((newest / "run_state.json").read_text())
    told = [event["message"] for event in run.events("warning")]
    assert state["arithmetic"].items() >= {
        "device": "CPU", "precision": ANY, "layout": "Segmented", "attention": "RowByRow", "recompute": "None",
        "threads": 1,
    }.items()  # fmt: skip
    other = "BFloat16" if state["arithmetic"]["precision"] == "Float32" else "Float32"
    rewrite(newest, "run_state.json", {**state, "arithmetic": {**state["arithmetic"], "precision": other}})
    assert run.train() == 0
    (warning,) = [event["message"] for event in run.events("warning") if event["message"] not in told]
    assert f"precision {other} then, {state['arithmetic']['precision']} now" in warning


def test_another_early_stopping_does_not_go_on(run: Run) -> None:
    assert run.stop_at(2, signal.SIGTERM) == exits.INTERRUPTED
    run.flags["early_stopping_patience"] = 9
    assert run.train() == 0
    skipped = [event for event in run.events("resume") if "skipped" in event]
    assert skipped[0]["reason"] == "made with early_stopping None, the run has after 9 evaluations, one every 3 steps"
    assert run.said()["result"]["resumedFromStep"] == 0


def test_another_number_of_processes_is_refused(run: Run) -> None:
    assert run.stop_at(2, signal.SIGTERM) == exits.INTERRUPTED
    for checkpoint in run.directory.glob("checkpoints/checkpoint-*"):
        manifest = json.loads((checkpoint / "checkpoint.json").read_text())
        (checkpoint / "checkpoint.json").write_text(json.dumps({**manifest, "processes": 2}))
    assert run.train() == exits.INVALID_CONFIGURATION
    assert "was made by 2 processes and this run has 1 process" in run.said()["failure"]["message"]


def test_a_disk_that_is_full_in_a_checkpoint_leaves_the_older_one(run: Run) -> None:
    assert finish(run.start(faults.full_disk, "checkpoint", 2)) == exits.STORAGE_FULL
    assert run.said()["failure"]["reason"] == "StorageFull"
    assert [path.name for path in (run.directory / "checkpoints").iterdir()] == ["checkpoint-2"]
    assert run.train() == 0
    assert run.said()["result"]["resumedFromStep"] == 2


def test_leftovers_of_a_killed_attempt_are_removed(run: Run) -> None:
    for name in ("checkpoints/checkpoint-3.tmp", "adapter.tmp"):
        (run.directory / name).mkdir(parents=True)
        (run.directory / name / "adapter_model.safetensors").write_text("half")
    (run.directory / "training_config.json.tmp").write_text("{")
    with (run.directory / "metrics.jsonl").open("a") as file:
        file.write('{"event": "tra')
    assert run.train() == 0
    assert not list(run.directory.rglob("*.tmp"))
    assert run.steps() == [1, 2, 3, 4, 5, 6]


def rewrite(checkpoint: Path, name: str, document: dict[str, Any]) -> None:
    """Replace a document of a checkpoint as if it had been saved so."""
    from model.files import sha256_of_files

    (checkpoint / name).write_text(json.dumps(document))
    manifest = json.loads((checkpoint / "checkpoint.json").read_text())
    manifest["files"][name]["sha256"] = sha256_of_files([checkpoint / name])
    (checkpoint / "checkpoint.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("given", "edited"),
    [
        (False, "{{ bos_token }}{% for message in messages %}{{ message['content'] + eos_token }}{% endfor %}"),
        (True, "{{ bos_token }}{% for message in messages %}{{ message['content'] + eos_token }}{% endfor %}"),
        (True, "{{ messages"),
    ],
    ids=["the base's", "the run's", "broken"],
)
def test_a_chat_template_that_is_edited_between_attempts_changes_nothing(
    given: bool, edited: str, base_model: Path, tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    base = tmp_path / "base"
    shutil.copytree(base_model, base)
    template = (base / "chat_template.jinja").read_text()
    path = tmp_path / "given.jinja" if given else base / "chat_template.jinja"
    losses = []
    for name in ("whole", "interrupted"):
        path.write_text(template)
        (tmp_path / name).mkdir()
        run = Run(tmp_path / name, base, max_steps=6, checkpoint_steps=2, chat_template=path if given else None)
        run.export(rows)
        if name == "interrupted":
            assert run.stop_at(2, signal.SIGTERM) == exits.INTERRUPTED
            path.write_text(edited)
        assert run.train() == 0, run.said()
        losses.append([(line["step"], line["loss"]) for line in run.events("train")])
    assert losses[0] == losses[1]
    assert run.said()["result"]["resumedFromStep"] >= 2
    told = [line["message"] for line in run.events("warning")]
    assert sum("goes on with the one that it began with" in text for text in told) == 1
    assert (run.directory / "adapter/chat_template.jinja").read_text() == template


def test_before_the_first_checkpoint_an_edited_chat_template_is_taken(
    base_model: Path, tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    path = tmp_path / "template.jinja"
    template = (base_model / "chat_template.jinja").read_text()
    path.write_text("{% for message in messages %}{{ raise_exception('no') }}{% endfor %}")
    run = Run(tmp_path, base_model, max_steps=2, chat_template=path).export(rows)
    assert run.train() == exits.DATASET_INVALID
    path.write_text(template)
    assert run.train() == 0
