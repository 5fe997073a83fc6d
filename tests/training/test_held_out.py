"""Held-out examples that are larger than what the training's batches were cut for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from model import exits  # noqa: E402 - torch first, or there is nothing to import
from model.exits import FailureError  # noqa: E402 - as above
from model.training.build import Data, load_model, trainer_class  # noqa: E402 - as above
from model.training.rows.tokens import TokenRows  # noqa: E402 - as above
from tests.training.trainers import make_settings, make_trainer, random_pairs, random_rows, shake  # noqa: E402 - as above


def small(kind: Any) -> Any:
    """A trainer's class on a GPU that holds only so many held-out rows at once, and is told which it was given."""

    class Small(kind):  # type: ignore[misc]
        limit = 100
        passes: list[int]

        def measure(self, batch: dict[str, Any]) -> dict[str, float]:
            self.passes.append(batch["shape"].rows)
            sums: dict[str, float] = super().measure(batch)
            if batch["shape"].rows > self.limit:
                raise torch.OutOfMemoryError("injected")
            return sums

    return Small


def make(base_model: Path, tokenizer: Any, path: Path, **changes: Any) -> Any:
    settings = make_settings(base_model, path, **changes)
    examples = random_pairs(21) if settings.method == "DPO" else random_rows(21)
    trainer = make_trainer(settings, tokenizer, examples, kind=small(trainer_class(settings)))
    trainer.passes = []
    shake(trainer)
    return trainer


@pytest.mark.parametrize("packing", ["Disabled", "Enabled"])
@pytest.mark.parametrize("method", ["SFT", "DPO"])
def test_an_evaluation_too_large_for_the_memory_is_redone_in_parts(
    base_model: Path, tokenizer: Any, tmp_path: Path, method: str, packing: str
) -> None:
    trainer = make(base_model, tokenizer, tmp_path, method=method, packing=packing)
    whole = trainer.final_evaluation()
    trainer.passes.clear()
    trainer.limit = 3
    assert trainer.final_evaluation() == pytest.approx(whole, rel=1e-5)
    assert max(trainer.passes[3:]) <= 3
    before = len(trainer.passes)
    trainer.held_out_sums()
    assert max(trainer.passes[before:]) <= 3  # it does not run out of memory with each evaluation again


def test_a_held_out_row_too_large_for_the_memory_fails_the_run(
    base_model: Path, tokenizer: Any, tmp_path: Path
) -> None:
    trainer = make(base_model, tokenizer, tmp_path)
    trainer.limit = 0
    with pytest.raises(FailureError, match="lower maxLength") as caught:
        trainer.held_out_sums()
    assert (caught.value.code, caught.value.reason) == (exits.GPU_OUT_OF_MEMORY, "GPUOutOfMemory")


@pytest.mark.parametrize(("ids", "message"), [(600 * [7], "a row has 600 tokens"), ([7, 10**6], "gives token 1000000")])
def test_a_held_out_row_that_the_model_cannot_read_is_refused_before_the_training(
    base_model: Path, tmp_path: Path, ids: list[int], message: str
) -> None:
    held_out = TokenRows()
    held_out.append(ids, ids)
    settings = make_settings(base_model, tmp_path)
    with pytest.raises(FailureError, match=message):
        load_model(settings, Data(random_rows(4), held_out, {}))
    load_model(settings, Data(random_rows(4), TokenRows(), {}))
