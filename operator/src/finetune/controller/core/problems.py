"""What a run that is not failed waits for, and whether waiting may ever help.

`problem_of` is an ordered list of policies; each looks at the observation and says what is in the way, or nothing. The
Events matter: quota and Pod Security refusals, missing ConfigMaps and unbound claims appear nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from finetune.api import reasons
from finetune.api.trainingrun import TrainingRun

from .observe import Observation, ParentView, PodView
from .storage import claim_names

REGISTRY_UNAVAILABLE = "RegistryUnavailable"
JOB_NAME_TAKEN = "JobNameTaken"
PROVISIONING_FAILED = "ProvisioningFailed"
"""Reason of a claim's Event: its StorageClass does not exist, or cannot make a volume."""

_IMAGE_REASONS = (
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
)
_MISSING = re.compile(r'(configmap|secret|persistentvolumeclaim) "([^"]+)" not found|non-existent config key: (\S+)')


@dataclass(frozen=True)
class Problem:
    """Something in the way of a run.

    Attributes
    ----------
    reason: a failure reason, or the reason of a wait that never becomes a failure.
    expires: after `referenceTimeoutSeconds` the run fails with this reason; otherwise it waits as long as it takes.
    """

    reason: str
    message: str
    expires: bool


def problem_of(run: TrainingRun, seen: Observation) -> Problem | None:
    """What the run waits for now; None when nothing is in its way."""
    for policy in _POLICIES:
        problem = policy(run, seen)
        if problem is not None:
            return problem
    return None


def _dataset_missing(run: TrainingRun, seen: Observation) -> Problem | None:
    """The registry has no such dataset."""
    if seen.job is None and seen.dataset is not None and seen.dataset.missing:
        del run
        return Problem(reasons.DATASET_UNAVAILABLE, seen.dataset.missing, expires=True)
    return None


def _parent_missing(run: TrainingRun, seen: Observation) -> Problem | None:
    """There is no such adapter, or the claim that holds it is gone."""
    del run
    if seen.job is None and seen.parent_missing:
        return Problem(reasons.PARENT_ADAPTER_UNAVAILABLE, seen.parent_missing, expires=True)
    return None


def _registry_away(run: TrainingRun, seen: Observation) -> Problem | None:
    """The registry does not answer, or not with what is needed; nothing is lost until it does."""
    del run
    return Problem(REGISTRY_UNAVAILABLE, seen.registry_error, expires=False) if seen.registry_error else None


def _name_taken(run: TrainingRun, seen: Observation) -> Problem | None:
    """A Job of an earlier run has the name; it is being deleted."""
    del run
    return Problem(JOB_NAME_TAKEN, seen.name_taken, expires=False) if seen.name_taken else None


def _creation_refused(run: TrainingRun, seen: Observation) -> Problem | None:
    """The API server refused to create the Job or the claim."""
    if not seen.refused:
        return None
    started = run.status.job_name is not None  # a result that waits to be collected is never given up
    return Problem(reasons.POD_CREATION_REFUSED, seen.refused, expires=not started and not _is_quota(seen.refused))


def _pod_refused(run: TrainingRun, seen: Observation) -> Problem | None:
    """The Job may not create its pod: a quota (which may free up) or an admission rule (which will not).

    A rule that let an earlier attempt pass may do so again.
    """
    del run
    last = seen.newest_pod
    if seen.job is None or (last is not None and not last.finished):
        return None
    refusal = next((event for event in reversed(seen.events) if event.reason == "FailedCreate"), None)
    if refusal is None or (last is not None and refusal.time is not None and refusal.time <= last.created):
        return None
    expires = last is None and not _is_quota(refusal.message)
    return Problem(reasons.POD_CREATION_REFUSED, refusal.message, expires=expires)


def _image_missing(run: TrainingRun, seen: Observation) -> Problem | None:
    """The image cannot be pulled."""
    del run
    pod = _pending_pod(seen)
    for container in (pod.export, pod.trainer) if pod else ():
        if container.waiting_reason in _IMAGE_REASONS:
            return Problem(
                reasons.IMAGE_PULL_FAILED,
                f"{container.waiting_reason}: {container.waiting_message}",
                expires=True,
            )
    return None


