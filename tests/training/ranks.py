"""What the processes of a parallel training run in the tests."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from model.training import build, cli, launch
from model.training.loop import checkpoint
from model.training.loop.parts import StepGivenUpError
from model.training.loop.sft import SupervisedTrainer
from model.training.processes import interruption, parallel
from model.training.processes.parallel import World
from tests.training import programs
from tests.training.trainers import (
    VOCABULARY,
    events,
    make_settings,
    make_trainer,
    random_labelled,
    random_pairs,
    random_rows,
    shake,
    weights,
)


def assert_same(results: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    """Each process has what one process alone has, up to the order of sums; the first one tells the losses."""
    for result in results:
        assert result["weights"].keys() == alone["weights"].keys()
        for name, weight in alone["weights"].items():
            assert float((result["weights"][name] - weight).abs().max()) < 1e-9
        assert result["evaluation"] == pytest.approx(alone["evaluation"], abs=1e-9)
    assert results[0]["losses"] == pytest.approx(alone["losses"], abs=1e-9)
    assert results[0]["tokens"] == alone["tokens"]


class SmallSecondDevice(SupervisedTrainer):
    """The second process has a GPU that holds one row at once."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Run out of memory when there are more."""
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if parallel.world().rank == 1 and inputs["shape"].rows > 1:
            raise torch.OutOfMemoryError("injected")
        return loss


def train(directory: Path, base_model: Path, method: str, world: World, micro: int) -> None:
    """Train in float64 for two epochs, in which the rows do not divide, and keep what came out."""
    from transformers import AutoTokenizer

    os.environ |= {
        "RANK": str(world.rank), "WORLD_SIZE": str(world.size), "LOCAL_RANK": str(world.rank),
        parallel.RENDEZVOUS: str(directory / "rendezvous"), "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    parallel.enter(gpus=0)
    parallel.connect(cuda=False)
    settings = make_settings(
        base_model, directory / f"run-{world.rank}", method=method, batch_size=5, micro_batch_size=micro, epochs=2
    )  # fmt: skip
    makers: dict[str, Any] = {"SFT": random_rows, "DPO": random_pairs, "KTO": random_labelled}
    examples = makers[method](22)
    kind = SmallSecondDevice if micro > 2 else None
    trainer = make_trainer(settings, AutoTokenizer.from_pretrained(base_model), examples, double=True, kind=kind)
    shake(trainer)
    trainer.train()
    lines = events(trainer, "train")
    found = {
        "weights": weights(trainer.model),
        "losses": [line["loss"] for line in lines],
        "tokens": [line["tokens"] for line in lines],
        "evaluation": trainer.mean_loss(trainer.held_out_sums()),
        "parts": trainer.run_state.parts_per_batch,
    }
    torch.save(found, directory / f"rank-{world.rank}.pt")


def train_poisoned(directory: Path, base_model: Path, method: str, world: World, micro: int) -> None:
    """Do what `train` does with a row that has a token which gives no number."""
    from tests.training import ranks, trainers

    def poisoned(count: int) -> Any:
        rows = trainers.random_rows(count)
        rows.ids[rows.offsets[5]] = VOCABULARY + 1
        return rows

    ranks.random_rows = poisoned
    train(directory, base_model, method, world, micro)


def train_until_one_is_late(*arguments: Any) -> None:
    """Do what `train` does until the second process finds SIGTERM overdue; end well if the step is given up."""
    asked = itertools.count()
    interruption.overdue = lambda: parallel.world().rank == 1 and next(asked) == 7
    try:
        train(*arguments)
    except StepGivenUpError:
        sys.exit(0)
    sys.exit(1)


def launched(arguments: list[str]) -> None:
    """Run a command as torchrun would."""
    os.environ |= {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    cli.run(arguments)


def command(arguments: list[str], path: str) -> None:
    """Run a command whose own processes find the packages, whatever the server of this one was started with."""
    os.environ["PYTHONPATH"] = path
    cli.run(arguments)


def blind_command(arguments: list[str], names: list[str]) -> None:
    """Do what `copying_command` does, with a second process that cannot read checkpoints of these names."""
    original = checkpoint.read_whole

    def read_whole(path: Path, processes: int) -> Any:
        if parallel.world().rank == 1 and path.name in names:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(path, processes)

    checkpoint.read_whole = read_whole
    copying_command(arguments)


def disagreeing_command(arguments: list[str]) -> None:
    """Do what `copying_command` does, with a second process that sees other rows."""
    original = build.fingerprint

    def fingerprint(*given: Any) -> dict[str, Any]:
        return original(*given) | ({"tokens": "others"} if parallel.world().rank == 1 else {})

    build.fingerprint = fingerprint
    copying_command(arguments)


def copying_command(arguments: list[str]) -> None:
    """Run a command whose own processes begin as copies of this one, and import nothing anew."""
    launch.subprocess = SimpleNamespace(Popen=programs.copied, DEVNULL=subprocess.DEVNULL)  # type: ignore[attr-defined]
    cli.run(arguments)
