"""What a person sees of a TrainingRun on a real API server: defaults, explanations, columns, status, examples."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.api import conditions
from finetune.api.crd import build_crd
from finetune.api.status import (
    ActiveTime,
    AdapterStatus,
    Attempt,
    DatasetSourceStatus,
    DatasetStatus,
    Failure,
    LossPoint,
    OutputStatus,
    ParentAdapterStatus,
    Progress,
    Result,
    ResumeStatus,
    Timings,
    TrainingRunStatus,
    Waiting,
)
from finetune.api.trainingrun import TrainingRun
from tests.cluster.api_server import ApiServerOnly
from tests.cluster.kube_api import KubeApi
from tests.support.kubectl import CommandError, Kubectl

ROOT = Path(__file__).parents[2]
RUNS = "/apis/finetune.dev/v1alpha1/namespaces/default/trainingruns"
NOW = datetime(2026, 11, 24, 6, 0, 0, tzinfo=UTC)

MINIMAL = {
    "method": "SFT",
    "baseModel": {"volume": {"claimName": "models", "path": "smollm2"}},
    "dataset": {"registry": {"name": "docs"}},
}


def manifest(name: str, **spec: object) -> dict[str, Any]:
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {**MINIMAL, **spec},
    }


@pytest.fixture(scope="module")
def kubectl(api_server: ApiServerOnly) -> Kubectl:
    return Kubectl(kubeconfig=api_server.kubeconfig, bin_dir=api_server.bin_dir)


@pytest.fixture
def run(api: KubeApi) -> Iterator[dict[str, Any]]:
    """A stored run with nothing but what is needed."""
    code, answer = api.request("POST", RUNS, manifest("minimal"))
    assert code == 201, answer
    yield answer
    api.request("DELETE", f"{RUNS}/minimal")


def put_status(api: KubeApi, run: dict[str, Any], status: TrainingRunStatus) -> tuple[int, dict[str, Any]]:
    return api.request("PUT", f"{RUNS}/minimal/status?fieldValidation=Strict", {**run, "status": status.to_dict()})


def test_the_server_fills_in_the_defaults_that_the_models_have(run: dict[str, Any]) -> None:
    """An operator that reads the object and one that makes it from the manifest see the same run."""
    read = TrainingRun.from_object(run)
    made = TrainingRun.from_object({**run, "spec": MINIMAL})
    assert read.spec == made.spec
    assert run["spec"]["training"] | {"batchSize": 16, "maxLength": 1024, "seed": 42} == run["spec"]["training"]
    assert "evaluation" not in run["spec"]["dataset"]  # nor evaluationSteps: both follow from the number of rows
    assert "output" not in run["spec"]


def test_a_given_object_gets_the_defaults_inside_it(api: KubeApi) -> None:
    partly = manifest("partly", method="DPO", dpo={"loss": "IPO"}, lora={"rank": 8}, output={"claim": {}})
    code, answer = api.request("POST", f"{RUNS}?dryRun=All", partly)
    assert code == 201
    assert answer["spec"]["dpo"] == {"loss": "IPO", "beta": "0.1", "sftWeight": "0"}
    assert answer["spec"]["lora"] == {"rank": 8}  # the rest is the parent's, or the trainer's default
    assert answer["spec"]["output"]["claim"] == {"size": "20Gi", "accessMode": "ReadWriteOnce", "retain": True}


def test_the_status_is_there_before_anybody_wrote_it(run: dict[str, Any]) -> None:
    assert run["status"] == {"observedGeneration": -1}


def test_a_manifest_cannot_write_the_status(api: KubeApi) -> None:
    code, answer = api.request("POST", f"{RUNS}?dryRun=All", manifest("status") | {"status": {"phase": "Succeeded"}})
    assert code == 201
    assert answer["status"] == {"observedGeneration": -1}


def full_status() -> TrainingRunStatus:
    """A status with every field set."""
    listed = conditions.set_condition((), conditions.SUCCEEDED, "True", "AdapterRegistered", "done", 1, NOW)
    return TrainingRunStatus(
        observed_generation=1,
        phase="Succeeded",
        conditions=conditions.set_condition(listed, conditions.FINISHED, "True", "AdapterRegistered", "", 1, NOW),
        waiting=Waiting(
            reason="Unschedulable", object="Pod/a", message="no node fits", hint="Ask for less.", since=NOW
        ),
        job_name="t-minimal-12345678",
        job_uid="job",
        output=OutputStatus(claim_name="adapters", path="minimal/uid"),
        attempts=2,
        attempt_history=(
            Attempt(pod="a", uid="1", start_time=NOW, completion_time=NOW, exit_code=75, reason="Interrupted", step=12),
        ),
        resumed_from_step=12,
        start_time=NOW,
        training_start_time=NOW,
        active=ActiveTime(seconds=60, since=NOW),
        completion_time=NOW,
        duration_seconds=120,
        gpu_seconds=240,
        timings=Timings(
            accepted_seconds=0, scheduled_seconds=1, export_seconds=2, model_load_seconds=10, first_step_seconds=15
        ),
        progress=Progress(
            step=55,
            total_steps=55,
            percent=100,
            epoch="1.0",
            loss="1.91",
            learning_rate="0.0002",
            tokens_per_second="402.1",
            remaining_seconds=0,
            last_update_time=NOW,
        ),
        dataset=DatasetStatus(
            source_sha256="e" * 64,
            version=2,
            rows=400,
            evaluation_rows=40,
            dropped=1,
            duplicates=2,
            truncated=3,
            tokens=39000,
            bytes=91234,
            sha256="c" * 64,
            sources=(
                DatasetSourceStatus(name="docs/2", version=2, rows=300, evaluation_rows=30, found=330, dropped=0),
                DatasetSourceStatus(name="chats", rows=100, evaluation_rows=10, found=2000, dropped=1),
            ),
        ),
        parent_adapter=ParentAdapterStatus(name="support", version=3, sha256="e" * 64),
        resumed_from=ResumeStatus(run="minimal-0", uid="2", claim_name="adapters", path="minimal-0/2"),
        loss_history=tuple(LossPoint(step=step, loss="2.91") for step in range(32)),
        result=Result(
            final_loss="1.8342",
            evaluation_loss="1.9011",
            base_evaluation_loss="2.77",
            loss_change="-31 %",
            reward_accuracy="0.91",
            reward_margin="1.3",
            steps=55,
            best_step=40,
            tokens=41234,
            adapter=AdapterStatus(
                id="a1",
                name="docs",
                version=3,
                reference="docs/3",
                uri="pvc://adapters/minimal/uid/adapter",
                sha256="a" * 64,
                bytes=19700000,
            ),
        ),
        failure=Failure(reason="DatasetInvalid", message="row 7: no JSON", exit_code=3, hint="Correct the row.", row=7),
        warnings=("the node is slow",),
    )


def test_every_field_of_the_status_is_stored(api: KubeApi, run: dict[str, Any]) -> None:
    """Nothing is pruned: the schema knows all that the operator writes."""
    status = full_status()
    assert {name for name in type(status).model_fields if not getattr(status, name)} == set()
    code, answer = put_status(api, run, status)
    assert code == 200, answer
    assert answer["status"] == status.to_dict()
    assert TrainingRun.from_object(answer).status == status


def test_a_condition_type_occurs_once(api: KubeApi, run: dict[str, Any]) -> None:
    (first, _) = full_status().conditions
    code, answer = put_status(api, run, TrainingRunStatus(conditions=(first, first)))
    assert code == 422
    assert "Duplicate value" in answer["message"]


def columns(text: str) -> dict[str, str]:
    """The first row of kubectl's table, by column."""
    head, row = text.splitlines()[:2]
    starts = [index for index in range(len(head)) if head[index] != " " and (index == 0 or head[index - 1] == " ")]
    ends = [*starts[1:], None]
    return {head[a:b].strip(): row[a:b].strip() for a, b in zip(starts, ends, strict=True)}


