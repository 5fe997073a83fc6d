"""Steps whose loss or gradient is no number: which rows give that, and when it ends the run.

Such a step changes nothing: its gradient is thrown away before the optimizer sees it. One may come of a damaged row;
`IN_A_ROW` of them, or a base model that gives no number by itself, end the run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from model import exits
from model.exits import FailureError
from model.files import RunDirectory
from model.training.loop import generators
from model.training.loop.layout import to_device
from model.training.loop.scoring import token_losses
from model.training.processes import hang, parallel
from model.training.rows import store

IN_A_ROW = 3
_NAMED = 5
_TOKENS, _CHARACTERS = 48, 80
"""How much of a row it is called by, where its place in the dataset is not known."""


@dataclass(frozen=True)
class Diagnosis:
    """Which rows of some steps have no finite loss when each goes through the model alone; numbers from 0."""

    rows: list[int]
    """All rows of the steps."""
    guilty: list[int]
    """Those that have none with the adapter."""
    base: list[int]
    """Those of them that have none without it either."""

    @property
    def base_alone(self) -> bool:
        """Whether the base model alone gives no number for any row, so that no training can."""
        return len(self.base) == len(self.rows) > 0

    @property
    def named(self) -> list[int]:
        """The rows to name: the guilty ones, or all where none of them is."""
        return self.guilty or self.rows


def leave_out(trainer: Any, step: int, loss: float, norm: float) -> None:
    """Count and tell a step that taught nothing.

    Raises
    ------
    FailureError
        When that goes on, or is the base model's fault; what was learned before is saved.
    """
    state, settings = trainer.run_state, trainer.parts.settings
    nothing_learned = step >= trainer.parts.total_steps and not state.last_steps
    ends = state.record_left_out(step) >= IN_A_ROW or nothing_learned
    found = diagnose(trainer, state.left_out_in_a_row if ends else [step])
    directory = RunDirectory(settings.run_directory)
    names, numbers = places(directory, trainer.examples, found.named, trainer.processing_class)
    trainer.parts.log.emit("warning", step=step, message=_warning(step, loss, norm, found, names))
    if ends or found.base_alone:
        if state.last_steps:
            trainer.save_checkpoint()
        raise _failure(state.left_out_in_a_row, found, names, numbers)


def diagnose(trainer: Any, steps: Sequence[int]) -> Diagnosis:
    """Send each row of some steps through the model, with and without the adapter; all processes do their share."""
    mine = [row for step in steps for row in trainer.batches.share_of_step(step)]
    training = trainer.model.training
    trainer.model.eval()
    try:
        with hang.during("in a look at rows"), generators.untouched(), torch.no_grad():
            guilty = [row for row in mine if not _is_finite(trainer, row)]
            with trainer.model.disable_adapter():
                base = [row for row in guilty if not _is_finite(trainer, row)]
    finally:
        trainer.model.train(training)
    shares = zip(*parallel.gather((mine, guilty, base)), strict=True)
    return Diagnosis(*(sorted(row for share in found for row in share) for found in shares))


def _is_finite(trainer: Any, row: int) -> bool:
    hang.alive()
    batch = to_device(trainer.data_collator([trainer.examples[row]]), trainer.args.device)
    return bool(token_losses(trainer.model, batch, reduction="sum").isfinite())


def _warning(step: int, loss: float, norm: float, found: Diagnosis, names: Sequence[str]) -> str:
    why = "these rows have no finite loss" if found.guilty else "no row gives that alone"
    return f"step {step} was left out, for its loss is {loss} and its gradient's norm {norm}; {why}: {_listed(names)}"


def _failure(steps: Sequence[int], found: Diagnosis, names: Sequence[str], numbers: Sequence[int]) -> FailureError:
    which = f"step {steps[0]}" if len(steps) == 1 else f"the steps {steps[0]} to {steps[-1]}"
    what = f"the loss or the gradient's norm of {which} is no number"
    if found.base_alone:
        text = (
            f"{what}, and the base model alone gives none for any of the rows ({_listed(names)}): its weights are "
            "damaged, or too large for their type; get it anew, name another (spec.baseModel, --base-model), or set "
            "training.precision (--precision) to Float32"
        )
    elif found.guilty:
        whose = ", nor have they with the base model alone" if found.base == found.guilty else ""
        text = (
            f"{what}; these rows have no finite loss{whose}: {_listed(names)}; look at them and leave them out, or "
            "lower training.learningRate (--learning-rate)"
        )
    else:
        text = (
            f"{what}, though no row gives that alone ({_listed(names)}): lower training.learningRate "
            "(--learning-rate) or training.maxGradientNorm (--max-gradient-norm)"
        )
    row = numbers[0] if len(numbers) == len(found.guilty) == 1 else None
    return FailureError(exits.DIVERGED, "Diverged", text, row=row)


def places(directory: RunDirectory, rows: Any, numbers: Sequence[int], tokenizer: Any) -> tuple[list[str], list[int]]:
    """Return what to call rows of the training, and their numbers in the dataset as far as they are known.

    Where each exported line became one row its place is known; else a row is called by its beginning.

    Parameters
    ----------
    directory
        The run's, with the exported lines.
    rows
        All rows as tokens, see `examples`.
    numbers
        Which ones, from 0.
    tokenizer
        What makes text of tokens.
    """
    wanted, count = dict.fromkeys(numbers, b""), 0
    if directory.train_rows.is_file():
        with directory.train_rows.open("rb") as file:
            for count, line in enumerate(file, start=1):
                if count - 1 in wanted:
                    wanted[count - 1] = line
    if count != len(rows) or not store.is_row_for_row(store.tokens_directory(directory)):
        return [_beginning(rows[number], tokenizer) for number in wanted], []
    found = [json.loads(line) for line in wanted.values()]
    names = [f"{row['file']} row {row['row']}" if row.get("file") else f"row {row['row']}" for row in found]
    return names, [row["row"] for row in found]


def _beginning(row: dict[str, Any], tokenizer: Any) -> str:
    ids = next(value for name, value in row.items() if name.endswith("input_ids"))
    text = " ".join(tokenizer.decode(ids[:_TOKENS], skip_special_tokens=True).split())
    return f"the row that begins with {text[:_CHARACTERS]!r}"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
