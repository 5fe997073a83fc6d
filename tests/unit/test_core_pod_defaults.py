"""What the administrator wants of every run's pod, in the Jobs: the run's own word wins, and ours stays ours."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from finetune.controller.core.manifests import build_claim, build_collect_job, build_job
from finetune.controller.core.settings import Settings
from tests.support import objects as o


def settings(**values: Any) -> Settings:
    """Settings as the chart gives them."""
    return o.SETTINGS.model_copy(
        update={
            **{key: value for key, value in values.items() if key in Settings.model_fields},
            "pod_defaults": Settings.from_environment(
                {
                    "FINETUNE_REGISTRY_URL": "http://registry.finetune:8080",
                    "FINETUNE_TRAINER_IMAGE": "trainer:1",
                    "FINETUNE_POD_DEFAULTS": json.dumps(values.get("pod", {})),
                }
            ).pod_defaults,
        }
    )


def templates(run: dict[str, Any] | None = None, **pod: Any) -> list[dict[str, Any]]:
    """The pod templates of the training's and of the reader's Job."""
    made, chosen = o.run(**(run or {})), settings(pod=pod, registry_url="http://registry.finetune:8080")
    jobs = build_job(made, chosen), build_collect_job(made, chosen)
    return [job["spec"]["template"] for job in jobs]


def containers(template: dict[str, Any]) -> list[dict[str, Any]]:
    return [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]


def variables(container: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container["env"] if "value" in each}


def test_without_any_the_jobs_are_as_ever() -> None:
    assert build_job(o.run(), settings()) == build_job(o.run(), o.SETTINGS)
    # The chart's values, untouched.
    empty = {
        "imagePullSecrets": [],
        "labels": {},
        "affinity": {},
        "schedulerName": "",
        "ephemeralStorage": {"request": "", "limit": ""},
        "proxy": {"http": "", "https": "", "noProxy": ""},
        "caBundle": {"configMap": "", "key": "ca-certificates.crt"},
    }
    assert build_job(o.run(), settings(pod=empty)) == build_job(o.run(), o.SETTINGS)


def test_pull_secrets_labels_and_annotations() -> None:
    for template in templates(
        imagePullSecrets=[{"name": "pull"}],
        labels={"cost-centre": "ml", "finetune.dev/run": "stolen"},
        annotations={"karpenter.sh/do-not-disrupt": "true"},
    ):
        assert template["spec"]["imagePullSecrets"] == [{"name": "pull"}]
        assert template["metadata"]["labels"]["cost-centre"] == "ml"
        assert template["metadata"]["labels"]["finetune.dev/run"] == "support"
        assert template["metadata"]["annotations"] == {"karpenter.sh/do-not-disrupt": "true"}


PLACED = {
    "nodeSelector": {"pool": "gpu", "zone": "a"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {"x": 1}},
    "runtimeClassName": "nvidia",
    "priorityClassName": "batch",
    "schedulerName": "volcano",
}


def test_runs_that_say_nothing_are_placed_by_the_defaults() -> None:
    for template in templates(**PLACED):
        assert {key: template["spec"][key] for key in PLACED} == PLACED


def test_what_a_run_says_itself_wins() -> None:
    scheduling = {
        "nodeSelector": {"zone": "b"},
        "tolerations": [{"key": "spot", "operator": "Exists"}],
        "runtimeClassName": "kata",
        "priorityClassName": "urgent",
    }
    for template in templates({"scheduling": scheduling}, **PLACED):
        spec = template["spec"]
        assert spec["nodeSelector"] == {"pool": "gpu", "zone": "b"}
        assert [each["key"] for each in spec["tolerations"]] == ["spot", "nvidia.com/gpu"]
        assert (spec["runtimeClassName"], spec["priorityClassName"]) == ("kata", "urgent")


def test_every_container_gets_ephemeral_storage() -> None:
    for template in templates(ephemeralStorage={"request": "1Gi", "limit": "10Gi"}):
        for container in containers(template):
            assert container["resources"]["requests"]["ephemeral-storage"] == "1Gi"
            assert container["resources"]["limits"]["ephemeral-storage"] == "10Gi"
            assert "memory" in container["resources"]["limits"]


def test_what_leaves_goes_through_the_proxy_and_the_registry_does_not() -> None:
    proxy = {"http": "http://proxy:3128", "https": "http://proxy:3129", "noProxy": ".svc, store.example"}
    for template in templates(proxy=proxy):
        for container in containers(template):
            found = variables(container)
            assert found["HTTP_PROXY"] == found["http_proxy"] == "http://proxy:3128"
            assert found["HTTPS_PROXY"] == found["https_proxy"] == "http://proxy:3129"
            direct = "registry.finetune,.svc,.cluster.local,localhost,127.0.0.1,::1,store.example"
            assert found["NO_PROXY"] == found["no_proxy"] == direct


def test_a_list_of_exceptions_alone_is_no_proxy() -> None:
    assert "NO_PROXY" not in variables(containers(templates(proxy={"noProxy": ".svc"})[0])[0])


def test_authorities_are_mounted_and_named_to_every_client() -> None:
    for template in templates(caBundle={"configMap": "trusted", "key": "all.pem"}):
        volume = next(each for each in template["spec"]["volumes"] if each["name"] == "ca-bundle")
        assert volume["configMap"] == {"name": "trusted", "items": [{"key": "all.pem", "path": "all.pem"}]}
        for container in containers(template):
            mount = next(each for each in container["volumeMounts"] if each["name"] == "ca-bundle")
            assert mount == {"name": "ca-bundle", "mountPath": "/etc/finetune/ca", "readOnly": True}
            found = variables(container)
            for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE", "PGSSLROOTCERT"):
                assert found[name] == "/etc/finetune/ca/all.pem"


def test_the_administrators_class_and_deadline_are_for_runs_that_name_none() -> None:
    chosen = settings(storage_class_name="fast", active_deadline_seconds=60)
    assert build_claim(o.run(output={}), chosen)["spec"]["storageClassName"] == "fast"
    own = {"claim": {"storageClassName": "slow"}}
    assert build_claim(o.run(output=own), chosen)["spec"]["storageClassName"] == "slow"
    assert build_job(o.run(), chosen)["spec"]["activeDeadlineSeconds"] == 60
    assert build_job(o.run(activeDeadlineSeconds=90), chosen)["spec"]["activeDeadlineSeconds"] == 90


@pytest.mark.parametrize("document", ["{", '{"imagePullSecret": []}', '{"ephemeralStorage": {"limits": "1Gi"}}', "[]"])
def test_a_document_that_is_none_of_it_is_refused(document: str) -> None:
    variables = {"FINETUNE_REGISTRY_URL": "http://r", "FINETUNE_TRAINER_IMAGE": "t", "FINETUNE_POD_DEFAULTS": document}
    with pytest.raises(ValidationError) as caught:
        Settings.from_environment(variables)
    assert caught.value.errors()[0]["loc"][0] == "pod_defaults"
