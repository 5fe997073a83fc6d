"""A registry that is killed again and again while people and trainers use it, and what must be true of it afterwards.

await Killed(database_url, folder, seed=3).carry_out(kills=10)

Four callers push rows, send adapters, post progress, tell of ends and delete, each until the process is gone. What was
answered with success is written down; what got no answer may have happened, or not. A start is killed as well, the
first one in its migration.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from finetune.registry.blobs.folder import FolderStore
from finetune.registry.database import Database, parse_url
from finetune.registry.schema import blobs, content_blobs, contents, run_files
from finetune.registry.store import garbage
from finetune.registry.store.common import now
from finetune.registry.store.contents import Contents
from tests.support.adapters import adapter_files, listing, registered
from tests.support.ports import free_port
from tests.support.processes import Server
from tests.support.registry import pairs, run_document

CALLERS = 4
START_SECONDS = 60.0
LEAST_ANSWERS, MOST_ANSWERS = 5, 40
"""How many answers a registry gives before it is killed: of five, one at least promises something."""
LONGEST_MOMENT_SECONDS = 0.03
"""How long after the last of them."""
EARLY_SHARE = 0.3
EARLY_SECONDS = 0.5
"""The share of kills that come in the start, and how long after its beginning at the latest."""


@dataclass
class Told:
    """What was answered with success."""

    datasets: dict[str, bytes] = field(default_factory=dict)
    """Rows by the dataset's name, each of one version."""
    deleted: set[str] = field(default_factory=set)
    """Datasets whose deletion was answered, or may have happened."""
    gone: set[str] = field(default_factory=set)
    """Those of which it was answered."""
    adapters: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Files by run, of adapters that are registered and sent."""
    interim: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Files by run, of adapters of runs that still train."""
    dropped: set[str] = field(default_factory=set)
    """Runs whose adapter was deleted, or may have been."""
    steps: dict[str, int] = field(default_factory=dict)
    """The last step that was taken, by run."""
    ended: set[str] = field(default_factory=set)


