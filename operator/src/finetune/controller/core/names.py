"""Names, labels and paths that the parts agree on (docs/contract.md)."""

from __future__ import annotations

import hashlib

MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
MANAGED_BY = "finetune-operator"
RUN_LABEL = "finetune.dev/run"
RUN_UID_LABEL = "finetune.dev/run-uid"
ROLE_LABEL = "finetune.dev/role"
ROLE_TRAIN = "train"
ROLE_COLLECT = "collect"
ROLE_SEND = "send"

SUSPENDED_BY_ANNOTATION = "finetune.dev/suspended-by"
"""On the Job, or on Kueue's Workload: the uid of the run whose `spec.suspend` suspended it; else somebody else did."""
REGISTRY_CA_VARIABLE = "FINETUNE_REGISTRY_CA"
"""Variable of the runs' containers: the certificate authorities of the registry, as PEM text."""
FINISHED_ANNOTATION = "finetune.dev/finished"
"""On the TrainingRun: how it ended, see `core/mark.py`."""

RESTORED_LABEL = "velero.io/restore-name"
"""On every object that Velero has restored."""
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"

EXPORT_CONTAINER = "export"
TRAINER_CONTAINER = "trainer"
COLLECT_CONTAINER = "collect"
SEND_CONTAINER = "send"

OUTPUT_MOUNT = "/output"
BASE_MODEL_MOUNT = "/models/base"
PARENT_ADAPTER_MOUNT = "/models/parent"
RESUME_MOUNT = "/resume"
SOURCE_MOUNT = "/source"
CHAT_TEMPLATE_MOUNT = "/chat-template"
TOKEN_DIRECTORY = "/var/run/secrets/finetune.dev"  # noqa: S105 - a path, not a secret
TOKEN_FILE = f"{TOKEN_DIRECTORY}/token"

PARENT_NAME_FLAG = "parent-adapter-name"
PARENT_SHA256_FLAG = "parent-adapter-sha256"
RESUME_FLAG = "resume-from"
RESUME_RUN_FLAG = "resume-from-run"
"""Flags of the trainer from which the operator reads back what a Job was made with."""


def job_name(run_name: str, uid: str) -> str:
    """The name of the run's one training Job: its uniqueness in the API server is the lock."""
    stem = run_name.replace(".", "-")[:40].rstrip("-")
    return f"t-{stem}-{hashlib.sha256(uid.encode()).hexdigest()[:8]}"


def collect_job_name(job: str) -> str:
    """The name of the Job that reads the result from the claim."""
    return f"{job}-collect"


def send_job_name(job: str) -> str:
    """The name of the Job that sends the adapter's files from the claim to the registry's store."""
    return f"{job}-send"


def output_path(experiment: str, uid: str) -> str:
    """The run directory, relative to the root of the output claim."""
    return f"{experiment}/{uid}"


def run_labels(run_name: str, uid: str, role: str) -> dict[str, str]:
    """Labels of a Job and of its pods."""
    return {MANAGED_BY_LABEL: MANAGED_BY, RUN_LABEL: run_name, RUN_UID_LABEL: uid, ROLE_LABEL: role}


def run_selector(uid: str) -> str:
    """Label selector of everything that belongs to the run."""
    return f"{RUN_UID_LABEL}={uid}"
