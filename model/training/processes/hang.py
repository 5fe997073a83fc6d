"""Finds a trainer that stands still, and ends it so that the next attempt goes on from the checkpoint.

The training tells each sign of life: a step, a micro-batch, an evaluation's batch, a checkpoint. Bytes that the process
moves, or that arrive in the hub's cache, are signs of life as well: a slow download or a slow disk is no hang. When
there has been none for longer than `Limits` allow, the stacks of all threads go to standard error, and the process ends
with `exits.HUNG` and last words that say so.

A library that waits with Python's lock in its hand lets no thread of Python run. For that case faulthandler's own
thread stands behind this one: it writes the stacks and ends the process with 1.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from model import exits
from model.exits import FailureError
from model.result import failure_document, write_termination_message
from model.training.processes import interruption

REASON = "Hung"
MOVED_BYTES = 1 << 20
"""So many bytes more than at the last sign of life are another one; a heartbeat between processes moves fewer."""
KEPT_STEPS = 301
"""The last steps, whose median counts."""
STDERR = 2
TELL_SECONDS = 5.0
"""How long the progress log may take for the last line: it may lie on the very disk that hangs."""


@dataclass(frozen=True)
class Limits:
    """How long a trainer may go without a sign of life; all in seconds but `factor`."""

    first: float = 3600.0
    """Before the first step of the attempt: libraries, weights, a compiler, a search for the micro-batch."""
    least: float = 600.0
    """After it, at least."""
    factor: float = 20.0
    """After it, in median steps."""
    stopping: float = 60.0
    """After SIGTERM, at least: a container gets two minutes to end by itself."""
    stopping_factor: float = 3.0
    """After SIGTERM, in median steps."""
    waiting: float = 30.0
    """How much longer a process that waits for another one stays, so that the other one is found first."""
    look: float = 5.0
    """Between two looks."""
    unresponsive: float = 300.0
    """How much longer this watch may not have looked by itself before faulthandler ends the process."""

    def seconds(self, median: float | None, *, waiting: bool = False, stopping: bool = False) -> float:
        """Return how long there may be no sign of life.

        Parameters
        ----------
        median
            Seconds of the attempt's median step, None before the first one.
        waiting
            Whether this process waits for another one.
        stopping
            Whether SIGTERM has been received.
        """
        limit = self.first if median is None else max(self.least, self.factor * median)
        if stopping:
            limit = min(limit, max(self.stopping, self.stopping_factor * (median or 0.0)))
        return limit + (self.waiting if waiting else 0.0)


LIMITS = Limits()


@dataclass
class Life:
    """What the training has told of itself."""

    who: str = ""
    """Which of several processes this is, in words; empty for one alone."""
    step: int | None = None
    """The step made last, by this attempt or the one whose checkpoint it goes on from."""
    steps: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_STEPS))
    """Seconds of this attempt's last steps."""
    median: float | None = None
    """Their median, None before the first one."""
    place: str = ""
    """What is going on between two steps, in words."""
    waits: bool = False
    """Whether this process waits for another one."""
    signs: int = 0
    """Signs of life so far."""


_life = Life()


def alive() -> None:
    """Tell that something has been done; costs nothing."""
    _life.signs += 1


def step_made(step: int, seconds: float) -> None:
    """Tell that a step has been made, and how long it took."""
    _life.step = step
    _life.steps.append(seconds)
    _life.median = statistics.median(_life.steps)
    alive()


def goes_on_from(step: int) -> None:
    """Tell that the training goes on from a step that an earlier attempt has made."""
    _life.step = step
    alive()


