"""Steps whose loss or gradient is no number teach nothing, and say which rows give that."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from model import exits  # noqa: E402 - torch first, or there is nothing to import
from model.exits import FailureError  # noqa: E402 - as above
from model.training.build import trainer_class  # noqa: E402 - as above
from model.training.processes.parallel import World  # noqa: E402 - as above
from model.training.rows.tokens import PreferenceRows, TokenRows  # noqa: E402 - as above
from tests.training import ranks  # noqa: E402 - as above
from tests.training.harness import PROCESSES, Run, finish  # noqa: E402 - as above
from tests.training.trainers import (  # noqa: E402 - as above
    VOCABULARY,
    difference,
    events,
    make_settings,
    make_trainer,
    random_pairs,
    random_rows,
    shake,
    weights,
)

POISON = VOCABULARY + 1
"""A token that no random row has."""


def watched(kind: Any) -> Any:
    """A trainer's class that keeps the weights and the optimizer's moments after each step."""

    class Watched(kind):  # type: ignore[misc]
        poison = 0.0
        poisoned_steps: tuple[int, ...] = ()

        def start(self, *given: Any) -> None:
            super().start(*given)
            self.seen = [weights(self.model)]
            self.moments = [0.0]

        def stop_clock(self) -> None:
            super().stop_clock()
            self.seen.append(weights(self.model))
            states = self.optimizer.state.values()
            self.moments.append(sum(float(state["exp_avg_sq"].sum()) for state in states))

        def compute_loss(self, *given: Any, **named: Any) -> Any:
            loss = super().compute_loss(*given, **named)
            return loss * self.poison if self.state.global_step + 1 in self.poisoned_steps else loss

    return Watched


@pytest.fixture
def poisoned_base(base_model: Path, tmp_path: Path) -> Path:
    """A base model that gives no number for one token."""
    copy = tmp_path / "poisoned"
    shutil.copytree(base_model, copy)
    poison(copy, POISON)
    return copy


def poisoned(examples: TokenRows | PreferenceRows, number: int) -> Any:
    """The same examples, one of which has the token that gives no number."""
    rows = examples.chosen if isinstance(examples, PreferenceRows) else examples
    rows.ids[rows.offsets[number]] = POISON
    return examples


@pytest.mark.parametrize("method", ["SFT", "DPO"])
def test_a_step_with_a_row_that_gives_no_number_changes_nothing(
    poisoned_base: Path, tokenizer: Any, tmp_path: Path, method: str
) -> None:
    settings = make_settings(poisoned_base, tmp_path, method=method, epochs=1, micro_batch_size=3)
    examples = poisoned(random_pairs(32) if method == "DPO" else random_rows(32), 5)
    trainer = make_trainer(settings, tokenizer, examples, kind=watched(trainer_class(settings)))
    shake(trainer)
    bad = next(step for step in range(1, 5) if 5 in trainer.batches.share_of_step(step))
    trainer.train_from(None)
    for step in range(1, 5):
        changed = difference(trainer.seen[step - 1], trainer.seen[step]) > 0 if step > 1 else step != bad
        assert changed == (step != bad)
        if step == bad:
            assert trainer.moments[step] == trainer.moments[step - 1]
    assert [event["step"] for event in events(trainer, "train")] == [step for step in range(1, 5) if step != bad]
    (warning,) = events(trainer, "warning")
    assert warning["step"] == bad
    assert "these rows have no finite loss: the row that begins with" in warning["message"]
    assert trainer.run_state.left_out == 1
    assert math.isfinite(trainer.run_state.final_loss())


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_three_steps_in_a_row_end_the_run_and_keep_what_was_learned(
    base_model: Path, tokenizer: Any, tmp_path: Path, poison: float
) -> None:
    settings = make_settings(base_model, tmp_path, max_steps=9, micro_batch_size=3)
    trainer = make_trainer(settings, tokenizer, random_rows(24), kind=watched(trainer_class(settings)))
    trainer.poison, trainer.poisoned_steps = poison, (2, 4, 5, 7, 8, 9)
    with pytest.raises(FailureError) as caught:
        trainer.train_from(None)
    assert (caught.value.code, caught.value.reason) == (exits.DIVERGED, "Diverged")
    assert "the steps 7 to 9 is no number, though no row gives that alone" in caught.value.message
    assert "--learning-rate" in caught.value.message
    assert [event["step"] for event in events(trainer, "train")] == [1, 3, 6]
    assert trainer.run_state.left_out == 6
    assert difference(trainer.seen[6], trainer.seen[-1]) == 0
    checkpoint = trainer.parts.checkpoints.newest(lambda *_told: None)
    assert (checkpoint.step, checkpoint.state.left_out_in_a_row) == (9, [7, 8, 9])
    again = make_trainer(settings, tokenizer, random_rows(24))
    again.restore(checkpoint)
    assert difference(weights(again.model), trainer.seen[6]) == 0


def test_a_run_of_steps_that_taught_nothing_is_no_result(base_model: Path, tokenizer: Any, tmp_path: Path) -> None:
    settings = make_settings(base_model, tmp_path, max_steps=1)
    trainer = make_trainer(settings, tokenizer, random_rows(24), kind=watched(trainer_class(settings)))
    trainer.poison, trainer.poisoned_steps = math.nan, (1,)
    with pytest.raises(FailureError, match="norm of step 1 is no number"):
        trainer.train_from(None)
    assert trainer.parts.checkpoints.newest(lambda *_told: None) is None


def test_processes_leave_the_same_steps_out(poisoned_base: Path, tmp_path: Path) -> None:
    made = {}
    for size in (1, 2):
        directory = tmp_path / str(size)
        directory.mkdir()
        together = [
            PROCESSES.Process(target=ranks.train_poisoned, args=(directory, poisoned_base, "SFT", World(rank, size), 2))
            for rank in range(size)
        ]
        for process in together:
            process.start()
        assert [finish(process) for process in together] == [0] * size
        made[size] = [torch.load(directory / f"rank-{rank}.pt") for rank in range(size)]
    alone = made[1][0]
    for result in made[2]:
        assert difference(result["weights"], alone["weights"]) < 1e-9
    assert made[2][0]["losses"] == pytest.approx(alone["losses"], abs=1e-9)
    assert len(made[1][0]["losses"]) == 8  # two epochs of five steps, in each of which one has the row


def test_the_rows_places_are_named(base_model: Path, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    from transformers import AutoTokenizer

    own_base = tmp_path / "base"
    shutil.copytree(base_model, own_base)
    bad = [
        {**row, "completion": row["completion"] + "~"} if number in (3, 4) else row for number, row in enumerate(rows)
    ]
    (token,) = AutoTokenizer.from_pretrained(own_base)("~", add_special_tokens=False)["input_ids"]
    poison(own_base, token)
    run = Run(tmp_path, own_base, max_steps=8).export(bad, percent=0)
    assert run.train() == 0
    told = {name for event in run.events("warning") for name in event["message"].rpartition(": ")[2].split(", ")}
    assert told == {"row 4", "row 5"}
    assert run.said()["result"]["leftOutSteps"] == len(run.events("warning"))
    assert run.said()["result"]["steps"] == 8


def poison(base_model: Path, token: int) -> None:
    """Let a base model give no number for a token."""
    from safetensors.torch import load_file, save_file

    found = load_file(base_model / "model.safetensors")
    found["model.embed_tokens.weight"][token] = math.nan
    save_file(found, base_model / "model.safetensors", {"format": "pt"})