class Killed:
    """One registry, its callers and its killer."""

    def __init__(self, database_url: str, folder: Path, *, seed: int) -> None:
        self._url, self._folder = database_url, folder
        self._draw = random.Random(seed)
        self._port = free_port()
        arguments = [f"--database-url={database_url}", f"--store=file://{folder}/blobs", f"--port={self._port}"]
        self._server = Server("registry", "serve", *arguments, environment={}, log=folder / "registry.log")
        self._told = Told()
        self._made = 0

    async def carry_out(self, kills: int) -> Told:
        """Kill it so many times, and check what is left. Raises AssertionError."""
        for number in range(kills):
            await self._server.start()
            # The first one in the migration; the last one has had something to lose.
            if number == 0 or (number < kills - 1 and self._draw.random() < EARLY_SHARE):
                await asyncio.sleep(self._draw.uniform(0, EARLY_SECONDS))
            else:
                await self._use(answers=self._draw.randint(LEAST_ANSWERS, MOST_ANSWERS))
            await self._server.kill()
        await self._server.start()
        async with self._client() as http:
            await self._ready(http)
            await self._check(http)
        await self._server.kill()
        await self._check_store()
        return self._told

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{self._port}/api/v1/namespaces/ml/", timeout=60)

    async def _ready(self, http: httpx.AsyncClient) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with suppress(httpx.TransportError):
                if (await http.get(f"http://127.0.0.1:{self._port}/readyz")).status_code == 200:
                    return
            assert self._server.running, (self._folder / "registry.log").read_text()[-2000:]
            assert time.monotonic() < deadline, "the registry does not start"
            await asyncio.sleep(0.01)

    async def _use(self, *, answers: int) -> None:
        """Use it, and kill it a moment after so many answers, in the middle of what the callers do then."""
        enough, left = asyncio.Event(), answers

        async def count(_response: httpx.Response) -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                enough.set()

        async with self._client() as http:
            await self._ready(http)
            http.event_hooks = {"response": [count]}
            callers = [asyncio.create_task(self._call(http)) for _ in range(CALLERS)]
            await enough.wait()
            await asyncio.sleep(self._draw.uniform(0, LONGEST_MOMENT_SECONDS))
            await self._server.kill()
            for each in await asyncio.gather(*callers, return_exceptions=True):
                assert isinstance(each, httpx.TransportError), each

    async def _call(self, http: httpx.AsyncClient) -> None:
        """Do one thing after the other until nobody answers any more."""
        things: list[Callable[[httpx.AsyncClient, str], Awaitable[None]]] = [
            self._push, self._push, self._delete, self._train, self._train, self._drop,
        ]  # fmt: skip
        while True:
            self._made += 1
            await self._draw.choice(things)(http, f"n{self._made}")

    async def _push(self, http: httpx.AsyncClient, name: str) -> None:
        rows = pairs(self._draw.choice((1, 40, 4000)), tag=self._draw.choice(("shared", name)))
        answer = await http.post(f"datasets/{name}/versions", content=rows)
        if _is_busy(answer):
            return
        assert answer.status_code == 201, answer.text
        self._told.datasets[name] = rows

    async def _delete(self, http: httpx.AsyncClient, _name: str) -> None:
        known = sorted(set(self._told.datasets) - self._told.deleted)
        if not known:
            return
        name = self._draw.choice(known)
        self._told.deleted.add(name)
        answer = await http.delete(f"datasets/{name}/versions/1")
        assert answer.status_code == 204, answer.text
        self._told.gone.add(name)

    async def _train(self, http: httpx.AsyncClient, uid: str) -> None:
        files = adapter_files(salt=self._draw.choice((0, self._made)), numbers=self._draw.choice((10, 50_000)))
        assert (await http.put(f"runs/{uid}", json=run_document(name=uid))).status_code == 201
        for step in range(1, self._draw.randint(2, 4)):
            assert (await http.post(f"runs/{uid}/status", json=_progress(step))).status_code == 200
            self._told.steps[uid] = step
        early = adapter_files(salt=-1 - self._made, numbers=10)
        if not await _sent(http, uid, "steps/1/adapter", {"evaluationLoss": "1.5"}, early):
            return
        self._told.interim[uid] = early
        if not await _sent(http, uid, "files", {}, files):
            return
        del self._told.interim[uid]  # which the next answer may or may not be about
        assert (await http.put(f"runs/{uid}/adapter", json=registered(uid, files, name=uid))).status_code == 201
        self._told.adapters[uid] = files
        end = {"phase": "Succeeded", "ended": True, "version": 7}
        assert (await http.put(f"runs/{uid}/status", json=end)).status_code == 200
        self._told.ended.add(uid)

    async def _drop(self, http: httpx.AsyncClient, _name: str) -> None:
        known = sorted(set(self._told.adapters) - self._told.dropped)
        if not known:
            return
        uid = self._draw.choice(known)
        self._told.dropped.add(uid)
        answer = await http.delete(f"adapters/{uid}/versions/1")
        assert answer.status_code == 200, answer.text

    async def _check(self, http: httpx.AsyncClient) -> None:
        """Nothing that was answered is lost, and nothing is half there."""
        told = self._told
        for name, rows in told.datasets.items():
            if name not in told.deleted:
                assert (await http.get(f"datasets/{name}/versions/1/rows")).content == rows, name
        for name in told.gone:
            assert (await http.get(f"datasets/{name}/versions/1/rows")).status_code == 404, name
        async for version in _listed(http, "datasets"):
            rows = (await http.get(f"datasets/{version['name']}/versions/1/rows")).content
            assert hashlib.sha256(rows).hexdigest() == version["sha256"], version
        for uid, files in told.adapters.items():
            if uid not in told.dropped:
                assert (await http.get(f"adapters/{uid}/versions/1")).json()["state"] == "Ready", uid
                await _check_files(http, f"adapters/{uid}/versions/1", files)
        for uid, files in told.interim.items():
            await _check_files(http, f"adapters/support/runs/{uid}/steps/best", files)
        async for version in _listed(http, "adapters"):
            for file in version["files"] if version["state"] == "Ready" else ():
                found = await http.get(f"adapters/{version['name']}/versions/1/files/{file['path']}")
                assert hashlib.sha256(found.content).hexdigest() == file["sha256"], version["name"]
        for uid, step in told.steps.items():
            run = (await http.get(f"runs/{uid}")).json()
            metrics = {each["name"]: each["value"] for each in run["trainerStatus"]["metrics"]}
            assert int(metrics["step"]) >= step, uid
            assert uid not in told.ended or run["outcome"]["ended"], uid

    async def _check_store(self) -> None:
        """Two days later, once the garbage is collected, every file has an owner, and every owner its file."""
        database, store = Database(parse_url(self._url)), FolderStore(self._folder / "blobs")
        try:
            for table in (blobs, contents):
                old = update(table).values(touched_time=now() - timedelta(days=2))
                await database.write(partial(_execute, statement=old))
            await Contents(database, store).drop_abandoned()
            await garbage.collect(database, store, dry_run=False)
            owned = await _rows(database, select(run_files.c.sha256).where(run_files.c.held.is_(True)))
            owned |= await _rows(database, select(content_blobs.c.sha256))
            there = {blob.sha256 async for blob in store.list()}
            announced = await _rows(database, select(run_files.c.sha256))
            assert owned <= there, f"lost: {sorted(owned - there)}"
            assert there <= owned | announced, f"without an owner: {sorted(there - owned - announced)}"
            assert not await _rows(database, select(contents.c.id).where(contents.c.attached.is_(False)))
        finally:
            await store.close()
            await database.close()