def test_the_table_tells_what_a_run_is_and_how_far(api: KubeApi, kubectl: Kubectl, run: dict[str, Any]) -> None:
    under_way = TrainingRunStatus(phase="Training", progress=Progress(percent=12, loss="2.31"))
    put_status(api, run, under_way)
    row = columns(kubectl("get", "trun", "minimal"))
    row.pop("AGE")
    assert row == {
        "NAME": "minimal",
        "STATUS": "Training",
        "METHOD": "SFT",
        "MODEL": "smollm2",
        "PROGRESS%": "12",
        "LOSS": "2.31",
        "VS-BASE": "",
        "ADAPTER": "",
        "MESSAGE": "",
    }
    put_status(api, {**run, "metadata": api.get(f"{RUNS}/minimal")["metadata"]}, full_status())
    row = columns(kubectl("get", "trun", "minimal", "-o", "wide"))
    assert (row["LOSS"], row["VS-BASE"]) == ("1.9011", "-31 %")
    assert (row["ADAPTER"], row["VERSION"], row["DATASET"]) == ("docs/3", "3", "docs")
    assert (row["GPUS"], row["ATTEMPTS"], row["DURATION"]) == ("1", "2", "120")


WAITING = Waiting(reason="Queued", object="LocalQueue/gold", message="no quota is left in gold", since=NOW)
FAILURE = Failure(reason="DatasetInvalid", message="row 7: no JSON", hint="Correct the row.")


