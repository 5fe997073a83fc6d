"""Every version of every TrainingRun, Job and pod of a namespace, as a watch tells them, and what holds of all.

    async with recording(server, tls, namespace) as record:
        ...
    record.check()

The checks are pure functions of what was recorded; each gives the sentences that say what was broken.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector

from tests.support.kubectl import GROUPS, is_true

Document = dict[str, Any]

KINDS = ("trainingruns", "jobs", "pods")
RUN_UID, ROLE = "finetune.dev/run-uid", "finetune.dev/role"
GROWING = ("attempts", "gpuSeconds")
"""Numbers of a status that never become less."""
KEPT = ("trainingStartTime", "startTime", "completionTime", "jobName")
"""What is never changed nor lost, once it is there."""


@dataclass
class Record:
    """What was seen, in order: the kind, ADDED, MODIFIED or DELETED, and the object."""

    versions: list[tuple[str, str, Document]] = field(default_factory=list)

    def of(self, kind: str) -> Iterable[tuple[str, Document]]:
        """The versions of a kind."""
        return ((type_, each) for found, type_, each in self.versions if found == kind)

    def runs(self) -> dict[str, list[Document]]:
        """The versions of each run, by uid."""
        found: dict[str, list[Document]] = defaultdict(list)
        for _, run in self.of("trainingruns"):
            found[run["metadata"]["uid"]].append(run)
        return found

    def broken(self) -> list[str]:
        """Everything that must never happen and did."""
        return [
            *two_jobs(each for _, each in self.of("jobs")),
            *(problem for versions in self.runs().values() for problem in broken_run(versions)),
        ]

    def check(self) -> None:
        """Raise AssertionError with every rule that was broken."""
        problems = self.broken()
        assert not problems, "\n".join(problems)

    def unfinished(self) -> list[str]:
        """The names of runs that have not ended."""
        deleted = {each["metadata"]["uid"] for type_, each in self.of("trainingruns") if type_ == "DELETED"}
        return [
            each[-1]["metadata"]["name"]
            for uid, each in self.runs().items()
            if uid not in deleted and not is_true(each[-1], "Finished")
        ]


def two_jobs(jobs: Iterable[Document]) -> list[str]:
    """A run has one Job for its training, ever."""
    made: dict[str, set[str]] = defaultdict(set)
    for job in jobs:
        labels = job["metadata"].get("labels") or {}
        if labels.get(ROLE) == "train":
            made[labels[RUN_UID]].add(job["metadata"]["uid"])
    return [f"run {uid} had {len(uids)} Jobs" for uid, uids in made.items() if len(uids) > 1]


def broken_run(versions: list[Document]) -> list[str]:
    """What is wrong in the life of one run."""
    problems: list[str] = []
    before: Document = {}
    for run in versions:
        now = run.get("status") or {}
        name = f"{run['metadata']['name']}@{run['metadata']['resourceVersion']}"
        problems += [f"{name}: {each}" for each in went_back(before, now)]
        if now.get("phase") == "Succeeded" and not (now.get("result") or {}).get("adapter"):
            problems.append(f"{name}: Succeeded without an adapter")
        before = now
    return problems


def went_back(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What a status lost or took back."""
    problems = [
        f"{key} went from {before[key]} to {now.get(key)}"
        for key in GROWING
        if before.get(key) is not None and float(now.get(key) or 0) < float(before[key])
    ]
    problems += [
        f"{key} went from {before[key]} to {now.get(key)}"
        for key in KEPT
        if before.get(key) and now.get(key) != before[key]
    ]
    if is_true({"status": before}, "Finished"):
        if not is_true({"status": now}, "Finished"):
            problems.append("an end was left")
        problems += [
            f"{key} of a finished run went from {before.get(key)} to {now.get(key)}"
            for key in ("phase", "result", "failure")
            if _without_stored(before.get(key)) != _without_stored(now.get(key))
        ]
    return problems


def _without_stored(part: Any) -> Any:
    """A part of the status without what is still told of a run that has ended: whether its files were sent."""
    if not isinstance(part, dict) or "adapter" not in part:
        return part
    return {**part, "adapter": {key: value for key, value in part["adapter"].items() if key != "stored"}}


@asynccontextmanager
async def recording(server: str, tls: ssl.SSLContext, namespace: str) -> AsyncIterator[Record]:
    """Record for the time of the block."""
    record = Record()
    async with ClientSession(connector=TCPConnector(ssl=tls, limit=0)) as session:
        tasks = [asyncio.create_task(_follow(session, server, namespace, kind, record)) for kind in KINDS]
        try:
            yield record
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _follow(session: ClientSession, server: str, namespace: str, kind: str, record: Record) -> None:
    """Watch one kind from its first version on; a watch that ends is gone on with where it was."""
    url = f"{server}/{GROUPS[kind]}/namespaces/{namespace}/{kind}"
    async with session.get(url) as answer:
        listed = await answer.json()
    version = listed["metadata"]["resourceVersion"]
    record.versions += [(kind, "ADDED", each) for each in listed["items"]]
    while True:
        with contextlib.suppress(ClientError, TimeoutError):
            query = {"watch": "1", "resourceVersion": version}
            async with session.get(url, params=query, timeout=ClientTimeout(total=None), read_bufsize=2**22) as answer:
                async for line in answer.content:
                    event = json.loads(line)
                    if event["type"] == "ERROR":  # the definition is not served for a moment
                        break
                    version = event["object"]["metadata"]["resourceVersion"]
                    record.versions.append((kind, event["type"], event["object"]))
        await asyncio.sleep(0.2)
