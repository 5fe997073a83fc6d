"""Trainers that get SIGTERM, find a full disk or stand still at points that no clock would hit for sure."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch

from model.training import cli, result, run
from model.training.loop import takeover
from model.training.loop.sft import SupervisedTrainer
from model.training.loop.trainer import TrainingLoop
from model.training.processes import hang, interruption, parallel
from model.training.rows import store
from model.training.samples import making
from tests.training import ranks

POINTS: dict[str, tuple[Any, str]] = {
    "micro-batch": (SupervisedTrainer, "compute_loss"),
    "step's end": (TrainingLoop, "stop_clock"),
    "evaluation": (SupervisedTrainer, "measure"),
    "checkpoint": (TrainingLoop, "_write_checkpoint"),
    "final evaluation": (TrainingLoop, "final_evaluation"),
    "adapter": (result, "verify_adapter"),
    "samples": (making, "answers"),
    "last words": (run, "write_termination_message"),
    "publication": (run, "_publish"),
    "takeover": (takeover, "publish_directory"),
    "tokens": (store.Writer, "publish"),
}
"""Functions by what the trainer does in them."""


def sigterm(arguments: list[str], point: str, call: int, step_seconds: float) -> None:
    """Train, and get SIGTERM twice when a point is reached for the `call`-th time."""

    def act() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    interruption.STEP_SECONDS = step_seconds
    _before(point, call, act)
    cli.run(arguments)


def killed(arguments: list[str], point: str, call: int) -> None:
    """Train, and be killed when a point is reached for the `call`-th time."""
    _before(point, call, lambda: os.kill(os.getpid(), signal.SIGKILL))
    cli.run(arguments)


def full_disk(arguments: list[str], point: str, call: int) -> None:
    """Train, and find no space left when a point is reached for the `call`-th time."""

    def act() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    _before(point, call, act)
    cli.run(arguments)


def broken_gpu(arguments: list[str], point: str, call: int) -> None:
    """Train, and get an error of the GPU's when a point is reached for the `call`-th time."""

    def act() -> None:
        raise RuntimeError(
            "CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be reported later"
        )

    _before(point, call, act)
    cli.run(arguments)


def out_of_memory(arguments: list[str], point: str, call: int) -> None:
    """Train, and have no memory left on the GPU when a point is reached for the `call`-th time."""

    def act() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    _before(point, call, act)
    cli.run(arguments)


def broken_disk(arguments: list[str], point: str, call: int) -> None:
    """Train, and get SIGTERM and an error of the disk when a point is reached for the `call`-th time."""

    def act() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    _before(point, call, act)
    cli.run(arguments)


def memory(arguments: list[str], calls: set[int]) -> None:
    """Train on a GPU that runs out of memory in some of the forward passes."""
    passes = 0
    original = SupervisedTrainer.compute_loss

    def compute_loss(self: SupervisedTrainer, *given: Any, **named: Any) -> Any:
        nonlocal passes
        passes += 1
        if passes in calls:
            raise torch.OutOfMemoryError("injected")
        return original(self, *given, **named)

    SupervisedTrainer.compute_loss = compute_loss  # type: ignore[method-assign]
    cli.run(arguments)


def stuck(  # noqa: PLR0917 - multiprocessing passes them on by position
    arguments: list[str], point: str, call: int, limits: dict[str, float], errors: Path, manner: str = "waits"
) -> None:
    """Train, and stand still when a point is reached for the `call`-th time.

    Parameters
    ----------
    arguments: the command line.
    point, call: where and when.
    limits: those of `hang.Limits` that the usual ones give way to.
    errors: file for the standard error.
    manner: `waits`, with a file called stuck to tell of it; `keeps the lock` of Python, as a library may that does not
        come back; `is slow` at every call from that one on, not quite half as long as there may be no sign of life;
        `the second of two` waits, the first waits for it.
    """

    def act() -> None:
        if manner == "keeps the lock":
            ctypes.PyDLL(None).sleep(1000)
        elif manner == "is slow":
            time.sleep(limits["least"] / 2.5)
        elif manner == "waits" or parallel.world().rank == 1:
            Path("stuck").touch()
            threading.Event().wait()

    hang.LIMITS = hang.Limits(**limits)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    _before(point, call, act, again=manner == "is slow")
    if manner == "the second of two":
        ranks.copying_command(arguments)
    cli.run(arguments)


def _before(point: str, call: int, act: Any, *, again: bool = False) -> None:
    owner, name = POINTS[point]
    original, calls = getattr(owner, name), 0

    def reached(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call or (again and calls > call):
            act()
        return original(*given, **named)

    setattr(owner, name, reached)
