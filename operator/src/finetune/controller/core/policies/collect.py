"""Reading the result from the claim, when neither the pod nor the registry has it any more.

A finished training is never lost by the trouble of the Job that reads it: what may pass is waited for with the policies
of any other pod (`Case.job`, `Case.pod`). Only what it read is a verdict.
"""

from __future__ import annotations

from finetune.api import reasons
from finetune.controller.core.case import Case
from finetune.controller.core.findings import Finding, end


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
