"""How many examples go through the model at once: by a CPU's limit, and by trying on a GPU that is made up."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from model import exits
from model.exits import FailureError
from model.training.loop import computing, fitting, head, memory
from model.training.loop.batches import MicroBatch
from model.training.loop.checkpoint import RunState
from model.training.loop.examples import PairExamples
from model.training.loop.footprint import Passes
from model.training.loop.layout import GPU_WIDTH, Collator, Layout, PairCollator
from model.training.loop.memory import HostMemory, container_limit, find_rows, free_bytes
from model.training.loop.recompute import Recompute, choices
from model.training.loop.sft import SupervisedTrainer
from model.training.loop.trainer import TrainingLoop
from model.training.rows.tokens import IGNORED, PreferenceRows, TokenRows
from tests.training.harness import Run
from tests.training.trainers import difference, events, make_settings, make_trainer, random_rows, weights

GIB = 1 << 30


class FakeDevice:
    """A GPU of so many bytes, of which each example takes some; a pass takes as long as is said."""

    def __init__(self, per_row: int, fixed: int = 10, total: int = 100, seconds: Sequence[float] = ()) -> None:
        self.per_row, self.fixed, self.all = per_row, fixed, total
        self.tried: list[int] = []
        self.held = 0
        self.times = list(seconds)

    def attempt(self, rows: int) -> None:
        """Hold so many examples for a moment."""
        assert self.held == 0, "memory was not given back"
        self.tried.append(rows)
        self.held = self.fixed + rows * self.per_row
        if self.held > self.total():
            raise torch.OutOfMemoryError(f"{rows} rows")

    def total(self) -> int:
        """What there is."""
        return self.all

    def peak(self) -> int:
        """What was held."""
        return self.held

    def empty(self) -> None:
        """Give it back."""
        self.held = 0

    def seconds(self, work: Callable[[], None]) -> float:
        """Do it, and say how long it took."""
        work()
        return self.times.pop(0)


@pytest.mark.parametrize(
    ("device", "most", "reserve", "expected", "tried"),
    [
        (FakeDevice(1), 64, 0, 64, [8, 16, 32, 64]),  # all that is wanted
        (FakeDevice(1), 50, 0, 50, [8, 16, 32, 50]),
        (FakeDevice(2), 64, 0, 32, [8, 16, 32, 64]),  # 138 of 100 is too much
        (FakeDevice(5), 64, 0, 16, [8, 16, 32]),  # 90 of 100 leaves the margin
        (FakeDevice(5), 64, 1, 8, [8, 16]),  # and what the optimizer will need does not
        (FakeDevice(20), 64, 0, 4, [8, 4]),
        (FakeDevice(85), 64, 0, 1, [8, 4, 2, 1, 1]),  # without the margin, but one example is the least
        (FakeDevice(95), 64, 0, 0, [8, 4, 2, 1, 1]),
        (FakeDevice(1), 3, 0, 3, [3]),
    ],
)
def test_what_fits_a_gpu(device: FakeDevice, most: int, reserve: int, expected: int, tried: list[int]) -> None:
    assert find_rows(device.attempt, device, start=8, most=most, reserve=reserve) == expected
    assert device.tried == tried
    assert device.held == 0


def test_what_fits_without_the_margin_alone_is_nothing_where_more_can_be_computed_again() -> None:
    """Later a step that does not fit could not be cut any further."""
    device = FakeDevice(85)
    assert find_rows(device.attempt, device, start=8, most=8, reserve=0, tightly=False) == 0


class OneTooMany(SupervisedTrainer):
    """A GPU that holds only so many rows at once, wherever they come from: the more, the more is computed again."""

    limits: Sequence[int]
    """With none, half and all of the layers computed again."""
    passes: list[int]
    error: BaseException = torch.OutOfMemoryError("injected")

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Run out of memory when there are more rows, after random numbers were drawn and with gradients there."""
        rows = inputs["shape"].rows
        self.passes.append(rows)
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if rows > self.limits[sum(layer.gradient_checkpointing for layer in model.get_base_model().model.layers)]:
            raise self.error
        return loss


