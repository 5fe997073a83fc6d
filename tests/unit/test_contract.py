"""The operator's rendered flags against the parsers that get them, and the API's fields against theirs."""

from __future__ import annotations

import typing
from typing import Any

import pytest

from finetune.api.trainingrun import Dataset, Lora, Training
from finetune.controller.core import exits as operator_exits
from finetune.controller.core.arguments import export_arguments, trainer_arguments
from finetune.controller.core.messages import parse_message
from model import exits as model_exits
from model import flags
from model.data.export import ExportSettings
from model.training.config import TrainSettings
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
    },
    "lora": {"rank": 8, "alpha": 16, "dropoutPercent": 0, "targetModules": ["q_proj", "v_proj"], "variant": "DoRA"},
    "dataset": {"registry": {"name": "t"}, "tooLong": "Drop", "columns": {"prompt": "q", "completion": "a"}},
    "baseModel": {"hub": {"repository": "org/m", "revision": "main"}},
}


def trainer(**spec: Any) -> TrainSettings:
    command, *arguments = trainer_arguments(o.run(**spec), o.SETTINGS)
    assert command == "train"
    return flags.parse(TrainSettings, arguments)


@pytest.mark.parametrize("spec", [{}, FULL, {"resources": {"gpus": 0}}])
def test_the_trainer_understands_every_flag(spec: dict[str, Any]) -> None:
    settings = trainer(**spec)
    run = o.run(**spec)
    for name in Training.model_fields.keys() - {"learning_rate", "epochs"}:
        assert getattr(settings, name) == getattr(run.spec.training, name), name
    assert settings.learning_rate == float(run.learning_rate)
    assert (settings.epochs, settings.too_long, settings.gpus) == (
        run.epochs,
        run.spec.dataset.too_long,
        run.spec.resources.gpus,
    )
    for name in Lora.model_fields.keys() - {"target_modules"}:
        assert getattr(settings, f"lora_{name}") == getattr(run.spec.lora, name), name
    assert tuple(settings.lora_target_modules) == run.spec.lora.target_modules


@pytest.mark.parametrize(
    "dataset",
    [
        {"registry": {"name": "t"}, "columns": {"prompt": "q"}, "evaluation": {"maxRows": 9}},
        {"configMap": {"name": "rows", "key": "train.jsonl"}, "invalidRows": "Drop"},
        {"volume": {"claimName": "data", "path": "a.jsonl"}, "evaluation": {"percent": 0}},
    ],
)
def test_export_understands_every_flag(dataset: dict[str, Any]) -> None:
    settings = flags.parse(ExportSettings, export_arguments(o.run(dataset=dataset), o.SETTINGS))
    assert settings.run_uid == o.UID
    assert settings.invalid_rows == dataset.get("invalidRows", "Fail")


def choices(model: Any, name: str) -> set[str]:
    return set(typing.get_args(model.model_fields[name].annotation))


@pytest.mark.parametrize("name", ["schedule", "packing", "precision", "gradient_checkpointing"])
def test_the_words_of_the_api_are_the_words_of_the_trainer(name: str) -> None:
    assert choices(TrainSettings, name) == choices(Training, name)


def test_the_words_for_rows_are_the_same() -> None:
    assert choices(TrainSettings, "too_long") == choices(Dataset, "too_long")
    assert choices(ExportSettings, "invalid_rows") == choices(Dataset, "invalid_rows")
    assert choices(TrainSettings, "lora_variant") == choices(Lora, "variant")


def test_defaults_are_the_same_on_both_sides() -> None:
    for name, field in Training.model_fields.items():
        if name not in ("learning_rate", "epochs"):
            assert TrainSettings.model_fields[name].default == field.default, name


def test_exit_codes_mean_the_same() -> None:
    codes = {value for name, value in vars(model_exits).items() if name.isupper() and isinstance(value, int)}
    assert set(operator_exits.FAIL_JOB) <= codes
    assert {operator_exits.INTERRUPTED} <= codes


def test_what_the_documents_say_is_understood() -> None:
    message = parse_message('{"failure": {"reason": "DatasetInvalid", "message": "row 7", "row": 7}}')
    assert message.failure is not None
    assert message.failure.row == 7
    assert parse_message("Killed").text == "Killed"
    assert parse_message('{"result": 3}').result is None
