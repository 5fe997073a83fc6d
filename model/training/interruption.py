"""What SIGTERM does to a trainer, at every moment of its life.

The kernel ignores SIGTERM for a process that is PID 1 and has no handler of its own, so `install` runs
before anything slow is imported. While no optimizer step is in progress nothing can be lost and the process
ends at once; during training the handler only sets a flag, and the loop saves at the end of the step.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from model import exits
from model.result import interrupted_document, write_termination_message


@dataclass
class _Phase:
    received: bool = False
    deferred: bool = False
    saved_step: int = 0


_phase = _Phase()


def install() -> None:
    """Handle SIGTERM from now on."""
    signal.signal(signal.SIGTERM, _handle)


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
    if _phase.received:
        leave()


def requested() -> bool:
    """Whether SIGTERM has been received."""
    return _phase.received


def leave() -> NoReturn:
    """End the process as interrupted, with everything saved."""
    write_termination_message(interrupted_document(_phase.saved_step))
    sys.stdout.flush()
    os._exit(exits.INTERRUPTED)


def _handle(_number: int, _frame: FrameType | None) -> None:
    _phase.received = True
    if not _phase.deferred:
        leave()
