"""How one namespace is served: when it is listed, when it is watched, and what is said about it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

import pytest

from finetune.clients.kubernetes import ForbiddenError, KubernetesError, NotServedError
from finetune.controller import namespaces
from finetune.controller.namespaces import RETRY_MAXIMUM_SECONDS, Served, WatchEndedError, retry_seconds
from finetune.logs import described


def refused(kind: type[KubernetesError], status: int) -> KubernetesError:
    return kind(verb="GET", path="/x", status=status, reason=kind.__name__, message="no")


class Cluster:
    """What the API server does at the moment."""

    def __init__(self) -> None:
        self.refusal: KubernetesError | None = None
        self.lists = 0
        self.started = 0
        self.watching = 0
        self.end: asyncio.Future[str] = asyncio.Future()

    async def resync(self) -> None:
        self.lists += 1
        if self.refusal is not None:
            raise self.refusal

    async def watch(self) -> None:
        self.started += 1
        self.watching += 1
        try:
            raise WatchEndedError(await asyncio.shield(self.end))
        finally:
            self.watching -= 1

    def end_watches(self, why: str) -> None:
        end, self.end = self.end, asyncio.Future()
        end.set_result(why)


@contextlib.asynccontextmanager
async def serving(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Cluster, Served]]:
    monkeypatch.setattr(namespaces, "RETRY_FIRST_SECONDS", 0.01)
    cluster = Cluster()
    served = Served(name="blue", resync=cluster.resync, watch=cluster.watch, period_seconds=0.02)
    task = asyncio.create_task(served.run())
    try:
        yield cluster, served
        assert not task.done()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert cluster.watching == 0


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not check():  # noqa: ASYNC110 - a condition of several things, not an event
            await asyncio.sleep(0.002)


async def test_it_is_listed_again_and_again_and_watched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(monkeypatch) as (cluster, served):
        await until(lambda: cluster.lists >= 4)
        assert (cluster.started, cluster.watching, served.listed) == (1, 1, True)


@pytest.mark.parametrize("refusal", [refused(ForbiddenError, 403), refused(NotServedError, 404)])
async def test_a_namespace_that_goes_and_comes_back_is_two_lines_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, refusal: KubernetesError
) -> None:
    caplog.set_level(logging.INFO, logger="finetune")
    async with serving(monkeypatch) as (cluster, _):
        await until(lambda: cluster.watching == 1)
        cluster.refusal = refusal
        await until(lambda: cluster.watching == 0)
        lists = cluster.lists
        await until(lambda: cluster.lists >= lists + 5)
        cluster.refusal = None
        await until(lambda: cluster.watching == 1)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        f'namespace "blue" is not served for now, the list of its runs failed: {described(refusal)}',
        'namespace "blue" is served again',
    ]


async def test_an_api_server_that_is_away_leaves_the_watches_to_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(monkeypatch) as (cluster, served):
        cluster.refusal = refused(KubernetesError, 0)
        await until(lambda: cluster.lists >= 3)
        assert (cluster.started, served.listed, served.state) == (0, False, "unlisted")
        cluster.refusal = None
        await until(lambda: cluster.watching == 1)
        cluster.refusal = refused(KubernetesError, 503)
        lists = cluster.lists
        await until(lambda: cluster.lists >= lists + 3)
        assert (cluster.started, cluster.watching) == (1, 1)


async def test_watches_that_end_are_started_again_after_a_list_and_named_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(monkeypatch) as (cluster, _):
        for count in (1, 2, 3):
            await until(lambda count=count: (cluster.started, cluster.watching) == (count, 1))  # type: ignore[misc]
            lists = cluster.lists
            cluster.end_watches("an ERROR event")
            await until(lambda lists=lists: cluster.lists > lists)  # type: ignore[misc]
        await until(lambda: cluster.watching == 1)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ['namespace "blue" is not watched for a moment: an ERROR event']


@pytest.mark.parametrize(
    ("failures", "period", "asked", "seconds"),
    [
        (1, 60, None, 1),
        (3, 60, None, 4),
        (50, 60, None, RETRY_MAXIMUM_SECONDS),
        (50, 2, None, 2),
        (1, 60, 30, 30),
        (6, 60, 3, RETRY_MAXIMUM_SECONDS),
    ],
)
def test_the_next_try(failures: int, period: float, asked: float | None, seconds: float) -> None:
    assert retry_seconds(failures, period, asked) == seconds
