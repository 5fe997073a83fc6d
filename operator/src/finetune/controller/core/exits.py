"""Exit codes of export and trainer, and what the Job makes of them (docs/contract.md)."""

from __future__ import annotations

from typing import Any

from finetune.api import reasons

INTERRUPTED = 75
LOST_PEERS = 76

FAIL_JOB = (2, 3, 5, 6, 7, 8, 9, 10)
"""Trying again would end the same way."""

IGNORED = (INTERRUPTED, LOST_PEERS)
"""Not the trainer's fault: they do not count as attempts."""

_REASONS = {
    2: reasons.INVALID_SPEC,
    3: reasons.DATASET_INVALID,
    5: reasons.ACCESS_DENIED,
    6: reasons.DIVERGED,
    7: reasons.STORAGE_FULL,
    8: reasons.GPU_OUT_OF_MEMORY,
    9: reasons.GPU_UNAVAILABLE,
}


def reason_of(exit_code: int, container_reason: str, *, exporting: bool) -> str:
    """The failure reason of a container that left no message of its own."""
    if container_reason == "OOMKilled":
        return reasons.OUT_OF_MEMORY
    if exit_code in (4, 10):
        return reasons.DATASET_UNAVAILABLE if exporting else reasons.BASE_MODEL_UNAVAILABLE
    return _REASONS.get(exit_code, reasons.INTERNAL_ERROR)


def pod_failure_policy() -> dict[str, Any]:
    """The Job's podFailurePolicy; the first rule that matches wins, and kubectl wants `status` written out."""

    def on_exit_codes(action: str, codes: tuple[int, ...]) -> dict[str, Any]:
        return {"action": action, "onExitCodes": {"operator": "In", "values": list(codes)}}

    disruption = {"type": "DisruptionTarget", "status": "True"}
    return {
        "rules": [
            {"action": "Ignore", "onPodConditions": [disruption]},
            on_exit_codes("FailJob", FAIL_JOB),
            on_exit_codes("Ignore", IGNORED),
        ]
    }
