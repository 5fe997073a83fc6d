"""Several processes that train together learn what one learns alone, and end as one does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from model import exits
from model.training import cli, launch
from model.training.loop.batches import MicroBatch, StepBatches
from model.training.processes import parallel
from model.training.processes.parallel import World
from tests.training import harness, ranks
from tests.training.conftest import make_rows
from tests.training.harness import PROCESSES, Run, finish, wait_for

ROWS = 22  # with 5 a step, 2 in the last one


def trained(tmp_path: Path, base_model: Path, method: str, size: int, micro: int = 2) -> list[Any]:
    """Train in `size` processes that share nothing but the rendezvous; return what each has in the end."""
    import torch

    directory = tmp_path / f"{method}-{size}-{micro}"
    directory.mkdir()
    together = [
        PROCESSES.Process(target=ranks.train, args=(directory, base_model, method, World(rank, size), micro))
        for rank in range(size)
    ]
    for process in together:
        process.start()
    assert [finish(process) for process in together] == [0] * size
    return [torch.load(directory / f"rank-{rank}.pt") for rank in range(size)]


@pytest.mark.parametrize("method", ["SFT", "DPO", "KTO"])
def test_processes_learn_together_what_one_learns_alone(method: str, base_model: Path, tmp_path: Path) -> None:
    (alone,) = trained(tmp_path, base_model, method, 1)
    for size in (2, 3):
        results = trained(tmp_path, base_model, method, size)
        ranks.assert_same(results, alone)


def test_memory_that_runs_out_in_one_process_changes_nothing(base_model: Path, tmp_path: Path) -> None:
    (alone,) = trained(tmp_path, base_model, "SFT", 1)
    first, second = trained(tmp_path, base_model, "SFT", 2, micro=3)
    for result in (first, second):
        assert result["parts"] == 2
        for name, weight in alone["weights"].items():
            assert float((result["weights"][name] - weight).abs().max()) < 1e-9


def test_a_step_that_one_process_gives_up_is_given_up_by_all(base_model: Path, tmp_path: Path) -> None:
    together = [
        PROCESSES.Process(target=ranks.train_until_one_is_late, args=(tmp_path, base_model, "SFT", World(rank, 2), 2))
        for rank in range(2)
    ]
    for process in together:
        process.start()
    assert [finish(process) for process in together] == [0, 0]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("micro", [1, 2, 4])
def test_each_row_of_a_step_goes_to_one_process(size: int, micro: int) -> None:
    lengths = [10 + row % 7 for row in range(ROWS)]
    shares = [
        StepBatches(lengths, batch_size=5, micro_batch=MicroBatch(micro), seed=1, world=World(rank, size))
        for rank in range(size)
    ]
    dealt = [list(share) for share in shares]
    assert {len(batches) for batches in dealt} == {len(shares[0])}
    assert sorted(row for batches in dealt for batch in batches for row in batch) == list(range(ROWS))
    cut = [tuple(group) for batches in dealt for batch in batches for group in shares[0].cut(batch)]
    assert sorted(map(tuple, shares[0].of_all())) == sorted(cut)
    assert max(map(len, cut)) <= micro
    for step, expected in enumerate(StepBatches(lengths, batch_size=5, micro_batch=MicroBatch(5), seed=1)):
        assert sorted(row for batches in dealt for row in batches[step]) == sorted(expected)


@pytest.mark.parametrize(
    ("ends", "signalled", "expected"),
    [
        ([(0, 0), (1, 0)], False, (0, 0)),
        ([(0, 76), (1, 7)], False, (7, 1)),
        ([(1, 7), (0, 1)], False, (7, 1)),
        ([(0, 7), (2, 76), (1, 76)], False, (7, 0)),
        ([(1, -9)], False, (137, 1)),
        ([(1, 75), (0, 75)], True, (75, 0)),
        ([(1, 75), (0, 76)], True, (75, 0)),
        ([(0, -15), (1, 75)], True, (75, 0)),
        ([(0, -15), (1, 76)], False, (143, 0)),
        ([(1, 76), (0, exits.TERMINATED)], True, (exits.TERMINATED, 0)),
        ([(0, exits.TERMINATED), (1, 75)], True, (exits.TERMINATED, 0)),
        ([(0, 0), (1, 75)], True, (0, 0)),
        ([(1, 75), (0, 7)], True, (7, 0)),
        ([(1, 76), (0, 76)], False, (76, 0)),
    ],
)
def test_whose_end_is_the_end_of_all(ends: list[tuple[int, int]], signalled: bool, expected: tuple[int, int]) -> None:
    assert launch.verdict(ends, interrupted=signalled) == expected


def test_gpus_are_dealt_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert parallel.visible_gpus(2) == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,GPU-c")
    assert parallel.visible_gpus(2) == ["GPU-a", "GPU-b"]
    with pytest.raises(exits.FailureError, match="4 GPUs were requested, and CUDA_VISIBLE_DEVICES=GPU-a,GPU-b,GPU-c"):
        parallel.visible_gpus(4)


@pytest.fixture
def run(base_model: Path, tmp_path: Path) -> Run:
    return Run(tmp_path, base_model, processes=2, max_steps=6, batch_size=5, checkpoint_steps=2).export(make_rows(30))


def start(run: Run) -> Any:
    return run.start(ranks.copying_command)


def test_a_run_of_two_processes_and_its_attempts(run: Run) -> None:
    """Whole, with another number of processes, and after SIGTERM."""
    run.flags |= {"max_steps": 400}
    process = start(run)
    wait_for(lambda: run.steps()[-1:] >= [3] or not process.is_alive())
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process) == exits.INTERRUPTED
    step = run.said()["interrupted"]["step"]
    assert step == run.events("interrupted")[0]["step"] >= 3
    files = {path.name for path in (run.directory / "checkpoints" / f"checkpoint-{step}").iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= files

    run.flags |= {"processes": None}
    assert run.train() == exits.INVALID_CONFIGURATION
    assert "made by 2 processes and this run has 1 process" in run.said()["failure"]["message"]


def test_an_interrupted_run_of_two_processes_ends_with_the_same_bits(run: Run, tmp_path: Path) -> None:
    """With dropout, for which each process has random numbers of its own."""
    run.flags |= {"max_steps": 60, "evaluation_steps": 20, "checkpoint_steps": 10}
    whole = Run(tmp_path / "whole", Path(run.flags["base_model"]))
    shutil.copytree(run.directory / "dataset", whole.directory / "dataset")
    whole.flags = run.flags | {"run_directory": whole.directory}
    process = start(run)
    wait_for(lambda: run.steps()[-1:] >= [7] or not process.is_alive())
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process) == exits.INTERRUPTED
    assert finish(start(run)) == 0
    assert run.said()["result"]["resumedFromStep"] >= 7
    assert finish(start(whole)) == 0
    for event in ("train", "evaluation"):
        told = [[(line["step"], line["loss"]) for line in one.events(event)] for one in (run, whole)]
        assert told[0] == told[1]
    assert run.said()["result"]["adapter"] == whole.said()["result"]["adapter"]


def test_a_run_of_two_processes_is_finished_once(run: Run) -> None:
    """The first time in processes that import everything, as the ones of a pod do."""
    path = os.pathsep.join(path for path in sys.path if path)
    assert finish(run.start(ranks.command, path)) == 0
    result = run.said()["result"]
    assert run.steps() == [1, 2, 3, 4, 5, 6]
    assert result["steps"] == 6
    config = json.loads((run.directory / "training_config.json").read_text())
    assert config["config"]["processes"] == 2
    assert len(run.events("start")) == len(run.events("end")) == 1
    assert finish(start(run)) == 0  # it is found finished
    assert run.said()["result"] == result


def test_processes_go_on_from_a_checkpoint_that_each_of_them_can_read(run: Run) -> None:
    assert finish(start(run)) == 0
    whole = run.said()["result"]
    for unreadable, step in ((["checkpoint-6"], 4), (["checkpoint-6", "checkpoint-4"], 0)):
        (run.directory / "training_config.json").unlink()
        (run.directory / "metrics.jsonl").unlink()
        assert finish(run.start(ranks.blind_command, unreadable)) == 0
        assert run.said()["result"] == {**whole, "resumedFromStep": step}
        skipped = {event["skipped"]: event["reason"] for event in run.events("resume") if "skipped" in event}
        assert skipped == dict.fromkeys(unreadable, "process 1 of 2 finds: [Errno 5] Input/output error")
        told = [event["message"] for event in run.events("warning") if "no checkpoint can be" in event["message"]]
        assert len(told) == (step == 0)


def test_processes_that_do_not_train_the_same_end_before_the_first_step(run: Run) -> None:
    assert finish(run.start(ranks.disagreeing_command)) == exits.CRASH
    message = run.said()["failure"]["message"]
    assert "the processes do not train the same run" in message
    assert "in process 0 and others in process 1" in message
    assert not run.steps()


def test_the_failure_of_one_process_is_that_of_all(run: Run) -> None:
    run.flags |= {"base_model": run.path / "nowhere"}
    assert finish(start(run)) == exits.DOES_NOT_EXIST
    assert run.said()["failure"]["reason"] == "BaseModelUnavailable"


def test_a_killed_process_takes_the_others_along(run: Run) -> None:
    run.flags |= {"max_steps": 4000}
    process = start(run)
    wait_for(lambda: bool(run.steps()) or not process.is_alive())
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(children) == 2
    os.kill(children[1], signal.SIGKILL)
    assert finish(process) == 128 + signal.SIGKILL
    assert "process 1 of 2 ended with signal 9" in run.said()["failure"]["message"]
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


def test_processes_do_not_outlive_their_parent(run: Run) -> None:
    run.flags |= {"max_steps": 4000}
    process = start(run)
    wait_for(lambda: bool(run.steps()) or not process.is_alive())
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.kill()
    assert finish(process) == -signal.SIGKILL
    wait_for(lambda: not any(alive(pid) for pid in children), seconds=20)


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_processes_of_another_launcher_need_what_each_finds(run: Run) -> None:
    run.flags |= {"dataset": run.path / "rows.jsonl"}
    assert finish(run.start(ranks.launched)) == exits.INVALID_CONFIGURATION
    assert "export the dataset first" in run.said()["failure"]["message"]


def test_too_few_examples_for_the_processes(run: Run) -> None:
    run.flags |= {"batch_size": 1}
    assert finish(harness.Run.start(run, cli.run)) == exits.INVALID_CONFIGURATION
    assert "--batch-size=1 leaves some of 2 processes without an example" in run.said()["failure"]["message"]