def probed(
    base_model: Path, tokenizer: Any, directory: Path, limits: Sequence[int], seconds: Sequence[float], **changes: Any
) -> Any:
    """A trainer with dropout after the search on a made-up GPU, which starts at eight rows."""
    settings = make_settings(base_model, directory, batch_size=8, lora_dropout_percent=10, max_steps=3)
    trainer = make_trainer(settings, tokenizer, random_rows(24), kind=OneTooMany)
    trainer.limits, trainer.passes = limits, []
    unsettled = settings.model_copy(update={"micro_batch_size": None, **changes})
    trainer.parts = dataclasses.replace(trainer.parts, settings=unsettled)
    device = FakeDevice(0, total=GIB, seconds=seconds)
    fitting.on_gpu(trainer, choices(unsettled.gradient_checkpointing, trainer.model, cuda=True), device)
    assert not device.times
    return trainer


NONE, HALF, ALL = Recompute


@pytest.mark.parametrize(
    "case",  # the rows that fit, the seconds of each choice, the rows of each pass, and what is kept
    [
        ([8, 8, 8], [], [8], (8, NONE)),  # nothing is faster than to compute nothing again
        ([2, 8, 8], [2, 9, 9], [8, 4, 2, 2, 8, 8, 8, 8], (2, NONE)),  # 4 times as many rows in 4.5 times the time
        ([2, 8, 8], [2, 3, 9], [8, 4, 2, 2, 8, 8, 8, 8], (8, HALF)),
        ([1, 2, 8], [4, 8, 4], [8, 4, 2, 1, 1, 8, 4, 2, 2, 8, 8], (8, ALL)),
        ([0, 0, 1], [5], [8, 4, 2, 1, 8, 4, 2, 1, 8, 4, 2, 1, 1], (1, ALL)),
    ],
)
def test_what_trains_most_tokens_a_second_is_kept(base_model: Path, tokenizer: Any, tmp_path: Path, case: Any) -> None:
    limits, seconds, passes, expected = case
    trainer = probed(base_model, tokenizer, tmp_path, limits, seconds)
    assert trainer.passes == passes
    (told,) = events(trainer, "probe")
    assert (told["microBatchSize"], told["recompute"]) == expected
    state, now = trainer.run_state, trainer.batches.micro_batch
    assert (state.micro_batch_size, state.recompute) == (now.rows, told["recompute"]) == expected
    layers = trainer.model.get_base_model().model.layers
    assert sum(layer.gradient_checkpointing for layer in layers) == list(Recompute).index(expected[1])


@pytest.mark.parametrize(
    "case",  # gradientCheckpointing, microBatchSize, the rows that fit, and what is done
    [
        ("Enabled", None, [8, 8, 8], (8, ALL)),
        ("Disabled", None, [8, 8, 8], (8, NONE)),
        ("Auto", 4, [2, 4, 8], (4, HALF)),  # a micro-batch that was given stays
        ("Auto", 4, [2, 2, 2], (4, ALL)),  # though it must be redone in parts
    ],
)
def test_what_was_asked_for_is_done(base_model: Path, tokenizer: Any, tmp_path: Path, case: Any) -> None:
    setting, given, limits, expected = case
    changes = {"gradient_checkpointing": setting, "micro_batch_size": given}
    settings = make_settings(base_model, tmp_path, batch_size=8, max_steps=1, **changes)
    trainer = make_trainer(settings, tokenizer, random_rows(24), kind=OneTooMany)
    trainer.limits, trainer.passes = limits, []
    possible = choices(setting, trainer.model, cuda=True)
    fitting.on_gpu(trainer, possible, FakeDevice(0, total=GIB, seconds=[1, 1, 1]))
    assert (trainer.batches.micro_batch.rows, trainer.run_state.recompute) == expected


