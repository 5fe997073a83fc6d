"""What the containers' environment has beside their homes: Secrets, and where progress is told.

Secrets come by reference only, never as volumes: then the pod's status names what is missing.
"""

from __future__ import annotations

from typing import Any

from finetune.api.sources import DatasetSource, SecretKeyRef
from finetune.api.trainingrun import TrainingRun

from . import names
from .settings import Settings

Variable = dict[str, Any]

STORE_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
STORE_SESSION_KEY = "AWS_SESSION_TOKEN"
"""Only temporary credentials have one."""


def source_secrets(run: TrainingRun) -> list[Variable]:
    """Variables of the container `export`: what the sources of the dataset ask for.

    Those of a mix have their number in front: each has its own secrets.
    """
    dataset = run.spec.dataset
    return [
        variable | {"name": f"MIX_{index}_{variable['name']}"} if dataset.mix else variable
        for index, source in enumerate(dataset.sources)
        for variable in _secrets_of(source)
    ]


def _secrets_of(source: DatasetSource) -> list[Variable]:
    if source.sql:
        return [_variable("DATASET_URL", source.sql.url_secret_ref)]
    if source.hub and source.hub.token_secret_ref:
        return [_variable("HF_TOKEN", source.hub.token_secret_ref)]
    if source.object_store and source.object_store.credentials_secret_ref:
        secret = source.object_store.credentials_secret_ref.name
        references = [SecretKeyRef(name=secret, key=key) for key in (*STORE_KEYS, STORE_SESSION_KEY)]
        return [_variable(each.key, each, optional=each.key == STORE_SESSION_KEY) for each in references]
    return []


def model_secrets(run: TrainingRun) -> list[Variable]:
    """Variables of the container `trainer`: the hub's token for the base model."""
    hub = run.spec.base_model.hub
    return [_variable("HF_TOKEN", hub.token_secret_ref)] if hub and hub.token_secret_ref else []


def callback_variables(run: TrainingRun, settings: Settings) -> list[Variable]:
    """Where transformers' `KubeflowCallback` tells its progress, in a trainer image that reports by it."""
    if not settings.registry_url:
        return []
    path = f"/api/v1/namespaces/{run.metadata.namespace}/runs/{run.metadata.uid}/status"
    return [
        {"name": "KUBEFLOW_TRAINER_SERVER_URL", "value": settings.registry_url.rstrip("/") + path},
        {"name": "KUBEFLOW_TRAINER_SERVER_TOKEN", "value": names.TOKEN_FILE},
    ]


def secret_names(run: TrainingRun) -> frozenset[str]:
    """The Secrets that the run's containers refer to."""
    return frozenset(each["valueFrom"]["secretKeyRef"]["name"] for each in (*source_secrets(run), *model_secrets(run)))


def _variable(name: str, reference: SecretKeyRef, *, optional: bool = False) -> Variable:
    selector: Variable = {"name": reference.name, "key": reference.key}
    if optional:
        selector["optional"] = True
    return {"name": name, "valueFrom": {"secretKeyRef": selector}}
