"""What a recorded watch says of a run now: many tests wait at once, and nobody asks the API server for it.

run = await until(record, "support", "it waits for a node", lambda run: waiting(run)["reason"] == "Unschedulable")
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from tests.support.kubelet import RUN_LABEL
from tests.support.watching import Record

Document = dict[str, Any]
PATIENCE_SECONDS = 90.0


def versions(record: Record, name: str) -> list[Document]:
    """All versions of a run, oldest first; one that was deleted is empty."""
    found = (_of(name, each) for each in record.versions)
    return [run for run in found if run is not None]


def newest(record: Record, name: str) -> Document:
    """The newest version of a run; nothing when there was none, or it is gone."""
    return next(reversed(versions(record, name)), {})


def status(run: Document) -> Document:
    """The status, empty while there is none."""
    return dict(run.get("status") or {})


def waiting(run: Document) -> Document:
    """`status.waiting`, empty while it waits for nothing."""
    return dict(status(run).get("waiting") or {})


def waited_seconds(run: Document) -> float:
    """How long it has waited for what it waits for."""
    since = waiting(run).get("since")
    return (datetime.now(UTC) - datetime.fromisoformat(since)).total_seconds() if since else 0.0


def has_waited(*, seconds: float, reason: str = "") -> Callable[[Document], bool]:
    """Whether it has waited so long for one thing, and whether it is that."""
    return lambda run: waited_seconds(run) >= seconds and (not reason or waiting(run).get("reason") == reason)


def for_seconds(seconds: float) -> Callable[[Document], bool]:
    """Whether so much time has passed since this call."""
    end = time.monotonic() + seconds
    return lambda _: time.monotonic() >= end


def pulls(run: Document) -> bool:
    """Whether an image of it is being pulled."""
    return any("Pulling image" in each["message"] for each in status(run).get("conditions") or ())


def in_phase(phase: str) -> Callable[[Document], bool]:
    """Whether it is in a phase."""
    return lambda run: status(run).get("phase") == phase


async def all_of(*stories: Awaitable[list[str]]) -> None:
    """Let stories happen at once. Raises AssertionError with all that is wrong with any of them."""
    ends = await asyncio.gather(*stories, return_exceptions=True)
    problems = [problem for end in ends for problem in ([str(end)] if isinstance(end, BaseException) else end)]
    assert not problems, "\n".join(problems)


def began(record: Record, name: str) -> datetime:
    """When the newest of a run, its Job and its pods was created."""
    times = [
        found["metadata"]["creationTimestamp"]
        for _, _, found in record.versions
        if found["metadata"]["name"] == name or (found["metadata"].get("labels") or {}).get(RUN_LABEL) == name
    ]
    return datetime.fromisoformat(max(times))


async def until(
    record: Record, name: str, what: str, check: Callable[[Document], Any], *, seconds: float = PATIENCE_SECONDS
) -> Document:
    """The version of a run for which something is true. Raises AssertionError: also when the run has failed before."""
    deadline = time.monotonic() + seconds
    run: Document = {}
    read = 0
    while True:
        fresh = record.versions[read:]
        read += len(fresh)
        run = next((version for version in (_of(name, each) for each in reversed(fresh)) if version is not None), run)
        if check(run):
            return run
        assert status(run).get("phase") != "Failed", f"{name} has failed, and not {what}: {status(run)['failure']}"
        assert time.monotonic() < deadline, f"{name}: {what}: not within {seconds:.0f} s; {status(run)}"
        await asyncio.sleep(0.1)


def _of(name: str, version: tuple[str, str, Document]) -> Document | None:
    """The run in a version, if it is this one; empty when it was deleted."""
    kind, type_, found = version
    if kind != "trainingruns" or found["metadata"]["name"] != name:
        return None
    return {} if type_ == "DELETED" else found
