"""The children of a run, as pure functions from the run to API documents."""

from __future__ import annotations

from typing import Any

from finetune.api import API_VERSION, KIND
from finetune.api.trainingrun import OutputClaim, TrainingRun

from . import names
from .arguments import export_arguments, trainer_arguments
from .exits import pod_failure_policy
from .settings import Settings

Document = dict[str, Any]

USER_ID = 10001
HOME = "/home/finetune"
TOKEN_SECONDS = 3600


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


def output_claim_name(run: TrainingRun) -> str:
    """The claim that the run writes to: the named one, else one that bears the Job's name."""
    return run.spec.output.claim_name or names.job_name(run.metadata.name, run.metadata.uid)


def build_claim(run: TrainingRun) -> Document:
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
    if claim.storage_class_name:
        spec["storageClassName"] = claim.storage_class_name
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def build_job(run: TrainingRun, settings: Settings) -> Document:
    """The training Job: init container `export`, container `trainer`. Kubernetes does the retries."""
    spec = run.spec
    job: Document = {
        "backoffLimit": spec.retries,
        "podFailurePolicy": pod_failure_policy(),
        "podReplacementPolicy": "Failed",
        "template": _template(run, settings),
    }
    if spec.active_deadline_seconds is not None:
        job["activeDeadlineSeconds"] = spec.active_deadline_seconds
    return _job(run, names.job_name(run.metadata.name, run.metadata.uid), names.ROLE_TRAIN, job)


def build_collect_job(run: TrainingRun, settings: Settings) -> Document:
    """A small Job on the CPU that reads training_config.json from the claim when the trainer's pod is gone."""
    directory = f"{names.OUTPUT_MOUNT}/{names.output_path(run.experiment, run.metadata.uid)}"
    container = {
        **_container(names.COLLECT_CONTAINER, settings),
        "command": ["python", "-m", "model.training.cli"],
        "args": ["collect", f"--run-directory={directory}"],
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
        "volumeMounts": [_mount("output", names.OUTPUT_MOUNT, read_only=True), *_scratch_mounts()],
    }
    pod: Document = {
        **_pod_security(settings),
        "restartPolicy": "Never",
        "activeDeadlineSeconds": 600,  # of the pod, not of the Job: a wait for a node must not lose the result
        "containers": [container],
        "volumes": [_claim_volume("output", output_claim_name(run), read_only=True), *_scratch_volumes()],
    }
    if run.spec.scheduling.tolerations:  # the claim may be bound to a tainted node
        pod["tolerations"] = [toleration.to_dict() for toleration in run.spec.scheduling.tolerations]
    labels = names.run_labels(run.metadata.name, run.metadata.uid, names.ROLE_COLLECT)
    job = {
        "backoffLimit": 2,
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    return _job(
        run,
        names.collect_job_name(names.job_name(run.metadata.name, run.metadata.uid)),
        names.ROLE_COLLECT,
        job,
    )


def _job(run: TrainingRun, name: str, role: str, spec: Document) -> Document:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": run.metadata.namespace,
            "labels": names.run_labels(run.metadata.name, run.metadata.uid, role),
            "ownerReferences": [owner_reference(run)],
        },
        "spec": spec,
    }


def _template(run: TrainingRun, settings: Settings) -> Document:
    pod: Document = {
        **_pod_security(settings),
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": settings.termination_grace_seconds,
        "initContainers": [_export_container(run, settings)],
        "containers": [_trainer_container(run, settings)],
        "volumes": _volumes(run),
    }
    scheduling = run.spec.scheduling
    optional = {
        "priorityClassName": scheduling.priority_class_name,
        "nodeSelector": dict(scheduling.node_selector),
        "tolerations": [toleration.to_dict() for toleration in scheduling.tolerations],
        "runtimeClassName": scheduling.runtime_class_name,
    }
    pod.update({key: value for key, value in optional.items() if value})
    labels = names.run_labels(run.metadata.name, run.metadata.uid, names.ROLE_TRAIN)
    return {"metadata": {"labels": labels}, "spec": pod}


