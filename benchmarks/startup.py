"""How long people wait: for help, for a check of their flags, for the first step, for a checkpoint."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.race import Contestant
from benchmarks.rows import REPOSITORY, Task

DEFAULT_CHECKPOINT_STEPS = 200
CLI = (sys.executable, "-m", "model.training.cli")


@dataclass(frozen=True)
class Taken:
    """What something took each time, in seconds.

    Attributes
    ----------
    wall, cpu
        By the clock, and of CPU time: on a machine that others use, the clock says how busy they were.
    """

    wall: list[float]
    cpu: list[float]


def seconds(arguments: Sequence[str], environment: Mapping[str, str], *, times: int) -> Taken:
    """Return how long the trainer's command took each time, after one that warms the files.

    Raises
    ------
    CalledProcessError
        When it fails.
    """
    wall, cpu = [], []
    for _ in range(times + 1):
        started, before = time.monotonic(), _children_seconds()
        subprocess.run(  # noqa: S603 - our own program
            [*CLI, *arguments], check=True, cwd=REPOSITORY, env=dict(environment), stdout=subprocess.DEVNULL
        )
        wall.append(time.monotonic() - started)
        cpu.append(_children_seconds() - before)
    return Taken(wall[1:], cpu[1:])


def first_steps(task: Task, environment: Mapping[str, str], work: Path, *, times: int) -> Taken:
    """Return the time from the start of the trainer's process to the end of its first step, with warm files.

    A step that is interrupted right after it leaves nothing behind: each process is ended without a word.
    """
    cpus = available_cpus()
    wall, cpu = [], []
    for _ in range(times + 1):
        trainer = Contestant("first step", trainer_command(task, steps=1000), environment, work / "first-step.log")
        started = time.monotonic()
        try:
            trainer.start(cpus)
            trainer.wait_for("train")
            wall.append(time.monotonic() - started)
            cpu.append(trainer.cpu_seconds())
        finally:
            trainer.end()
    return Taken(wall[1:], cpu[1:])


def checkpoint_percents(
    task: Task, environment: Mapping[str, str], work: Path, *, checkpoints: int
) -> tuple[list[float], list[float]]:
    """Return the share of the time that each checkpoint would take at the default interval, and its seconds.

    Two steps lie between two checkpoints here, and their duration is what the trainer itself says about them.
    """
    argv = trainer_command(task, steps=1000, checkpoint_steps=2)
    trainer = Contestant("checkpoints", argv, environment, work / "checkpoints.log")
    try:
        trainer.start(available_cpus())
        for _ in range(checkpoints + 1):
            trainer.wait_for("checkpoint")
    finally:
        trainer.end()
    saved = [float(event["seconds"]) for event in trainer.events if event.get("event") == "checkpoint"][1:]
    steps = [event["tokens"] / event["tokensPerSecond"] for event in trainer.events if event.get("event") == "train"]
    step = sorted(steps)[len(steps) // 2]
    return [share_of_time(one, step) for one in saved], saved


def share_of_time(checkpoint: float, step: float, *, interval: int = DEFAULT_CHECKPOINT_STEPS) -> float:
    """Return the percentage of the time that checkpoints take, from the seconds of one and of a step."""
    return 100 * checkpoint / (checkpoint + interval * step)


def trainer_command(task: Task, *, steps: int, checkpoint_steps: int = 1_000_000) -> list[str]:
    """Return the trainer's command line for a task."""
    return [*CLI, "train", *task.flags(steps=steps, checkpoint_steps=checkpoint_steps)]


def available_cpus() -> set[int]:
    """Return the CPUs that this process may use."""
    return os.sched_getaffinity(0)


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
