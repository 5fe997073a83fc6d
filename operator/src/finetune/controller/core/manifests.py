"""The children of a run, as pure functions from the run to API documents."""

from __future__ import annotations

from typing import Any

from finetune.api import API_VERSION, KIND
from finetune.api.status import ResumeStatus
from finetune.api.trainingrun import OutputClaim, TrainingRun

from . import names
from .arguments import collect_arguments, export_arguments, send_arguments, trainer_arguments
from .environment import callback_variables, model_secrets, source_secrets
from .exits import claim_failure_policy, pod_failure_policy
from .quantities import quantity
from .settings import Settings
from .storage import (
    HOME,
    TOKEN,
    claim_volume,
    export_mounts,
    mount,
    output_claim_name,
    pod_volumes,
    scratch_mounts,
    scratch_volumes,
    token_volume,
    trainer_mounts,
)
from .views import ParentView

Document = dict[str, Any]

USER_ID = 10001
EXPORT_MEMORY = "1Gi"
"""Least memory limit of the export."""
COLLECT_RETRIES = 20
"""Pods of the collect Job that fail before it is made anew; none of them is a verdict. The send Job has as many: with
Kubernetes' pauses between them, that waits for a registry for an hour and a half."""
SEND_SECONDS = 6 * 3600
"""How long the send Job may take at most, also where its pod never starts."""
SEND_TTL_SECONDS = 600
"""How long the send Job stays when it has ended: whoever asks later asks the registry."""


