"""What the training loop does around the loss: the learning rate, the clock, the search for what fits."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

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


def test_the_device_is_asked_once_a_step(
    base_model: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time the host would wait until a GPU has done all that it was given."""
    trainer = make(base_model, tokenizer, tmp_path, max_steps=3, micro_batch_size=2)
    asked: list[int] = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu", "numpy"):
        plain = getattr(torch.Tensor, name)

        def counted(self: Any, *arguments: Any, plain: Any = plain, **options: Any) -> Any:
            if trainer.state.global_step < 2 and self.dtype.is_floating_point and self.device.type == "cpu":
                asked.append(trainer.state.global_step)
            return plain(self, *arguments, **options)

        monkeypatch.setattr(torch.Tensor, name, counted)
    trainer.train()
    assert asked == [0, 1]


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
