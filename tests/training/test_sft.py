"""The trainer's arithmetic, compared with the plainest way to compute it."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from model import exits  # noqa: E402 - torch first, or there is nothing to import
from model.exits import FailureError  # noqa: E402 - as above
from model.files import RunDirectory  # noqa: E402 - as above
from model.training.config import TrainSettings  # noqa: E402 - as above
from model.training.loop.batches import MicroBatch, StepBatches  # noqa: E402 - as above
from model.training.loop.checkpoint import CheckpointStore, RunState  # noqa: E402 - as above
from model.training.loop.computing import fit, make_collator  # noqa: E402 - as above
from model.training.loop.parts import TrainerParts  # noqa: E402 - as above
from model.training.loop.sft import SupervisedTrainer  # noqa: E402 - as above
from model.training.output.progress import ProgressLog  # noqa: E402 - as above
from model.training.processes import interruption  # noqa: E402 - as above
from model.training.result import save_adapter  # noqa: E402 - as above
from model.training.rows.tokens import IGNORED, RowEncoder, TokenRows  # noqa: E402 - as above
from model.training.weights import basemodel  # noqa: E402 - as above

Build = Callable[..., SupervisedTrainer]


@pytest.fixture
def encoded(tokenizer: Any, rows: list[dict[str, Any]]) -> TokenRows:
    lines = [json.dumps({**row, "row": number}).encode() for number, row in enumerate(rows, start=1)]
    return RowEncoder(tokenizer, max_length=512, too_long="Fail").encode(iter(lines), "the dataset's")


@pytest.fixture
def build(base_model: Path, tokenizer: Any, encoded: TokenRows, tmp_path: Path) -> Build:
    def make(kind: type[SupervisedTrainer] = SupervisedTrainer, **changes: Any) -> SupervisedTrainer:
        values = {
            "method": "SFT", "run_directory": tmp_path, "run_uid": "u", "base_model": str(base_model), "max_steps": 2,
            "batch_size": 8, "micro_batch_size": 8, "learning_rate": 0.01, "warmup_percent": 0,
            "packing": "Disabled", "lora_dropout_percent": 0, "precision": "Float32", **changes,
        }  # fmt: skip
        settings = TrainSettings.model_validate(values).resolved()
        model = basemodel.load_model(str(base_model), None, bfloat16=False)
        collator = make_collator(model, settings, tokenizer, max(encoded.lengths), cuda=False)
        batches = StepBatches(
            encoded.lengths, batch_size=8, micro_batch=MicroBatch(settings.micro_batch_size or 8), seed=1
        )
        parts = TrainerParts(
            settings=settings,
            total_steps=settings.max_steps or 0,
            batches=batches,
            collator=collator,
            checkpoints=CheckpointStore(tmp_path / "checkpoints", {}),
            log=ProgressLog(io.StringIO(), tmp_path / "metrics.jsonl"),
            poster=None,
            state=RunState(),
        )
        trainer = kind(model, tokenizer, encoded, encoded, parts)
        fit(trainer, cuda=False, resumed=False)
        with torch.no_grad():  # a fresh adapter adds nothing, and a wrong gradient could hide behind that
            for name, weight in trainer.model.named_parameters():
                if "lora_B" in name:
                    weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)) * 0.1)
        return trainer

    return make


def trained(trainer: SupervisedTrainer) -> dict[str, Any]:
    trainer.train()
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters() if weight.requires_grad}


def difference(first: dict[str, Any], second: dict[str, Any]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def plain_loss(model: Any, dataset: Any) -> float:
    """The mean over all learned tokens, row by row, from all logits."""
    total, tokens = 0.0, 0
    for row in dataset:
        labels = torch.tensor(row["labels"][1:])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED))
        tokens += int((labels != IGNORED).sum())
    return total / tokens


@pytest.mark.parametrize("packing", ["Disabled", "Enabled"])
def test_the_held_out_loss_is_the_mean_over_all_tokens(build: Build, encoded: TokenRows, packing: str) -> None:
    trainer = build(packing=packing, micro_batch_size=7)
    trainer.model.eval()
    assert trainer.mean_loss(trainer.held_out_sums()) == pytest.approx(
        plain_loss(trainer.model, encoded.as_dataset()), rel=1e-5
    )


def test_the_loss_of_a_step_is_the_mean_over_its_tokens(build: Build, encoded: TokenRows, tmp_path: Path) -> None:
    trainer = build(micro_batch_size=3)
    first = next(iter(trainer.batches))
    trainer.model.eval()
    expected = plain_loss(trainer.model, encoded.as_dataset().select(first))
    trainer.train()
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert line["loss"] == pytest.approx(expected, rel=1e-5)
    assert line["tokens"] == sum(encoded.lengths[row] for row in first)


@pytest.mark.parametrize(
    "changes",
    [{"micro_batch_size": 1}, {"micro_batch_size": 3}, {"packing": "Enabled"}, {"gradient_checkpointing": "Enabled"}],
)
def test_how_a_batch_goes_through_the_model_does_not_change_what_is_learned(
    build: Build, changes: dict[str, Any]
) -> None:
    whole = trained(build())
    assert difference(trained(build(**changes)), whole) < 1e-4
    assert difference(trained(build(learning_rate=0.0101)), whole) > 1e-4


class FullMemory(SupervisedTrainer):
    """A GPU whose memory runs out in some of the forward passes."""

    failing: frozenset[int] | None = frozenset()
    passes = 0

    def compute_loss(self, *arguments: Any, **options: Any) -> Any:
        """Run out of memory in the passes to fail, in all of them when that is None."""
        self.passes += 1
        loss = super().compute_loss(*arguments, **options)
        if self.failing is None or self.passes in self.failing:
            raise torch.OutOfMemoryError("injected")
        return loss


class SmallMemory(FullMemory):
    """Fails with the whole batch, and with its second half when the gradient of the first is there already."""

    failing = frozenset({1, 3})


class NoMemory(FullMemory):
    """Does not even hold a single row."""

    failing = None


@pytest.mark.parametrize("packing", ["Disabled", "Enabled"])
def test_a_batch_too_large_for_the_memory_is_redone_in_parts(build: Build, tmp_path: Path, packing: str) -> None:
    assert difference(trained(build(SmallMemory, packing=packing)), trained(build())) < 1e-4
    events = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [event["partsPerBatch"] for event in events if event["event"] == "outOfMemory"] == [2, 4]


def test_a_row_too_large_for_the_memory_fails_the_run(build: Build) -> None:
    with pytest.raises(FailureError, match="lower maxLength") as caught:
        build(NoMemory).train()
    assert (caught.value.code, caught.value.reason) == (exits.GPU_OUT_OF_MEMORY, "GPUOutOfMemory")


def test_evaluating_leaves_the_trainings_random_numbers_alone(build: Build) -> None:
    import random

    import numpy as np

    trainer = build(lora_dropout_percent=50)
    trainer.model.train()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    trainer.mean_loss(trainer.held_out_sums())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]
    assert trainer.model.training


def test_the_second_epoch_has_an_order_of_its_own(build: Build, encoded: TokenRows, tmp_path: Path) -> None:
    trainer = build(max_steps=8)
    trainer.train()
    tokens = [json.loads(line)["tokens"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()[:8]]
    expected = []
    for epoch in (0, 1):
        trainer.batches.epoch = epoch
        expected += [sum(encoded.lengths[row] for row in batch) for batch in trainer.batches]
    assert tokens == expected
    assert tokens[:4] != tokens[4:]


def test_an_adapter_that_was_written_wrong_is_not_published(build: Build, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    trainer = build()
    write = trainer.model.save_pretrained

    def write_wrong(directory: Path, **options: Any) -> None:
        write(directory, **options)
        weights = load_file(directory / "adapter_model.safetensors")
        next(iter(weights.values()))[0, 0] += 1e-3
        save_file(weights, directory / "adapter_model.safetensors", {"format": "pt"})

    trainer.model.save_pretrained = write_wrong
    with pytest.raises(FailureError, match="differs from the trained one") as caught:
        save_adapter(trainer.model, trainer.parts.settings, RunDirectory(tmp_path), "card")
    assert caught.value.reason == "AdapterInvalid"
    assert not (tmp_path / "adapter").exists()
    trainer.model.save_pretrained = write
    assert save_adapter(trainer.model, trainer.parts.settings, RunDirectory(tmp_path), "card")
    assert (tmp_path / "adapter").is_dir()
    assert list(trainer.model.peft_config) == ["default"]


class InterruptedInEvaluation(SupervisedTrainer):
    """Gets SIGTERM while it evaluates."""

    def measure(self, batch: Any) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return super().measure(batch)


@pytest.fixture
def sigterm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The trainer's handling of SIGTERM, in this process for once."""
    monkeypatch.setattr(interruption, "_phase", interruption._Phase())
    before = signal.getsignal(signal.SIGTERM)
    interruption.install()
    interruption.defer(saved_step=0)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("sigterm")
def test_sigterm_in_an_evaluation_breaks_it_off_and_saves_the_step(build: Build, tmp_path: Path) -> None:
    trainer = build(InterruptedInEvaluation, evaluation_steps=1)
    trainer.train()
    assert trainer.state.global_step == 1
    events = [json.loads(line)["event"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert events == ["train", "checkpoint"]
    checkpoint = CheckpointStore(tmp_path / "checkpoints", {}).newest(lambda *_: None)
    assert checkpoint is not None
    assert checkpoint.state.evaluation_due


@pytest.mark.parametrize("variant", ["LoRA", "RSLoRA", "DoRA"])
def test_every_variant_trains(build: Build, variant: str) -> None:
    trainer = build(lora_variant=variant, lora_target_modules=["q_proj", "v_proj"])
    before = trainer.mean_loss(trainer.held_out_sums())
    trainer.train()
    after = trainer.mean_loss(trainer.held_out_sums())
    assert before is not None
    assert after is not None
    assert after < before
    config = trainer.model.peft_config["default"]
    assert (config.use_rslora, config.use_dora) == (variant == "RSLoRA", variant == "DoRA")
