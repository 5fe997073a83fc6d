"""Where the pod may run: nodes, claims and volumes."""

from __future__ import annotations

import re
from datetime import timedelta

from finetune.api import reasons
from finetune.controller.core.case import Case
from finetune.controller.core.findings import Finding, expire, wait
from finetune.controller.core.storage import claim_names
from finetune.controller.core.views import EventView

from .missing import missing_reference

PROVISIONING_FAILED = "ProvisioningFailed"
"""Reason of a claim's Event: its StorageClass does not exist, or cannot make a volume."""

_NO_CLASS = re.compile(r'storageclass\S* "([^"]+)" not found', re.IGNORECASE)
_MOUNT_TROUBLE = ("FailedMount", "FailedAttachVolume", "FailedMapVolume")
_SUMMARY = "unable to attach or mount volumes"
_SAID_AGAIN = timedelta(minutes=5)
"""A kubelet tries a mount again, and says again why it fails, after two minutes at the latest."""
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
    told = _mount_trouble(case.seen.events)
    if told is None:
        return None
    missing = missing_reference(case, told.message)
    return missing or wait(reasons.VOLUME_NOT_MOUNTED, told.message, f"Pod/{pod.name}")


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


def _mount_trouble(events: tuple[EventView, ...]) -> EventView | None:
    """The newest Event of a mount that failed, unless the mounts are done by now.

    Now and then the kubelet only sums up which volumes it still waits for: then the last one that says why counts.
    """
    since = next((n for n, event in enumerate(reversed(events)) if event.reason in _AFTER_MOUNT), len(events))
    told = [event for event in events[len(events) - since :] if event.reason in _MOUNT_TROUBLE]
    newest = told[-1] if told else None
    if newest is None or newest.time is None:
        return newest
    recent = [event for event in told if event.time is not None and newest.time - event.time <= _SAID_AGAIN]
    return next((event for event in reversed(recent) if _SUMMARY not in event.message.lower()), newest)
