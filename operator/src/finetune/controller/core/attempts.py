"""Attempts: one record for each pod of the run, kept in the status because pods disappear."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from finetune.api import reasons
from finetune.api.status import MAX_ATTEMPT_HISTORY, Attempt, Progress

from .exits import IGNORED, KILLED, NODE_RESTARTED, reason_of
from .storage import SHARED_MEMORY
from .views import ContainerView, PodView, ProgressView, whole_number

COMPLETED = "Completed"
INTERRUPTED = "Interrupted"
SUSPENDED = "Suspended"
"""A person or a queue stopped it: however often that happens, it says nothing of the run."""
GONE = "Gone"
"""The pod disappeared before anybody saw how it ended."""


def merge_attempts(
    history: Iterable[Attempt],
    pods: Iterable[PodView],
    now: datetime,
    *,
    suspended: bool = False,
    step: int | None = None,
) -> tuple[Attempt, ...]:
    """The attempts known so far and what the pods say now; a pod that is gone keeps its record, ended at `now`.

    Only the newest are kept, by their start: a pod outlives its record, and must not come back as a new attempt. What
    is stopped while the Job is `suspended` has not failed. `step` is the newest step that is known to be kept: an
    attempt that was lost without a word has come this far.
    """
    records = {attempt.uid: attempt for attempt in history}
    seen = {pod.uid: pod for pod in pods}
    for uid, record in records.items():
        if uid not in seen and record.completion_time is None:
            reason = SUSPENDED if suspended or record.reason == SUSPENDED else GONE
            records[uid] = record.model_copy(update={"completion_time": now, "reason": reason, "step": step})
    for pod in sorted(seen.values(), key=lambda pod: (pod.created, pod.name)):
        if pod.scheduled or pod.uid in records:
            records[pod.uid] = attempt_of(pod, records.get(pod.uid), now, suspended=suspended, step=step)
    in_order = sorted(records.values(), key=lambda a: (a.start_time or now, a.completion_time or now, a.pod))
    return tuple(in_order[-MAX_ATTEMPT_HISTORY:])


def count_attempts(before: Iterable[Attempt], after: Iterable[Attempt]) -> int:
    """How many attempts are in `after` and were not in `before`."""
    known = {attempt.uid for attempt in before}
    return sum(attempt.uid not in known for attempt in after)


def known_step(reported: Progress | None, latest: ProgressView | None) -> int | None:
    """The newest step that is known to be kept: the newest checkpoint's, else the last that the trainer reported."""
    steps = [reported.checkpoint_step or reported.step] if reported else []
    if latest is not None:
        metrics = latest.metrics
        steps.append(whole_number(metrics.get("checkpointStep")) or whole_number(metrics.get("step")))
    return max((step for step in steps if step is not None), default=None)


def attempt_of(
    pod: PodView, known: Attempt | None, now: datetime, *, suspended: bool = False, step: int | None = None
) -> Attempt:
    """The record of one pod; what was known of its end is kept, but for last words that are heard after it is gone."""
    if known is not None and known.completion_time is not None and not _says_more(pod, known):
        return known
    start = pod.scheduled or (known.start_time if known else None)
    # kept from pass to pass: the Job may go on before its pod has ended, or is known to be deleted
    suspended = suspended or (known is not None and known.reason == SUSPENDED and pod.deleted is not None)
    begun = Attempt(
        pod=pod.name,
        uid=pod.uid,
        start_time=start,
        node=pod.node or None,
        reason=SUSPENDED if suspended and not pod.disrupted else None,
    )
    if not pod.finished and pod.trainer.exit_code is None:
        return begun  # a trainer that has ended ends the attempt, whatever keeps its pod alive
    words = pod.last_words or ContainerView()
    interrupted = words.message.interrupted
    silent = words.exit_code is None or words.exit_code in KILLED or words.exit_reason in NODE_RESTARTED
    lost = step if silent else None
    ends = [time for time in (words.finished, pod.disrupted_at, now) if time is not None]
    return begun.model_copy(
        update={
            "completion_time": words.finished or min(ends),
            "exit_code": words.exit_code,
            "reason": _end_reason(pod, words, suspended=suspended),
            "step": interrupted.step if interrupted else lost,
        }
    )


def _says_more(pod: PodView, known: Attempt) -> bool:
    """The record was closed because the pod was gone; the watch is later than a list, and now tells how it ended."""
    if known.reason == GONE:
        return True
    return known.reason == SUSPENDED and known.exit_code is None and pod.trainer.exit_code is not None


def added_gpu_seconds(before: Iterable[Attempt], after: Iterable[Attempt], gpus: int) -> int:
    """What the GPU seconds of the attempts in `after` have grown by since `before`."""
    after = tuple(after)
    kept = {attempt.uid for attempt in after}
    counted = [attempt for attempt in before if attempt.uid in kept]
    return gpu_seconds(after, gpus) - gpu_seconds(counted, gpus)


def gpu_seconds(attempts: Iterable[Attempt], gpus: int) -> int:
    """Seconds that ended attempts held their GPUs (from the node's assignment on), times the number of GPUs."""
    total = sum(
        max(0.0, (attempt.completion_time - attempt.start_time).total_seconds())
        for attempt in attempts
        if attempt.start_time and attempt.completion_time
    )
    return round(total) * gpus


def interruptions_without_progress(attempts: Iterable[Attempt]) -> int:
    """How many of the newest attempts in a row were interrupted without a step beyond all before them."""
    count, best = 0, -1
    for attempt in attempts:
        if attempt.completion_time is None or attempt.reason == SUSPENDED:
            continue
        came_further = attempt.step is not None and attempt.step > best
        best = max(best, attempt.step if attempt.step is not None else -1)
        count = 0 if not _is_free(attempt) else 1 if came_further else count + 1
    return count


def _is_free(attempt: Attempt) -> bool:
    """The Job does not count it, whatever it is called."""
    return attempt.reason == INTERRUPTED or attempt.exit_code in IGNORED


def _end_reason(pod: PodView, words: ContainerView, *, suspended: bool) -> str:
    if pod.phase == "Succeeded" or (words.succeeded and words is pod.trainer):
        return COMPLETED  # a sidecar that ends badly does not undo it
    silent = words.exit_code is None or words.exit_code in KILLED
    if suspended and pod.deleted is not None and not pod.disrupted and (silent or words.exit_code in IGNORED):
        return SUSPENDED
    if pod.disrupted or (words.exit_code in IGNORED and not pod.over_its_limit):
        return INTERRUPTED
    return failure_reason(pod, words)


def failure_reason(pod: PodView, words: ContainerView) -> str:
    """One word for why a pod failed: its own, else by exit code, else that its node is gone."""
    if pod.over_its_limit:  # killed within a second: what it could still say is not why
        return reasons.OUT_OF_MEMORY if f'"{SHARED_MEMORY}"' in pod.message else reasons.STORAGE_FULL
    if words.exit_code is None and pod.culprit is not None:
        return reasons.SIDECAR_FAILED
    if words.exit_reason != "OOMKilled" and words.message.failure:
        own = words.message.failure.reason
        return own if own in reasons.FAILURE_REASONS else reasons.INTERNAL_ERROR
    if words.exit_code is None:
        return reasons.NODE_LOST if pod.reason else reasons.INTERNAL_ERROR  # the kubelet's word: lost, full, or refused
    return reason_of(words.exit_code, words.exit_reason, exporting=words is pod.export)
