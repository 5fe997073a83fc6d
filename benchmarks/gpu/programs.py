"""A trainer's process, followed line by line, and the figures of its steps."""

from __future__ import annotations

import itertools
import json
import os
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.machine import MemoryPeak
from benchmarks.rows import REPOSITORY

DEADLINE_SECONDS = 240.0
WORDS = 1500
"""How much of a log is told when a program fails."""


@dataclass
class Followed:
    """What a program has said, and how it ended.

    Attributes
    ----------
    events
        Its JSON lines; `seconds` in each is the time since the program started.
    code
        Its exit code; negative when it was ended by a signal.
    peak_mib
        The most memory of the GPU over what was in use before, None without a GPU.
    log
        File with its standard error.
    late
        The seconds after which it was killed, None when it ended before.
    """

    events: list[dict[str, Any]] = field(default_factory=list)
    code: int = 0
    peak_mib: int | None = None
    log: Path = Path(os.devnull)
    late: float | None = None

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Return the events of a kind."""
        return [event for event in self.events if event.get("event") == kind]

    @property
    def trouble(self) -> str | None:
        """The last words of its log when it failed by itself or took too long, else None."""
        if self.code in (0, -signal.SIGKILL) and self.late is None:
            return None
        return self.ending()

    def ending(self) -> str:
        """Return how it ended, and the end of its log."""
        how = f"exit code {self.code}" if self.late is None else f"killed after {self.late:.0f} s"
        return f"{how}, {len(self.of('train'))} steps: {self.log.read_text(errors='replace')[-WORDS:]}"


def follow(
    argv: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    *,
    heard: Callable[[dict[str, Any], subprocess.Popen[str]], None] = lambda _event, _process: None,
    deadline: float = DEADLINE_SECONDS,
) -> Followed:
    """Run a program to its end and return what it has said.

    Parameters
    ----------
    argv, environment
        Its command and all of its environment.
    log
        File for its standard error.
    heard
        Is told of each event, and may send a signal.
    deadline
        Seconds after which it is killed.
    """
    found, started = Followed(log=log), time.monotonic()
    with log.open("w") as errors, MemoryPeak() as memory:
        process = subprocess.Popen(  # noqa: S603 - our own programs
            argv, env=dict(environment), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=errors, text=True
        )

        def give_up() -> None:
            found.late = deadline
            process.kill()

        timer = threading.Timer(deadline, give_up)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith('{"'):  # and not what a library prints besides
                    event = json.loads(line) | {"seconds": time.monotonic() - started}
                    found.events.append(event)
                    heard(event, process)
            found.code = process.wait()
        finally:
            timer.cancel()
            process.kill()
            process.wait()
        found.peak_mib = memory.mib
    return found


def stop_after(steps: int) -> Callable[[dict[str, Any], subprocess.Popen[str]], None]:
    """Return what ends a program when it has made so many steps."""

    def heard(event: dict[str, Any], process: subprocess.Popen[str]) -> None:
        if event.get("event") == "train" and event["step"] >= steps:
            process.kill()

    return heard


def figures(found: Followed, *, warm_up: int) -> dict[str, Any]:
    """Return the speed of the steps after the warm-up, and what stands beside it.

    The speed is all of their tokens over all of their time; padding does not count.
    """
    steps = found.of("train")
    if found.trouble or len(steps) <= max(1, warm_up):
        return {"error": found.trouble or found.ending()}
    times = [event["seconds"] for event in steps]
    each = [later - earlier for earlier, later in itertools.pairwise(times)][max(0, warm_up - 1) :]
    tokens = sum(event["tokens"] for event in steps[max(1, warm_up) :])
    return {
        "tokensPerSecond": round(tokens / sum(each), 1),
        "stepSeconds": [round(seconds, 4) for seconds in each],
        "medianStepSeconds": round(statistics.median(each), 4),
        "firstStepSeconds": round(times[0], 2),
        "losses": losses(found),
        "peakMiB": found.peak_mib,
        "start": chosen(found),
    }


def losses(found: Followed) -> list[float]:
    """Return the loss of each step, from the trainer's line of a step or from TRL's own."""
    return [
        round(event["loss"], 6) for event in found.events if event["event"] in ("train", "loss") and "loss" in event
    ]


def chosen(found: Followed) -> dict[str, Any]:
    """Return what the trainer says that it has chosen: its start line and what the probe found."""
    lines = [*found.of("start"), *found.of("probe")]
    return {
        key: value for line in lines for key, value in line.items() if key not in ("tokenReport", "seconds", "event")
    }


def last_words(found: Followed) -> dict[str, Any]:
    """Return what a program that ran to its end has done: events by kind, exit code, seconds."""
    kinds: dict[str, int] = {}
    for event in found.events:
        kinds[str(event.get("event"))] = kinds.get(str(event.get("event")), 0) + 1
    failed = {} if found.code == 0 else {"log": found.log.read_text(errors="replace")[-WORDS:]}
    return {"exitCode": found.code, "events": kinds, "losses": losses(found), "start": chosen(found)} | failed