@contextlib.contextmanager
def during(place: str) -> Iterator[None]:
    """Tell what is going on between two steps, as in `in the evaluation`."""
    before, _life.place = _life.place, place
    alive()
    try:
        yield
    finally:
        _life.place = before
        alive()


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Tell that this process waits for another one."""
    before, _life.waits = _life.waits, True
    alive()
    try:
        yield
    finally:
        _life.waits = before
        alive()


def describe(life: Life, still: float) -> str:
    """Return what a process that stands still for so many seconds says of itself."""
    text = f"no progress for {still:.0f} s {life.place}" if life.place else f"no step for {still:.0f} s"
    text += " after the start" if life.step is None else f" after step {life.step}"
    if life.median is not None:
        text += f" (median step {_seconds(life.median)})"
    if life.waits:
        text = f"{life.who or 'this process'} waits for another one: {text}"
    elif life.who:
        text = f"{life.who}: {text}"
    return f"{text}; the log has the stacks of all threads"


@contextlib.contextmanager
def watch(tell: Callable[..., None], *, who: str = "") -> Iterator[None]:
    """Watch over this process, and end it when it stands still.

    Parameters
    ----------
    tell
        Takes the last progress line, as `ProgressLog.emit`.
    who
        Which of several processes this is, in words.
    """
    _life.who = who
    done = threading.Event()
    _end_later(LIMITS.first + LIMITS.unresponsive)
    thread = threading.Thread(target=_look, args=(tell, Moved(hub_cache), done), name="hang", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class Moved:
    """Counts the bytes that come and go.

    Parameters
    ----------
    cache
        Returns the hub's cache, if there is one: a file that another process downloads there grows for this one, too.
    """

    def __init__(self, cache: Callable[[], Path | None]) -> None:
        self._cache = cache
        self._known = self._looks = 0

    def further(self, *, downloads: bool = True) -> bool:
        """Whether `MOVED_BYTES` have been moved since this was last so, `downloads` of other processes among them."""
        now = self._own() + (self._arriving() if downloads else 0)
        # A download that ends is renamed: fewer bytes than before are as good a sign as more.
        if abs(now - self._known) < MOVED_BYTES:
            return False
        self._known = now
        return True

    def _own(self) -> int:
        try:
            text = Path("/proc/self/io").read_text(encoding="ascii")
        except OSError:  # some sandboxes do not say
            return 0
        counted = ("rchar:", "wchar:", "read_bytes:")  # the last one is what comes in through mapped files
        moved = sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(counted))
        self._looks += len(text)  # which the next look finds among what was read
        return moved - self._looks + len(text)

    def _arriving(self) -> int:
        cache, total = self._cache(), 0
        if cache is not None:
            with contextlib.suppress(OSError):
                for path in cache.glob("*/blobs/*.incomplete"):
                    with contextlib.suppress(OSError):
                        total += path.stat().st_size
        return total


def hub_cache() -> Path | None:
    """Return the cache of the hub's client, None as long as nobody has imported that."""
    constants = sys.modules.get("huggingface_hub.constants")
    return Path(constants.HF_HUB_CACHE) if constants is not None else None


class Stillness:
    """How long there has been no sign of life, as far as somebody has looked.

    A machine that sleeps, or a container that is frozen, makes nothing and is not to blame: between two looks no more
    than twice the usual time counts.
    """

    def __init__(self, look: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = 2 * look
        self._clock = clock
        self._looked_at = clock()
        self.seconds = 0.0

    def look(self, *, moving: bool) -> None:
        """Take into account what was seen."""
        now = self._clock()
        self.seconds = 0.0 if moving else self.seconds + min(now - self._looked_at, self._most)
        self._looked_at = now


def _look(tell: Callable[..., None], moved: Moved, done: threading.Event) -> None:
    """Look again and again until all is done, and end the process when it stands still."""
    limits, signs = LIMITS, -1
    # Beside the time without a sign of life, that since SIGTERM came: the step that it meets may have been a long one.
    still, stopping = Stillness(limits.look), Stillness(limits.look)
    try:
        while not done.is_set():
            # Once a step has been made nothing is downloaded, and a cache on a disk that hangs would keep this thread.
            moving = (_life.signs != signs) | moved.further(downloads=_life.median is None)
            signs = _life.signs
            still.look(moving=moving)
            stopping.look(moving=moving or not interruption.requested())
            limit = limits.seconds(_life.median, waiting=_life.waits)
            soon = limits.seconds(_life.median, waiting=_life.waits, stopping=True)
            if still.seconds > limit or stopping.seconds > soon:
                _end(tell, max(still.seconds, stopping.seconds))
            left = limit - still.seconds
            _end_later(left + limits.unresponsive)
            done.wait(min(limits.look, left))
    finally:
        faulthandler.cancel_dump_traceback_later()


def _end_later(seconds: float) -> None:
    """Let faulthandler end the process unless this is called again in time: it needs nothing of Python's for that."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=STDERR)


def _end(tell: Callable[..., None], still: float) -> None:
    """End the process: as finished, as interrupted, or as one that stood still."""
    _end_later(TELL_SECONDS + LIMITS.unresponsive)
    if interruption.may_leave(_life.step or 0):
        interruption.leave()
    failure = FailureError(exits.HUNG, REASON, describe(_life, still))
    faulthandler.dump_traceback(file=STDERR, all_threads=True)
    write_termination_message(failure_document(failure))
    print(f"{failure.reason}: {failure.message}", file=sys.stderr, flush=True)
    line = {"reason": failure.reason, "message": failure.message, "exitCode": failure.code}
    last = threading.Thread(target=tell, args=("error",), kwargs=line, daemon=True)
    last.start()
    last.join(TELL_SECONDS)
    os._exit(failure.code)


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 0.1 else f"{1000 * value:.0f} ms"