def _container_refused(run: TrainingRun, seen: Observation) -> Problem | None:
    """A container cannot be made, mostly since a Secret is missing; the runtime's own errors may pass."""
    pod = _pending_pod(seen)
    for container in (pod.export, pod.trainer) if pod else ():
        if container.waiting_reason == "CreateContainerConfigError":
            return _missing_reference(run, seen, container.waiting_message) or Problem(
                reasons.ACCESS_DENIED, container.waiting_message, expires=True
            )
        if container.waiting_reason in ("CreateContainerError", "RunContainerError"):
            text = f"{container.waiting_reason}: {container.waiting_message}"
            return Problem(reasons.INTERNAL_ERROR, text, expires=False)
    return None


def _volume_missing(run: TrainingRun, seen: Observation) -> Problem | None:
    """A ConfigMap or claim that the pod mounts does not exist, or is in use elsewhere; only an Event says so."""
    pod = _pending_pod(seen)
    if pod is None or pod.export.exit_code is not None or pod.export.running_since is not None:
        return None
    for event in reversed(seen.events):
        if event.reason in ("FailedMount", "FailedAttachVolume"):
            return _missing_reference(run, seen, event.message) or Problem(
                reasons.UNSCHEDULABLE, event.message, expires=False
            )
    return None


def _unschedulable(run: TrainingRun, seen: Observation) -> Problem | None:
    """No node fits, which may change; a claim that does not exist is named."""
    pod = _pending_pod(seen)
    if pod is None or not pod.unschedulable:
        return None
    message = pod.unschedulable
    if "unbound" in message:  # the scheduler says neither which nor why; an Event of the claim may
        refusal = next((event.message for event in reversed(seen.events) if event.reason == PROVISIONING_FAILED), None)
        if refusal is not None:
            return Problem(reasons.UNSCHEDULABLE, refusal, expires="not found" in refusal)
        message += f" (the run's claims: {', '.join(claim_names(run, _parent_of(seen)))})"
    return _missing_reference(run, seen, message) or Problem(reasons.UNSCHEDULABLE, message, expires=False)


_POLICIES: tuple[Callable[[TrainingRun, Observation], Problem | None], ...] = (
    _dataset_missing,  # named before the registry's silence: it is what the user can act on
    _parent_missing,
    _registry_away,
    _name_taken,
    _creation_refused,
    _pod_refused,
    _image_missing,
    _container_refused,
    _volume_missing,
    _unschedulable,
)


def _is_quota(message: str) -> bool:
    return "exceeded quota" in message


def _pending_pod(seen: Observation) -> PodView | None:
    """The newest pod, while it has not ended."""
    pod = seen.newest_pod
    return pod if pod is not None and pod.phase == "Pending" else None


def _parent_of(seen: Observation) -> ParentView | None:
    return seen.job.parent if seen.job else None


def _missing_reference(run: TrainingRun, seen: Observation, message: str) -> Problem | None:
    """The problem behind `secret "x" not found` and its like, by what the spec uses the object for."""
    found = _MISSING.search(message)
    if found is None:
        return None
    kind, name = found.group(1), found.group(2)
    dataset, base, parent = run.spec.dataset, run.spec.base_model, _parent_of(seen)
    if kind in ("configmap", None):
        reason = reasons.DATASET_UNAVAILABLE
    elif kind == "secret":
        reason = reasons.ACCESS_DENIED
    elif base.volume and base.volume.claim_name == name:
        reason = reasons.BASE_MODEL_UNAVAILABLE
    elif dataset.volume and dataset.volume.claim_name == name:
        reason = reasons.DATASET_UNAVAILABLE
    elif parent is not None and parent.claim_name == name:
        reason = reasons.PARENT_ADAPTER_UNAVAILABLE
    else:
        reason = reasons.UNSCHEDULABLE
    if kind is None and dataset.config_map:
        text = f'key "{found.group(3)}" not found in ConfigMap "{dataset.config_map.name}"'
    else:
        words = {
            "configmap": "ConfigMap",
            "secret": "Secret",
            "persistentvolumeclaim": "PersistentVolumeClaim",
        }
        text = f'{words.get(kind, kind)} "{name}" not found in namespace "{run.metadata.namespace}"'
    return Problem(reason, text, expires=True)
