"""One pass for one run: gather, decide, act, and write the status at most once.

The pass starts from nothing but the run's name, so it does not matter which event woke it, whether one was missed, or
where the previous pass was killed. Decisions are in `core`, effects in `effects`. Whatever goes wrong here, the run
says so: a pass that fails again and again writes its error where people look.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ValidationError

from finetune.api import conditions, reasons
from finetune.api.status import TrainingRunStatus
from finetune.api.trainingrun import ObjectMeta, TrainingRun
from finetune.clients.kubernetes import ConflictError, KubernetesClient, KubernetesError, NotFoundError
from finetune.clients.registry import RegistryClient
from finetune.logs import described

from .core import decide
from .core.case import Case, is_finished
from .core.events import build_event, events_between
from .core.findings import Finding, Verdict, wait
from .core.mark import restored_status
from .core.refusals import Answer, Doing, classify
from .core.seen import Outcome
from .core.settings import Settings
from .core.status import next_status, restamp, troubled_status, with_stored
from .effects import Effects, StaleError
from .gather import Gatherer
from .known import KnownRuns
from .workqueue import Key

_log = logging.getLogger(__name__)

Document = dict[str, Any]

MAXIMUM_ACTIONS = 16
"""More actions than any run needs in one pass: reaching it is a bug, and it must not become a busy loop."""
SOON_SECONDS = 5.0
"""Seconds until a run that waits is looked at again, at first."""
TOLD_SECONDS = 12.0
"""The longest pause while a pod has not started and only an Event could say why: that is said within 15 s."""
SELDOM_SECONDS = 30.0
"""The same for a run that has waited for minutes; watches wake it earlier."""
WATCHED_SECONDS = 300.0
"""The same, from the beginning, where its pod says what it waits for: the watches tell of every change."""
SHORTENED_SIZE = 1000
"""Statuses that are remembered because the API server keeps less of them; the whole is forgotten at once."""
FAILURES_TOLD = 3
"""Passes in a row that may fail before the run says so."""


class Reconciler:
    """Brings runs a step further.

    Parameters
    ----------
    kubernetes, registry: where the effects go.
    gatherer: where the observation comes from.
    known: what the watches have told of runs.
    now: the clock, in UTC.
    on_status: told of a run's status as it was and as it is stored now.
    """

    def __init__(
        self,
        *,
        kubernetes: KubernetesClient,
        registry: RegistryClient,
        gatherer: Gatherer,
        known: KnownRuns,
        settings: Settings,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        on_status: Callable[[ObjectMeta, TrainingRunStatus, TrainingRunStatus], None] | None = None,
    ) -> None:
        self._kubernetes = kubernetes
        self._gatherer = gatherer
        self._known = known
        self._settings = settings
        self._now = now
        self._on_status = on_status
        self._effects = Effects(kubernetes=kubernetes, registry=registry, gatherer=gatherer, settings=settings, now=now)
        self._failures: dict[Key, int] = {}
        self._shortened: dict[str, Document] = {}

    async def reconcile(self, key: Key) -> float | None:
        """Bring one run a step further; returns seconds until it must be looked at again, or None.

        Raises what went wrong, after the run has said so; the queue tries again.
        """
        document = self._known.document(key)
        if document is None:
            try:
                document = await self._kubernetes.get_run(key.namespace, key.name)
            except NotFoundError:
                self._failures.pop(key, None)
                return None  # its children go with it: Kubernetes follows the owner references
            self._known.run_seen(document)
        if document["metadata"].get("deletionTimestamp"):
            return None
        try:
            due = await self._pass(key, document)
        except Exception as error:
            self._known.doubt(key)
            self._failures[key] = self._failures.get(key, 0) + 1
            if self._failures[key] >= FAILURES_TOLD:
                await self._tell(key, document, error)
            raise
        self._failures.pop(key, None)
        return due

    async def _pass(self, key: Key, document: Document) -> float | None:
        run = TrainingRun.from_object(document)
        restored = restored_status(run, self._now())
        try:
            if restored is not None:
                _log.warning("%s: has ended before, as its mark says: it does not train again", key)
                await self._write(document, restored.to_dict())
                return 0.0
            case = await self._recalled(run) or await self._act(run)
            if is_finished(run.status):
                known = with_stored(document["status"], case.outcome.stored)
                await self._write(document, restamp(known, run.metadata.generation))
                return self._requeue_after(case, run.status)
            status = next_status(case)
            stored = run.status if status == run.status else await self._write(document, status.to_dict())
            await self._emit_events(run.metadata, run.status, stored)
            if is_finished(stored):  # what the end was decided from is new enough for what is left to do
                case = await self._perform_all(dataclasses.replace(case.with_status(stored), outcome=Outcome()))
                return 0.0 if case.outcome.stored is not None else self._requeue_after(case, stored)
        except (ConflictError, StaleError):
            self._known.doubt(key)
            return 0.0  # somebody changed it since it was read: start again from what it is now
        if stored != run.status and decide.next_action(case.with_status(stored)) is not None:
            return 0.0  # something was waiting for what is stored now; nobody tells us of our own write
        return self._requeue_after(case, status)

    async def _recalled(self, run: TrainingRun) -> Case | None:
        """The case as the watches have told it, where it leads to nothing but a status of a run that goes on.

        What they told may be a moment old: whatever else it leads to is decided from what is read. Only a suspension
        does not wait for that: the API server refuses it if the Job has changed.
        """
        if is_finished(run.status):
            return None
        seen = await self._gatherer.recall(run, self._now())
        if seen is None:
            return None
        case = Case(run, seen, Outcome(), self._settings, self._now())
        action = decide.next_action(case)
        if isinstance(action, decide.SuspendJob):
            case = await self._effects.perform(case, action)
            action = decide.next_action(case)
        return case if action is None and not is_finished(next_status(case)) else None

    async def _act(self, run: TrainingRun) -> Case:
        """Read everything, then do all that follows."""
        seen = await self._gatherer.gather(run, self._now())
        return await self._perform_all(Case(run, seen, Outcome(), self._settings, self._now()))

    async def _perform_all(self, case: Case) -> Case:
        """Perform one action after the other until none is left."""
        run = case.run.metadata
        for _ in range(MAXIMUM_ACTIONS):
            action = decide.next_action(case)
            if action is None:
                return case
            _log.debug("%s/%s: %s", run.namespace, run.name, type(action).__name__)
            case = await self._effects.perform(case, action)
        raise RuntimeError(f"still {action} after {MAXIMUM_ACTIONS} actions")

    async def _write(self, document: Document, content: Document) -> TrainingRunStatus:
        """Replace the status, if it differs, and return what the API server keeps of it. Raises KubernetesError."""
        uid, before = document["metadata"]["uid"], document.get("status") or {}
        if content == before or content == self._shortened.get(uid):
            # the second: its definition is older or newer than ours, it keeps less than this, and always will
            return TrainingRunStatus.model_validate(before)
        try:
            stored = await self._kubernetes.replace_run_status({**document, "status": content})
        except KubernetesError as error:
            unwanted = {_top(cause.field) for cause in error.causes if cause.field.startswith("status.")} - {
                "conditions"
            }
            if error.status != 422 or not unwanted:
                raise
            _log.warning("%s: the API server refuses %s of the status: %s", uid, sorted(unwanted), described(error))
            content = {name: value for name, value in content.items() if name not in unwanted}
            stored = await self._kubernetes.replace_run_status({**document, "status": content})
        kept = stored.get("status") or {}
        if kept != content:
            if len(self._shortened) >= SHORTENED_SIZE:
                self._shortened.clear()
            self._shortened[uid] = content
        return TrainingRunStatus.model_validate(kept)

    async def _tell(self, key: Key, document: Document, error: Exception) -> None:
        """Let the run say that it cannot be looked at; the error itself is raised by the caller anyway."""
        try:
            old = TrainingRunStatus.model_validate(document.get("status") or {})
            if is_finished(old):
                return
            metadata = document["metadata"]
            status = troubled_status(old, trouble_of(error, key), metadata["generation"], self._now())
            if status != old:
                stored = await self._write(document, status.to_dict())
                await self._emit_events(ObjectMeta.model_validate(metadata), old, stored)
        except Exception as another:  # noqa: BLE001 - the API server is away: nothing can be said, and all is tried again
            _log.warning("%s: cannot say that it fails: %s", key, described(another))

    def _requeue_after(self, case: Case, status: TrainingRunStatus) -> float | None:
        """Watches wake a run when its Job or pods change; what nobody watches is asked for again and again."""
        if is_finished(status):
            job = case.seen.job
            if job is not None and not job.ended:
                return max(1.0, decide.lingers(case).total_seconds())
            refused = case.outcome.refusal is not None or case.outcome.mark_refused
            finished = status.condition(conditions.FINISHED)
            since = (self._now() - finished.last_transition_time).total_seconds() if finished else 0.0
            return min(WATCHED_SECONDS, max(SELDOM_SECONDS, since / 6)) if refused else None
        refusal = case.outcome.refusal
        if refusal is not None and refusal.answer is Answer.RETRIES and status.waiting is not None:
            waited = (self._now() - status.waiting.since).total_seconds()
            return max(1.0, min(SELDOM_SECONDS, waited / 2), refusal.retry_after or 0.0)
        pod, job = case.pod, case.job
        if status.waiting is not None:
            told = status.waiting.reason == reasons.UNSCHEDULABLE and pod is not None and pod.awaits_a_node
            return waiting_seconds(self._now() - status.waiting.since, self._settings, watched=told)
        pending = job is not None and not job.suspended and (pod is None or pod.phase != "Running")
        untold = job is not None and bool(job.queue) and case.run.spec.suspend and case.seen.workload is None
        if pending and pod is not None:  # what only Events tell of; a long pull is asked for more seldom
            return min(TOLD_SECONDS, max(SOON_SECONDS, (self._now() - pod.created).total_seconds() / 6))
        return SOON_SECONDS if pending or untold else None

    async def _emit_events(self, run: ObjectMeta, old: TrainingRunStatus, new: TrainingRunStatus) -> None:
        if self._on_status is not None:
            self._on_status(run, old, new)
        for draft in events_between(old, new, run.name):
            try:
                await self._kubernetes.create_event(run.namespace, build_event(run, draft, self._now()))
            except KubernetesError as error:
                _log.warning("%s/%s: Event not emitted: %s", run.namespace, run.name, described(error))


def waiting_seconds(waited: timedelta, settings: Settings, *, watched: bool = False) -> float:
    """Seconds until a run that has waited so long is looked at again: the longer it waits the rarer, but in time.

    What expires must not be found long after its time, so that the pause is never longer than what is left of it.
    """
    seconds = waited.total_seconds()
    pause = WATCHED_SECONDS if watched else min(SELDOM_SECONDS, max(SOON_SECONDS, seconds / 6))
    left = settings.reference_timeout_seconds - seconds
    return max(1.0, min(pause, left)) if 0 < left < pause else pause


def trouble_of(error: Exception, key: Key) -> Finding:
    """What a pass that failed says to people."""
    name = f"TrainingRun/{key.name}"
    if isinstance(error, KubernetesError):
        return classify(error.said_status, error.message, about=name, doing=Doing.GO_ON).finding
    if isinstance(error, ValidationError):
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:3])
        hint = "The object may be of a newer version: use an operator of the CustomResourceDefinition's version."
        return wait(reasons.OPERATOR_ERROR, f"this operator cannot read the run: {problems}", name, hint)
    return Finding(Verdict.WAIT, reasons.OPERATOR_ERROR, f"{type(error).__name__}: {error}", name)


def _top(field: str) -> str:
    """The field of the status that a cause such as `status.attemptHistory[0].step` is about."""
    return field.split(".")[1].split("[", maxsplit=1)[0]
