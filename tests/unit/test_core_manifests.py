"""The children of a run, and the flags of their containers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from finetune.api.status import ResumeStatus
from finetune.controller.core import names
from finetune.controller.core.manifests import build_claim, build_collect_job, build_job, build_send_job
from finetune.controller.core.settings import Settings
from finetune.controller.core.storage import output_claim_name
from finetune.controller.core.views import ParentView
from tests.support import objects as o
from tests.support.cases import look, status

GOLDEN = Path(__file__).parent / "golden"
RESUME = ResumeStatus(run="first", uid="first-uid", claim_name="old", path="first/first-uid")


def job(parent: ParentView | None = None, **spec: Any) -> dict[str, Any]:
    return build_job(o.run(**spec), o.SETTINGS, parent)


def pod(parent: ParentView | None = None, **spec: Any) -> dict[str, Any]:
    template: dict[str, Any] = job(parent, **spec)["spec"]["template"]["spec"]
    return template


def mounts(container: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """Volume and whether it is read-only, by path."""
    return {m["mountPath"]: (m["name"], m.get("readOnly", False)) for m in container["volumeMounts"]}


def volumes(spec: dict[str, Any]) -> dict[str, Any]:
    return {volume["name"]: volume for volume in spec["volumes"]}


def test_the_job_is_what_was_reviewed() -> None:
    """A change of the manifest is a change of the file beside this test, for a reviewer to see."""
    assert job() == json.loads((GOLDEN / "job.json").read_text())


def test_a_preference_job_on_a_parent_is_what_was_reviewed() -> None:
    made = job(o.PARENT, **o.PREFERENCE)
    assert made == json.loads((GOLDEN / "dpo_job.json").read_text())


def test_a_queued_job_is_what_was_reviewed() -> None:
    scheduling = {"queueName": "gpus", "workloadPriorityClassName": "urgent"}
    resources = {"gpus": 1, "cpu": "4", "cpuLimit": "8"}
    made = job(scheduling=scheduling, resources=resources, activeDeadlineSeconds=3600)
    assert made == json.loads((GOLDEN / "queued_job.json").read_text())


def test_a_chat_template_is_mounted_for_the_trainer_alone() -> None:
    own = {"configMap": {"name": "templates", "key": "chatml.jinja"}}
    made = pod(baseModel={"hub": {"repository": "owner/tiny"}, "chatTemplate": own})
    (trainer,), (export,) = made["containers"], made["initContainers"]
    assert "--chat-template=/chat-template/chatml.jinja" in trainer["args"]
    assert mounts(trainer)["/chat-template"] == ("chat-template", True)
    assert volumes(made)["chat-template"]["configMap"] == {
        "name": "templates",
        "items": [{"key": "chatml.jinja", "path": "chatml.jinja"}],
    }
    assert "/chat-template" not in mounts(export)
    assert not any("chat-template" in argument for argument in pod()["containers"][0]["args"])


def test_a_job_that_goes_on_from_another_run_is_what_was_reviewed() -> None:
    made = build_job(o.run(resumeFrom={"run": "first"}), o.SETTINGS, None, RESUME)
    assert made == json.loads((GOLDEN / "resumed_job.json").read_text())


def test_the_collect_job_is_what_was_reviewed() -> None:
    assert build_collect_job(o.run(), o.SETTINGS) == json.loads((GOLDEN / "collect_job.json").read_text())


def test_the_send_job_is_what_was_reviewed() -> None:
    assert build_send_job(o.run(), o.SETTINGS) == json.loads((GOLDEN / "send_job.json").read_text())


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
    """A disruption comes first; a full claim (7) and a broken GPU (9) count as attempts: another node may do."""
    rules = job()["spec"]["podFailurePolicy"]["rules"]
    assert [(rule["action"], rule.get("onExitCodes", {}).get("containerName")) for rule in rules] == [
        ("Ignore", None),
        ("FailJob", "export"),
        ("FailJob", "trainer"),
        ("Ignore", "export"),
        ("Ignore", "trainer"),
    ]
    assert rules[1]["onExitCodes"]["values"] == rules[2]["onExitCodes"]["values"] == [2, 3, 5, 6, 8, 10]
    assert rules[3]["onExitCodes"]["values"] == rules[4]["onExitCodes"]["values"] == [75, 76]
    assert job(retries=5)["spec"]["backoffLimit"] == 5


def test_gpus_and_memory() -> None:
    limits = pod(resources={"gpus": 2, "memory": "16Gi"})["containers"][0]["resources"]["limits"]
    assert limits == {"memory": "16Gi", "nvidia.com/gpu": "2"}
    assert "nvidia.com/gpu" not in pod(resources={"gpus": 0})["containers"][0]["resources"]["limits"]


def limits(spec: dict[str, Any]) -> list[dict[str, str]]:
    return [each["resources"]["limits"] for each in (*spec.get("initContainers", []), *spec["containers"])]


def test_the_exports_memory_follows_the_runs() -> None:
    """They run one after the other, so that it costs the pod nothing; and a person can raise it."""
    for memory, export in (("16Gi", "16Gi"), ("300Mi", "1Gi"), ("1G", "1Gi"), ("2048Mi", "2048Mi")):
        spec = pod(resources={"memory": memory, "sharedMemory": "64Mi"})
        assert [each["memory"] for each in limits(spec)] == [export, memory]


def test_somebody_can_set_a_cpu_limit() -> None:
    """Namespaces whose quota counts limits.cpu take no pod without one; there is none by default."""
    assert [each.get("cpu") for each in limits(pod())] == [None, None]
    assert [each["cpu"] for each in limits(pod(resources={"cpuLimit": "8"}))] == ["8", "8"]
    settings = o.SETTINGS.model_copy(update={"cpu_limit": "500m"})
    run = o.run()
    jobs = (build_job(run, settings), build_collect_job(run, settings))
    for spec in (each["spec"]["template"]["spec"] for each in jobs):
        assert {each["cpu"] for each in limits(spec)} == {"500m"}
    trainer = jobs[0]["spec"]["template"]["spec"]["containers"][0]["resources"]
    assert trainer["requests"]["cpu"] == "500m"  # a request is never more than its limit
    chosen = build_job(o.run(resources={"cpuLimit": "2"}), settings)["spec"]["template"]["spec"]
    assert {each["cpu"] for each in limits(chosen)} == {"2"}


def test_the_claim_of_the_run_that_is_gone_on_from_is_mounted_read_only() -> None:
    run = o.run(resumeFrom={"run": "first"})
    spec = build_job(run, o.SETTINGS, None, RESUME)["spec"]["template"]["spec"]
    assert volumes(spec)["resume"]["persistentVolumeClaim"] == {"claimName": "old", "readOnly": True}
    assert mounts(spec["containers"][0])["/resume"] == ("resume", True)
    assert "/resume" not in mounts(spec["initContainers"][0])
    flags = {"--resume-from=/resume/first/first-uid", "--resume-from-run=first"}
    assert flags <= set(spec["containers"][0]["args"])


def test_a_run_on_the_same_claim_is_gone_on_from_there() -> None:
    run = o.run(resumeFrom={"run": "first"})
    same = RESUME.model_copy(update={"claim_name": "adapters"})
    spec = build_job(run, o.SETTINGS, None, same)["spec"]["template"]["spec"]
    assert "resume" not in volumes(spec)
    assert "/resume" not in mounts(spec["containers"][0])
    assert "--resume-from=/output/first/first-uid" in spec["containers"][0]["args"]


@pytest.mark.parametrize("claim", ["old", None])
def test_the_run_that_a_job_goes_on_from_is_read_back_from_it(claim: str | None) -> None:
    """The operator was killed between the Job's creation and the status that names it."""
    run = o.run(resumeFrom={"run": "first"})
    resume = RESUME.model_copy(update={"claim_name": claim or output_claim_name(run)})
    made = build_job(run, o.SETTINGS, None, resume)
    job = o.job()
    job["spec"] |= made["spec"]
    assert status(look(run, job)).resumed_from == resume


