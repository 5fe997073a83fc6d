"""Processes that share the base's weights out among them learn what one learns alone."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from model import exits
from tests.training import ranks
from tests.training.conftest import make_rows
from tests.training.harness import PROCESSES, Run, finish, wait_for
from tests.training.test_parallel import start, trained


@pytest.mark.parametrize("method", ["SFT", "DPO"])
def test_sharded_processes_learn_what_one_learns_alone(method: str, base_model: Path, tmp_path: Path) -> None:
    (alone,) = trained(tmp_path, base_model, method, 1)
    for size in (2, 3):
        results = trained(tmp_path, base_model, method, size, sharding="Full", processes=size)
        assert sum(result["held"] for result in results) == alone["held"]
        assert max(result["held"] for result in results) < 1.2 * alone["held"] / size
        ranks.assert_same(results, alone)


def failed(tmp_path: Path, base_model: Path, *, micro: int, torch_shards: bool) -> list[tuple[int, str]]:
    """Train in two processes that fail; return their exit codes and messages."""
    changes = {"sharding": "Full", "processes": 2}
    words = [tmp_path / f"words-{rank}" for rank in range(2)]
    together = [
        PROCESSES.Process(
            target=ranks.train_to_a_failure,
            args=(words[rank], tmp_path, base_model, "SFT", ranks.World(rank, 2), micro, changes),
            kwargs={"torch_shards": torch_shards},
        )
        for rank in range(2)
    ]
    for process in together:
        process.start()
    return [(finish(process), path.read_text()) for process, path in zip(together, words, strict=True)]


def test_weights_that_stay_whole_are_refused(base_model: Path, tmp_path: Path) -> None:
    for code, words in failed(tmp_path, base_model, micro=2, torch_shards=False):
        assert code == exits.INVALID_CONFIGURATION
        assert "--sharding=Full: 21 of the 21 weights of LlamaForCausalLM stayed whole" in words


def test_memory_that_runs_out_in_one_process_ends_all(base_model: Path, tmp_path: Path) -> None:
    first, second = failed(tmp_path, base_model, micro=3, torch_shards=True)
    assert second[0] == exits.GPU_OUT_OF_MEMORY
    assert "3 examples at once do not fit the memory of the GPU of process 1" in second[1]
    assert "start again with --micro-batch-size=1" in second[1]
    assert first[0] == exits.LOST_PEERS
    assert "process 0 of 2 lost the others" in first[1]


def test_a_step_that_one_process_gives_up_is_given_up_by_all(base_model: Path, tmp_path: Path) -> None:
    changes = {"sharding": "Full", "processes": 2}
    together = [
        PROCESSES.Process(
            target=ranks.train_until_one_is_late, args=(tmp_path, base_model, "SFT", ranks.World(rank, 2), 2, changes)
        )
        for rank in range(2)
    ]
    for process in together:
        process.start()
    assert [finish(process) for process in together] == [0, 0]


@pytest.fixture
def run(base_model: Path, tmp_path: Path) -> Run:
    flags = {"processes": 2, "sharding": "Full", "max_steps": 6, "batch_size": 5, "checkpoint_steps": 2}
    return Run(tmp_path, base_model, **flags).export(make_rows(30))


def test_a_sharded_run_ends_with_the_bits_of_one_that_is_not(run: Run) -> None:
    """With dropout, evaluations in which the rows do not divide, and an attempt of each kind."""
    run.flags |= {"max_steps": 60, "evaluation_steps": 20, "checkpoint_steps": 10}
    whole = Run(run.path / "whole", Path(run.flags["base_model"]))
    shutil.copytree(run.directory / "dataset", whole.directory / "dataset")
    whole.flags = run.flags | {"run_directory": whole.directory, "sharding": "None"}
    for sharding in ("Full", "None"):
        run.flags["sharding"] = sharding
        assert stopped_after(run, len(run.steps()) + 7) == exits.INTERRUPTED
    run.flags["sharding"] = "Full"
    assert finish(start(run)) == 0
    assert run.said()["result"]["resumedFromStep"] >= 14
    assert finish(start(whole)) == 0
    for event in ("train", "evaluation"):
        told = [[(line["step"], line["loss"]) for line in one.events(event)] for one in (run, whole)]
        assert told[0] == told[1]
    assert run.said()["result"]["adapter"] == whole.said()["result"]["adapter"]


def stopped_after(run: Run, step: int) -> int:
    """Start a run, send it SIGTERM once it has made this step, and return its exit code."""
    process = start(run)
    wait_for(lambda: run.steps()[-1:] >= [step] or not process.is_alive())
    os.kill(process.pid, signal.SIGTERM)
    return finish(process)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"processes": None}, "--sharding=Full needs several processes to share the weights"),
        ({"lora_variant": "DoRA"}, "--sharding=Full cannot train DoRA"),
        ({"quantization": "NF4"}, "--sharding=Full cannot cut quantized weights"),
    ],
)
def test_what_cannot_be_sharded_is_refused(run: Run, flags: dict[str, Any], words: str) -> None:
    run.flags |= flags
    assert run.train() == exits.INVALID_CONFIGURATION
    assert words in run.said()["failure"]["message"]
