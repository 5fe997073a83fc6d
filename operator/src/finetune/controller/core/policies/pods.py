"""The pod as a whole: whether it may be made, whether it goes away, and whether its node is there."""

from __future__ import annotations

from datetime import timedelta

from finetune.api import reasons
from finetune.controller.core.case import Case
from finetune.controller.core.findings import Finding, Verdict, wait
from finetune.controller.core.refusals import classify_words
from finetune.controller.core.views import EventView, PodView

SLOW_TERMINATION = timedelta(seconds=60)
"""Past its grace period a pod that is still terminating has probably lost its node."""

LOST_NODE_HINT = (
    "If the node is lost, delete the Node, or taint it with node.kubernetes.io/out-of-service; the run then goes on."
)

_ABOUT_CREATION = ("FailedCreate", "SuccessfulCreate", "Suspended", "Resumed")
_PROGRESS = frozenset({"Scheduled", "Pulling", "Pulled", "Created", "Started", "SuccessfulAttachVolume"})
"""Events after which an earlier warning of the kubelet is history."""


def creation_refused(case: Case) -> Finding | None:
    """The Job may not create its pod: a quota (which may free up) or an admission rule (which will not).

    Only the newest of the Job's Events about its pods counts; they have one clock.
    """
    job, last = case.job, case.pod
    if job is None or job.ended or job.suspended or (last is not None and not last.finished):
        return None
    told = [event for event in case.seen.events if event.reason in _ABOUT_CREATION]
    if not told or told[-1].reason != "FailedCreate":
        return None
    finding = classify_words(told[-1].message.removeprefix("Error creating: "), about=f"Job/{job.name}").finding
    if finding.verdict is Verdict.EXPIRE and last is not None:
        return wait(finding.reason, finding.message, finding.object, finding.hint)  # it let an earlier attempt pass
    return finding


def terminating(case: Case) -> Finding | None:
    """A pod that should long be gone: the node is probably lost, and only a person can say so."""
    pod = next(
        (each for each in (*case.seen.pods, *case.seen.collect_pods) if each.deleted and not each.finished), None
    )
    if pod is None:
        return None
    name = f"Pod/{pod.name}"
    grace = timedelta(seconds=case.settings.termination_grace_seconds)
    if case.waited(reasons.TERMINATING, name) <= grace + SLOW_TERMINATION:
        if case.run.spec.suspend:
            return wait(reasons.TERMINATING, "the pod is saving its checkpoint", name)
        return wait(reasons.TERMINATING, f"pod {pod.name} is being stopped, and saves its checkpoint", name)
    return wait(
        reasons.TERMINATING,
        f"pod {pod.name} on node {pod.node or '?'} is still terminating, and no other pod may start before it is gone",
        name,
        LOST_NODE_HINT,
    )


def node_not_ready(case: Case) -> Finding | None:
    """The pod runs, as far as anybody knows, on a node that does not report."""
    pod = case.pod
    if pod is None or not pod.unheard or pod.finished:
        return None
    return wait(
        reasons.NODE_NOT_READY,
        f"node {pod.node} does not report; pod {pod.name} may still be training there",
        f"Node/{pod.node}",
        LOST_NODE_HINT,
    )


def told_by_an_event(case: Case) -> Finding | None:
    """Whatever else keeps the pod from starting, in the words of the newest warning about it."""
    pod, job = case.pending_pod, case.job
    if pod is None or job is None or not pod.awaits_a_start:
        return None
    told = [event for event in _since_the_last_end(case, pod) if event.warning or event.reason in _PROGRESS]
    if not told or told[-1].reason in _PROGRESS or told[-1].reason in _ABOUT_CREATION:
        return None
    newest = told[-1]
    return wait(reasons.POD_NOT_STARTED, f"{newest.reason}: {newest.message}", f"Pod/{pod.name}")


def _since_the_last_end(case: Case, pod: PodView) -> list[EventView]:
    """The Events about what the pod still waits for: what was before a container's end is history, by one clock."""
    ended = max((each.finished for each in pod.containers if each.finished is not None), default=None)
    return [each for each in case.seen.events if ended is None or each.time is None or each.time >= ended]
