"""What the training loop does around the loss: the learning rate, the clock, the search for what fits."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from model.training import build  # noqa: E402 - torch first, or there is nothing to import
from model.training.loop import memory  # noqa: E402 - as above
from model.training.processes import interruption  # noqa: E402 - torch first, or there is nothing to import
from tests.training.trainers import (  # noqa: E402 - as above
    difference,
    events,
    make_settings,
    make_trainer,
    random_rows,
    weights,
)


def make(base_model: Path, tokenizer: Any, path: Path, **changes: Any) -> Any:
    return make_trainer(make_settings(base_model, path, **changes), tokenizer, random_rows(24))


def test_a_run_of_one_step_learns_something(base_model: Path, tokenizer: Any, tmp_path: Path) -> None:
    trainer = make(base_model, tokenizer, tmp_path, max_steps=1, warmup_percent=3)
    before = weights(trainer.model)
    trainer.train_from(None)
    assert difference(before, weights(trainer.model)) > 1e-4


@pytest.mark.parametrize("schedule", ["Cosine", "Linear", "Constant"])
def test_the_learning_rate_goes_on_after_a_resume(
    base_model: Path, tokenizer: Any, tmp_path: Path, schedule: str
) -> None:
    changes = {"max_steps": 6, "warmup_percent": 34, "schedule": schedule, "checkpoint_steps": 2}
    trainer = make(base_model, tokenizer, tmp_path / "whole", **changes)
    trainer.train_from(None)
    rates = [event["learningRate"] for event in events(trainer, "train")]
    assert rates[:4] == pytest.approx([0.01 / 4, 0.01 / 2, 0.03 / 4, 0.01])
    again = make(base_model, tokenizer, tmp_path / "again", **changes)
    checkpoint = trainer.parts.checkpoints.newest(lambda *_told: None)
    path = trainer.parts.checkpoints.path(4)
    again.train_from(dataclasses.replace(checkpoint, path=path, step=4))
    assert [event["learningRate"] for event in events(again, "train")] == rates[4:]
    assert difference(weights(trainer.model), weights(again.model)) == 0


def test_a_steps_time_ends_when_the_gpu_is_done(
    base_model: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(base_model, tokenizer, tmp_path)
    trainer.start_clock()

    def work_for_a_minute() -> None:
        trainer._step_started -= 60

    monkeypatch.setattr(torch.cuda, "synchronize", work_for_a_minute)
    trainer.stop_clock()
    assert trainer._step_seconds < 60
    monkeypatch.setattr(type(trainer.args), "device", torch.device("cuda"))
    trainer.stop_clock()
    assert trainer._step_seconds > 60


def test_the_time_that_loading_takes_is_the_steps(base_model: Path, tokenizer: Any, tmp_path: Path) -> None:
    trainer = make(base_model, tokenizer, tmp_path, max_steps=2)
    collate = trainer.data_collator

    def load_for_a_minute(rows: Any) -> Any:
        trainer._step_started -= 60
        return collate(rows)

    trainer.data_collator = load_for_a_minute
    trainer.train_from(None)
    # Two minutes up to rounding; the library loads a batch ahead, whichever step waits for it.
    assert sum(line["tokens"] / line["tokensPerSecond"] for line in events(trainer, "train")) > 100


def test_sigterm_ends_the_search_for_what_fits(
    base_model: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interruption, "_phase", interruption._Phase())
    tried: list[int] = []

    class Gpu:
        def total(self) -> int:
            return 1 << 40

        def peak(self) -> float:
            tried.append(len(tried))
            interruption.request()
            return math.inf

        def empty(self) -> None:
            pass

    monkeypatch.setattr(memory, "CudaDevice", Gpu)
    trainer = make(base_model, tokenizer, tmp_path, max_steps=2)
    trainer.parts = dataclasses.replace(trainer.parts, probe=True)
    trainer.train_from(None)
    assert tried == [0]
    assert not events(trainer, "probe")
    assert not events(trainer, "train")


@pytest.mark.parametrize(("generation", "expected"), [(7, "Float32"), (8, "BFloat16"), (9, "BFloat16")])
def test_a_gpu_that_emulates_bfloat16_trains_in_float32(
    base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generation: int, expected: str
) -> None:
    """As a V100 or T4 does, of which torch says that it can."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: SimpleNamespace(major=generation))
    settings = make_settings(base_model, tmp_path, precision="Auto", gpus=1)
    assert build.choose_precision(settings) == expected
