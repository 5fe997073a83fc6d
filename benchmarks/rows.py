"""The rows of the benchmarks: real ones, exported as a run's are, in the batches that the trainer makes."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
ROWS = 440
SEED = 42
LEARNING_RATE = {"SFT": 2e-4, "DPO": 5e-6}
BATCH_ROWS = {"SFT": 4, "DPO": 2}
"""Rows of a step: four sequences go through the model either way, for a pair is two."""


@dataclass(frozen=True)
class Task:
    """What is trained: the same for all who are compared.

    Parameters
    ----------
    method
        SFT or DPO.
    base_model
        Directory of the model.
    run_directory
        A run's directory that holds the exported rows.
    dropout_percent
        The adapter's dropout.
    """

    method: str
    base_model: Path
    run_directory: Path
    dropout_percent: int

    def flags(self, *, steps: int, checkpoint_steps: int = 1_000_000) -> list[str]:
        """Return the flags of this project's trainer for the task."""
        return [
            f"--method={self.method}",
            f"--run-directory={self.run_directory}",
            "--run-uid=benchmark",
            f"--base-model={self.base_model}",
            f"--batch-size={BATCH_ROWS[self.method]}",
            f"--learning-rate={LEARNING_RATE[self.method]}",
            "--schedule=Linear",  # as TRL's default, so that all learn alike
            "--warmup-percent=0",
            f"--max-steps={steps}",
            f"--checkpoint-steps={checkpoint_steps}",
            f"--lora-dropout-percent={self.dropout_percent}",
            f"--seed={SEED}",
        ]


def export_rows(task: Task, rows: int = ROWS) -> None:
    """Make the example's dataset and export it into the task's run directory, unless it is there.

    Raises
    ------
    CalledProcessError
        When one of the two programs fails; its words are on standard error.
    """
    if (task.run_directory / "dataset" / "manifest.json").exists():
        return
    source = task.run_directory.with_suffix(".jsonl")
    source.parent.mkdir(parents=True, exist_ok=True)
    make = REPOSITORY / "examples" / "dataset" / "make_dataset.py"
    _run(str(make), f"--train={source}", f"--rows={rows}")
    if task.method == "DPO":
        source.write_text("".join(json.dumps(row) + "\n" for row in preferences(source.read_text())))
    _run(
        *("-m", "model.data.export", "--source=volume"),
        *(f"--method={task.method}", f"--run-directory={task.run_directory}", f"--path={source}"),
    )


def preferences(lines: str) -> list[dict[str, str]]:
    """Return preference rows: each question's own answer is chosen, another question's of similar length rejected."""
    rows = sorted((json.loads(line) for line in lines.splitlines()), key=lambda row: len(row["completion"]))
    pairs = [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": other["completion"]}
        for row, other in zip(rows, rows[1:] + rows[:1], strict=True)
    ]
    random.Random(SEED).shuffle(pairs)  # noqa: S311 - an order, not a secret
    return pairs


def batches(task: Task) -> list[list[dict[str, Any]]]:
    """Return the task's full batches as the trainer makes them, in its order.

    A row is `{"input_ids": [...], "labels": [...]}`; a pair `{"prompt_ids", "chosen_ids", "rejected_ids"}`.
    """
    from model.files import RunDirectory
    from model.training import build
    from model.training.config import TrainSettings
    from model.training.loop.batches import MicroBatch, StepBatches
    from model.training.weights import basemodel

    values = {flag[2:].partition("=")[0].replace("-", "_"): flag.partition("=")[2] for flag in task.flags(steps=1)}
    settings = TrainSettings.model_validate(values).resolved()
    directory = RunDirectory(settings.run_directory)
    tokenizer = basemodel.load_tokenizer(settings.base_model, None)
    data = build.read_data(settings, directory, build.read_manifest(directory), tokenizer)
    size = settings.batch_size
    order = StepBatches(data.rows.lengths, batch_size=size, micro_batch=MicroBatch(size), seed=settings.seed)
    rows: Any = data.rows
    examples = pairs_of(rows) if task.method == "DPO" else list(rows.as_dataset())
    return [[examples[number] for number in batch] for batch in order if len(batch) == size]


def pairs_of(pairs: Any) -> list[dict[str, list[int]]]:
    """Return preference rows as TRL names their parts; the answers begin where the learned tokens do."""
    examples = []
    for chosen, rejected in zip(pairs.chosen.as_dataset(), pairs.rejected.as_dataset(), strict=True):
        start = next(index for index, label in enumerate(chosen["labels"]) if label >= 0)
        examples.append(
            {
                "prompt_ids": chosen["input_ids"][:start],
                "chosen_ids": chosen["input_ids"][start:],
                "rejected_ids": rejected["input_ids"][start:],
            }
        )
    return examples


def count_tokens(batch: list[dict[str, Any]]) -> int:
    """Return how many tokens go through the model for a batch, padding left out."""
    total = 0
    for row in batch:
        if "input_ids" in row:
            total += len(row["input_ids"])
        else:
            total += 2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])
    return total


def _run(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)  # noqa: S603 - our own programs
