"""Reading and writing TrainingRuns."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from pydantic import ValidationError

from finetune.api.fields import clip
from finetune.api.sources import Columns
from finetune.api.status import Progress, TrainingRunStatus
from finetune.api.trainingrun import Dpo, OutputClaim, TrainingRun

SPEC = {
    "method": "SFT",
    "baseModel": {"volume": {"claimName": "models", "path": "smollm2"}},
    "dataset": {"registry": {"name": "docs"}},
}


def read(**spec: Any) -> TrainingRun:
    return TrainingRun.model_validate({"metadata": {"name": "support-1", "uid": "u"}, "spec": {**SPEC, **spec}})


def test_what_is_left_out_follows_from_what_is_there() -> None:
    run = read()
    assert (run.experiment, run.adapter_name) == ("support-1", "support-1")
    assert run.new_output_claim == OutputClaim()
    assert run.status.observed_generation == -1


def test_the_adapter_is_named_after_the_experiment_unless_it_has_a_name() -> None:
    assert read(experiment="support").adapter_name == "support"
    assert read(experiment="support", adapter={"name": "bot"}).adapter_name == "bot"


def test_what_the_trainer_decides_is_left_open() -> None:
    """A default of the CRD could not be told from a choice, and the parent adapter must not be contradicted."""
    spec = read(method="DPO").spec
    assert spec.lora.to_dict() == {}
    assert (spec.training.learning_rate, spec.training.epochs, spec.dpo) == (None, None, None)
    assert read(method="DPO", dpo={"beta": "0.3"}).spec.dpo == Dpo(beta="0.3", loss="Sigmoid", sft_weight="0")


def test_an_existing_claim_replaces_the_new_one() -> None:
    assert read(output={"claimName": "adapters"}).new_output_claim is None
    assert read(output={"claim": {"size": "5Gi"}}).new_output_claim == OutputClaim(size="5Gi")


def test_the_abbreviation_keeps_its_capitals() -> None:
    assert read(jobTTLSeconds=7).spec.job_ttl_seconds == 7
    assert read().spec.to_dict()["jobTTLSeconds"] == 3600


def test_fields_of_a_newer_version_are_ignored() -> None:
    assert read(futureField=1, training={"another": 2}).spec == read().spec


@pytest.mark.parametrize(
    "spec",
    [
        {"method": "PPO"},
        {"quantization": "FP4"},
        {"dpo": {"loss": "Other"}},
        {"retries": -1},
        {"training": {"packing": True}},
        {"resources": {"gpus": 65}},
        {"dataset": None},
    ],
)
def test_what_the_schema_refuses_is_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        read(**spec)


@pytest.mark.parametrize(
    ("written", "read_as"),
    [(0.0002, "0.0002"), (2e-5, "2e-05"), (1, "1"), ("2e-4", "2e-4"), (0.1 + 0.2, "0.30000000000000004")],
)
def test_a_number_may_be_written_with_quotes_or_without(written: object, read_as: str) -> None:
    assert read(training={"learningRate": written}).spec.training.learning_rate == read_as


@pytest.mark.parametrize(
    ("written", "read_as"),
    [(4, "4"), ("4", "4"), ("500m", "500m"), (0.5, "500m"), (0.29, "290m"), (1e-9, "1m"), (4.0, "4000m")],
)
def test_so_may_an_amount_of_cpu(written: object, read_as: str) -> None:
    assert read(resources={"cpu": written, "cpuLimit": written}).spec.resources.cpu == read_as


def test_a_run_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        read().spec.suspend = True  # type: ignore[misc]


def test_only_renamed_columns_are_rendered() -> None:
    assert Columns(prompt="question").renamed() == {"prompt": "question"}


def test_a_status_is_written_as_the_server_gives_it_back() -> None:
    berlin = timezone(timedelta(hours=1))
    status = TrainingRunStatus(start_time=datetime(2026, 11, 24, 7, 0, 0, 999999, berlin), progress=Progress(step=0))
    written = status.to_dict()
    assert written == {"observedGeneration": -1, "startTime": "2026-11-24T06:00:00Z", "progress": {"step": 0}}
    assert TrainingRunStatus.model_validate(written) == status
    assert status.start_time == datetime(2026, 11, 24, 6, 0, 0, tzinfo=UTC)


def test_a_long_message_is_cut() -> None:
    assert clip("abcdef", 6) == "abcdef"
    assert clip("abcdefg", 6) == "abcde…"
