"""A breaker: after a server has not answered, calls to it fail at once for a while instead of waiting for it again.

A server whose packets are dropped costs every call its whole timeout. Some dozen of such calls would hold every worker,
and runs that need nothing of that server would wait with them. A breaker only knows whether there were answers; what an
answer says does not matter here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum

REST_SECONDS = 10.0


class Turn(Enum):
    """What a caller may do."""

    CALL = "call"
    PROBE = "probe"
    """Call, as the only one: the answer decides for all the others."""
    FAIL = "fail"
    """Do not call; `Breaker.error` says why."""


class Breaker:
    """Whether calls to one server are worth a try. Every CALL and PROBE ends in one of the three methods below `turn`.

    Parameters
    ----------
    rest_seconds: how long calls fail at once before one of them tries again.
    clock: monotonic seconds.
    """

    def __init__(self, *, rest_seconds: float = REST_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._rest_seconds = rest_seconds
        self._clock = clock
        self._silent_until: float | None = None
        self._probing = False
        self.error = ""
        """The last error of a call without an answer."""

    @property
    def is_open(self) -> bool:
        """The last call that counted had no answer."""
        return self._silent_until is not None

    def turn(self) -> Turn:
        """Ask before a call."""
        if self._silent_until is None:
            return Turn.CALL
        if self._probing or self._clock() < self._silent_until:
            return Turn.FAIL
        self._probing = True
        return Turn.PROBE

    def answered(self) -> None:
        """There was an answer, whatever it says."""
        self._silent_until = None
        self._probing = False

    def silent(self, turn: Turn, error: str) -> None:
        """There was none; `error` says why. Calls that began before the silence was known do not prolong it."""
        if turn is Turn.PROBE or self._silent_until is None:
            self._silent_until = self._clock() + self._rest_seconds
            self.error = error
        if turn is Turn.PROBE:
            self._probing = False

    def abandoned(self, turn: Turn) -> None:
        """The call was cancelled before anything was known."""
        if turn is Turn.PROBE:
            self._probing = False