def owner_reference(run: TrainingRun) -> Document:
    """The run as controlling owner: Kubernetes deletes what it owns, also while the operator is down."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": run.metadata.name,
        "uid": run.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def build_claim(run: TrainingRun, settings: Settings) -> Document:
    """The output claim for a run that names none; owned by the run only when it is not to be retained."""
    claim = run.new_output_claim or OutputClaim()
    metadata: Document = {
        "name": output_claim_name(run),
        "namespace": run.metadata.namespace,
        "labels": names.run_labels(run.metadata.name, run.metadata.uid, names.ROLE_TRAIN),
    }
    if not claim.retain:
        metadata["ownerReferences"] = [owner_reference(run)]
    spec: Document = {"accessModes": [claim.access_mode], "resources": {"requests": {"storage": claim.size}}}
    storage_class = claim.storage_class_name or settings.storage_class_name
    if storage_class:
        spec["storageClassName"] = storage_class
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def build_job(
    run: TrainingRun, settings: Settings, parent: ParentView | None = None, resume: ResumeStatus | None = None
) -> Document:
    """The training Job: init container `export`, container `trainer`. Kubernetes does the retries.

    `parent` is the adapter version that the registry recorded for `spec.parentAdapter`, `resume` the run of
    `spec.resumeFrom`. A Job for a queue is born suspended: it is the queue that starts it.
    """
    spec, scheduling = run.spec, run.spec.scheduling
    job: Document = {
        "backoffLimit": spec.retries,
        "podFailurePolicy": pod_failure_policy(),
        "podReplacementPolicy": "Failed",
        "template": _template(run, settings, parent, resume),
    }
    deadline = spec.active_deadline_seconds or settings.active_deadline_seconds
    if deadline is not None:
        job["activeDeadlineSeconds"] = deadline
    if scheduling.queue_name is not None:
        job["suspend"] = True
    made = _job(run, names.job_name(run.metadata.name, run.metadata.uid), names.ROLE_TRAIN, job)
    return settings.pod_defaults.apply(made, settings.registry_url)


def build_collect_job(run: TrainingRun, settings: Settings) -> Document:
    """A small Job on the CPU that reads training_config.json from the claim when the trainer's pod is gone.

    It is placed like the training, for the claim may be reachable only there, and is as patient: no interruption
    counts, and a pod that never ran is no verdict. Its own exit codes are.
    """
    name = names.collect_job_name(names.job_name(run.metadata.name, run.metadata.uid))
    container = _container(names.COLLECT_CONTAINER, run, settings)
    job = _reading_job(run, settings, name, names.ROLE_COLLECT, {**container, "args": _literal(collect_arguments(run))})
    return settings.pod_defaults.apply(job, settings.registry_url)


def build_send_job(run: TrainingRun, settings: Settings) -> Document:
    """The same for a run that has succeeded while the registry lacks its files: it sends them from the claim."""
    name = names.send_job_name(names.job_name(run.metadata.name, run.metadata.uid))
    container = _container(names.SEND_CONTAINER, run, settings)
    container |= {"args": _literal(send_arguments(run, settings))}
    job = _reading_job(run, settings, name, names.ROLE_SEND, container)
    pod = job["spec"]["template"]["spec"]
    pod["containers"][0]["volumeMounts"].append(mount(TOKEN, names.TOKEN_DIRECTORY, read_only=True))
    pod["volumes"].append(token_volume(run))
    job["spec"] |= {"activeDeadlineSeconds": SEND_SECONDS, "ttlSecondsAfterFinished": SEND_TTL_SECONDS}
    return settings.pod_defaults.apply(job, settings.registry_url)


def _reading_job(run: TrainingRun, settings: Settings, name: str, role: str, container: Document) -> Document:
    resources: Document = {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}}
    container = {
        **container,
        "command": ["python", "-m", "model.training.cli"],
        "resources": _with_cpu_limit(resources, run, settings),
        "volumeMounts": [mount("output", names.OUTPUT_MOUNT, read_only=True), *scratch_mounts()],
    }
    pod: Document = {
        **_pod_security(run, settings),
        "restartPolicy": "Never",
        "containers": [container],
        "volumes": [claim_volume("output", output_claim_name(run), read_only=True), *scratch_volumes()],
        **_placement(run),
    }
    labels = names.run_labels(run.metadata.name, run.metadata.uid, role)
    job = {
        "backoffLimit": COLLECT_RETRIES,
        "podFailurePolicy": claim_failure_policy(container["name"]),
        "podReplacementPolicy": "Failed",
        "template": {
            "metadata": {"labels": {**run.spec.pod_labels, **labels}},
            "spec": pod,
        },
    }
    return _job(run, name, role, job)


def _job(run: TrainingRun, name: str, role: str, spec: Document) -> Document:
    """A Job of the run; where there is a queue, each of them passes through it."""
    scheduling = run.spec.scheduling
    queue = {
        names.QUEUE_LABEL: scheduling.queue_name,
        names.PRIORITY_LABEL: scheduling.workload_priority_class_name,
    }
    labels = {key: value for key, value in queue.items() if value is not None}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": run.metadata.namespace,
            "labels": {**names.run_labels(run.metadata.name, run.metadata.uid, role), **labels},
            "ownerReferences": [owner_reference(run)],
        },
        "spec": spec,
    }


def _template(run: TrainingRun, settings: Settings, parent: ParentView | None, resume: ResumeStatus | None) -> Document:
    pod: Document = {
        **_pod_security(run, settings),
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": settings.termination_grace_seconds,
        "initContainers": [_export_container(run, settings, parent)],
        "containers": [_trainer_container(run, settings, parent, resume)],
        "volumes": pod_volumes(run, parent, resume),
        **_placement(run),
    }
    labels = names.run_labels(run.metadata.name, run.metadata.uid, names.ROLE_TRAIN)
    return {"metadata": {"labels": {**run.spec.pod_labels, **labels}}, "spec": pod}


def _placement(run: TrainingRun) -> Document:
    scheduling = run.spec.scheduling
    optional = {
        "priorityClassName": scheduling.priority_class_name,
        "nodeSelector": dict(scheduling.node_selector),
        "tolerations": [toleration.to_dict() for toleration in scheduling.tolerations],
        "runtimeClassName": scheduling.runtime_class_name,
    }
    return {key: value for key, value in optional.items() if value}


def _with_cpu_limit(resources: Document, run: TrainingRun, settings: Settings) -> Document:
    """A CPU limit, where somebody wants one; a request never exceeds it."""
    limit = run.spec.resources.cpu_limit or settings.cpu_limit
    if limit is None:
        return resources
    requested = resources["requests"]["cpu"]
    request = requested if quantity(requested) <= quantity(limit) else limit
    return {
        "requests": {**resources["requests"], "cpu": request},
        "limits": {**resources["limits"], "cpu": limit},
    }


def _export_container(run: TrainingRun, settings: Settings, parent: ParentView | None) -> Document:
    """The export; it runs alone, so that the trainer's memory is its own to use and costs the pod nothing."""
    container = _container(names.EXPORT_CONTAINER, run, settings)
    container["env"] += source_secrets(run)
    memory = max(EXPORT_MEMORY, run.spec.resources.memory, key=quantity)
    resources: Document = {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": memory}}
    return {
        **container,
        "command": ["python", "-m", "model.data.export"],
        "args": _literal(export_arguments(run, settings)),
        "resources": _with_cpu_limit(resources, run, settings),
        "volumeMounts": export_mounts(run, parent),
    }


def _trainer_container(
    run: TrainingRun, settings: Settings, parent: ParentView | None, resume: ResumeStatus | None
) -> Document:
    resources = run.spec.resources
    limits: Document = {"memory": resources.memory}
    if resources.gpus:
        limits[resources.gpu_resource_name] = str(resources.gpus)
    container = _container(names.TRAINER_CONTAINER, run, settings)
    container["env"] += [*model_secrets(run), *callback_variables(run, settings)]
    wanted = {"requests": {"cpu": resources.cpu, "memory": resources.memory}, "limits": limits}
    return {
        **container,
        "command": ["python", "-m", "model.training.cli"],
        "args": _literal(trainer_arguments(run, settings, parent, resume)),
        "resources": _with_cpu_limit(wanted, run, settings),
        "volumeMounts": trainer_mounts(run, parent, resume),
    }


def _literal(arguments: list[str]) -> list[str]:
    """Arguments as they are meant: Kubernetes would put a variable in for $(NAME), and one dollar for two."""
    return [argument.replace("$", "$$") for argument in arguments]


def _container(name: str, run: TrainingRun, settings: Settings) -> Document:
    variables = {
        "HOME": HOME,
        "HF_HOME": f"{names.OUTPUT_MOUNT}/cache/huggingface",
        "HF_ENDPOINT": settings.hub_endpoint,
        names.REGISTRY_CA_VARIABLE: settings.registry_ca,
    }
    return {
        "name": name,
        "image": run.spec.image or settings.trainer_image,
        "imagePullPolicy": settings.image_pull_policy,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "env": [{"name": name, "value": value} for name, value in variables.items() if value],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }


def _pod_security(run: TrainingRun, settings: Settings) -> Document:
    ids = {"runAsUser": USER_ID, "runAsGroup": USER_ID, "fsGroup": USER_ID} if settings.fixed_ids else {}
    return {
        "serviceAccountName": run.spec.service_account_name or settings.service_account_of(run.metadata.namespace),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            **ids,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
