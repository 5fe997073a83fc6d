"""Runs trainers side by side, each in a process of its own that is stopped while another one's steps are timed.

All of them print one JSON line a step. A process runs until it has made a number of steps and is then stopped by a
signal: none of them needs to know that it is being timed, and what disturbs the machine disturbs all of them.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DEADLINE_SECONDS = 900.0


class ContestantError(Exception):
    """A trainer ended, or said nothing for too long."""


@dataclass(frozen=True)
class Block:
    """Some consecutive steps of one trainer.

    Attributes
    ----------
    tokens
        Tokens that went through the model, padding left out.
    cpu_seconds
        CPU time of the whole process.
    wall_seconds
        Time by the clock.
    """

    tokens: int
    cpu_seconds: float
    wall_seconds: float

    def __add__(self, other: Block) -> Block:
        return Block(
            self.tokens + other.tokens,
            self.cpu_seconds + other.cpu_seconds,
            self.wall_seconds + other.wall_seconds,
        )


@dataclass
class Contestant:
    """A trainer's process.

    Parameters
    ----------
    name
        What to call it.
    argv, environment
        Its command and all of its environment.
    log
        File for its standard error.
    """

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    events: list[dict[str, Any]] = field(default_factory=list)
    peak_mib: float = 0.0

    def start(self, cpus: set[int]) -> None:
        """Start the process on these CPUs."""
        self._lines: queue.Queue[str | None] = queue.Queue()
        with running_on(cpus), self.log.open("w") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own programs
                self.argv, env=dict(self.environment), stdout=subprocess.PIPE, stderr=log, text=True
            )
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def process_id(self) -> int:
        """The process's id."""
        return self._process.pid

    def run(self, steps: int) -> Block:
        """Let the process make some steps, stop it, and return what they took.

        Raises
        ------
        ContestantError
            When it ends before that.
        """
        before, started, tokens = self.cpu_seconds(), time.monotonic(), 0
        os.kill(self._process.pid, signal.SIGCONT)
        for _ in range(steps):
            tokens += int(self.wait_for("train")["tokens"])
        ended = time.monotonic()
        self.pause()
        return Block(tokens, self.cpu_seconds() - before, ended - started)

    def wait_for(self, event: str) -> dict[str, Any]:
        """Return the next event of a kind.

        Raises
        ------
        ContestantError
            When the process ends before that.
        """
        while True:
            try:
                line = self._lines.get(timeout=DEADLINE_SECONDS)
            except queue.Empty:
                line = None
            if line is None:
                raise ContestantError(f"{self.name} made no step: see {self.log}\n{self.log.read_text()[-2000:]}")
            if not line.startswith('{"'):  # what a library prints besides
                continue
            document: dict[str, Any] = json.loads(line)
            self.events.append(document)
            if document.get("event") == event:
                return document

    def pause(self) -> None:
        """Stop the process without ending it."""
        os.kill(self._process.pid, signal.SIGSTOP)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while self._stat()[0] not in "TZ":
            if time.monotonic() > deadline:
                raise ContestantError(f"{self.name} does not stop")
            time.sleep(0.001)

    def end(self) -> None:
        """Note the peak of its memory and end the process."""
        if getattr(self, "_process", None) is None or self._process.poll() is not None:
            return
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                self.peak_mib = int(line.split()[1]) / 1024
        self._process.kill()
        self._process.wait()

    @property
    def losses(self) -> list[float]:
        """The losses that it told, step by step."""
        told = (event for event in self.events if event["event"] in ("train", "loss") and "loss" in event)
        return [float(event["loss"]) for event in told]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _stat(self) -> list[str]:
        return Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()

    def cpu_seconds(self) -> float:
        """Return the CPU time of the whole process so far."""
        fields = self._stat()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running_on(cpus: set[int]) -> Iterator[None]:
    """Bind this thread, and so what it starts, to some CPUs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def race(
    contestants: Sequence[Contestant], *, cpus: set[int], rounds: int, steps: int, warm_up: int, at_once: int
) -> dict[str, list[Block]]:
    """Time the contestants, interleaved.

    Parameters
    ----------
    contestants
        Who takes part; each is started here and ended here.
    cpus
        The CPUs that each may use, alone.
    rounds, steps
        Rounds, and steps of each contestant in a round.
    warm_up
        Steps that are not timed.
    at_once
        Steps of one contestant before it is another one's turn.

    Returns
    -------
    dict
        A block for each round, by contestant.
    """
    blocks: dict[str, list[Block]] = {contestant.name: [] for contestant in contestants}
    try:
        for contestant in contestants:
            contestant.start(cpus)
            contestant.run(warm_up)
        for _ in range(rounds):
            taken = {contestant.name: Block(0, 0.0, 0.0) for contestant in contestants}
            for turn, count in enumerate(turns(steps, at_once)):
                for contestant in rotated(contestants, turn):
                    taken[contestant.name] += contestant.run(count)
            for name, block in taken.items():
                blocks[name].append(block)
    finally:
        for contestant in contestants:
            contestant.end()
    return blocks


def turns(steps: int, at_once: int) -> list[int]:
    """Return the lengths of the turns that a round's steps are cut into."""
    whole, rest = divmod(steps, at_once)
    return [at_once] * whole + [rest] * (rest > 0)


def rotated(items: Sequence[Contestant], by: int) -> list[Contestant]:
    """Return the items from another first one on, so that nobody always follows the same neighbour."""
    start = by % len(items)
    return [*items[start:], *items[:start]]
