"""Reading the result from the claim, when neither the pod nor the registry has it any more.

A finished training is never lost by the trouble of the Job that reads it: what may pass is waited for with the policies
of any other pod (`Case.job`, `Case.pod`). Only what it read is a verdict.
"""

from __future__ import annotations

from finetune.api import reasons
from finetune.controller.core.case import Case
from finetune.controller.core.findings import Finding, end, wait
from finetune.controller.core.policies.trainer import failure_of_pod
from finetune.controller.core.seen import newest


def unreadable(case: Case) -> Finding | None:
    """The claim was read, and holds no result, or one that its files do not fit."""
    if case.result is not None:
        return None
    for pod in sorted(case.seen.collect_pods, key=lambda pod: pod.created, reverse=True):
        words = pod.trainer
        if words.succeeded:
            detail = words.message.text or "the file holds no result"
        elif words.message.failure is not None and words.message.failure.reason == reasons.ADAPTER_INVALID:
            detail = words.message.failure.message
        else:
            continue
        return end(reasons.ADAPTER_INVALID, f"training_config.json could not be read from the output claim: {detail}")
    return None


def failing(case: Case) -> Finding | None:
    """Whoever reads the claim fails, and not by what is there: it is made again, after a while."""
    job = case.seen.collect_job
    if not case.done or case.result is not None or job is None or case.seen.collected:
        return None
    pod = newest(case.seen.collect_pods)
    if not job.ended and (pod is None or pod.phase != "Failed"):
        return None
    said = failure_of_pod(pod, case.run).message if pod is not None and pod.phase == "Failed" else "its pod is gone"
    return wait(reasons.RESULT_UNREAD, f"the result could not be read from the claim yet: {said}", f"Job/{job.name}")


def may_be_made_anew(case: Case) -> bool:
    """The Job that reads the claim has ended without a verdict, and that was said for a while."""
    job = case.seen.collect_job
    if job is None or not job.ended or job.deleting or case.seen.collected:
        return False
    return case.waited(reasons.RESULT_UNREAD, f"Job/{job.name}") >= case.settings.linger
