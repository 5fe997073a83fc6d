"""From flags, settings and earlier runs to the spec of a run."""

from __future__ import annotations

from typing import Any

import pytest

from finetune.cli.making import again
from finetune.cli.manifest import build, changed, check, copied, dataset_source, from_file, manifest, model_source
from finetune.cli.runs import differences
from finetune.cli.session import UsageError
from finetune.cli.views import of_object

SPEC: dict[str, Any] = {
    "method": "SFT",
    "baseModel": {"hub": {"repository": "a/b"}},
    "dataset": {"registry": {"name": "tickets", "version": 2}},
    "training": {"maxSteps": 10},
}


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("HuggingFaceTB/SmolLM2-135M", {"hub": {"repository": "HuggingFaceTB/SmolLM2-135M"}}),
        ("hub://a/b@main", {"hub": {"repository": "a/b", "revision": "main"}}),
        ("claim://models/smol/base", {"volume": {"claimName": "models", "path": "smol/base"}}),
        ("claim://models", {"volume": {"claimName": "models"}}),
    ],
)
def test_where_a_model_comes_from(text: str, source: dict[str, Any]) -> None:
    assert model_source(text) == source


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("tickets", {"registry": {"name": "tickets"}}),
        ("tickets@latest", {"registry": {"name": "tickets"}}),
        ("registry://tickets@3", {"registry": {"name": "tickets", "version": 3}}),
        ("hub://a/b@v1", {"hub": {"repository": "a/b", "revision": "v1"}}),
        ("claim://rows/train/*.jsonl", {"volume": {"claimName": "rows", "path": "train/*.jsonl"}}),
        ("configmap://greetings/rows.jsonl", {"configMap": {"name": "greetings", "key": "rows.jsonl"}}),
        ("s3://bucket/a/b.jsonl", {"objectStore": {"uri": "s3://bucket/a/b.jsonl"}}),
    ],
)
def test_where_rows_come_from(text: str, source: dict[str, Any]) -> None:
    assert dataset_source(text) == source


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rows.jsonl", "finetune datasets push NAME rows.jsonl"),
        ("./data/rows.csv", "datasets push"),
        ("ftp://a/b", "it is NAME"),
        ("claim://rows", "claim://CLAIM/PATH"),
        ("tickets@new", "by its number"),
        ("tickets@0", "by its number"),
    ],
)
def test_rows_that_are_none_are_told(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        dataset_source(text)


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("training.maxSteps=20", ("training", "maxSteps"), 20),
        ("spec.training.epochs=3", ("training", "epochs"), 3),
        ("learningRate=1e-4", ("training", "learningRate"), "1e-4"),
        ("learningRate=0.0001", ("training", "learningRate"), "0.0001"),
        ("targetModules=[q_proj, v_proj]", ("lora", "targetModules"), ["q_proj", "v_proj"]),
        ("resources.memory=16Gi", ("resources", "memory"), "16Gi"),
        ("resources.cpu=4", ("resources", "cpu"), "4"),
        ("dataset.columns.prompt=yes", ("dataset", "columns", "prompt"), "yes"),
        ("output.claim.retain=false", ("output", "claim", "retain"), False),
        ("scheduling.nodeSelector.nvidia.com/gpu=A", ("scheduling", "nodeSelector"), {"nvidia.com/gpu": "A"}),
        ("baseModel.volume.claimName=m", ("baseModel", "volume", "claimName"), "m"),
        ("quantization=NF4", ("quantization",), "NF4"),
    ],
)
def test_a_setting_reaches_its_field_as_the_type_that_it_has(
    setting: str, path: tuple[str, ...], value: object
) -> None:
    found: Any = changed(SPEC, [setting])
    for key in path:
        found = found[key]
    assert found == value
    assert SPEC["training"] == {"maxSteps": 10}, "the spec itself is not changed"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("learningrate=1", "do you mean .*learningRate"),
        ("name=x", "which one of .*adapter.name"),
        ("training.maxSteps", "PATH=VALUE"),
        ("lora.targetModules=[a", "no YAML"),
        ("training.maxSteps.deep=1", "no such field"),
    ],
)
def test_a_setting_that_is_none_is_refused_with_what_is_close(setting: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        changed(SPEC, [setting])


def test_an_empty_value_takes_a_setting_away() -> None:
    assert changed(SPEC, ["training.maxSteps=", "lora.rank="])["training"] == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trianing": {}}, "spec.trianing: there is no such field; training?"),
        ({"training": {"maxStep": 1}}, r"spec.training.maxStep: there is no such field; maxSteps\?"),
        ({"training": {"maxSteps": "many"}}, "spec.training.maxSteps"),
        ({"method": "PPO"}, "spec.method"),
    ],
)
def test_a_spec_that_cannot_be_one_is_refused_before_it_is_sent(change: dict[str, Any], said: str) -> None:
    check(SPEC)
    with pytest.raises(UsageError, match=said):
        check({**SPEC, **change})


