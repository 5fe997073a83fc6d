"""Live pages: one look at the database a second for all viewers, and every event put into bytes once for all of them.

A viewer watches a run, or the list of a namespace. The hub asks the database what has changed, so that several replicas
over one PostgreSQL all know it. A viewer who is slow gets the newest event only. Streams end when the registry stops:
a server waits for open ones before it ends.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import and_, func, select
from sqlalchemy.exc import SQLAlchemyError

from finetune.logs import described
from finetune.registry.database import Database
from finetune.registry.errors import RegistryFault
from finetune.registry.schema import metric_points, metrics, run_progress, runs

log = logging.getLogger(__name__)

TICK_SECONDS = 1.0
MOST_VIEWERS = 500
PING_SECONDS = 15.0
"""Something is sent at least so often: a proxy between us would take a silent stream for a dead one."""
CHECK_SECONDS = 60.0
"""How often it is asked again whether a viewer may see what is shown."""
RETRY_MILLISECONDS = 2000
MOST_POINTS = 2000
"""Of one event; a page that is further behind reads its points again."""
RENEWALS_A_SECOND = 10
"""As often do all viewers together fetch their page anew, which costs more than the event that says so."""

Topic = tuple[str, str]
"""Namespace, and a run's uid; an empty uid is the namespace's list."""
Known = tuple[str | None, int]
"""Phase and newest step of a run, as a page shows them; -1 before the first step."""


@dataclass(eq=False)
class Viewer:
    """One open page."""

    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    events: list[bytes] = field(default_factory=list)

    def give(self, event: bytes) -> None:
        """Let the viewer have an event; what was not fetched by then is of no use any more, but points."""
        self.events.append(event)
        if len(self.events) > 8:
            self.events[:] = [message("reload", {})]
        self.waiting.set()


@dataclass
class Watched:
    """What is known of a topic that somebody watches."""

    viewers: set[Viewer] = field(default_factory=set)
    state: tuple[Any, ...] | None = None
    """The row at the last look; None before the first."""
    known: Known | None = None
    """What the viewers' pages show."""


def message(event: str, document: Any) -> bytes:
    """An event of a stream, as the bytes that every viewer gets."""
    return f"event: {event}\ndata: {json.dumps(document, separators=(',', ':'))}\n\n".encode()


def pause(viewers: int) -> int:
    """Milliseconds between two times that a viewer fetches its page anew, so that all together do it seldom enough."""
    return 1000 * viewers // RENEWALS_A_SECOND


class TooManyViewers(RegistryFault):
    """The page asks again now and then instead."""

    status = 503
    reason = "TooManyViewers"