def test_the_probe_changes_nothing_else(base_model: Path, tokenizer: Any, tmp_path: Path) -> None:
    trainer = probed(base_model, tokenizer, tmp_path / "probed", [3, 3, 3], [1, 2, 2])
    trainer.passes.clear()
    trainer.train()
    assert trainer.passes == [2] * 12
    assert not events(trainer, "outOfMemory")
    told = make_settings(base_model, tmp_path / "told", batch_size=8, lora_dropout_percent=10, max_steps=3)
    plain = make_trainer(told.model_copy(update={"micro_batch_size": 2}), tokenizer, random_rows(24))
    plain.train()
    assert difference(weights(trainer.model), weights(plain.model)) == 0


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    ],
)
def test_a_step_is_redone_in_parts_whichever_library_found_no_memory(
    base_model: Path, tokenizer: Any, tmp_path: Path, error: RuntimeError
) -> None:
    made = []
    for directory, limit in (("whole", 8), ("parts", 2)):
        settings = make_settings(base_model, tmp_path / directory, batch_size=8, max_steps=2)
        trainer = make_trainer(settings, tokenizer, random_rows(24), kind=OneTooMany, double=True)
        trainer.limits, trainer.passes, trainer.error = [limit], [], error
        trainer.train()
        made.append(trainer)
    assert made[1].passes == [8, 4, *[2] * 8]
    assert difference(weights(made[0].model), weights(made[1].model)) < 1e-9