def test_flags_make_the_smallest_spec() -> None:
    assert build(method="DPO", model="a/b", dataset="pairs", parent="support@3", queue="gold", memory="16Gi") == {
        "method": "DPO",
        "baseModel": {"hub": {"repository": "a/b"}},
        "dataset": {"registry": {"name": "pairs"}},
        "parentAdapter": {"name": "support", "version": 3},
        "resources": {"memory": "16Gi"},
        "scheduling": {"queueName": "gold"},
    }
    assert manifest({}, name=None, stem="support")["metadata"] == {"generateName": "support-"}
    assert manifest({}, name="one", namespace="ml")["metadata"] == {"name": "one", "namespace": "ml"}


def test_a_copy_keeps_adapter_and_experiment_and_nothing_of_its_past() -> None:
    spec = {**SPEC, "suspend": True, "resumeFrom": {"run": "old"}}
    assert copied(spec, name="one") == {**SPEC, "experiment": "one", "adapter": {"name": "one"}}
    kept = copied({**spec, "experiment": "e"}, name="one")
    assert (kept["experiment"], kept["adapter"]) == ("e", {"name": "e"})


@pytest.mark.parametrize(("checkpoint", "resumes"), [(30, True), (0, False), (None, False)])
def test_a_retry_goes_on_only_from_a_checkpoint(checkpoint: int | None, resumes: bool) -> None:
    progress = {} if checkpoint is None else {"checkpointStep": checkpoint}
    obj = {"metadata": {"name": "bad", "uid": "u"}, "spec": SPEC, "status": {"phase": "Failed", "progress": progress}}
    assert ("resumeFrom" in again(of_object(obj))) is resumes


@pytest.mark.parametrize(("checkpoint", "run"), [(None, "first"), (30, "bad")])
def test_a_retry_of_a_retry_that_came_no_further_begins_where_that_began(checkpoint: int | None, run: str) -> None:
    status = {"phase": "Failed", "progress": {"checkpointStep": checkpoint} if checkpoint else {}}
    spec = {**SPEC, "resumeFrom": {"run": "first"}}
    obj = {"metadata": {"name": "bad", "uid": "u"}, "spec": spec, "status": status}
    assert again(of_object(obj))["resumeFrom"] == {"run": run}


@pytest.mark.parametrize(
    "documents",
    [
        [],
        [{"kind": "ConfigMap"}],
        [{"kind": "TrainingRun", "metadata": {}, "spec": {}}, {"kind": "ConfigMap"}],
        [{"kind": "TrainingRun", "metadata": {}, "spec": {}}] * 2,
        [{"kind": "TrainingRun", "metadata": {}}],
    ],
)
def test_a_file_holds_one_run(documents: list[Any]) -> None:
    with pytest.raises(UsageError, match=r"run\.yaml"):
        from_file(documents, source="run.yaml")


def test_only_what_differs_is_compared() -> None:
    other = {**SPEC, "training": {"maxSteps": 20}, "lora": {"targetModules": ["a"]}, "suspend": True}
    assert differences([SPEC, other]) == {"training.maxSteps": [10, 20], "lora.targetModules": [None, "['a']"]}
    assert differences([SPEC, SPEC]) == {}
    assert len(differences([SPEC, SPEC], equal=True)) == 5
