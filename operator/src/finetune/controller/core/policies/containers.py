"""Containers that cannot start, and those that somebody else has put in front of ours."""

from __future__ import annotations

from finetune.api import reasons
from finetune.controller.core.case import Case
from finetune.controller.core.findings import Finding, expire, wait
from finetune.controller.core.views import ContainerView

from .missing import missing_reference

_IMAGE_REASONS = (
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
    "SignatureValidationFailed",
)


def image_missing(case: Case) -> Finding | None:
    """An image cannot be pulled; an injected container's is named as such, and is not the run's to mend."""
    for container in _waiting(case):
        if container.waiting_reason not in _IMAGE_REASONS:
            continue
        message = f"{container.waiting_reason}: {container.waiting_message}"
        if _is_injected(case, container):
            return wait(reasons.IMAGE_PULL_FAILED, f"{_name(container)}: {message}", f"Container/{container.name}")
        return expire(reasons.IMAGE_PULL_FAILED, message, f"Image/{case.settings.trainer_image}")
    return None


def refused(case: Case) -> Finding | None:
    """A container cannot be made, mostly since a Secret is missing; the runtime's own errors may pass."""
    for container in _waiting(case):
        if not container.waiting_reason.endswith("Error") and container.waiting_reason != "CrashLoopBackOff":
            continue
        if container.waiting_reason == "CreateContainerConfigError" and not _is_injected(case, container):
            missing = missing_reference(case, container.waiting_message)
            if missing is not None:
                return missing
        message = f"{_name(container)}: {container.waiting_reason}: {container.waiting_message}"
        return wait(reasons.POD_NOT_STARTED, message, f"Container/{container.name}")
    return None


def injected_before_ours(case: Case) -> Finding | None:
    """An init container of the cluster's runs or fails before the export may start."""
    pod = case.pending_pod
    if pod is None or pod.export.started or pod.trainer.started:
        return None
    for container in pod.injected:
        if container.init and not container.sidecar and container.running_since is not None:
            return wait(
                reasons.INIT_CONTAINER_RUNNING,
                f"{_name(container)} of pod {pod.name} runs before the export",
                f"Container/{container.name}",
            )
    return None


def _waiting(case: Case) -> tuple[ContainerView, ...]:
    """The containers of the pending pod that wait for something; ours come first."""
    pod = case.pending_pod or case.pod
    if pod is None or pod.finished:
        return ()
    waiting = [each for each in pod.containers if each.waiting_reason]
    return tuple(sorted(waiting, key=lambda each: each in pod.injected))


def _is_injected(case: Case, container: ContainerView) -> bool:
    return case.pod is not None and container in case.pod.injected


def _name(container: ContainerView) -> str:
    return f'{"init container" if container.init else "container"} "{container.name}"'