def test_a_claim_that_holds_parent_and_checkpoints_is_one_volume() -> None:
    run = o.run(**o.PREFERENCE, resumeFrom={"run": "first"})
    both = RESUME.model_copy(update={"claim_name": "parents"})
    spec = build_job(run, o.SETTINGS, o.PARENT, both)["spec"]["template"]["spec"]
    claims = [v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"] if "persistentVolumeClaim" in v]
    assert sorted(claims) == ["adapters", "base-models", "parents"]
    assert mounts(spec["containers"][0])["/resume"] == mounts(spec["containers"][0])["/models/parent"]


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


SECRET = {"name": "secret", "key": "k"}
STORE = {"uri": "s3://bucket/rows/*.jsonl", "endpoint": "http://minio:9000", "credentialsSecretRef": {"name": "store"}}


@pytest.mark.parametrize(
    ("dataset", "flags", "variables"),
    [
        (
            {"sql": {"urlSecretRef": SECRET, "query": "select * from t"}},
            {"--source=sql", "--query=select * from t"},
            {"DATASET_URL": ("secret", "k", False)},
        ),
        (
            {"hub": {"repository": "o/d", "revision": "v1", "split": "test", "tokenSecretRef": SECRET}},
            {"--source=hub", "--repository=o/d", "--revision=v1", "--split=test"},
            {"HF_TOKEN": ("secret", "k", False)},
        ),
        ({"hub": {"repository": "o/d"}}, {"--source=hub", "--repository=o/d"}, {}),
        (
            {"objectStore": STORE},
            {"--source=objectStore", "--uri=s3://bucket/rows/*.jsonl", "--endpoint=http://minio:9000"},
            {
                "AWS_ACCESS_KEY_ID": ("store", "AWS_ACCESS_KEY_ID", False),
                "AWS_SECRET_ACCESS_KEY": ("store", "AWS_SECRET_ACCESS_KEY", False),
                "AWS_SESSION_TOKEN": ("store", "AWS_SESSION_TOKEN", True),
            },
        ),
        ({"objectStore": {"uri": "s3://open/a.jsonl"}}, {"--source=objectStore", "--uri=s3://open/a.jsonl"}, {}),
    ],
)
def test_sources_get_their_flags_and_their_secrets_by_reference(
    dataset: dict[str, Any], flags: set[str], variables: dict[str, tuple[str, str, bool]]
) -> None:
    spec = pod(dataset=dataset)
    export, trainer = spec["initContainers"][0], spec["containers"][0]
    assert flags <= set(export["args"])
    assert "source" not in volumes(spec)
    given = {each["name"]: each["valueFrom"]["secretKeyRef"] for each in export["env"] if "valueFrom" in each}
    assert {n: (r["name"], r["key"], r.get("optional", False)) for n, r in given.items()} == variables
    assert {"name": "HF_HOME", "value": "/output/cache/huggingface"} in export["env"]
    assert [each for each in trainer["env"] if "valueFrom" in each] == []


MIX = [
    {"registry": {"name": "tickets"}, "weight": 3},
    {"name": "chats", "hub": {"repository": "o/d", "tokenSecretRef": SECRET}, "weight": 1, "turns": "Merge"},
    {"objectStore": STORE, "maxRows": 50, "columns": {"prompt": "q", "completion": "a"}, "ignoredColumns": ["x,y"]},
    {"sql": {"urlSecretRef": SECRET, "query": "select '$(HOME)' as prompt, 'é' as completion"}, "maxRows": 9},
    {"volume": {"claimName": "data", "path": "a/*.jsonl"}, "maxRows": 9},
    {"volume": {"claimName": "data", "path": "b.csv"}, "maxRows": 9},
    {"configMap": {"name": "rows", "key": "train.jsonl"}, "maxRows": 9},
]


def test_a_job_with_several_sources_is_what_was_reviewed() -> None:
    assert job(dataset={"mix": MIX}) == json.loads((GOLDEN / "mix_job.json").read_text())


def test_each_source_of_a_mix_has_files_and_secrets_of_its_own() -> None:
    spec = pod(dataset={"mix": MIX})
    export, trainer = spec["initContainers"][0], spec["containers"][0]
    given = {each["name"]: each["valueFrom"]["secretKeyRef"]["name"] for each in export["env"] if "valueFrom" in each}
    assert given == {
        "MIX_1_HF_TOKEN": "secret",
        **{f"MIX_2_AWS_{key}": "store" for key in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN")},
        "MIX_3_DATASET_URL": "secret",
    }
    assert [each for each in trainer["env"] if "valueFrom" in each] == []
    found = {path: held for path, held in mounts(export).items() if path.startswith("/source")}
    assert found == {
        "/source/4": ("source-4", True),
        "/source/5": ("source-4", True),  # one claim is one volume
        "/source/6": ("source-6", True),
    }
    assert [path for path in mounts(trainer) if path.startswith("/source")] == []
    entries = [a.removeprefix("--mix=").replace("$$", "$") for a in export["args"] if a.startswith("--mix=")]
    assert [json.loads(entry)["source"] for entry in entries] == [
        *("registry", "hub", "objectStore", "sql", "volume", "volume", "configMap"),
    ]
    assert json.loads(entries[3])["query"] == MIX[3]["sql"]["query"]  # type: ignore[index]
    assert not any(argument.startswith("--source=") for argument in export["args"])
    assert "--registry-url=http://registry" in export["args"]


def test_kubernetes_puts_nothing_in_for_a_dollar() -> None:
    query = "select $$a$$, '$(DATASET_URL)'"
    spec = pod(dataset={"sql": {"urlSecretRef": SECRET, "query": query}})
    (argument,) = (a for a in spec["initContainers"][0]["args"] if a.startswith("--query="))
    assert argument == "--query=select $$$$a$$$$, '$$(DATASET_URL)'"


def test_the_parents_claim_is_mounted_read_only_and_its_folder_is_named() -> None:
    spec = pod(o.PARENT, **o.PREFERENCE)
    export, trainer = spec["initContainers"][0], spec["containers"][0]
    assert volumes(spec)["parent-adapter"]["persistentVolumeClaim"] == {"claimName": "parents", "readOnly": True}
    assert mounts(trainer)["/models/parent"] == ("parent-adapter", True)
    assert "/models/parent" not in mounts(export)
    assert {
        "--parent-adapter=/models/parent/support/parent-uid/adapter",
        "--parent-adapter-name=support/3",
        f"--parent-adapter-sha256={'e' * 64}",
    } <= set(trainer["args"])


def test_a_parent_on_the_output_claim_is_read_from_there() -> None:
    spec = pod(dataclasses.replace(o.PARENT, claim_name="adapters"), **o.PREFERENCE)
    assert "parent-adapter" not in volumes(spec)
    assert "/models/parent" not in mounts(spec["containers"][0])
    assert "--parent-adapter=/output/support/parent-uid/adapter" in spec["containers"][0]["args"]


def test_a_claim_that_serves_twice_is_one_volume() -> None:
    parent = dataclasses.replace(o.PARENT, claim_name="base-models")
    dataset = {"volume": {"claimName": "adapters", "path": "rows/*.jsonl"}}
    spec = pod(parent, **{**o.PREFERENCE, "dataset": dataset})
    claims = [v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"] if "persistentVolumeClaim" in v]
    assert sorted(claims) == ["adapters", "base-models"]
    assert mounts(spec["initContainers"][0])["/source"] == ("output", True)
    assert mounts(spec["initContainers"][0])["/output"] == ("output", False)
    assert mounts(spec["containers"][0])["/models/parent"] == ("base-model", True)
    assert mounts(spec["containers"][0])["/models/base"] == ("base-model", True)


def test_only_what_the_spec_says_is_rendered() -> None:
    """With a parent the adapter's shape is the parent's, and a default would contradict it."""
    for arguments in (pod()["containers"][0]["args"], pod(o.PARENT, **o.PREFERENCE)["containers"][0]["args"]):
        assert [a for a in arguments if a.startswith(("--lora", "--learning-rate", "--epochs", "--dpo-label"))] == []
    chosen = pod(lora={"rank": 4, "dropoutPercent": 0}, quantization="NF4")["containers"][0]["args"]
    assert {"--lora-rank=4", "--lora-dropout-percent=0", "--quantization=NF4"} <= set(chosen)


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
    kept = build_claim(o.run(output={}), o.SETTINGS)
    assert kept["metadata"]["name"] == o.JOB
    assert "ownerReferences" not in kept["metadata"]
    owned = build_claim(
        o.run(output={"claim": {"size": "5Gi", "storageClassName": "fast", "retain": False}}), o.SETTINGS
    )
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


def test_a_mirror_of_the_hub_is_named_to_every_container() -> None:
    settings = o.SETTINGS.model_copy(update={"hub_endpoint": "http://mirror"})
    spec = build_job(o.run(), settings)["spec"]["template"]["spec"]
    for container in (*spec["initContainers"], *spec["containers"]):
        assert {"name": "HF_ENDPOINT", "value": "http://mirror"} in container["env"]


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