class Hub:
    """Tells viewers what has changed."""

    def __init__(self, database: Database, *, is_stopping: Callable[[], bool]) -> None:
        self._database = database
        self._is_stopping = is_stopping
        self._topics: defaultdict[Topic, Watched] = defaultdict(Watched)
        self._task: asyncio.Task[None] | None = None

    @property
    def viewers(self) -> int:
        """How many there are."""
        return sum(len(watched.viewers) for watched in self._topics.values())

    def join(self, topic: Topic, known: Known | None = None) -> Viewer:
        """A new viewer of a topic, whose page shows what is `known`; `leave` it again. Raises `TooManyViewers`."""
        if self.viewers >= MOST_VIEWERS:
            raise TooManyViewers(
                f"{MOST_VIEWERS} pages are live already", hint="the page renews itself every ten seconds instead"
            )
        viewer = Viewer()
        watched = self._topics[topic]
        if not watched.viewers:
            watched.known = known
        elif watched.known != known:  # the page is older, or newer, than what the others have
            viewer.give(message("reload", {}))
        watched.viewers.add(viewer)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        return viewer

    def leave(self, topic: Topic, viewer: Viewer) -> None:
        """The viewer has gone."""
        watched = self._topics[topic]
        watched.viewers.discard(viewer)
        if not watched.viewers:
            del self._topics[topic]

    async def stream(
        self, topic: Topic, viewer: Viewer, is_allowed: Callable[[], Awaitable[bool]]
    ) -> AsyncIterator[bytes]:
        """What a viewer is sent, until the right is gone, the registry stops, or the reader has gone."""
        loop = asyncio.get_running_loop()
        check_at = loop.time() + CHECK_SECONDS
        try:
            yield f"retry: {RETRY_MILLISECONDS}\n\n".encode()
            while not self._is_stopping():
                with suppress(TimeoutError):
                    await asyncio.wait_for(viewer.waiting.wait(), PING_SECONDS)
                viewer.waiting.clear()
                events, viewer.events = viewer.events, []
                if loop.time() >= check_at:
                    try:
                        allowed = await is_allowed()
                    except (RegistryFault, SQLAlchemyError) as error:
                        log.info("cannot say whether a viewer may go on, who comes back: %s", described(error))
                        return
                    if not allowed:
                        yield message("goodbye", {"reason": "you may not see this any more"})
                        return
                    check_at = loop.time() + CHECK_SECONDS
                yield b"".join(events) or b": still here\n\n"
        finally:
            self.leave(topic, viewer)

    async def _work(self) -> None:
        while self._topics and not self._is_stopping():
            started = asyncio.get_running_loop().time()
            try:
                await self._look()
            except SQLAlchemyError as error:
                log.warning("could not look for what has changed, trying again: %s", described(error))
            # Shutdown is looked for more often than the database.
            while not self._is_stopping() and asyncio.get_running_loop().time() < started + TICK_SECONDS:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        for watched in self._topics.values():
            for viewer in watched.viewers:
                viewer.waiting.set()

    async def _look(self) -> None:
        """One look at everything that is watched."""
        uids = [uid for _, uid in self._topics if uid]
        names = [namespace for namespace, uid in self._topics if not uid]
        if uids:
            await self._look_at_runs(uids)
        for namespace in names:
            await self._look_at_list(namespace)

    async def _look_at_runs(self, uids: list[str]) -> None:
        query = (
            select(
                runs.c.id,
                runs.c.uid,
                runs.c.namespace,
                runs.c.phase,
                runs.c.reason,
                runs.c.message,
                runs.c.ended,
                run_progress.c.updated_time,
                run_progress.c.attempt,
                run_progress.c.step,
            )
            .outerjoin(run_progress, run_progress.c.run_id == runs.c.id)
            .where(runs.c.uid.in_(uids))
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        for row in rows:
            watched = self._topics.get((row.namespace, row.uid))
            if watched is None:
                continue
            before, watched.state = watched.state, tuple(row)
            known = (row.phase, -1 if row.step is None else row.step)
            if before == watched.state or (before is None and watched.known in (None, known)):
                watched.known = known
                continue
            shown = -1 if watched.known is None else watched.known[1]
            # A new attempt has taken points back: what the page shows of them is wrong.
            restarted = known[1] < shown or (before is not None and row.attempt != before[-2])
            watched.known = known
            await self._tell(watched, row, since=shown, restarted=restarted)

    async def _tell(self, watched: Watched, row: Any, *, since: int, restarted: bool) -> None:
        points = None if restarted else {} if row.step is None else await self._points(row.id, since)
        if points is None:
            event = message("reload", {})
        else:
            event = message("run", {"ended": bool(row.ended), "points": points, "wait": pause(self.viewers)})
        for viewer in watched.viewers:
            viewer.give(event)

    async def _points(self, run_id: int, since: int) -> dict[str, list[list[float]]] | None:
        """The points from a step on, by metric: step, seconds, value; None where they are too many.

        The step itself is among them: its held-out loss is told after its training loss, when it has been measured.
        """
        columns = (metrics.c.name, metric_points.c.step, metric_points.c.seconds, metric_points.c.value)
        query = (
            select(*columns)
            .join(metrics, metrics.c.id == metric_points.c.metric_id)
            .where(metric_points.c.run_id == run_id, metric_points.c.step >= since)
            .order_by(metric_points.c.step)
            .limit(MOST_POINTS + 1)
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        if len(rows) > MOST_POINTS:
            return None
        found: defaultdict[str, list[list[float]]] = defaultdict(list)
        for name, *point in rows:
            found[name].append(point)
        return found

    async def _look_at_list(self, namespace: str) -> None:
        newest = select(func.max(runs.c.id)).where(runs.c.namespace == namespace)
        going_on = and_(runs.c.namespace == namespace, runs.c.ended.is_(False))
        told = (
            select(func.count(), func.max(run_progress.c.updated_time), func.max(runs.c.status_version))
            .select_from(runs)
            .outerjoin(run_progress, run_progress.c.run_id == runs.c.id)
            .where(going_on)
        )
        async with self._database.reading() as connection:
            state = ((await connection.execute(newest)).scalar(), *(await connection.execute(told)).one())
        watched = self._topics.get((namespace, ""))
        if watched is None or state == watched.state:
            return
        first, watched.state = watched.state is None, state
        if not first:
            event = message("list", {"wait": pause(self.viewers)})
            for viewer in watched.viewers:
                viewer.give(event)
