"""What SIGTERM does to a trainer, at every moment of its life.

The kernel ignores SIGTERM for a process that is PID 1 and has no handler of its own, so `install` runs
before anything slow is imported. While no optimizer step is in progress nothing can be lost and the process
ends at once; during training the handler only notes the moment, and the loop saves at a step's boundary. Once
the result is on the disk and its last words are said, the process ends as what it is: finished.

Ctrl-C does the same; a second one ends the process as it ends any other.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from model import exits
from model.result import interrupted_document, write_termination_message

STEP_SECONDS = 10.0
"""How long after SIGTERM the step in progress may take; one that takes longer is given up at the next micro-batch."""

WATCH_SECONDS = 1.0
"""How long the main thread has to see a signal. Deep in a library (a download, one large matrix) it may see none."""


@dataclass
class _Phase:
    installed: bool = False
    received_at: float | None = None
    deferred: bool = False
    finished: bool = False
    saved_step: int = 0


_phase = _Phase()


def install() -> None:
    """Handle SIGTERM and Ctrl-C from now on."""
    if _phase.installed:
        return
    _phase.installed = True
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, _handle)
    signal.signal(signal.SIGINT, _handle)
    threading.Thread(target=_watch, args=(reader, _phase), name="sigterm", daemon=True).start()


def defer(*, saved_step: int) -> None:
    """From now on let the training loop decide when to stop.

    Parameters
    ----------
    saved_step
        The step that the newest checkpoint holds, 0 without one.
    """
    _phase.deferred = True
    note_saved(saved_step)


def note_saved(step: int) -> None:
    """Remember that everything up to this step is on the disk."""
    _phase.saved_step = step


def stop_at_once() -> None:
    """From now on end the process on SIGTERM, because all work so far is on the disk."""
    _phase.deferred = False
    if requested():
        leave()


def finish() -> None:
    """From now on end the process as finished on SIGTERM: the result is on the disk and the last words are said."""
    _phase.finished = True


def request() -> None:
    """Take note of a SIGTERM that another process of the same run has received."""
    if _phase.received_at is None:
        _phase.received_at = time.monotonic()


def requested() -> bool:
    """Whether SIGTERM has been received."""
    return _phase.received_at is not None


def overdue() -> bool:
    """Whether SIGTERM was received so long ago that the step in progress must be given up."""
    return _phase.received_at is not None and time.monotonic() - _phase.received_at > STEP_SECONDS


def may_leave(step: int) -> bool:
    """Whether the process may end at once, because it is finished, or was told to and all up to this step is saved."""
    return _phase.finished or (requested() and _phase.saved_step >= step)


def leave() -> NoReturn:
    """End the process: as interrupted with everything saved, or as finished."""
    if _phase.finished:
        os._exit(exits.OK)
    write_termination_message(interrupted_document(_phase.saved_step))
    # Without a flush: a handler must not touch a stream that the interrupted code may be writing to.
    os._exit(exits.INTERRUPTED)


def _handle(number: int, _frame: FrameType | None) -> None:
    if number == signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    _receive(_phase)


def _receive(phase: _Phase) -> None:
    if phase.received_at is None:
        phase.received_at = time.monotonic()
    if not phase.deferred:
        leave()


def _watch(reader: int, phase: _Phase) -> None:
    """Act in the main thread's place when it does not come to run its handler."""
    while True:
        if {signal.SIGTERM, signal.SIGINT}.intersection(os.read(reader, 64)):
            time.sleep(WATCH_SECONDS)
            _receive(phase)
