"""The operator's rendered flags against the parsers that get them, and the API's fields against theirs."""

from __future__ import annotations

import dataclasses
import re
import typing
from pathlib import Path
from typing import Any

import pytest

from finetune.api.registry import DatasetFacts
from finetune.api.sources import Columns, Dataset
from finetune.api.status import DatasetSourceStatus, ResumeStatus
from finetune.api.trainingrun import Dpo, Kto, Lora, Training, TrainingRunSpec
from finetune.controller.core import exits as operator_exits
from finetune.controller.core.arguments import export_arguments, trainer_arguments
from finetune.controller.core.manifests import build_job
from finetune.controller.core.messages import parse_message
from finetune.controller.core.views import ParentView
from model import exits as model_exits
from model import flags
from model.data.export import ExportSettings
from model.data.forms import CANONICAL_FIELDS
from model.data.parts import Part
from model.data.shapes import Shaper
from model.data.source_settings import SourceSettings
from model.data.sources import FileSource
from model.training.config import TrainSettings
from model.training.loop import fingerprint
from tests.support import objects as o

FULL: dict[str, Any] = {
    "training": {
        "maxSteps": 7,
        "batchSize": 8,
        "microBatchSize": 2,
        "learningRate": "5e-4",
        "schedule": "Linear",
        "warmupPercent": 10,
        "maxLength": 128,
        "packing": "Disabled",
        "precision": "Float32",
        "gradientCheckpointing": "Enabled",
        "seed": 7,
        "checkpointSteps": 3,
        "evaluationSteps": 4,
        "earlyStoppingPatience": 2,
        "samples": 3,
    },
    "lora": {"rank": 8, "alpha": 16, "dropoutPercent": 0, "targetModules": ["q_proj", "v_proj"], "variant": "DoRA"},
    "dataset": {"registry": {"name": "t"}, "tooLong": "Drop", "columns": {"prompt": "q", "completion": "a"}},
    "baseModel": {"hub": {"repository": "org/m", "revision": "main"}},
    "quantization": "NF4",
}
PREFERENCE: dict[str, Any] = {
    **{key: value for key, value in FULL.items() if key != "dataset"},
    "method": "DPO",
    "dpo": {"beta": "0.2", "loss": "RobustSigmoid", "labelSmoothing": "0.1", "sftWeight": "0.5"},
}
LABELLED: dict[str, Any] = {
    **{key: value for key, value in FULL.items() if key != "dataset"},
    "method": "KTO",
    "kto": {"beta": "0.2", "desirableWeight": "1.5", "undesirableWeight": "2"},
}


def trainer(parent: ParentView | None = None, **spec: Any) -> TrainSettings:
    command, *arguments = trainer_arguments(o.run(**spec), o.SETTINGS, parent)
    assert command == "train"
    return flags.parse(TrainSettings, arguments)


def equal(said: Any, understood: Any) -> bool:
    """The API's value and the trainer's, which makes numbers of decimal strings and lists of tuples."""
    if isinstance(said, str) and isinstance(understood, float):
        return float(said) == understood
    return bool(understood == (list(said) if isinstance(said, tuple) else said))


@pytest.mark.parametrize("spec", [{}, FULL, {"resources": {"gpus": 0}}, {"method": "DPO"}, PREFERENCE, LABELLED])
def test_the_trainer_understands_every_flag(spec: dict[str, Any]) -> None:
    settings = trainer(**spec)
    run = o.run(**spec)
    parts = [("", run.spec.training), ("lora_", run.spec.lora), ("dpo_", run.spec.dpo), ("kto_", run.spec.kto)]
    for prefix, part in parts:
        for name in type(part).model_fields if part else ():
            assert equal(getattr(part, name), getattr(settings, prefix + name)), prefix + name
    assert (settings.method, settings.too_long) == (run.spec.method, run.spec.dataset.too_long)
    assert (settings.quantization, settings.gpus) == (run.spec.quantization, run.spec.resources.gpus)


def test_the_defaults_that_the_descriptions_name_are_the_trainers() -> None:
    for method, rate, dropout in (("SFT", "2e-4", 5), ("DPO", "5e-6", 0), ("KTO", "5e-6", 0)):
        resolved = trainer(method=method).resolved()
        assert (resolved.learning_rate, resolved.epochs, resolved.lora_dropout_percent) == (float(rate), 1, dropout)
        described = str(Training.model_fields["learning_rate"].description).split()
        assert f"{rate} for {method}" in " ".join(described)
        assert f"{dropout} for {method}" in str(Lora.model_fields["dropout_percent"].description)
    named = {"rank": "16", "alpha": "32", "variant": "LoRA", "target_modules": "[all-linear]"}
    for name, default in named.items():
        assert f"Default: {default}." in str(Lora.model_fields[name].description)
        assert str(getattr(resolved, f"lora_{name}")).replace("'", "") == default


