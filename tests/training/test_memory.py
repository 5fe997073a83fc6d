"""How many examples go through the model at once: by a CPU's limit, and by trying on a GPU that is made up."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from model import exits
from model.exits import FailureError
from model.training.loop import fitting, memory
from model.training.loop.layout import count_rows
from model.training.loop.memory import HostMemory, container_limit, find_rows, free_bytes
from model.training.loop.sft import SupervisedTrainer
from model.training.loop.trainer import TrainingLoop
from tests.training.harness import Run
from tests.training.trainers import difference, events, make_settings, make_trainer, random_rows, weights

GIB = 1 << 30


class FakeDevice:
    """A GPU of so many bytes, of which each example takes some."""

    def __init__(self, per_row: int, fixed: int = 10, total: int = 100) -> None:
        self.per_row, self.fixed, self.all = per_row, fixed, total
        self.tried: list[int] = []
        self.held = 0

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


class OneTooMany(SupervisedTrainer):
    """A GPU that holds only so many rows at once, wherever they come from."""

    limit: int
    passes: list[int]
    error: BaseException = torch.OutOfMemoryError("injected")

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Run out of memory when there are more rows, after random numbers were drawn and with gradients there."""
        rows = count_rows(inputs)
        self.passes.append(rows)
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if rows > self.limit:
            raise self.error
        return loss


def trained_after_probe(base_model: Path, tokenizer: Any, directory: Path, limit: int) -> Any:
    """Train with dropout on a made-up GPU; the probe starts at eight rows."""
    settings = make_settings(base_model, directory, batch_size=8, lora_dropout_percent=10, max_steps=3)
    trainer = make_trainer(settings, tokenizer, random_rows(24), kind=OneTooMany)
    trainer.limit, trainer.passes = limit, []
    trainer.parts = dataclasses.replace(trainer.parts, probe=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "CudaDevice", lambda: FakeDevice(0, total=GIB))
        trainer.train()
    return trainer


def test_the_probe_finds_the_micro_batch_and_changes_nothing_else(
    base_model: Path, tokenizer: Any, tmp_path: Path
) -> None:
    probed = trained_after_probe(base_model, tokenizer, tmp_path / "probed", 3)
    assert probed.passes[:3] == [8, 4, 2]
    assert probed.passes[3:] == [2] * 12
    assert events(probed, "probe")[0]["microBatchSize"] == 2
    assert probed.parts.settings.micro_batch_size == probed.run_state.micro_batch_size == 2
    assert not events(probed, "outOfMemory")

    told = make_settings(base_model, tmp_path / "told", batch_size=8, lora_dropout_percent=10, max_steps=3)
    plain = make_trainer(told.model_copy(update={"micro_batch_size": 2}), tokenizer, random_rows(24))
    plain.train()
    assert difference(weights(probed.model), weights(plain.model)) == 0


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
        trainer.limit, trainer.passes, trainer.error = limit, [], error
        trainer.train()
        made.append(trainer)
    assert made[1].passes == [8, 4, *[2] * 8]
    assert difference(weights(made[0].model), weights(made[1].model)) < 1e-9


def test_a_gpu_that_does_not_even_hold_one_row(base_model: Path, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(FailureError, match="does not fit the GPU's memory") as caught:
        trained_after_probe(base_model, tokenizer, tmp_path, 0)
    assert caught.value.code == exits.GPU_OUT_OF_MEMORY


def test_what_fits_a_cpu() -> None:
    host = HostMemory(limit=10 * GIB, fixed=4 * GIB, per_row=GIB)
    assert [host.rows(8), host.rows(3)] == [5, 3]
    assert host.warning() is None
    tight = HostMemory(limit=4 * GIB, fixed=4 * GIB, per_row=GIB)
    assert tight.rows(8) == 1
    assert "takes about 5,120 MiB with the model, and 4,096 MiB may be used" in str(tight.warning())


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
        warning = fitting.on_cpu(trainer, max(examples.lengths))
    finally:
        patch.undo()
    rows, warns = expected
    assert (warning is not None) == warns
    assert trainer.batches.micro_batch_size == trainer.args.per_device_train_batch_size == rows
    assert trainer.args.gradient_accumulation_steps == 4 // rows
    trainer.train()
    assert trainer.state.global_step == 3


def test_what_was_chosen_is_told_and_recorded(base_model: Path, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    run = Run(tmp_path, base_model, max_steps=2, batch_size=4).export(rows)
    assert run.train() == 0
    assert run.events("start")[0]["microBatchSize"] == 4
