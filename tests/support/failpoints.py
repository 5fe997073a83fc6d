"""The operator killed after its writes, over runs of all kinds, on the real Job controller.

A plan follows from its seed: which writes are the last ones of a process. A write is either done and never answered, or
answered and followed by the kill a moment later. Odd seeds take every write of a life in turn, even ones draw.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.injection import inject
from tests.support.kubectl import Kubectl, is_true
from tests.support.kubelet import Attempt, Play
from tests.support.managed import Managed, a_managed_world, result_of_pod
from tests.support.processes import Server
from tests.support.proxy import Write
from tests.support.world import eventually

Drive = Callable[[Managed, str], Awaitable[None]]

MOMENTS = (None, 0.0, 0.02, 0.1)
"""When a process dies: before its write is answered, or so many seconds after."""
SHARE = 0.4
"""How many of the writes are the last ones, where they are drawn."""
DIVERGED = {"failure": {"reason": "Diverged", "message": "the loss became NaN at step 12"}}
INTERRUPTED = {"interrupted": {"step": 3}}


async def nothing(managed: Managed, name: str) -> None:
    """Let the run be."""
    del managed, name


async def suspend_and_resume(managed: Managed, name: str) -> None:
    """Suspend the run while it trains, and resume it when it rests."""
    await managed.world.phase("Training", name)
    managed.world.apply(name, activeDeadlineSeconds=600, suspend=True)
    await managed.world.phase("Suspended", name)
    managed.world.apply(name, activeDeadlineSeconds=600)


@dataclass(frozen=True)
class Script:
    """A run: what its pods do, what people do with it, and how it ends."""

    name: str
    attempts: tuple[Attempt, ...] = ()
    collect: tuple[Attempt, ...] = ()
    drive: Drive = nothing
    ends: str = "Succeeded"
    spec: dict[str, Any] = field(default_factory=dict)


SCRIPTS = (
    Script("success"),
    Script("retry", (Attempt(trainer=Play(code=1)), Attempt())),
    Script(
        "suspended",
        (Attempt(trainer=Play(seconds=None, sigterm_code=75, sigterm_words=INTERRUPTED)), Attempt()),
        drive=suspend_and_resume,
        spec={"activeDeadlineSeconds": 600},
    ),
    Script("company", (Attempt(plays={"mesh": Play(seconds=None)}),)),
    Script("diverged", (Attempt(trainer=Play(seconds=0.3, code=6, words=DIVERGED)),), ends="Failed"),
    Script(
        "collected",
        (Attempt(trainer=Play(seconds=0.3)),),
        collect=(Attempt(plays={"collect": Play(words=result_of_pod)}),),
    ),
)


class Killer:
    """Kills the operator after writes, and starts it again as its Deployment does.

    Parameters
    ----------
    seed: what is drawn follows from it.
    limit: how many kills there are at most.
    """

    def __init__(self, operator: Server, *, seed: int, limit: int) -> None:
        self._operator, self._limit = operator, limit
        self._draw = random.Random(seed)
        self._each = seed % 2 == 1
        self._known: set[str] = set()
        self._late: set[asyncio.Task[None]] = set()
        self.kills: list[str] = []

    async def __call__(self, write: Write) -> None:
        """Kill, where it is this write's turn. The proxy answers when this returns."""
        if len(self.kills) >= self._limit or not self._operator.running or not self._chosen(write):
            return
        self.kills.append(f"{write.method} {re.sub('.*/namespaces/[^/]*', '', write.path)}")
        moment = self._draw.choice(MOMENTS)
        if moment is None:
            await self._operator.kill()
        else:
            late = asyncio.create_task(self._kill_after(moment))
            self._late.add(late)
            late.add_done_callback(self._late.discard)

    def _chosen(self, write: Write) -> bool:
        if not self._each:
            return self._draw.random() < SHARE
        place = f"{write.method} {write.path}"
        repeated = place in self._known and not write.path.endswith("/status")
        self._known.add(place)
        return not repeated  # a registration, for one, is simply made again by each process

    async def _kill_after(self, moment: float) -> None:
        await asyncio.sleep(moment)
        await self._operator.kill()

    async def keep_running(self) -> None:
        """Start the operator whenever it is dead."""
        while True:
            if not self._operator.running:
                await self._operator.start()
            await asyncio.sleep(0.05)


async def carry_out(kubectl: Kubectl, folder: Path, *, seed: int, limit: int) -> list[str]:
    """Let the runs of all scripts live while the operator is killed; check what became of them. Gives the kills."""
    await inject(kubectl)
    async with a_managed_world(kubectl, folder, FINETUNE_LINGER_SECONDS="5") as managed:
        killer = Killer(managed.world.operator, seed=seed, limit=limit)
        managed.world.kubernetes.on_write = managed.world.registry.on_write = killer
        keeper = asyncio.create_task(killer.keep_running())
        try:
            await asyncio.gather(*(_live(managed, script) for script in SCRIPTS))
            await eventually("each Job is taken care of", lambda: all(_settled(managed, each) for each in SCRIPTS))
        finally:
            keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeper
            print(f"seed {seed}: {len(killer.kills)} kills: {killer.kills}")
        await managed.check(names=tuple(each.name for each in SCRIPTS if each.ends == "Succeeded"))
        assert not managed.record.unfinished()
        return killer.kills


async def _live(managed: Managed, script: Script) -> None:
    managed.kubelet.script(script.name, *script.attempts)
    managed.kubelet.script(script.name, *script.collect, role="collect")
    managed.world.apply(script.name, **script.spec)
    await script.drive(managed, script.name)
    await managed.world.phase(script.ends, script.name)


def _settled(managed: Managed, script: Script) -> bool:
    """The Job goes by itself, or is gone because it had company, and no pod of it is left running."""
    job, run = managed.world.job_of(script.name), managed.world.run(script.name)
    lasting = job is not None and not job["spec"].get("ttlSecondsAfterFinished")
    return is_true(run, "Finished") and not lasting and not managed.kubelet.of(script.name)