@pytest.mark.parametrize("claim", ["parents", "adapters"])
def test_the_trainer_finds_the_parent_where_it_is_mounted(claim: str) -> None:
    """And takes the adapter's shape from it: nothing is said about it."""
    parent = dataclasses.replace(o.PARENT, claim_name=claim)
    settings = trainer(parent, **o.PREFERENCE)
    assert settings.parent_adapter is not None
    pod = build_job(o.run(**o.PREFERENCE), o.SETTINGS, parent)["spec"]["template"]["spec"]
    folders = {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
    (volume,) = (v["name"] for v in pod["volumes"] if v.get("persistentVolumeClaim", {}).get("claimName") == claim)
    assert str(settings.parent_adapter) == f"{folders[volume]}/{o.PARENT.path}"
    assert (settings.parent_adapter_name, settings.parent_adapter_sha256) == ("support/3", "e" * 64)
    assert settings.resolved().lora_rank is None


@pytest.mark.parametrize("claim", ["others", "adapters"])
def test_the_trainer_finds_the_run_to_go_on_from_where_it_is_mounted(claim: str) -> None:
    resume = ResumeStatus(run="support-7", uid="u-7", claim_name=claim, path="support/u-7")
    spec: dict[str, Any] = {"output": {"claimName": "adapters"}, "resumeFrom": {"run": "support-7"}}
    command, *arguments = trainer_arguments(o.run(**spec), o.SETTINGS, None, resume)
    settings = flags.parse(TrainSettings, arguments)
    pod = build_job(o.run(**spec), o.SETTINGS, None, resume)["spec"]["template"]["spec"]
    mounts = {m["name"]: m for m in pod["containers"][0]["volumeMounts"]}
    (volume,) = (v["name"] for v in pod["volumes"] if v.get("persistentVolumeClaim", {}).get("claimName") == claim)
    assert str(settings.resume_from) == f"{mounts[volume]['mountPath']}/support/u-7"
    assert settings.resume_from_run == "support-7"
    assert (command, str(settings.run_directory).startswith("/output/")) == ("train", True)


def test_what_a_run_that_differs_is_told_to_change_are_fields_of_the_api() -> None:
    """And flags of the trainer."""
    for field, given in (*fingerprint._SETTINGS.values(), *fingerprint._FOUND.values()):
        for path in re.findall(r"spec\.([A-Za-z.]+)", field):
            model: Any = TrainingRunSpec
            for part in path.removesuffix("'s").split("."):
                names = {str(item.alias or name): item for name, item in model.model_fields.items()}
                assert part in names, f"{field}: {part}"
                kinds = [names[part].annotation, *typing.get_args(names[part].annotation)]
                model = next((kind for kind in kinds if hasattr(kind, "model_fields")), None)
        for flag in re.findall(r"--([a-z0-9-]+)", given):
            assert flag == "dataset" or flag.replace("-", "_") in TrainSettings.model_fields


@pytest.mark.parametrize("claim", ["old", "adapters"])
def test_the_trainer_finds_the_other_runs_checkpoints_where_they_are_mounted(claim: str) -> None:
    run = o.run(resumeFrom={"run": "first"})
    resume = ResumeStatus(run="first", uid="first-uid", claim_name=claim, path="first/first-uid")
    _, *arguments = trainer_arguments(run, o.SETTINGS, None, resume)
    settings = flags.parse(TrainSettings, arguments)
    assert settings.resume_from_run == "first"
    pod = build_job(run, o.SETTINGS, None, resume)["spec"]["template"]["spec"]
    folders = {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
    (volume,) = (v["name"] for v in pod["volumes"] if v.get("persistentVolumeClaim", {}).get("claimName") == claim)
    assert str(settings.resume_from) == f"{folders[volume]}/first/first-uid"


@pytest.mark.parametrize(
    "dataset",
    [
        {"registry": {"name": "t"}, "columns": {"prompt": "q"}, "evaluation": {"maxRows": 9}},
        {"configMap": {"name": "rows", "key": "train.jsonl"}, "invalidRows": "Drop"},
        {"volume": {"claimName": "data", "path": "a.jsonl"}, "evaluation": {"percent": 0}},
        {"volume": {"claimName": "data", "path": "parts/*.parquet"}, "columns": {"messages": "chat", "tools": "t"}},
        {"sql": {"urlSecretRef": {"name": "db", "key": "url"}, "query": "select p as prompt, c as completion from t"}},
        {"hub": {"repository": "org/d"}, "columns": {"prompt": "q", "chosen": "a", "rejected": "b", "tools": "t"}},
        {"hub": {"repository": "org/d", "revision": "v1", "configuration": "en", "split": "test"}},
        {"configMap": {"name": "rows", "key": "a.csv"}, "columns": {"system": "s", "history": "h"}, "turns": "Merge"},
        {"configMap": {"name": "rows", "key": "a.csv"}, "ignoredColumns": ["images", "a, b"]},
        {"objectStore": {"uri": "s3://bucket/a/*.jsonl", "endpoint": "http://minio:9000"}},
    ],
)
def test_export_understands_every_flag(dataset: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATASET_URL", "sqlite:////rows.db")  # which the pod has from its Secret
    run = o.run(method="DPO" if "chosen" in dataset.get("columns", {}) else "SFT", dataset=dataset)
    settings = flags.parse(ExportSettings, export_arguments(run, o.SETTINGS))
    assert (settings.run_uid, settings.method) == (o.UID, run.spec.method)
    assert settings.invalid_rows == dataset.get("invalidRows", "Fail")
    assert settings.source == next(iter(dataset))
    assert settings.column == dataset.get("columns", {})
    assert settings.ignore_column == dataset.get("ignoredColumns", [])
    assert settings.turns == dataset.get("turns", "Strict")
    held_out = dataset.get("evaluation", {})  # else the export's own default
    assert (settings.evaluation_percent, settings.evaluation_max_rows) == (
        held_out.get("percent"),
        held_out.get("maxRows"),
    )
    source = dataset[settings.source]
    for field in ("query", "repository", "revision", "configuration", "split", "uri", "endpoint"):
        assert getattr(settings, field) == source.get(field), field
    file = source.get("path", source.get("key"))
    assert settings.path == (Path("/source") / file if file else None)


def choices(model: Any, name: str) -> set[str]:
    return set(typing.get_args(model.model_fields[name].annotation))


@pytest.mark.parametrize("name", ["schedule", "packing", "precision", "gradient_checkpointing"])
def test_the_words_of_the_api_are_the_words_of_the_trainer(name: str) -> None:
    assert choices(TrainSettings, name) == choices(Training, name)


def test_the_words_for_rows_are_the_same() -> None:
    assert choices(TrainSettings, "too_long") == choices(Dataset, "too_long")
    assert choices(ExportSettings, "invalid_rows") == choices(Dataset, "invalid_rows")
    assert choices(ExportSettings, "turns") == choices(Dataset, "turns")
    assert choices(TrainSettings, "lora_variant") == choices(Lora, "variant")
    assert choices(TrainSettings, "dpo_loss") == choices(Dpo, "loss")
    assert choices(TrainSettings, "quantization") == choices(TrainingRunSpec, "quantization")
    sources = {str(field.alias or name) for name, field in Dataset.model_fields.items() if name not in NO_SOURCES}
    literal, _ = typing.get_args(SourceSettings.model_fields["source"].annotation)
    assert set(typing.get_args(literal)) == sources
    assert set(Columns.model_fields) <= set(CANONICAL_FIELDS)


def test_what_became_of_a_mixs_sources_is_read_on_the_other_side() -> None:
    source = FileSource("volume", Path("rows.jsonl"), version=3)
    said = Part(source, Shaper("", "SFT", {}), 0, found=9, invalid=1).document(5, 2)
    assert DatasetSourceStatus.model_validate(said).to_dict() == said
    facts = DatasetFacts.model_validate({"rows": 5, "sha256": "0" * 64, "sources": [said]})
    assert facts.model_dump(mode="json", by_alias=True, exclude_none=True)["sources"] == [said]


NO_SOURCES = {"mix", "columns", "ignored_columns", "turns", "evaluation", "too_long", "invalid_rows"}


@pytest.mark.parametrize(("prefix", "model"), [("", Training), ("lora_", Lora)])
def test_defaults_are_the_same_on_both_sides(prefix: str, model: Any) -> None:
    for name, field in model.model_fields.items():
        assert equal(field.default, TrainSettings.model_fields[prefix + name].default), name


def test_defaults_of_labelled_answers_are_the_same_on_both_sides() -> None:
    for name, default in Kto().model_dump().items():
        assert TrainSettings.model_fields[f"kto_{name}"].default == float(default), name


def test_defaults_of_preference_training_are_the_same_on_both_sides() -> None:
    for name, default in Dpo().model_dump(exclude_none=True).items():
        trainers = TrainSettings.model_fields[f"dpo_{name}"].default
        assert trainers == (float(default) if name != "loss" else default), name


def test_exit_codes_mean_the_same() -> None:
    codes = {value for name, value in vars(model_exits).items() if name.isupper() and isinstance(value, int)}
    assert set(operator_exits.FAIL_JOB) <= codes
    assert {*operator_exits.IGNORED} <= codes
    assert set(operator_exits._REASONS) <= codes
    assert {model_exits.STORAGE_FULL, model_exits.GPU_UNAVAILABLE, model_exits.HUNG}.isdisjoint(operator_exits.FAIL_JOB)


def test_what_the_documents_say_is_understood() -> None:
    message = parse_message('{"failure": {"reason": "DatasetInvalid", "message": "row 7", "row": 7}}')
    assert message.failure is not None
    assert message.failure.row == 7
    assert parse_message("Killed").text == "Killed"
    assert parse_message('{"result": 3}').result is None