def test_a_gpu_that_does_not_even_hold_one_row(base_model: Path, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(FailureError, match="does not fit the GPU's memory") as caught:
        probed(base_model, tokenizer, tmp_path, [0, 0, 0], [])
    assert caught.value.code == exits.GPU_OUT_OF_MEMORY


def test_short_rows_go_through_the_model_as_many_as_have_the_tokens(
    base_model: Path, tokenizer: Any, tmp_path: Path
) -> None:
    """What fits is found with the longest ones; a step of short ones is a pass by itself."""
    lengths = [100] * 2 + [10] * 14
    rows = TokenRows()
    for length in lengths:
        rows.append([5] * length, [5] * length)
    settings = make_settings(base_model, tmp_path, batch_size=8, micro_batch_size=None, epochs=1)
    state = RunState()
    found = computing.first_micro_batch(settings, state, lengths, width=0, cuda=True)
    assert (found.rows, found.tokens) == (state.micro_batch_size, state.micro_batch_tokens) == (8, 800)
    assert [len(group) for group in found.cut(range(16), lengths)] == [16]
    trainer = make_trainer(settings, tokenizer, rows)
    trainer.batches.micro_batch = found
    trainer.use_micro_batches(1)
    assert (trainer.run_state.micro_batch_size, trainer.run_state.micro_batch_tokens) == (1, 100)
    assert [len(group) for group in trainer.batches.cut(range(16))] == [1, 1, 10, 4]
    again = computing.first_micro_batch(settings, trainer.run_state, lengths, width=0, cuda=True)
    assert again == trainer.batches.micro_batch  # in the next attempt, too
    told = settings.model_copy(update={"micro_batch_size": 3})
    assert computing.first_micro_batch(told, trainer.run_state, lengths, width=0, cuda=True) == MicroBatch(3)


@pytest.mark.parametrize("rows_per_example", [1, 2])
def test_padding_to_a_width_counts_where_rows_are_short(
    base_model: Path, tmp_path: Path, rows_per_example: int
) -> None:
    """On a GPU each of many short rows takes 128 positions: no more of them go at once than have been tried."""
    collator = Collator(0, Layout.PADDED, width=GPU_WIDTH)
    lengths = [130 * rows_per_example] * 8 + [10 * rows_per_example] * 792
    settings = make_settings(base_model, tmp_path, batch_size=800, micro_batch_size=None)
    found = computing.first_micro_batch(
        settings, RunState(), lengths, width=collator.width * rows_per_example, cuda=True
    )
    row = {"input_ids": [5] * 130, "labels": [5] * 130}
    most = collator([row] * rows_per_example * found.rows)["input_ids"].numel()
    groups = found.cut(range(800), lengths)
    assert len(groups[0]) == found.rows
    for group in groups:
        row = {"input_ids": [5] * (lengths[group[0]] // rows_per_example), "labels": [5]}
        assert collator([row] * rows_per_example * len(group))["input_ids"].numel() <= most
    assert len(groups[-2]) == 2 * found.rows  # 128 positions each, where the longest take 256


@pytest.mark.parametrize("layout", Layout)
def test_no_pass_of_uneven_pairs_is_larger_than_the_one_that_fits(layout: Layout) -> None:
    """A short answer is filled up to the long one beside it; joined, the two have one prompt."""
    draw, pairs = random.Random(7), PreferenceRows()
    for _ in range(200):
        prompt = [5] * draw.randrange(1, 30)
        for rows in (pairs.chosen, pairs.rejected):
            answer = [draw.randrange(6, 99) for _ in range(draw.choice([1, 3, 80]))]
            rows.append(prompt + answer, [IGNORED] * len(prompt) + answer)
    collator, joined = PairCollator(Collator(0, layout)), layout is Layout.SEGMENTED
    examples = PairExamples(pairs, joined=joined)
    assert examples.lengths == [collator([examples[row]])["input_ids"].numel() for row in range(200)]
    fits = MicroBatch(3, 3 * max(examples.lengths), 0 if joined else 2)
    groups = fits.cut(sorted(range(200), key=lambda row: -examples.lengths[row]), examples.lengths)
    passes = [collator([examples[row] for row in group])["input_ids"].numel() for group in groups]
    assert max(passes) <= 3 * max(examples.lengths)
    assert len(groups) < 70


def test_what_fits_a_cpu() -> None:
    passes = Passes(kept=GIB, back=0, head=0, logit=0, chunk=None)
    host = HostMemory(10 * GIB, 4 * GIB, passes, row_tokens=1)
    assert [host.rows(8), host.rows(3)] == [4, 3]  # of 1.2 GiB each, with what the heap leaves between them
    assert host.warning() is None
    tight = HostMemory(4 * GIB, 4 * GIB, passes, row_tokens=1)
    assert tight.rows(8) == 1
    assert "takes about 5,325 MiB with the model, and 4,096 MiB may be used" in str(tight.warning())


def test_the_limits_of_both_versions_of_control_groups(tmp_path: Path) -> None:
    assert container_limit(tmp_path) is None
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.limit_in_bytes").write_text("1073741824\n")
    assert container_limit(tmp_path) == GIB
    (tmp_path / "memory.max").write_text("536870912\n")
    assert container_limit(tmp_path) == GIB // 2
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory/memory.limit_in_bytes").unlink()
    assert container_limit(tmp_path) is None
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:       4 kB\n")
    assert free_bytes(tmp_path / "meminfo") == 4096


@pytest.mark.parametrize(("room", "expected"), [(1 << 40, (4, False)), (1, (1, True))])
def test_a_run_on_a_cpu_keeps_to_the_limit(
    base_model: Path, tokenizer: Any, tmp_path: Path, room: int, expected: tuple[int, bool]
) -> None:
    patch = pytest.MonkeyPatch()
    patch.setattr(memory, "container_limit", lambda: room)
    patch.setattr(memory, "free_bytes", lambda: 1 << 41)
    examples = random_rows(12)
    settings = make_settings(base_model, tmp_path, batch_size=4, micro_batch_size=4)
    trainer: TrainingLoop = make_trainer(settings, tokenizer, examples)
    try:
        warning = fitting.on_cpu(trainer)
    finally:
        patch.undo()
    rows, warns = expected
    assert (warning is not None) == warns
    assert trainer.batches.micro_batch.rows == rows
    trainer.train()
    assert trainer.state.global_step == 3


@pytest.mark.parametrize("case", [(False, (4, False)), (True, (1, True))])
def test_a_wide_vocabulary_takes_a_chunk_where_its_logits_are_made_in_chunks(
    base_model: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Any
) -> None:
    """All logits of a row would take a hundred times what there is."""
    whole, expected = case
    examples = random_rows(12)
    trainer = make_trainer(make_settings(base_model, tmp_path, batch_size=4, micro_batch_size=4), tokenizer, examples)
    trainer.model.get_output_embeddings().weight.requires_grad_(whole)  # one that is trained has no chunks
    trainer.model.config.get_text_config().vocab_size = 1 << 24
    monkeypatch.setattr(memory, "container_limit", lambda: max(memory.resident_bytes(), GIB) + GIB)
    monkeypatch.setattr(memory, "free_bytes", lambda: None)
    head._tried.clear()
    warning = fitting.on_cpu(trainer)
    assert (trainer.batches.micro_batch.rows, warning is not None) == expected


def test_what_was_chosen_is_told_and_recorded(base_model: Path, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    run = Run(tmp_path, base_model, max_steps=2, batch_size=4).export(rows)
    assert run.train() == 0
    assert run.events("start")[0]["microBatchSize"] == 4