async def _check_files(http: httpx.AsyncClient, adapter: str, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        assert (await http.get(f"{adapter}/files/{path}")).content == content, adapter


async def _sent(http: httpx.AsyncClient, uid: str, path: str, said: dict[str, Any], files: dict[str, bytes]) -> bool:
    """Announce files and send those that are missing; whether that went well."""
    missing = (await http.put(f"runs/{uid}/{path}", json={**said, "files": listing(files)})).json()["missing"]
    for content in files.values():
        digest = hashlib.sha256(content).hexdigest()
        if digest in missing:
            sent = await http.put(f"runs/{uid}/blobs/{digest}", content=content)
            if _is_busy(sent):
                return False
            assert sent.status_code in (200, 201), sent.text
    return True


def _is_busy(answer: httpx.Response) -> bool:
    """The same bytes are being removed, or were when the one who did it was killed: for ten minutes at most."""
    return answer.status_code == 503 and "just being removed" in answer.text


async def _execute(connection: AsyncConnection, *, statement: Any) -> None:
    await connection.execute(statement)


async def _rows(database: Database, query: Any) -> set[str]:
    async with database.reading() as connection:
        return set((await connection.execute(query)).scalars())


async def _listed(http: httpx.AsyncClient, kind: str) -> Any:
    """The newest version of everything of a kind."""
    more: dict[str, str] = {}
    while True:
        page = (await http.get(kind, params=more)).json()
        for item in page["items"]:
            yield item
        if page.get("continue") is None:
            return
        more = {"continue": page["continue"]}


def _progress(step: int) -> dict[str, Any]:
    metrics = [{"name": "step", "value": str(step)}, {"name": "loss", "value": "2.5"}]
    status = {"progressPercentage": step, "metrics": metrics}
    points = [{"step": step, "values": {"loss": 2.5 / step}}]
    return {"trainerStatus": status, "attempt": 1, "startStep": 0, "points": points}
