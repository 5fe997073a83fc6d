"""What a running trainer tells: JSON lines in metrics.jsonl and on standard output, and posts to the registry.

On a terminal a bar and sentences take the place of the JSON lines on standard output.
"""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
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
CLOSING_PAUSE_SECONDS = 0.5
MAX_STEPS_A_POST = 1000
"""As many as the registry takes at once."""
MAX_KEPT_STEPS = 10_000
"""Steps whose numbers wait for a registry that is away; about two kilobytes each."""

Numbers = dict[str, float | None]
"""What was measured at a step; null for what is not finite."""


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
        self.attempt = 1 + metrics_file.count_starts(metrics)
        """Which start in this run directory this is."""

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
        self.attempt = 0
        """It tells the registry nothing."""

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
    """Posts the newest status, and the numbers of every step, from a thread of its own: training never waits for it.

    Posts are at least `interval` apart. A status that a newer one overtakes is never sent; numbers are kept until the
    registry has taken or refused them, those of the newest `MAX_KEPT_STEPS`.
    """

    def __init__(self, post: Callable[[dict[str, Any]], None], *, interval: float = POST_INTERVAL_SECONDS) -> None:
        self._post = post
        self._interval = interval
        self._changed = threading.Condition()
        self._status: dict[str, Any] = {}
        self._unsent = False
        self._points: dict[int, Numbers] = {}
        self._not_before = 0.0
        self._deadline: float | None = None
        self._thread = threading.Thread(target=self._run, name="status-poster", daemon=True)
        self._thread.start()

    def offer(self, document: dict[str, Any], points: Mapping[int, Numbers] | None = None) -> None:
        """Make this the status to send next, with the numbers of these steps."""
        with self._changed:
            self._status, self._unsent = document, True
            self._keep(points or {})
            self._changed.notify()

    def close(self) -> None:
        """Send the last status and all numbers, and wait for that for a bounded time."""
        with self._changed:
            self._deadline = time.monotonic() + POST_DEADLINE_SECONDS
            self._changed.notify()
        self._thread.join(POST_DEADLINE_SECONDS)

    def _keep(self, points: Mapping[int, Numbers]) -> None:
        for step, numbers in points.items():
            self._points[step] = {**self._points.get(step, {}), **numbers}
        while len(self._points) > MAX_KEPT_STEPS:
            del self._points[min(self._points)]

    def _run(self) -> None:
        while self._wait():
            with self._changed:
                self._unsent = False
                points = {step: self._points.pop(step) for step in sorted(self._points)[:MAX_STEPS_A_POST]}
                document = self._status
            got_through = self._send(document, points)
            with self._changed:
                pause = self._interval if self._deadline is None else 0.0 if got_through else CLOSING_PAUSE_SECONDS
                self._not_before = time.monotonic() + pause

    def _wait(self) -> bool:
        """Wait until something is to be sent and may be; whether there is, for at the end there may be nothing."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_due() or self._deadline is not None)
            if self._deadline is None:
                pause = self._not_before - time.monotonic()
                self._changed.wait_for(lambda: self._deadline is not None, max(0.0, pause))
            elif self._is_due():
                self._changed.wait(max(0.0, min(CLOSING_PAUSE_SECONDS, self._not_before - time.monotonic())))
            over = self._deadline is not None and time.monotonic() > self._deadline
            return self._is_due() and not over

    def _is_due(self) -> bool:
        return self._unsent or bool(self._points)

    def _send(self, document: dict[str, Any], points: dict[int, Numbers]) -> bool:
        """Post once; whether there was an answer. Numbers that did not get through wait for the next time."""
        told = [{"step": step, "values": numbers} for step, numbers in points.items()]
        try:
            self._post({**document, "points": told} if told else document)
        except RegistryRefusedError as error:
            print(f"the registry refuses the progress: {error}", file=sys.stderr, flush=True)
        except RegistryUnavailableError as error:
            print(f"cannot post the progress: {error}", file=sys.stderr, flush=True)
            with self._changed:
                newer, self._points = self._points, points
                self._keep(newer)
            return False
        return True


class RunStatus:
    """Tells the registry of each step and of each checkpoint.

    Parameters
    ----------
    poster
        Posts the newest status and all numbers; None where nobody is told.
    attempt
        Which start in the run directory this is, from 1.
    """

    def __init__(self, poster: StatusPoster | None, attempt: int = 1) -> None:
        self._poster = poster
        self._attempt = attempt
        self._start_step = 0
        self._remaining = RemainingTime()
        self._lasting: dict[str, float] = {"checkpointStep": 0}
        self._newest: dict[str, Any] = {}

    def started(self, step: int) -> None:
        """Tell that the attempt goes on from this step's checkpoint: later steps are made again."""
        self._start_step = step
        self.saved(step)

    def step_made(self, step: int, total_steps: int, metrics: dict[str, float]) -> None:
        """Tell of a step."""
        remaining = self._remaining.seconds(step, total_steps)
        self._newest = {"step": step, "total_steps": total_steps, "remaining_seconds": remaining, "metrics": metrics}
        self._tell({name: value for name, value in metrics.items() if name != "epoch"})

    def evaluated(self, loss: float) -> None:
        """Tell of a loss on the held-out rows, with this step's status and all later ones."""
        self._lasting["evaluationLoss"] = loss
        if self._newest:
            self._tell({"evaluationLoss": loss})

    def saved(self, step: int) -> None:
        """Tell of the newest whole checkpoint's step: what a lost node does not take away."""
        self._lasting["checkpointStep"] = step
        if self._newest:
            self._tell({})

    def _tell(self, numbers: dict[str, float]) -> None:
        if self._poster is None:
            return
        metrics = {**self._newest["metrics"], **self._lasting}
        document = trainer_status(**{**self._newest, "metrics": metrics})
        clean: Numbers = {name: float(value) if math.isfinite(value) else None for name, value in numbers.items()}
        points = {self._newest["step"]: clean} if clean else {}
        self._poster.offer({**document, "attempt": self._attempt, "startStep": self._start_step}, points)


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
