"""Trainers built from rows of random tokens, without an export, a process or a command line."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import torch

from model.training import build
from model.training.config import TrainSettings
from model.training.loop import computing
from model.training.loop.batches import MicroBatch, StepBatches
from model.training.loop.checkpoint import CheckpointStore, RunState
from model.training.loop.examples import positions
from model.training.loop.parts import TrainerParts
from model.training.output.progress import ProgressLog
from model.training.processes import parallel
from model.training.rows.tokens import IGNORED, PreferenceRows, TokenRows
from model.training.weights import adapters, basemodel

VOCABULARY = 300


def random_rows(count: int, seed: int = 0) -> TokenRows:
    """Rows of different lengths, each with one or two learned spans, as conversations have."""
    draw = random.Random(seed)
    rows = TokenRows()
    for _ in range(count):
        ids = [draw.randrange(3, VOCABULARY) for _ in range(draw.randrange(9, 40))]
        start = draw.randrange(1, len(ids) - 4)
        labels = [IGNORED] * start + ids[start:]
        if draw.random() < 0.5:
            labels[start + 1 : start + 3] = [IGNORED, IGNORED]
        rows.append(ids, labels)
    return rows


def random_pairs(count: int, seed: int = 0) -> PreferenceRows:
    """Pairs with the same prompt and answers of different lengths."""
    draw = random.Random(seed)
    pairs = PreferenceRows()
    for _ in range(count):
        prompt = [draw.randrange(3, VOCABULARY) for _ in range(draw.randrange(4, 20))]
        for rows in (pairs.chosen, pairs.rejected):
            answer = [draw.randrange(3, VOCABULARY) for _ in range(draw.randrange(2, 15))]
            rows.append(prompt + answer, [IGNORED] * len(prompt) + answer)
    return pairs


def random_labelled(count: int, seed: int = 0) -> TokenRows:
    """Prompts with one answer each, of different lengths, about half of them good."""
    draw = random.Random(seed)
    rows = TokenRows()
    for _ in range(count):
        prompt, answer = ([draw.randrange(3, VOCABULARY) for _ in range(draw.randrange(4, 20))] for _ in range(2))
        rows.append(prompt + answer, [IGNORED] * len(prompt) + answer, draw.random() < 0.5)
    return rows


def make_settings(base_model: Path, directory: Path, **changes: Any) -> TrainSettings:
    """Settings with all defaults filled in, those of a parent among them."""
    values = {
        "method": "SFT", "run_directory": directory, "run_uid": "u", "base_model": str(base_model), "batch_size": 8,
        "base_model_name": "example/tiny-llama", "micro_batch_size": 8, "learning_rate": 0.01, "warmup_percent": 0,
        "lora_dropout_percent": 0, "precision": "Float32", **changes,
    }  # fmt: skip
    return adapters.with_parent(TrainSettings.model_validate(values).resolved())


def make_trainer(
    settings: TrainSettings,
    tokenizer: Any,
    examples: TokenRows | PreferenceRows,
    *,
    kind: Any = None,
    double: bool = False,
) -> Any:
    """A trainer that trains and evaluates on the same examples.

    Parameters
    ----------
    settings: what `make_settings` returns.
    tokenizer: the base model's.
    examples: rows, or pairs for DPO.
    kind: class of the trainer; the method's when left out.
    double: compute in float64.
    """
    model = basemodel.load_model(settings.base_model, None, bfloat16=settings.precision == "BFloat16")
    if double:
        model = model.double()
    if settings.parent_adapter is not None:
        model = adapters.attach_parent(model, settings)
    collator = computing.make_collator(model, settings, tokenizer, max(examples.lengths), cuda=False)
    batches = StepBatches(
        positions(examples, joined=collator.joins),
        batch_size=settings.batch_size,
        micro_batch=MicroBatch(settings.micro_batch_size or settings.batch_size, width=collator.width),
        seed=settings.seed,
        world=parallel.world(),
    )
    parts = TrainerParts(
        settings=settings,
        total_steps=settings.max_steps or (settings.epochs or 1) * batches.steps_per_epoch,
        batches=batches,
        collator=collator,
        checkpoints=CheckpointStore(settings.run_directory / "checkpoints", {}),
        log=ProgressLog(io.StringIO(), settings.run_directory / "metrics.jsonl"),
        poster=None,
        state=RunState(),
    )
    trainer = (kind or build.trainer_class(settings))(model, tokenizer, examples, examples, parts)
    computing.fit(trainer, cuda=False, resumed=False)
    return trainer


def shake(trainer: Any) -> None:
    """Give a fresh adapter something to add: else a wrong gradient could hide behind zeros."""
    with torch.no_grad():
        for name, weight in trainer.model.named_parameters():
            if "lora_B.default" in name:
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)) * 0.1)


def weights(model: Any) -> dict[str, torch.Tensor]:
    """Copies of the trained weights by name."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """The largest difference between the two."""
    assert first.keys() == second.keys()
    assert first
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def events(trainer: Any, kind: str) -> list[dict[str, Any]]:
    """The progress lines of one kind."""
    lines = (trainer.parts.settings.run_directory / "metrics.jsonl").read_text().splitlines()
    return [event for line in lines if (event := json.loads(line))["event"] == kind]