def finished(status: conditions.ConditionStatus, reason: str, message: str) -> tuple[conditions.Condition, ...]:
    return conditions.set_condition((), conditions.FINISHED, status, reason, message, 1, NOW)


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        (
            TrainingRunStatus(waiting=WAITING, conditions=finished("False", "Queued", WAITING.message)),
            ("Queued", "no quota is left in gold"),
        ),
        (
            TrainingRunStatus(failure=FAILURE, conditions=finished("True", "DatasetInvalid", FAILURE.message)),
            ("DatasetInvalid", "row 7: no JSON"),
        ),
        (TrainingRunStatus(conditions=finished("False", "Training", "")), ("", "")),
    ],
    ids=["waiting", "failed", "well"],
)
def test_the_table_says_what_a_run_waits_for_and_why_it_failed(
    api: KubeApi, kubectl: Kubectl, run: dict[str, Any], status: TrainingRunStatus, shown: tuple[str, str]
) -> None:
    put_status(api, run, status)
    text = kubectl("get", "trun", "minimal")
    wide = columns(kubectl("get", "trun", "minimal", "-o", "wide"))
    assert (wide["REASON"], wide["MESSAGE"]) == shown
    assert columns(text)["MESSAGE"] == shown[1]
    assert text.splitlines()[0].endswith("MESSAGE"), "what may be long comes last"
    assert len(text.splitlines()[0]) < 120


def test_an_adapter_of_an_older_operator_is_shown_by_its_name(
    api: KubeApi, kubectl: Kubectl, run: dict[str, Any]
) -> None:
    status = full_status().to_dict()
    del status["result"]["adapter"]["reference"]
    put_status(api, run, TrainingRunStatus.model_validate(status))
    assert columns(kubectl("get", "trun", "minimal"))["ADAPTER"] == "docs"


def test_the_table_names_method_parent_and_queue(api: KubeApi, kubectl: Kubectl) -> None:
    spec = {"method": "DPO", "parentAdapter": {"name": "support"}, "scheduling": {"queueName": "gold"}}
    code, answer = api.request("POST", RUNS, manifest("child", **spec))
    assert code == 201, answer
    try:
        row = columns(kubectl("get", "trun", "child", "-o", "wide"))
        assert (row["METHOD"], row["PARENT"], row["DATASET"]) == ("DPO", "support", "docs")
        assert row["QUEUE"] == "gold"
    finally:
        api.request("DELETE", f"{RUNS}/child")


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ({"hub": {"repository": "org/model"}}, "org/model"),
        ({"volume": {"claimName": "models"}}, "models"),
        ({"volume": {"claimName": "models", "path": "a/b"}}, "a/b"),
    ],
)
def test_the_table_names_the_model(api: KubeApi, kubectl: Kubectl, source: dict[str, Any], shown: str) -> None:
    code, answer = api.request("POST", RUNS, manifest("model", baseModel=source))
    assert code == 201, answer
    try:
        assert columns(kubectl("get", "trun", "model"))["MODEL"] == shown
        assert TrainingRun.from_object(answer).spec.base_model.display_name == shown
    finally:
        api.request("DELETE", f"{RUNS}/model")


