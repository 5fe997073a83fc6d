"""Where the pod may run: nodes, claims and volumes."""

from __future__ import annotations

import re

from finetune.api import reasons
from finetune.controller.core.case import Case
from finetune.controller.core.findings import Finding, expire, wait
from finetune.controller.core.storage import claim_names

from .missing import missing_reference

PROVISIONING_FAILED = "ProvisioningFailed"
"""Reason of a claim's Event: its StorageClass does not exist, or cannot make a volume."""

_NO_CLASS = re.compile(r'storageclass\S* "([^"]+)" not found', re.IGNORECASE)
_MOUNT_TROUBLE = ("FailedMount", "FailedAttachVolume", "FailedMapVolume")
_AFTER_MOUNT = ("Pulling", "Pulled", "Created", "Started")
"""Events that only come once everything is mounted."""

NODE_HINT = (
    "Compare spec.resources and spec.scheduling with the nodes (kubectl describe nodes shows what is free). The run "
    "waits without end, unless spec.activeDeadlineSeconds is set."
)


def volume_missing(case: Case) -> Finding | None:
    """A ConfigMap or claim that the pod mounts does not exist, or is in use elsewhere; only an Event says so."""
    pod = case.pending_pod
    if pod is None or pod.export.started or pod.trainer.started:
        return None
    for event in reversed(case.seen.events):
        if event.reason in _AFTER_MOUNT:
            return None
        if event.reason in _MOUNT_TROUBLE:
            missing = missing_reference(case, event.message)
            return missing or wait(reasons.VOLUME_NOT_MOUNTED, event.message, f"Pod/{pod.name}")
    return None


def unschedulable(case: Case) -> Finding | None:
    """No node fits, which may change; a claim that does not exist is named."""
    pod = case.pending_pod
    if pod is None or not pod.unschedulable:
        return None
    message = pod.unschedulable
    if "unbound" in message:  # the scheduler says neither which nor why; an Event of the claim may
        told = (event.message for event in reversed(case.seen.events) if event.reason == PROVISIONING_FAILED)
        refusal = next(told, None)
        if refusal is not None:
            absent = _NO_CLASS.search(refusal)
            if absent is not None:
                return expire(reasons.UNSCHEDULABLE, refusal, f"StorageClass/{absent.group(1)}")
            return wait(reasons.UNSCHEDULABLE, refusal, "PersistentVolumeClaim")
        parent = case.seen.job.parent if case.seen.job else None
        names = ", ".join(claim_names(case.run, parent, case.run.status.resumed_from))
        return wait(reasons.UNSCHEDULABLE, f"{message} (the run's claims: {names})", "PersistentVolumeClaim")
    return missing_reference(case, message) or wait(reasons.UNSCHEDULABLE, message, "Node", NODE_HINT)
