"""Tells the registry what becomes of each run, beside the passes: no run waits for it, or fails by it.

What cannot be told is kept, the newest of each run, and told when the registry answers again. Nothing depends on that
memory: from time to time the registry is asked of which runs it knows no end, and those that have ended or are gone are
told then, whatever was missed, and whoever was away.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Container
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from finetune.api.registry import DELETED, OutcomeRequest, UnfinishedRun
from finetune.api.status import TrainingRunStatus
from finetune.api.trainingrun import ObjectMeta, TrainingRun
from finetune.clients.kubernetes import KubernetesClient, KubernetesError, NotFoundError
from finetune.clients.registry import RegistryClient, RegistryError, RegistryNotFound, RegistryUnavailable
from finetune.logs import described

from .core.outcome import deleted_outcome, outcome_of

_log = logging.getLogger(__name__)

MAX_PENDING = 5000
"""Runs that wait to be told of; the oldest beyond that are found again by `settle`."""
MAX_TOLD = 20_000
"""Runs of which is remembered what was told last; forgetting one costs a request."""
RETRY_SECONDS = 5.0
SETTLE_SECONDS = 1.0
"""How long it waits for more before it tells: a short run changes several times a second, and its last word counts."""
LAST_SECONDS = 1.0
"""How long the end of the operator may wait for the registry."""
UNHEARD_PERIODS = 5
"""An unfinished run of which nothing was heard for so long is looked for: all are looked at more often than that."""


@dataclass(frozen=True, slots=True)
class _Word:
    namespace: str
    name: str
    uid: str
    outcome: OutcomeRequest


@dataclass(slots=True)
class _Told:
    mark: int | None
    """Knows what was told again; None where it has to be told again."""
    phase: str
    heard: float
    """When anything was heard of the run."""


class Teller:
    """Tells the registry of runs.

    Parameters
    ----------
    kubernetes, registry: where is looked, and who is told.
    namespaces: those that are watched; empty for all.
    period_seconds: how often the registry is asked what it knows no end of.
    now, clock: the time in UTC, and monotonic seconds.
    """

    def __init__(
        self,
        *,
        kubernetes: KubernetesClient,
        registry: RegistryClient,
        namespaces: Container[str] = (),
        period_seconds: float = 60.0,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kubernetes = kubernetes
        self._registry = registry
        self._namespaces = namespaces
        self._period_seconds = period_seconds
        self._now = now
        self._clock = clock
        self._started = self._settled = clock()
        self._pending: OrderedDict[str, _Word] = OrderedDict()
        self._told: OrderedDict[str, _Told] = OrderedDict()
        self._gone: set[str] = set()
        self._woken = asyncio.Event()

    def note(self, run: ObjectMeta, status: TrainingRunStatus) -> None:
        """A run's status is stored so; it is told of if that says anything new."""
        try:
            outcome = outcome_of(run, status)
        except ValidationError as error:
            _log.warning("%s/%s: its outcome cannot be told: %s", run.namespace, run.name, described(error))
            return
        if outcome is None:
            return
        told = self._told.get(run.uid)
        if told is not None:
            told.heard = self._clock()
        if told is None or told.mark != _mark(outcome):
            self._add(_Word(run.namespace, run.name, run.uid, outcome))

    def gone(self, uid: str) -> None:
        """A run's object is gone; if it had not ended, the registry is to hear of that soon."""
        if len(self._gone) < MAX_PENDING:
            self._gone.add(uid)
        self._woken.set()

    async def run(self) -> None:
        """Tell until cancelled; then tell what waits, which would be found out minutes after the next start."""
        try:
            await self._tell_for_ever()
        finally:
            with suppress(RegistryError, TimeoutError):
                async with asyncio.timeout(LAST_SECONDS):
                    await self._tell_pending()

    async def _tell_for_ever(self) -> None:
        while True:
            self._woken.clear()
            try:
                await self.tell()
            except RegistryError as error:
                _log.info("the registry is not told of runs this time: %s", described(error))
                await asyncio.sleep(RETRY_SECONDS)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, self._settled + self._period_seconds - self._clock()) + 0.1):
                    await self._woken.wait()
            await asyncio.sleep(SETTLE_SECONDS)

    async def tell(self) -> None:
        """Tell all that is to be told now. Raises `RegistryError`; then it is told later."""
        await self._tell_pending()
        if self._gone or self._clock() - self._settled >= self._period_seconds:
            gone, self._gone = self._gone, set()
            try:
                await self.settle(gone)
            except RegistryError:
                self._gone |= gone
                raise
            self._settled = self._clock()
            await self._tell_pending()

    async def settle(self, gone: Container[str] = ()) -> None:
        """Find out about the runs that the registry believes to go on, and do not.

        `gone` are looked for now, others when nothing was heard of them for a while. Raises as `tell`.
        """
        unheard = self._clock() - UNHEARD_PERIODS * self._period_seconds
        for each in await self._registry.list_unfinished():
            told = self._told.get(each.uid)
            if told is not None and told.phase != each.phase:
                told.mark = None  # it has lost what it was told: the next pass tells it again
            lately = (told.heard if told is not None else self._started) > unheard
            if each.uid in self._pending or (lately and each.uid not in gone):
                continue
            if not self._namespaces or each.namespace in self._namespaces:
                await self._look_after(each)

    async def _look_after(self, each: UnfinishedRun) -> None:
        try:
            document = await self._kubernetes.get_run(each.namespace, each.name)
        except NotFoundError:
            document = {}
        except KubernetesError as error:
            _log.info("%s/%s: nothing is known of it: %s", each.namespace, each.name, described(error))
            return
        metadata: dict[str, Any] = document.get("metadata") or {}
        if metadata.get("uid") != each.uid:
            outcome = deleted_outcome(each.phase, self._now())
            self._add(_Word(each.namespace, each.name, each.uid, outcome))
            return
        self._told.pop(each.uid, None)
        try:
            run = ObjectMeta.model_validate(metadata)
            status = TrainingRunStatus.model_validate(document.get("status") or {})
        except ValidationError as error:  # as another version of the operator has written it
            _log.warning("%s/%s: its status cannot be read: %s", each.namespace, each.name, described(error))
            return
        self.note(run, status)

    def _add(self, word: _Word) -> None:
        self._pending.pop(word.uid, None)
        self._pending[word.uid] = word
        if len(self._pending) > MAX_PENDING:
            self._pending.popitem(last=False)
        self._woken.set()

    async def _tell_pending(self) -> None:
        while self._pending:
            uid, word = next(iter(self._pending.items()))
            try:
                await self._tell(word)
            except RegistryUnavailable:
                if uid in self._pending:  # what the registry fails at for its own sake must not hold up the others
                    self._pending.move_to_end(uid)
                raise
            except Exception as error:  # noqa: BLE001 - what is refused is refused again, and must not hold up the others
                _log.warning("%s/%s: its outcome cannot be told: %s", word.namespace, word.name, described(error))
            if self._pending.get(uid) is word:
                del self._pending[uid]
            self._told.pop(uid, None)
            self._told[uid] = _Told(_mark(word.outcome), word.outcome.phase, self._clock())
            if len(self._told) > MAX_TOLD:
                self._told.popitem(last=False)

    async def _tell(self, word: _Word) -> None:
        try:
            await self._registry.put_outcome(word.namespace, word.uid, word.outcome)
        except RegistryNotFound:
            # It was not recorded: it waits for what it refers to, or it has ended before it had that.
            run = await self._find(word) if word.outcome.ended and word.outcome.phase != DELETED else None
            if run is not None:
                await _record_end(self._registry, run, word.outcome)

    async def _find(self, word: _Word) -> TrainingRun | None:
        try:
            run = TrainingRun.from_object(await self._kubernetes.get_run(word.namespace, word.name))
        except (NotFoundError, ValidationError):
            return None
        return run if run.metadata.uid == word.uid else None


async def tell_end(registry: RegistryClient, run: TrainingRun, outcome: OutcomeRequest) -> None:
    """Tell how a run has ended, and record it if it was not. Raises RegistryError."""
    try:
        await registry.put_outcome(run.metadata.namespace, run.metadata.uid, outcome)
    except RegistryNotFound:
        await _record_end(registry, run, outcome)


async def _record_end(registry: RegistryClient, run: TrainingRun, outcome: OutcomeRequest) -> None:
    """Record a run with its end. Its dataset and its parent are not named: they may not exist."""
    namespace, uid = run.metadata.namespace, run.metadata.uid
    await registry.put_run(
        namespace,
        uid,
        name=run.metadata.name,
        experiment=run.experiment,
        method=run.spec.method,
        spec=run.spec.to_dict(),
    )
    await registry.put_outcome(namespace, uid, outcome)


def _mark(outcome: OutcomeRequest) -> int:
    return hash(outcome.model_dump_json(exclude={"version"}))
