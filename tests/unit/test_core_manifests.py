"""The children of a run, and the flags of their containers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.controller.core import names
from finetune.controller.core.manifests import build_claim, build_collect_job, build_job
from finetune.controller.core.settings import Settings
from tests.support import objects as o

GOLDEN = Path(__file__).parent / "golden"


def job(**spec: Any) -> dict[str, Any]:
    return build_job(o.run(**spec), o.SETTINGS)


def pod(**spec: Any) -> dict[str, Any]:
    template: dict[str, Any] = job(**spec)["spec"]["template"]["spec"]
    return template


def volumes(spec: dict[str, Any]) -> dict[str, Any]:
    return {volume["name"]: volume for volume in spec["volumes"]}


def test_the_job_is_what_was_reviewed() -> None:
    """A change of the manifest is a change of the file beside this test, for a reviewer to see."""
    assert job() == json.loads((GOLDEN / "job.json").read_text())


def test_the_collect_job_is_what_was_reviewed() -> None:
    assert build_collect_job(o.run(), o.SETTINGS) == json.loads((GOLDEN / "collect_job.json").read_text())


@pytest.mark.parametrize(
    ("name", "expected"),
    [("support", "t-support-"), ("a.b", "t-a-b-"), ("x" * 63, f"t-{'x' * 40}-"), ("y" * 39 + "-z", f"t-{'y' * 39}-")],
)
def test_job_names(name: str, expected: str) -> None:
    made = names.job_name(name, o.UID)
    assert made.startswith(expected)
    assert len(made) <= 63 - len("-collect")
    assert made != names.job_name(name, "another-uid")


def test_rules_are_in_the_order_in_which_they_must_match() -> None:
    rules = job()["spec"]["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["Ignore", "FailJob", "Ignore"]
    assert rules[1]["onExitCodes"]["values"] == [2, 3, 5, 6, 7, 8, 9, 10]
    assert job(retries=5)["spec"]["backoffLimit"] == 5


def test_gpus_and_memory() -> None:
    limits = pod(resources={"gpus": 2, "memory": "16Gi"})["containers"][0]["resources"]["limits"]
    assert limits == {"memory": "16Gi", "nvidia.com/gpu": "2"}
    assert "nvidia.com/gpu" not in pod(resources={"gpus": 0})["containers"][0]["resources"]["limits"]


def test_a_configmap_is_mounted_and_its_key_is_the_file() -> None:
    spec = pod(dataset={"configMap": {"name": "rows", "key": "train.jsonl"}})
    assert volumes(spec)["source"]["configMap"]["items"] == [{"key": "train.jsonl", "path": "train.jsonl"}]
    assert "--path=/source/train.jsonl" in spec["initContainers"][0]["args"]


def test_a_volume_dataset_is_read_only() -> None:
    spec = pod(dataset={"volume": {"claimName": "data", "path": "a/b.jsonl"}})
    assert volumes(spec)["source"]["persistentVolumeClaim"] == {"claimName": "data", "readOnly": True}
    assert "--path=/source/a/b.jsonl" in spec["initContainers"][0]["args"]


def test_a_hub_token_comes_by_secret_reference_only() -> None:
    hub = {"repository": "org/m", "revision": "v1", "tokenSecretRef": {"name": "hub", "key": "token"}}
    spec = pod(baseModel={"hub": hub})
    token = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}
    assert token in spec["containers"][0]["env"]
    assert "base-model" not in volumes(spec)
    assert {"--base-model=org/m", "--base-model-revision=v1"} <= set(spec["containers"][0]["args"])


def test_the_collect_job_may_go_where_the_claim_is() -> None:
    tolerations = [{"key": "gpu", "operator": "Exists"}]
    collect = build_collect_job(o.run(scheduling={"tolerations": tolerations}), o.SETTINGS)
    assert collect["spec"]["template"]["spec"]["tolerations"] == tolerations


def test_every_container_is_restricted() -> None:
    for template in (pod(), build_collect_job(o.run(), o.SETTINGS)["spec"]["template"]["spec"]):
        assert template["securityContext"]["runAsNonRoot"] is True
        assert template["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert template["automountServiceAccountToken"] is False
        for container in [*template.get("initContainers", []), *template["containers"]]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}


def test_a_claim_of_its_own_is_kept_unless_told_otherwise() -> None:
    kept = build_claim(o.run(output={}))
    assert kept["metadata"]["name"] == o.JOB
    assert "ownerReferences" not in kept["metadata"]
    owned = build_claim(o.run(output={"claim": {"size": "5Gi", "storageClassName": "fast", "retain": False}}))
    assert owned["metadata"]["ownerReferences"][0]["uid"] == o.UID
    assert owned["spec"]["storageClassName"] == "fast"
    assert owned["spec"]["resources"]["requests"]["storage"] == "5Gi"


def test_columns_scheduling_and_settings_reach_the_pod() -> None:
    spec = pod(
        dataset={"registry": {"name": "t"}, "columns": {"prompt": "question"}},
        scheduling={"nodeSelector": {"gpu": "a100"}, "tolerations": [{"key": "gpu", "operator": "Exists"}]},
    )
    assert "--column=prompt=question" in spec["initContainers"][0]["args"]
    assert spec["nodeSelector"] == {"gpu": "a100"}
    assert spec["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    pretended = build_job(o.run(), o.SETTINGS.model_copy(update={"pretended_gpus": True}))
    assert "--pretended-gpus" in pretended["spec"]["template"]["spec"]["containers"][0]["args"]


def test_settings_come_from_the_environment_and_name_what_is_wrong() -> None:
    environment = {
        "FINETUNE_REGISTRY_URL": "http://r",
        "FINETUNE_TRAINER_IMAGE": "t",
        "FINETUNE_WATCH_NAMESPACES": "a, b",
        "FINETUNE_REFERENCE_TIMEOUT_SECONDS": "7",
        "HOME": "/root",
    }
    settings = Settings.from_environment(environment)
    assert (settings.watch_namespaces, settings.reference_timeout_seconds) == (("a", "b"), 7)
    with pytest.raises(ValueError, match="registry_url"):
        Settings.from_environment({"FINETUNE_TRAINER_IMAGE": "t"})
