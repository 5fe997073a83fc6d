"""One namespace, or the whole cluster, as it is served: listed again and again, and watched as long as it may be.

The list comes first, and it decides: it finds what the watches have missed, and whether there is anything to watch. A
namespace that was deleted took its Role with it, so its list is refused; then its watches are stopped, and they are
started again when the list succeeds again. No other namespace notices, and neither does the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from finetune.clients.kubernetes import KubernetesError
from finetune.logs import described

_log = logging.getLogger(__name__)

RETRY_FIRST_SECONDS = 1.0
RETRY_MAXIMUM_SECONDS = 15.0
STEADY_SECONDS = 120.0
"""Watches that lived so long did not end because of what ended the ones before them."""


class WatchEndedError(Exception):
    """A watch has ended, and with it the others of its namespace; the message says why."""


def retry_seconds(failures: int, period: float, asked: float | None = None) -> float:
    """Seconds until the next list after `failures` in a row; `asked` is what the server wants us to wait at least."""
    wait = min(RETRY_MAXIMUM_SECONDS, period, RETRY_FIRST_SECONDS * 2.0 ** min(failures - 1, 10))
    return max(wait, asked or 0.0)


class Served:
    """Serves one namespace for ever.

    Parameters
    ----------
    name: of the namespace; None for all.
    resync: lists it and puts what is unfinished into the queue; raises KubernetesError.
    watch: watches it until cancelled; raises WatchEndedError.
    period_seconds: between two lists.
    """

    def __init__(
        self,
        *,
        name: str | None,
        resync: Callable[[], Awaitable[None]],
        watch: Callable[[], Awaitable[None]],
        period_seconds: float,
    ) -> None:
        self._where = f'namespace "{name}"' if name else "the cluster"
        self._resync = resync
        self._watch = watch
        self._period = period_seconds
        self._watching: asyncio.Task[None] | None = None
        self._since = 0.0
        self._failures = 0
        self._said: tuple[int, str] | str | None = None
        self.refused = False
        """The last list was refused: there is nothing to work on until one succeeds."""
        self.listed = False
        """What there is to serve is known: a list has succeeded, or was refused."""

    @property
    def state(self) -> str:
        """`served`, `refused`, or `unlisted` before the first answer that counts."""
        if self.refused:
            return "refused"
        return "served" if self.listed else "unlisted"

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            while True:
                seconds = await self._turn()
                await self._wait(seconds)
        finally:
            await self._stop()

    async def _turn(self) -> float:
        """List once, and start or stop the watches; returns seconds until the next turn."""
        try:
            await self._resync()
        except KubernetesError as error:
            self.refused = error.status in (403, 404)
            self.listed = self.listed or self.refused
            if self.refused:  # open watches would end sooner or later, with a noise
                await self._stop()
            self._failures += 1
            why = described(error)
            self._say((error.status, error.reason), f"is not served for now, the list of its runs failed: {why}")
            return retry_seconds(self._failures, self._period, error.retry_after)
        self.listed, self.refused = True, False
        if self._watching is None:
            self._watching = asyncio.create_task(self._run_watch(), name=f"watches of {self._where}")
            self._since = asyncio.get_running_loop().time()
        if isinstance(self._said, tuple) or (self._said and self._steady()):
            self._say(None, "is served again")
        if self._steady():
            self._failures = 0
        return self._period

    async def _wait(self, seconds: float) -> None:
        """Wait for the next turn, or until the watches have ended and it is time to start them again."""
        if self._watching is None:
            await asyncio.sleep(seconds)
            return
        await asyncio.wait({self._watching}, timeout=seconds)
        if not self._watching.done():
            return
        if self._steady():
            self._failures = 0
        self._failures += 1
        error = self._watching.exception()
        self._watching = None
        self._say(str(error), f"is not watched for a moment: {error}")
        await asyncio.sleep(retry_seconds(self._failures, self._period))

    async def _run_watch(self) -> None:
        try:
            await self._watch()
        except WatchEndedError:
            raise
        except Exception as error:
            raise WatchEndedError(described(error)) from error

    async def _stop(self) -> None:
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError, WatchEndedError):
                await watching

    def _say(self, what: tuple[int, str] | str | None, sentence: str) -> None:
        """Log a change once, not every time that it is found again."""
        if what != self._said:
            self._said = what
            _log.log(logging.WARNING if what is not None else logging.INFO, "%s %s", self._where, sentence)

    def _steady(self) -> bool:
        return self._watching is not None and asyncio.get_running_loop().time() - self._since >= STEADY_SECONDS
