"""SIGTERM at every point of a trainer's work: how it ends, and that the next attempt makes up for it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model import exits
from tests.training import faults
from tests.training.conftest import make_rows
from tests.training.harness import Run, finish, wait_for

STEPS = 12
EVALUATION_STEPS = 3
CHECKPOINT_STEPS = 4
MICRO_BATCHES = 2
HELD_OUT_BATCHES = 2
AT_ONCE, PATIENT = 0.0, 60.0
"""Seconds that a step in progress gets after SIGTERM."""


@pytest.fixture(scope="module")
def reference(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nobody interrupts."""
    run = Run(
        tmp_path_factory.mktemp("reference"),
        base_model,
        max_steps=STEPS,
        micro_batch_size=4 // MICRO_BATCHES,
        evaluation_steps=EVALUATION_STEPS,
        checkpoint_steps=CHECKPOINT_STEPS,
    )
    assert run.export(make_rows(30), percent=10).train() == 0
    assert run.said()["dataset"]["evaluationRows"] == 3  # HELD_OUT_BATCHES of two rows
    return run


@pytest.fixture
def run(reference: Run, tmp_path: Path) -> Run:
    """The same run before its first step."""
    (tmp_path / "output").mkdir()
    shutil.copytree(reference.directory / "dataset", tmp_path / "output" / "dataset")
    same = Run(tmp_path, Path(reference.flags["base_model"]))
    same.flags = reference.flags | {"run_directory": same.directory}
    return same


def interrupt(run: Run, point: str, call: int, step_seconds: float = PATIENT) -> int:
    return finish(run.start(faults.sigterm, point, call, step_seconds))


def told(run: Run, event: str) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in run.events(event)]


def assert_same(run: Run, reference: Run) -> None:
    result, expected = run.said()["result"], reference.said()["result"]
    assert {**result, "resumedFromStep": 0} == expected
    for event in ("train", "evaluation"):
        assert told(run, event) == told(reference, event)


def assert_resumes(run: Run, reference: Run, step: int) -> None:
    assert run.said() == {"interrupted": {"step": step}}
    assert run.train() == 0
    assert run.said()["result"]["resumedFromStep"] == step
    assert_same(run, reference)


@pytest.mark.parametrize(("step", "micro_batch"), [(5, 1), (9, 2)], ids=["first-epoch", "second-epoch"])
def test_a_step_that_can_end_in_time_is_ended(run: Run, reference: Run, step: int, micro_batch: int) -> None:
    assert interrupt(run, "micro-batch", (step - 1) * MICRO_BATCHES + micro_batch) == exits.INTERRUPTED
    assert run.steps() == list(range(1, step + 1))
    assert_resumes(run, reference, step)


@pytest.mark.parametrize(
    ("step", "saved"), [(1, 0), (6, 5), (CHECKPOINT_STEPS + 1, CHECKPOINT_STEPS)], ids=["first", "middle", "saved"]
)
def test_a_step_that_cannot_end_in_time_is_given_up(run: Run, reference: Run, step: int, saved: int) -> None:
    """Its first micro-batch has drawn random numbers for the dropout: the ones of its beginning are saved."""
    assert interrupt(run, "micro-batch", (step - 1) * MICRO_BATCHES + 1, AT_ONCE) == exits.INTERRUPTED
    assert run.steps() == list(range(1, saved + 1))
    assert len(run.events("checkpoint")) == len({saved, CHECKPOINT_STEPS} & set(range(1, saved + 1)))
    assert_resumes(run, reference, saved)


def test_an_evaluation_that_is_broken_off_comes_first_after_the_resume(run: Run, reference: Run) -> None:
    assert interrupt(run, "evaluation", HELD_OUT_BATCHES + 1) == exits.INTERRUPTED
    assert told(run, "evaluation") == told(reference, "evaluation")[:1]
    assert_resumes(run, reference, 2 * EVALUATION_STEPS)
    after = [line["event"] for line in all_events(run)]
    resumed = after.index("resume")
    assert after[resumed + 1 : resumed + 3] == ["evaluation", "train"]


