"""A training that stands still is found and ended, and the next attempt makes up for it; a slow one is left alone."""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from model import exits
from tests.training import faults, ranks
from tests.training.conftest import make_rows
from tests.training.harness import Run, finish, wait_for

STEPS, CHECKPOINT_STEPS, EVALUATION_STEPS, MICRO_BATCHES = 6, 2, 3, 4
LIMITS = {"first": 60.0, "least": 3.0, "factor": 0.0, "stopping": 2.0, "waiting": 1.0, "look": 0.1}
"""Seconds; loading takes a few of them on a busy machine, a step hundredths."""
STACK = re.compile(r'Current thread 0x|Thread 0x[0-9a-f]+ .*\n  File "')


@pytest.fixture(scope="module")
def reference(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that never stands still."""
    run = Run(
        tmp_path_factory.mktemp("reference"),
        base_model,
        max_steps=STEPS,
        micro_batch_size=4 // MICRO_BATCHES,
        evaluation_steps=EVALUATION_STEPS,
        checkpoint_steps=CHECKPOINT_STEPS,
    )
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


def stuck(run: Run, point: str, call: int, manner: str = "waits", **limits: float) -> Any:
    return run.start(faults.stuck, point, call, LIMITS | limits, run.path / "errors", manner)


def told(run: Run, event: str) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in run.events(event)]


def assert_resumes(run: Run, reference: Run, step: int) -> None:
    """The next attempt ends with the same bits."""
    assert run.train() == 0
    result = run.said()["result"]
    assert result["resumedFromStep"] == step
    assert {**result, "resumedFromStep": 0} == reference.said()["result"]
    for event in ("train", "evaluation"):
        assert told(run, event) == told(reference, event)


@pytest.mark.parametrize(
    ("point", "call", "ends"),
    [
        ("micro-batch", 4 * MICRO_BATCHES + 2, (4, r"no step for \d+ s after step 4 \(median step [\d.]+ m?s\)")),
        ("evaluation", 2, (2, r"no progress for \d+ s in an evaluation after step 3 ")),
        ("checkpoint", 2, (2, r"no progress for \d+ s in a checkpoint after step 4 ")),
        ("adapter", 1, (6, r"no progress for \d+ s while the adapter is saved after step 6 ")),
    ],
)
def test_a_training_that_stands_still_is_ended(
    run: Run, reference: Run, point: str, call: int, ends: tuple[int, str]
) -> None:
    saved, words = ends
    assert finish(stuck(run, point, call)) == exits.HUNG
    failure = run.said()["failure"]
    assert failure["reason"] == "Hung"
    assert re.match(words, failure["message"])
    assert failure["message"].endswith("; the log has the stacks of all threads")
    errors = (run.path / "errors").read_text()
    assert STACK.search(errors)
    assert "faults.py" in errors
    assert run.events("error")[-1]["exitCode"] == exits.HUNG
    assert_resumes(run, reference, saved)


def test_before_the_first_step_there_is_more_time(run: Run) -> None:
    assert finish(stuck(run, "micro-batch", 1, first=4.0, least=0.1)) == exits.HUNG
    assert re.match(r"no step for [4-9] s after the start; ", run.said()["failure"]["message"])


def test_a_library_that_keeps_pythons_lock_is_ended_as_well(run: Run, reference: Run) -> None:
    assert finish(stuck(run, "micro-batch", 2 * MICRO_BATCHES + 1, "keeps the lock", unresponsive=1.0)) == exits.CRASH
    assert "Timeout (" in (run.path / "errors").read_text()
    assert_resumes(run, reference, 2)


@pytest.mark.parametrize(
    ("point", "call"),
    [("micro-batch", (STEPS - 1) * MICRO_BATCHES + 1), pytest.param("evaluation", 1, marks=pytest.mark.long)],
)
def test_a_slow_training_is_left_alone(run: Run, reference: Run, point: str, call: int) -> None:
    """A step, and an evaluation, that take longer than there may be no sign of life."""
    assert finish(stuck(run, point, call, "is slow", least=4.0)) == 0
    assert run.said()["result"] == reference.said()["result"]


@pytest.mark.parametrize(
    ("call", "code", "saved"), [(2 * MICRO_BATCHES + 1, exits.INTERRUPTED, 2), (3 * MICRO_BATCHES + 1, exits.HUNG, 2)]
)
def test_sigterm_ends_a_training_that_stands_still(run: Run, reference: Run, call: int, code: int, saved: int) -> None:
    """As interrupted where nothing is lost."""
    process = stuck(run, "micro-batch", call, least=1000.0)
    wait_for((run.path / "stuck").exists)
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process) == code
    assert_resumes(run, reference, saved)


def test_the_process_that_stands_still_is_blamed_and_not_the_one_that_waits_for_it(run: Run) -> None:
    run.flags |= {"processes": 2, "batch_size": 4, "micro_batch_size": None}
    assert finish(stuck(run, "micro-batch", 5, "the second of two")) == exits.HUNG
    assert re.match(r"process 1 of 2: no step for \d+ s after step 4 ", run.said()["failure"]["message"])
    assert finish(run.start(ranks.copying_command)) == 0
    assert run.said()["result"]["resumedFromStep"] == 4
