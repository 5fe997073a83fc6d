"""What a running trainer tells: JSON lines in metrics.jsonl and on standard output, and posts to the registry.

On a terminal a bar and sentences take the place of the JSON lines on standard output.
"""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from model.registry import RegistryRefusedError, RegistryUnavailableError
from model.result import decimal
from model.training.output import metrics as metrics_file
from model.training.output import terminal
from model.training.output.remaining import RemainingTime
from model.training.processes.process import timestamp

POST_INTERVAL_SECONDS = 5.0
POST_DEADLINE_SECONDS = 10.0
"""How long the end of a run waits for a last post that does not get through."""


class ProgressLog:
    """Writes each event as one JSON line to the run's metrics file, and tells it on standard output.

    Parameters
    ----------
    output
        Standard output: JSON lines as well, or a `Display` when it is a terminal.
    metrics
        The run's metrics.jsonl, to which the lines are appended.
    """

    def __init__(self, output: TextIO, metrics: Path) -> None:
        metrics.parent.mkdir(parents=True, exist_ok=True)
        metrics_file.drop_half_line(metrics)
        self._path = metrics
        self._metrics = metrics.open("a", encoding="utf-8", buffering=1)
        self._output = output
        self._display = terminal.Display(output, metrics.parent) if terminal.is_terminal(output) else None

    def emit(self, event: str, **fields: Any) -> None:
        """Tell an event; numbers that JSON cannot hold become null."""
        clean = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in fields.items()}
        line = json.dumps({"event": event, "time": timestamp(), **clean}, ensure_ascii=False) + "\n"
        self._metrics.write(line)
        if self._display is None:
            self._output.write(line)
        else:
            self._display.show(event, clean)

    def rewind(self, step: int, *, evaluated: bool) -> None:
        """Forget what earlier attempts told of steps after `step`, and of its evaluation unless that is done."""
        self._metrics.close()
        metrics_file.forget_after(self._path, step, evaluated=evaluated)
        self._metrics = self._path.open("a", encoding="utf-8", buffering=1)

    def carry_over(self, path: Path, step: int) -> None:
        """Let the steps up to `step` that another run's file tells of be this run's own."""
        self._metrics.close()
        metrics_file.carry_over(path, self._path, step)
        self._metrics = self._path.open("a", encoding="utf-8", buffering=1)


class PeerLog:
    """The log of a process that is not the first: only its failure is told, for that is nobody else's.

    Parameters
    ----------
    metrics
        The run's metrics.jsonl.
    """

    def __init__(self, metrics: Path) -> None:
        self._path = metrics

    def emit(self, event: str, **fields: Any) -> None:
        """Append an error to the file, and forget anything else."""
        if event == "error":
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"event": event, "time": timestamp(), **fields}, ensure_ascii=False) + "\n")

    def rewind(self, step: int, *, evaluated: bool) -> None:
        """Leave the file to the first process."""

    def carry_over(self, path: Path, step: int) -> None:
        """Leave the file to the first process."""


class StatusPoster:
    """Posts the newest status to the registry from a thread of its own, so that training never waits for it.

    Posts are at least `POST_INTERVAL_SECONDS` apart; a status that a newer one overtakes is never sent, and a
    failed post loses nothing but itself.
    """

    def __init__(self, post: Callable[[dict[str, Any]], None], *, interval: float = POST_INTERVAL_SECONDS) -> None:
        self._post = post
        self._interval = interval
        self._changed = threading.Condition()
        self._latest: dict[str, Any] | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="status-poster", daemon=True)
        self._thread.start()

    def offer(self, document: dict[str, Any]) -> None:
        """Make this the status to send next."""
        with self._changed:
            self._latest = document
            self._changed.notify()

    def close(self) -> None:
        """Send the last status, and wait for that for a bounded time."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(POST_DEADLINE_SECONDS)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._latest is not None or self._closing)
                document, self._latest = self._latest, None
            if document is None:
                return
            try:
                self._post(document)
            except (RegistryUnavailableError, RegistryRefusedError) as error:
                print(f"cannot post the progress: {error}", file=sys.stderr, flush=True)
            with self._changed:
                self._changed.wait_for(lambda: self._closing, self._interval)


class RunStatus:
    """Tells the registry of each step and of each checkpoint.

    Parameters
    ----------
    poster
        Posts the newest status; None where nobody is told.
    """

    def __init__(self, poster: StatusPoster | None) -> None:
        self._poster = poster
        self._remaining = RemainingTime()
        self._lasting: dict[str, float] = {"checkpointStep": 0}
        self._newest: dict[str, Any] = {}

    def step_made(self, step: int, total_steps: int, metrics: dict[str, float]) -> None:
        """Tell of a step."""
        remaining = self._remaining.seconds(step, total_steps)
        self._newest = {"step": step, "total_steps": total_steps, "remaining_seconds": remaining, "metrics": metrics}
        self._tell()

    def evaluated(self, loss: float) -> None:
        """Tell of a loss on the held-out rows, with this step's status and all later ones."""
        self._lasting["evaluationLoss"] = loss
        if self._newest:
            self._tell()

    def saved(self, step: int) -> None:
        """Tell of the newest whole checkpoint's step: what a lost node does not take away."""
        self._lasting["checkpointStep"] = step
        if self._newest:
            self._tell()

    def _tell(self) -> None:
        if self._poster is not None:
            metrics = {**self._newest["metrics"], **self._lasting}
            self._poster.offer(trainer_status(**{**self._newest, "metrics": metrics}))


def trainer_status(
    *, step: int, total_steps: int, remaining_seconds: int | None, metrics: dict[str, float]
) -> dict[str, Any]:
    """Return the trainerStatus document: integers as they are, other numbers as decimal strings."""
    status: dict[str, Any] = {"progressPercentage": 100 * step // total_steps}
    if remaining_seconds is not None:
        status["estimatedRemainingSeconds"] = remaining_seconds
    values = {**metrics, "step": step, "totalSteps": total_steps}
    status["metrics"] = [{"name": name, "value": decimal(value)} for name, value in values.items()]
    status["lastUpdatedTime"] = timestamp()
    return {"trainerStatus": status}