def test_an_evaluation_that_was_due_at_the_end_of_the_step_comes_first_after_the_resume(
    run: Run, reference: Run
) -> None:
    assert interrupt(run, "step's end", EVALUATION_STEPS) == exits.INTERRUPTED
    assert not run.events("evaluation")
    assert_resumes(run, reference, EVALUATION_STEPS)


def test_an_evaluation_is_not_skipped_though_it_is_broken_off_again_and_again(run: Run, reference: Run) -> None:
    assert interrupt(run, "evaluation", 1) == exits.INTERRUPTED
    assert interrupt(run, "evaluation", 2) == exits.INTERRUPTED
    assert run.steps() == [1, 2, 3]
    assert_resumes(run, reference, EVALUATION_STEPS)


def test_a_checkpoint_that_is_being_written_is_finished(run: Run, reference: Run) -> None:
    assert interrupt(run, "checkpoint", 1, AT_ONCE) == exits.INTERRUPTED
    assert run.steps() == list(range(1, CHECKPOINT_STEPS + 1))
    assert len(run.events("checkpoint")) == 1
    assert_resumes(run, reference, CHECKPOINT_STEPS)


@pytest.mark.parametrize("point", ["final evaluation", "adapter", "last words"])
def test_what_comes_after_the_last_step_is_made_by_the_next_attempt(run: Run, reference: Run, point: str) -> None:
    assert interrupt(run, point, 1) == exits.INTERRUPTED
    assert (run.directory / "training_config.json").exists() is (point == "last words")
    assert run.said() == {"interrupted": {"step": STEPS}}
    assert run.train() == 0
    assert run.said()["result"]["resumedFromStep"] == (0 if point == "last words" else STEPS)
    assert_same(run, reference)
    assert not list(run.directory.rglob("*.tmp"))


def test_a_run_whose_last_words_are_said_is_finished_and_not_interrupted(run: Run, reference: Run) -> None:
    assert interrupt(run, "publication", 1) == exits.OK
    assert_same(run, reference)


def test_a_checkpoint_that_cannot_be_written_after_sigterm_is_told_apart_from_a_crash(run: Run, reference: Run) -> None:
    assert finish(run.start(faults.broken_disk, "checkpoint", 2)) == exits.TERMINATED
    assert "SIGTERM was received, and saving failed: OSError" in run.said()["failure"]["message"]
    assert run.train() == 0
    assert run.said()["result"]["resumedFromStep"] == CHECKPOINT_STEPS
    assert_same(run, reference)


def test_a_trainer_that_imports_ends_at_once(run: Run) -> None:
    """A real command line, because the handler must be there before anything slow is imported."""
    with real_process(run) as process:
        wait_for(lambda: catches_sigterm(process.pid))
        assert "torch/lib" not in Path(f"/proc/{process.pid}/maps").read_text()
        process.terminate()
        assert process.wait(timeout=60) == exits.INTERRUPTED
    assert run.said() == {"interrupted": {"step": 0}}


def test_a_trainer_that_loads_ends_at_once_and_says_what_is_saved(run: Run) -> None:
    assert interrupt(run, "checkpoint", 1) == exits.INTERRUPTED
    with real_process(run) as process:
        wait_for(lambda: "torch/lib" in Path(f"/proc/{process.pid}/maps").read_text())
        process.terminate()
        assert process.wait(timeout=60) == exits.INTERRUPTED
    assert run.said()["interrupted"]["step"] in (0, CHECKPOINT_STEPS)


def all_events(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()]


def real_process(run: Run) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "model.training.cli", *run.arguments()]
    return subprocess.Popen(command, cwd=run.path, stdout=subprocess.DEVNULL, env=environment)


def catches_sigterm(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)
