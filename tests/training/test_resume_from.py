"""A run that goes on from another run's checkpoint ends with the bits of the run that would have gone on."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from model import exits
from tests.training import faults, ranks
from tests.training.conftest import make_rows
from tests.training.harness import Run, finish, wait_for

STEPS, CHECKPOINT_STEPS = 8, 2
SCENARIOS: dict[str, dict[str, Any]] = {
    "sft": {"method": "SFT"},
    "early-stopping": {"method": "SFT", "early_stopping_patience": 50, "evaluation_steps": 1},
    "dpo": {"method": "DPO", "learning_rate": "1e-3"},
}
PAIRS = [
    {"prompt": f"What is {n} times {n}?", "chosen": f"It is {n * n}.", "rejected": f"{n * n}, I think."}
    for n in range(30)
]


class Runs:
    """A run that nobody interrupts, one that is killed, and one that goes on from that."""

    def __init__(self, path: Path, base_model: Path, **flags: Any) -> None:
        rows = PAIRS if flags["method"] == "DPO" else make_rows(30)
        self.whole, self.killed, self.resumed = (
            Run(
                path / name,
                base_model,
                run_uid=f"uid-{name}",
                max_steps=STEPS,
                checkpoint_steps=CHECKPOINT_STEPS,
                **flags,
            )
            for name in ("whole", "killed", "resumed")
        )
        for run in (self.whole, self.killed, self.resumed):
            run.path.mkdir()
            run.export(rows)
        self.resumed.flags |= {"resume_from": self.killed.directory, "resume_from_run": "support-7"}

    def kill(self) -> None:
        """Let the first run end in its step 7, after its checkpoint of step 6."""
        assert finish(self.killed.start(faults.killed, "step's end", STEPS - 1)) == -signal.SIGKILL
        newest = max(int(path.name.rpartition("-")[2]) for path in self.killed.directory.glob("checkpoints/*-?"))
        assert newest == STEPS - 2


@pytest.fixture(params=SCENARIOS)
def runs(request: pytest.FixtureRequest, base_model: Path, tmp_path: Path) -> Runs:
    made = Runs(tmp_path, base_model, **SCENARIOS[request.param])
    made.kill()
    return made


@pytest.fixture
def two(base_model: Path, tmp_path: Path) -> Runs:
    """Runs of the plainest kind, before any of them has begun."""
    return Runs(tmp_path, base_model, **SCENARIOS["sft"])


def told(run: Run, event: str) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in run.events(event)]


def config(run: Run) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((run.directory / "training_config.json").read_text())
    return document


def test_it_ends_with_the_same_bits(runs: Runs) -> None:
    assert runs.whole.train() == 0
    assert runs.resumed.train() == 0
    expected, result = runs.whole.said(), runs.resumed.said()
    assert result["result"] == {**expected["result"], "runUid": "uid-resumed", "resumedFromStep": STEPS - 2}
    assert result["lossHistory"] == expected["lossHistory"]
    for event in ("train", "evaluation"):
        assert told(runs.resumed, event) == told(runs.whole, event)
    first = json.loads(
        (runs.killed.directory / "checkpoints" / f"checkpoint-{STEPS - 2}" / "run_state.json").read_text()
    )
    assert result["timings"] == first["timings"]
    assert config(runs.resumed)["resumedFrom"] == {"run": "support-7", "step": STEPS - 2}
    assert "resumedFrom" not in config(runs.whole)
    (line,) = runs.resumed.events("resume")
    assert (line["run"], line["step"]) == ("support-7", STEPS - 2)


def test_the_next_attempts_need_the_other_run_no_more(two: Runs) -> None:
    two.kill()
    assert finish(two.resumed.start(faults.killed, "step's end", 1)) == -signal.SIGKILL
    shutil.rmtree(two.killed.directory)
    assert two.resumed.train() == 0
    assert two.resumed.said()["result"]["resumedFromStep"] == STEPS - 2
    assert config(two.resumed)["resumedFrom"] == {"run": "support-7", "step": STEPS - 2}
    assert two.whole.train() == 0
    assert told(two.resumed, "train") == told(two.whole, "train")


def test_what_does_not_matter_for_the_bits_may_differ(two: Runs) -> None:
    two.kill()
    two.resumed.flags |= {"checkpoint_steps": 3, "image": "trainer:2", "evaluation_steps": 4}
    assert two.resumed.train() == 0
    assert two.whole.train() == 0
    assert two.resumed.said()["result"]["adapter"] == two.whole.said()["result"]["adapter"]


def test_a_broken_checkpoint_is_told_and_left_out(two: Runs) -> None:
    two.kill()
    (two.killed.directory / "checkpoints" / f"checkpoint-{STEPS - 2}" / "optimizer.pt").write_text("x")
    assert two.resumed.train() == 0
    skipped, resumed = two.resumed.events("resume")
    assert skipped["skipped"] == f"run support-7: checkpoint-{STEPS - 2}"
    assert "optimizer.pt has 1 bytes" in skipped["reason"]
    assert resumed["step"] == STEPS - 4
    assert two.whole.train() == 0
    assert told(two.resumed, "train") == told(two.whole, "train")


def test_all_that_differs_is_refused_at_once(two: Runs) -> None:
    two.kill()
    two.resumed.flags |= {"learning_rate": "2e-2", "seed": 3, "max_steps": 9}
    assert two.resumed.train() == exits.INVALID_CONFIGURATION
    failure = two.resumed.said()["failure"]
    assert failure["reason"] == "InvalidSpec"
    for words in (
        "spec.training.learningRate (--learning-rate) is 0.02 here and 0.01 in run support-7",
        "spec.training.seed (--seed) is 3 here and 42 in run support-7",
        "maxSteps (--epochs, --max-steps) is 9 here and 8 in run support-7",
    ):
        assert words in failure["message"]
    assert not list(two.resumed.directory.glob("checkpoints/*"))


def test_other_rows_are_refused(two: Runs) -> None:
    two.kill()
    shutil.rmtree(two.resumed.directory / "dataset")
    two.resumed.export(make_rows(31))
    assert two.resumed.train() == exits.INVALID_CONFIGURATION
    assert "the digest of spec.dataset's rows (--dataset) is " in two.resumed.said()["failure"]["message"]


@pytest.mark.parametrize("left", [True, False])
def test_a_run_without_a_checkpoint_cannot_be_resumed(two: Runs, left: bool) -> None:
    """The one that has saved nothing, and the one whose directory is gone."""
    if not left:
        shutil.rmtree(two.killed.directory)
    assert two.resumed.train() == exits.DOES_NOT_EXIST
    failure = two.resumed.said()["failure"]
    assert failure["reason"] == "CheckpointUnavailable"
    missing = two.killed.directory / "checkpoints" if left else two.killed.directory
    assert f"run support-7 has no whole checkpoint to resume from: {missing} does not exist" in failure["message"]


def test_a_finished_run_is_not_resumed(two: Runs) -> None:
    assert two.killed.train() == 0
    assert two.resumed.train() == exits.INVALID_CONFIGURATION
    message = two.resumed.said()["failure"]["message"]
    assert f"run support-7 has finished, its adapter is {two.killed.directory / 'adapter'}" in message


def test_a_kill_while_it_is_copied_leaves_nothing_half_done(two: Runs) -> None:
    two.kill()
    assert finish(two.resumed.start(faults.killed, "takeover", 1)) == -signal.SIGKILL
    assert [path.suffix for path in (two.resumed.directory / "checkpoints").iterdir()] == [".tmp"]
    assert two.resumed.train() == 0
    assert two.resumed.said()["result"]["resumedFromStep"] == STEPS - 2
    assert not list(two.resumed.directory.rglob("*.tmp"))


def test_a_run_of_two_processes_goes_on_from_one_of_two(base_model: Path, tmp_path: Path) -> None:
    runs = Runs(tmp_path, base_model, method="SFT", processes=2, batch_size=5)
    process = runs.killed.start(ranks.copying_command)
    wait_for(lambda: runs.killed.steps()[-1:] >= [4] or not process.is_alive())
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process) in (exits.INTERRUPTED, exits.OK)
    for path in (
        runs.killed.directory / "training_config.json",
        runs.killed.directory / "checkpoints" / "checkpoint-8",
    ):
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)  # had it been faster than the signal
    assert finish(runs.resumed.start(ranks.copying_command)) == 0
    assert finish(runs.whole.start(ranks.copying_command)) == 0
    assert runs.resumed.said()["result"]["resumedFromStep"] >= 4
    assert told(runs.resumed, "train") == told(runs.whole, "train")
    assert runs.resumed.said()["result"]["adapter"] == runs.whole.said()["result"]["adapter"]
    alone = runs.resumed.flags | {"processes": None, "run_directory": tmp_path / "alone", "run_uid": "uid-alone"}
    shutil.copytree(runs.resumed.directory / "dataset", tmp_path / "alone" / "dataset")
    runs.resumed.flags = alone
    assert runs.resumed.train() == exits.INVALID_CONFIGURATION
    words = "spec.resources.gpus (--gpus, --processes) is 1 here and 2 in run support-7"
    assert words in runs.resumed.said()["failure"]["message"]
