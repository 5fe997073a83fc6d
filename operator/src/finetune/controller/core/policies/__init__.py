"""What may stand in the way of a run: one file a subject, and the order in which they are asked.

`verdict_of` is the one question: which finding counts now, and has the run failed by it?
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from finetune.controller.core.case import Case
from finetune.controller.core.findings import Finding, Verdict

from . import administrator, collect, containers, jobs, placement, pods, queue, references, trainer

Policy = Callable[[Case], Finding | None]

POLICIES: tuple[Policy, ...] = (
    # Ends come first: what has failed waits for nothing.
    administrator.not_allowed,
    references.parent_of_another_base,
    collect.unreadable,
    jobs.deadline_exceeded,
    jobs.failed,
    trainer.interrupted_too_often,
    # Then what is waited for, in the order in which a run meets it.
    references.dataset_missing,
    references.parent_missing,
    references.resume_missing,
    administrator.paused,
    jobs.call_refused,
    jobs.lost,
    jobs.name_taken,
    jobs.being_deleted,
    pods.terminating,
    queue.unreadable,
    queue.held_back,
    queue.suspended_by_other,
    trainer.dead_in_a_living_pod,
    trainer.done_in_a_living_pod,
    collect.failing,
    pods.creation_refused,
    pods.node_not_ready,
    containers.image_missing,
    containers.refused,
    placement.volume_missing,
    placement.unschedulable,
    containers.injected_before_ours,
    pods.told_by_an_event,
    jobs.without_a_pod,
)


def finding_of(case: Case) -> Finding | None:
    """The first thing that is in the run's way; None when nothing is."""
    for policy in POLICIES:
        finding = policy(case)
        if finding is not None:
            return finding
    return None


def verdict_of(case: Case) -> Finding | None:
    """The finding that counts, its verdict settled: END when the run has failed by it, WAIT when it goes on waiting.

    What expires ends only a run that has not trained, when it has waited for this very thing long enough, and not while
    somebody wants it to rest.
    """
    finding = finding_of(case)
    if finding is None or finding.verdict is not Verdict.EXPIRE:
        return finding
    limit = timedelta(seconds=case.settings.reference_timeout_seconds)
    if case.trained or case.run.spec.suspend or case.waited(*finding.key) < limit or not _clock_runs(case, finding):
        return finding
    return replace(
        finding,
        verdict=Verdict.END,
        message=f"{finding.message} (waited {case.settings.reference_timeout_seconds} s)",
    )


def failure_of(case: Case) -> Finding | None:
    """Why the run has failed; None while it has not."""
    verdict = verdict_of(case)
    return verdict if verdict is not None and verdict.verdict is Verdict.END else None


def waiting_of(case: Case) -> Finding | None:
    """What the run waits for; None when it waits for nothing, or has failed."""
    verdict = verdict_of(case)
    return verdict if verdict is not None and verdict.verdict is not Verdict.END else None


def _clock_runs(case: Case, finding: Finding) -> bool:
    """The wait has been stored before: what is seen for the first time is said before it ends anything."""
    waiting = case.run.status.waiting
    if waiting is None:
        return False
    earlier = [(each.reason, each.object) for each in waiting.earlier]
    return finding.key in [(waiting.reason, waiting.object), *earlier]
