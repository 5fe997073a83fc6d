"""The trainer's own end: its verdicts, its interruptions, and a pod that does not end with it."""

from __future__ import annotations

from finetune.api import reasons
from finetune.api.trainingrun import TrainingRun
from finetune.controller.core.attempts import failure_reason, interruptions_without_progress
from finetune.controller.core.case import Case
from finetune.controller.core.findings import Finding, end, wait
from finetune.controller.core.storage import output_claim_name
from finetune.controller.core.views import ContainerView, PodView


def interrupted_too_often(case: Case) -> Finding | None:
    """Interruptions are free, but not endless."""
    if case.done or (case.seen.job is not None and case.seen.job.suspended):
        return None
    count = interruptions_without_progress(case.attempts)
    if count <= case.settings.max_interruptions:
        return None
    last = case.seen.newest_pod
    said = f" (the last time: {last.message.strip()})" if last and last.message else ""
    return end(
        reasons.RETRIES_EXHAUSTED,
        f"interrupted {count} times in a row without a new checkpoint{said}; lower training.checkpointSteps or move "
        "the run to nodes that are not preempted",
    )


def crashed(pod: PodView | None) -> bool:
    """Its trainer has died, or its export, and the Job cannot see it: a container beside it keeps the pod alive."""
    if pod is None or pod.finished or pod.deleted is not None or not pod.lives_on:
        return False
    return pod.trainer.failed


def dead_in_a_living_pod(case: Case) -> Finding | None:
    """A crash beside a sidecar is a crash: the pod is deleted, which the Job counts by the trainer's exit code."""
    pod = case.pod
    if pod is None or not crashed(pod):
        return None
    beside = ", ".join(f'"{each.name}"' for each in pod.lives_on)
    return wait(
        reasons.SIDECAR_RUNNING,
        f"the trainer of pod {pod.name} ended with exit code {pod.trainer.exit_code}, and container {beside} keeps the "
        f"pod alive: it is deleted {case.settings.linger_seconds:.0f} s after that, and the next attempt goes on",
        f"Pod/{pod.name}",
    )


def done_in_a_living_pod(case: Case) -> Finding | None:
    """The trainer is done and another container goes on; said while the result is not registered yet."""
    pod = next((each for each in case.seen.pods if each.trainer.succeeded and not each.finished), None)
    if pod is None or not pod.lives_on or case.outcome.adapter is not None or case.result is None:
        return None
    beside = ", ".join(f'"{each.name}"' for each in pod.lives_on)
    return wait(
        reasons.SIDECAR_RUNNING,
        f"the training is done; container {beside} keeps pod {pod.name} alive until the Job is deleted, after the "
        "registration",
        f"Pod/{pod.name}",
    )


def failure_of_pod(pod: PodView, run: TrainingRun) -> Finding:
    """A pod's own reason and last words, with the node or the claim that it is about."""
    words = pod.last_words
    if pod.over_its_limit:
        reason = failure_reason(pod, words or ContainerView())
        code = words.exit_code if words else None
        return end(reason, f"pod {pod.name} was evicted: {pod.message.strip()}", exit_code=code)
    if words is None or (not words.failed and pod.culprit is not None):
        return _without_our_words(pod)
    reason = failure_reason(pod, words)
    own = words.message.failure
    if own is not None and words.exit_reason != "OOMKilled":
        return end(reason, own.message + _place(reason, pod, run), exit_code=words.exit_code, row=own.row)
    detail = words.message.text or words.exit_reason or "no last words"
    if words.exit_reason == "OOMKilled":
        field = "spec.resources.memory" if words is pod.trainer else "the larger of 1Gi and spec.resources.memory"
        detail = f"it needed more memory than its limit ({field}: {run.spec.resources.memory})"
    message = f"container {words.name} of pod {pod.name} ended with exit code {words.exit_code}: {detail}"
    return end(reason, message + _place(reason, pod, run), exit_code=words.exit_code)


def last_failed_pod(pods: tuple[PodView, ...]) -> PodView | None:
    """The last pod that failed."""
    return max((pod for pod in pods if pod.phase == "Failed"), key=lambda pod: (pod.created, pod.name), default=None)


def _place(reason: str, pod: PodView, run: TrainingRun) -> str:
    """Where it happened, when that is what a person must look at."""
    if reason in (reasons.GPU_UNAVAILABLE, reasons.GPU_OUT_OF_MEMORY, reasons.HUNG, reasons.NODE_LOST):
        return f" (pod {pod.name} on node {pod.node or '?'})"
    if reason == reasons.STORAGE_FULL:
        return f" (PersistentVolumeClaim {output_claim_name(run)})"
    return ""


def _without_our_words(pod: PodView) -> Finding:
    culprit = pod.culprit
    if culprit is not None:
        kind = "init container" if culprit.init else "container"
        said = culprit.message.text or culprit.exit_reason or "no last words"
        return end(
            reasons.SIDECAR_FAILED,
            f'{kind} "{culprit.name}" of pod {pod.name}, which the cluster has added, ended with exit code '
            f"{culprit.exit_code}: {said}",
            exit_code=culprit.exit_code,
        )
    reason = reasons.NODE_LOST if pod.reason else reasons.INTERNAL_ERROR
    said = f"{pod.reason}: {pod.message.strip()}" if pod.reason and pod.message else pod.reason or pod.phase
    return end(reason, f"pod {pod.name} on node {pod.node or '?'} ended without a word ({said})")