def _export_container(run: TrainingRun, settings: Settings) -> Document:
    mounts = [_mount("output", names.OUTPUT_MOUNT), _mount("token", names.TOKEN_DIRECTORY, read_only=True)]
    if _source_volume(run):
        mounts.append(_mount("source", names.SOURCE_MOUNT, read_only=True))
    return {
        **_container(names.EXPORT_CONTAINER, settings),
        "command": ["python", "-m", "model.data.export"],
        "args": export_arguments(run, settings),
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}},
        "volumeMounts": [*mounts, *_scratch_mounts()],
    }


def _trainer_container(run: TrainingRun, settings: Settings) -> Document:
    resources = run.spec.resources
    limits: Document = {"memory": resources.memory}
    if resources.gpus:
        limits[resources.gpu_resource_name] = str(resources.gpus)
    mounts = [
        _mount("output", names.OUTPUT_MOUNT),
        _mount("token", names.TOKEN_DIRECTORY, read_only=True),
        _mount("shared-memory", "/dev/shm"),  # noqa: S108 - PyTorch's workers share tensors there
    ]
    if run.spec.base_model.volume:
        mounts.append(_mount("base-model", names.BASE_MODEL_MOUNT, read_only=True))
    container = _container(names.TRAINER_CONTAINER, settings)
    container["env"] += _hub_environment(run)
    return {
        **container,
        "command": ["python", "-m", "model.training.cli"],
        "args": trainer_arguments(run, settings),
        "resources": {"requests": {"cpu": resources.cpu, "memory": resources.memory}, "limits": limits},
        "volumeMounts": [*mounts, *_scratch_mounts()],
    }


def _container(name: str, settings: Settings) -> Document:
    return {
        "name": name,
        "image": settings.trainer_image,
        "imagePullPolicy": settings.image_pull_policy,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "env": [
            {"name": "HOME", "value": HOME},
            {"name": "HF_HOME", "value": f"{names.OUTPUT_MOUNT}/cache/huggingface"},
        ],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }


def _hub_environment(run: TrainingRun) -> list[Document]:
    hub = run.spec.base_model.hub
    if hub is None or hub.token_secret_ref is None:
        return []
    reference = {"name": hub.token_secret_ref.name, "key": hub.token_secret_ref.key}
    return [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": reference}}]


def _pod_security(settings: Settings) -> Document:
    return {
        "serviceAccountName": settings.service_account_name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def _volumes(run: TrainingRun) -> list[Document]:
    token = {
        "audience": f"finetune.dev/runs/{run.metadata.uid}",
        "expirationSeconds": TOKEN_SECONDS,
        "path": "token",
    }
    shared_memory = {"medium": "Memory", "sizeLimit": run.spec.resources.shared_memory}
    volumes = [
        _claim_volume("output", output_claim_name(run)),
        {"name": "token", "projected": {"sources": [{"serviceAccountToken": token}]}},
        {"name": "shared-memory", "emptyDir": shared_memory},
    ]
    base = run.spec.base_model.volume
    if base:
        volumes.append(_claim_volume("base-model", base.claim_name, read_only=True))
    source = _source_volume(run)
    return [*volumes, *([source] if source else []), *_scratch_volumes()]


def _source_volume(run: TrainingRun) -> Document | None:
    dataset = run.spec.dataset
    if dataset.volume:
        return _claim_volume("source", dataset.volume.claim_name, read_only=True)
    if dataset.config_map:
        item = {"key": dataset.config_map.key, "path": dataset.config_map.key}
        return {"name": "source", "configMap": {"name": dataset.config_map.name, "items": [item]}}
    return None


def _claim_volume(name: str, claim: str, *, read_only: bool = False) -> Document:
    source: Document = {"claimName": claim}
    if read_only:
        source["readOnly"] = True
    return {"name": name, "persistentVolumeClaim": source}


def _mount(name: str, path: str, *, read_only: bool = False) -> Document:
    return {"name": name, "mountPath": path, **({"readOnly": True} if read_only else {})}


def _scratch_volumes() -> list[Document]:
    return [{"name": "tmp", "emptyDir": {}}, {"name": "home", "emptyDir": {}}]


def _scratch_mounts() -> list[Document]:
    return [_mount("tmp", "/tmp"), _mount("home", HOME)]  # noqa: S108 - an emptyDir of the pod's own