def test_every_field_is_explained(api: KubeApi) -> None:
    """Checked in the document that kubectl explain reads, as the server publishes it."""
    document = api.get("/openapi/v3/apis/finetune.dev/v1alpha1")
    schema = document["components"]["schemas"]["dev.finetune.v1alpha1.TrainingRun"]
    undocumented = [
        path
        for part in ("spec", "status")
        for path, node in fields(schema["properties"][part], part)
        if not node.get("description")
    ]
    assert undocumented == []


def fields(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field at or below the node, with its path."""
    yield path, node
    for below in (node, node.get("items", {})):
        for name, each in below.get("properties", {}).items():
            yield from fields(each, f"{path}.{name}")


def test_kubectl_explains_every_field(kubectl: Kubectl) -> None:
    shown = kubectl("explain", "trainingrun.spec", "--recursive").split("FIELDS:")[1].split()
    spec = build_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    names = [path.rpartition(".")[2] for path, _ in fields(spec, "spec")][1:]
    assert len(names) > 60
    assert [name for name in names if name not in shown] == []
    assert "a decimal number such as 0.0002" in kubectl("explain", "trainingrun.spec.training.learningRate")


def test_the_definition_is_small_enough_for_client_side_apply(api: KubeApi, kubectl: Kubectl) -> None:
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/trainingruns.finetune.dev"
    assert len(json.dumps(api.get(path)["spec"])) < 100_000
    kubectl("apply", "--dry-run=server", "-f", str(ROOT / "crds"))


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_an_example_is_accepted(kubectl: Kubectl, path: Path) -> None:
    kubectl("apply", "--server-side", "--dry-run=server", "-f", str(path))


def test_the_examples_show_every_field() -> None:
    texts = [path.read_text() for path in (ROOT / "examples").glob("*.yaml")]
    runs = [each for text in texts for each in yaml.safe_load_all(text) if each["kind"] == "TrainingRun"]
    assert len(runs) > 5
    spec = build_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    toleration = "spec.scheduling.tolerations."
    shown = {path for path, _ in fields(spec, "spec") if any(_has(run, path.split(".")) for run in runs)}
    alone = {path.replace("spec.dataset.", "spec.dataset.mix.", 1) for path in shown}  # sources, shown by themselves
    missing = [path for path, _ in fields(spec, "spec") if not path.startswith(toleration)]
    assert [path for path in missing if path not in shown | alone] == []


def _has(node: object, path: list[str]) -> bool:
    if not path:
        return True
    if isinstance(node, list):
        return any(_has(item, path) for item in node)
    return isinstance(node, dict) and path[0] in node and _has(node[path[0]], path[1:])


def test_applying_twice_changes_nothing(kubectl: Kubectl) -> None:
    text = (ROOT / "examples" / "trainingrun.yaml").read_text()
    seen = []
    for _ in range(2):
        kubectl("apply", "-f", "-", stdin=text)
        seen.append(kubectl("get", "trun", "support-1", "-o", "jsonpath={.metadata.resourceVersion}"))
    kubectl("delete", "-f", "-", stdin=text)
    assert seen[0] == seen[1]


def test_a_misspelt_field_is_refused(kubectl: Kubectl) -> None:
    with pytest.raises(CommandError, match=r'unknown field "(spec\.)?trainning"'):
        kubectl.apply(manifest("misspelt", trainning={"epochs": 2}))


@pytest.mark.usefixtures("run")
def test_the_names_that_people_type(kubectl: Kubectl) -> None:
    for word in ("trun", "trainingrun", "trainingruns", "finetune"):
        assert "minimal" in kubectl("get", word)
