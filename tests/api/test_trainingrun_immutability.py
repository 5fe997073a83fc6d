"""A run's spec cannot change once it is applied, except suspend: on a real API server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from finetune.api import rules
from finetune.api.trainingrun import TrainingRunSpec
from tests.cluster.kube_api import KubeApi

RUNS = "/apis/finetune.dev/v1alpha1/namespaces/default/trainingruns"
RUN = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "TrainingRun",
    "metadata": {"name": "immutable", "namespace": "default"},
    "spec": {
        "method": "SFT",
        "baseModel": {"volume": {"claimName": "models", "path": "smollm2"}},
        "dataset": {"registry": {"name": "docs"}},
        "adapter": {"name": "docs"},
        "training": {"epochs": 1, "learningRate": 0.0002},
    },
}
CHANGES: dict[str, Any] = {
    "experiment": "other",
    "method": "DPO",
    "baseModel": {"volume": {"claimName": "models", "path": "other"}},
    "dataset": {"registry": {"name": "docs", "version": 2}},
    "training": {"epochs": 1, "learningRate": 0.0003},
    "parentAdapter": {"name": "other"},
    "resumeFrom": {"run": "other"},
    "dpo": {"beta": "0.5"},
    "kto": {"beta": "0.5"},
    "lora": {"rank": 8},
    "quantization": "NF4",
    "output": {"claimName": "adapters"},
    "adapter": {"name": "other"},
    "resources": {"gpus": 2},
    "scheduling": {"nodeSelector": {"a": "b"}},
    "image": "trainer:2",
    "serviceAccountName": "other",
    "podLabels": {"team": "b"},
    "retries": 1,
    "activeDeadlineSeconds": 60,
    "jobTTLSeconds": 60,
}


@pytest.fixture(scope="module")
def stored(api: KubeApi) -> Iterator[str]:
    """Path of a stored run."""
    code, answer = api.request("POST", RUNS, RUN)
    assert code == 201, answer
    yield f"{RUNS}/immutable"
    api.request("DELETE", f"{RUNS}/immutable")


def merge(api: KubeApi, path: str, spec: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    return api.request("PATCH", path, {"spec": spec}, content_type="application/merge-patch+json")


@pytest.mark.parametrize("field", CHANGES)
def test_a_field_cannot_change(api: KubeApi, stored: str, field: str) -> None:
    code, answer = merge(api, stored, {field: CHANGES[field]})
    assert code == 422
    assert rules.IMMUTABLE_MESSAGE in answer["message"]


@pytest.mark.parametrize("removal", [{"adapter": None}, {"training": {"epochs": None}}])
def test_a_field_cannot_disappear(api: KubeApi, stored: str, removal: dict[str, Any]) -> None:
    code, answer = merge(api, stored, removal)
    assert code == 422
    assert rules.IMMUTABLE_MESSAGE in answer["message"]


def test_every_field_but_suspend_is_immutable() -> None:
    fields = {field.alias for field in TrainingRunSpec.model_fields.values()}
    assert set(CHANGES) == fields - rules.MUTABLE_FIELDS
    (rule,) = [each for each in rules.MODEL_RULES[TrainingRunSpec] if each["message"] == rules.IMMUTABLE_MESSAGE]
    for field in CHANGES:
        assert f"self.{field} == oldSelf.{field}" in rule["rule"]


def test_suspend_can_be_switched(api: KubeApi, stored: str) -> None:
    for suspend in (True, False):
        code, answer = merge(api, stored, {"suspend": suspend})
        assert code == 200, answer
        assert answer["spec"]["suspend"] is suspend
