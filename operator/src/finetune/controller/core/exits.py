"""Exit codes of export and trainer, and what the Job makes of them (docs/contract.md)."""

from __future__ import annotations

from typing import Any

from finetune.api import reasons

from .names import EXPORT_CONTAINER, TRAINER_CONTAINER

INTERRUPTED = 75
LOST_PEERS = 76

FAIL_JOB = (2, 3, 5, 6, 8, 10)
"""Trying again would end the same way. Not so a full claim (7), where somebody may make room, and a broken GPU (9), for
another node may do."""

IGNORED = (INTERRUPTED, LOST_PEERS)
"""Not the trainer's fault: they do not count as attempts."""

KILLED = (137, 143)
"""SIGKILL, and SIGTERM without a checkpoint: the container could not say how far it had come."""

NODE_RESTARTED = ("ContainerStatusUnknown", "Unknown")
"""What a node says of a container, with an exit code of its own choice, that was gone when the node came back."""

_REASONS = {
    2: reasons.INVALID_SPEC,
    3: reasons.DATASET_INVALID,
    5: reasons.ACCESS_DENIED,
    6: reasons.DIVERGED,
    7: reasons.STORAGE_FULL,
    8: reasons.GPU_OUT_OF_MEMORY,
    9: reasons.GPU_UNAVAILABLE,
    11: reasons.HUNG,
}


def reason_of(exit_code: int, container_reason: str, *, exporting: bool) -> str:
    """The failure reason of a container that left no message of its own."""
    if container_reason == "OOMKilled":
        return reasons.OUT_OF_MEMORY
    if container_reason in NODE_RESTARTED:
        return reasons.NODE_LOST
    if exit_code in (4, 10):
        return reasons.DATASET_UNAVAILABLE if exporting else reasons.BASE_MODEL_UNAVAILABLE
    return _REASONS.get(exit_code, reasons.INTERNAL_ERROR)


def pod_failure_policy() -> dict[str, Any]:
    """The training Job's podFailurePolicy; the first rule that matches wins, and kubectl wants `status` written out.

    Each rule of exit codes names its container: without a name it would read those of injected containers, too.
    """
    containers = (EXPORT_CONTAINER, TRAINER_CONTAINER)
    rules = [_on_exit_codes("FailJob", name, FAIL_JOB) for name in containers]
    rules += [_on_exit_codes("Ignore", name, IGNORED) for name in containers]
    return {"rules": [_DISRUPTION, *rules]}


def claim_failure_policy(container: str) -> dict[str, Any]:
    """Of a Job that reads the claim: no interruption counts, and what it read and found missing is final."""
    return {"rules": [_DISRUPTION, _on_exit_codes("FailJob", container, (2, 10))]}


_DISRUPTION: dict[str, Any] = {
    "action": "Ignore",
    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
}


def _on_exit_codes(action: str, container: str, codes: tuple[int, ...]) -> dict[str, Any]:
    return {"action": action, "onExitCodes": {"containerName": container, "operator": "In", "values": list(codes)}}
