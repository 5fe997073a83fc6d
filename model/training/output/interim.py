"""Sends the adapter of a run that still trains to the registry, after each evaluation.

Training waits for the copy of the weights alone (see `result.copied_adapter`). A thread writes them into the run's
directory, sends them and removes them; it takes a tenth of the time at most, and when evaluations come faster than it
sends, only the newest and the best one wait. Whatever goes wrong is said, and ends nothing.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model import upload
from model.files import digest_directory
from model.registry import RegistryRefusedError, RegistryUnavailableError, RunRegistry
from model.result import decimal

REST = 9.0
"""So many times as long as it has sent, the thread does nothing: a network and a disk have others to serve, too."""
CLOSING_SECONDS = 10.0
"""How long the end of a run waits for a file that is being sent."""
SCRATCH = "interim.tmp"


@dataclass(frozen=True)
class Interim:
    """An adapter as it is after a step.

    Attributes
    ----------
    step
        The step.
    losses
        What is known of it, by the names of the registry's document; `evaluationLoss` is among them.
    write
        Writes its files into the directory that it is given, which does not exist.
    """

    step: int
    losses: dict[str, float]
    write: Callable[[Path], None]

    @property
    def loss(self) -> float:
        """What the best one is chosen by."""
        return self.losses["evaluationLoss"]


class InterimSender:
    """Sends adapters one after the other from a thread of its own.

    Parameters
    ----------
    registry
        The run's part of the registry.
    directory
        The run's directory, where files lie while they are sent.
    attempt, start_step
        Which start of the trainer this is, and the step that it goes on from.
    copy
        Copies a model's adapter, and returns what writes the copy into a new directory; see `result.copied_adapter`.
    warn
        Told why something was not sent; a registry that keeps no files is not worth a word.
    rest
        See `REST`.
    """

    def __init__(
        self,
        registry: RunRegistry,
        directory: Path,
        *,
        attempt: int,
        start_step: int,
        copy: Callable[[Any], Callable[[Path], None]],
        warn: Callable[[str], None],
        rest: float = REST,
    ) -> None:
        self._registry = registry
        self.copy = copy
        self._scratch = directory / SCRATCH
        self._attempt = attempt
        self._start_step = start_step
        self._warn = warn
        self._rest = rest
        self._changed = threading.Condition()
        self._waiting: list[Interim] = []
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="interim-sender", daemon=True)
        self._thread.start()

    @property
    def wants(self) -> bool:
        """Whether it is worth copying an adapter; not any more when the registry takes none."""
        return not self._closed

    def offer(self, interim: Interim) -> None:
        """Send this one next, unless newer ones come first and none is better."""
        with self._changed:
            if self._closed:
                return
            self._waiting = worth_sending([*self._waiting, interim])
            self._changed.notify()

    def close(self) -> None:
        """Send nothing more, and wait a moment for what is under way."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(CLOSING_SECONDS)
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _run(self) -> None:
        while (interim := self._next()) is not None:
            began = time.monotonic()
            try:
                self._send(interim)
            except RegistryRefusedError as error:
                self._closed = True
                if error.reason != "NoStore":
                    self._warn(f"the registry takes no adapters of a run that still trains: {error}")
            except RegistryUnavailableError as error:
                self._warn(f"the adapter of step {interim.step} could not be sent to the registry: {error}")
            except Exception as error:  # noqa: BLE001 - whatever it is, the training goes on
                self._warn(f"the adapter of step {interim.step} could not be written or sent: {error!r}")
            finally:
                shutil.rmtree(self._scratch, ignore_errors=True)
            with self._changed:
                self._changed.wait_for(lambda: self._closed, self._rest * (time.monotonic() - began))

    def _next(self) -> Interim | None:
        """Wait for an adapter; None when no more are to be sent."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting) or self._closed)
            if not self._closed:
                return self._waiting.pop(0)
            self._waiting.clear()  # each holds a copy of the weights
            return None

    def _send(self, interim: Interim) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)
        interim.write(self._scratch)
        files = [file.document() for file in digest_directory(self._scratch)]
        document: dict[str, Any] = {
            "attempt": self._attempt,
            "startStep": self._start_step,
            **{name: decimal(value) for name, value in interim.losses.items()},
        }
        upload.send_missing(
            self._registry,
            self._scratch,
            files,
            announce=lambda listed: self._registry.announce_interim(interim.step, {**document, "files": listed}),
        )


def worth_sending(waiting: list[Interim]) -> list[Interim]:
    """Return the newest adapter and the best one, by step: the registry keeps no others."""
    best, newest = min(waiting, key=lambda one: (one.loss, -one.step)), max(waiting, key=lambda one: one.step)
    return [newest] if best.step == newest.step else [best, newest]
