"""Training with the base's weights sharded: each process holds a part of every matrix, and gathers layer by layer.

The adapter's weights stay whole in each process, and so do their gradients and the optimizer: what is learned, and what
a checkpoint holds, is the same as without. But gathering is done by all or by none. Each process therefore makes as
many passes as the others, and one that has no example left makes a pass whose loss is nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from model import exits, gpus
from model.exits import FailureError
from model.training.config import TrainSettings
from model.training.loop import generators, memory
from model.training.loop.held_out import HeldOut, Sums
from model.training.loop.layout import Batch, Collator, PairCollator, count_rows, split
from model.training.loop.trainer import TrainerParts, TrainingLoop
from model.training.processes import interruption, parallel


def shard(model: Any, device: torch.device) -> None:
    """Shard the weights of the base over all processes; the adapters' stay whole.

    Parameters
    ----------
    model
        The `PeftModel`, whole and not yet moved: it goes to the device layer by layer, and only this process's parts
        stay there.
    device
        Where it will be trained.

    Raises
    ------
    FailureError
        When some of the weights would have stayed whole.
    """
    from torch.distributed import fsdp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor

    prefix = model.base_model.prefix
    adapters = {weight for name, weight in model.named_parameters() if prefix in name}
    kinds = set(getattr(model.get_base_model(), "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in kinds]
    if not layers:
        raise _refused(f"--sharding=Full: {_kind(model)} does not say what its layers are: leave --sharding out")
    mesh = init_device_mesh(device.type, (parallel.world().size,))
    # The innermost first; what is in no layer belongs to the model, whose own call is what gathers it.
    for module in (*reversed(layers), model):
        # Nothing is left gathered after a pass: the first process alone looks at all weights when it saves, which
        # parts them again, and afterwards it would gather what the others still have.
        fsdp.fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=adapters)
    base = {name: weight for name, weight in model.named_parameters() if weight not in adapters}
    if whole := [name for name, weight in base.items() if not isinstance(weight, DTensor)]:
        raise _refused(
            f"--sharding=Full: {len(whole)} of the {len(base)} weights of {_kind(model)} stayed whole, among them "
            f"{whole[0]}: leave --sharding out"
        )


class ShardedLoop(TrainingLoop):
    """What a method's trainer does otherwise when the base is sharded. It stands first in the list of bases."""

    sharded = True

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        shard(model, device)
        super()._move_model_to_device(model, device)

    def start(self, parts: TrainerParts, held_out: Any, lengths: Sequence[int]) -> None:
        """Take over, see `TrainingLoop.start`."""
        super().start(parts, held_out, lengths)
        self._held_out = ShardedHeldOut(
            held_out, lengths, rows_per_example=self.rows_per_example, settings=parts.settings
        )

    def _probe(self) -> None:
        """Keep the micro-batch: a trial that fails in one process would leave the others waiting for its parts."""

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Go forward and backward as many times as all do.

        Raises
        ------
        FailureError
            When the GPU's memory does not suffice: nothing can be redone without the others.
        """
        loss = torch.zeros((), device=self.args.device)
        count, parts = self.run_state.parts_per_batch, []
        if count_rows(inputs):
            parts = split(inputs, count, rows_per_example=self.rows_per_example)
        with _told_apart(self.parts.settings):
            for index in range(count):
                self._given_up = self._given_up or any(parallel.gather(interruption.overdue()))
                if self._given_up:
                    return torch.zeros_like(loss)  # all do, and `_agree` tells the loop
                if index < len(parts):
                    loss = loss + super(TrainingLoop, self).training_step(model, parts[index], num_items_in_batch)
                else:
                    self._keep_pace(model)
        self._step_loss = self._step_loss + loss
        return loss

    def _keep_pace(self, model: Any) -> None:
        """Go forward and backward without learning anything, drawing anything or telling of it."""
        shortest = min(range(len(self.batches.lengths)), key=lambda row: self.batches.lengths[row])
        batch = self._prepare_inputs(self.data_collator([self.train_dataset[shortest]]))
        measured = len(self._measured)
        model.train()
        with generators.untouched():
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, batch)
            self.accelerator.backward(loss * 0)
        del self._measured[measured:]


class ShardedHeldOut(HeldOut):
    """Examples to evaluate on, of which each process measures as many batches as the others."""

    def __init__(
        self, examples: Any, lengths: Sequence[int], *, rows_per_example: int, settings: TrainSettings
    ) -> None:
        super().__init__(examples, lengths, rows_per_example=rows_per_example)
        self._settings = settings
        self._borrowed = False

    def batches(self, collator: Collator | PairCollator, size: int) -> Iterator[Batch]:
        """Return this process's batches; where the others have one more, one that counts for nothing."""
        shortest = min(range(len(self._lengths)), key=lambda row: self._lengths[row], default=0)
        for rows in self._batches(size):
            self._borrowed = not rows
            yield self._laid_out(collator, rows or [shortest])

    def measure(self, batch: Batch, measure: Callable[[Batch], Sums], *, max_length: int) -> Sums:  # noqa: ARG002
        """Return a batch's sums, or zeros."""
        with _told_apart(self._settings):
            sums = measure(batch)
        return dict.fromkeys(sums, 0.0) if self._borrowed else sums


def sharded(kind: Any) -> Any:
    """Return the class of a method's trainer whose base is sharded."""
    return type(f"Sharded{kind.__name__}", (ShardedLoop, kind), {})


@contextlib.contextmanager
def _told_apart(settings: TrainSettings) -> Iterator[None]:
    """Tell memory that ran out and a peer that is gone from an error of our own."""
    try:
        yield
    except RuntimeError as error:
        if gpus.out_of_memory(error):
            raise _out_of_memory(settings) from error
        if isinstance(error, torch.distributed.DistError) or "gloo" in str(error):
            raise parallel.lost_peers(error) from error
        raise


def _out_of_memory(settings: TrainSettings) -> FailureError:
    size = settings.micro_batch_size or 1
    if size == 1:
        return memory.too_large(settings.max_length)
    return FailureError(
        exits.GPU_OUT_OF_MEMORY,
        "GPUOutOfMemory",
        f"{size} examples at once do not fit the memory of the GPU of process {parallel.world().rank}, and with "
        "--sharding=Full none can redo its part without the others: start again with "
        f"--micro-batch-size={size // 2}; the newest checkpoint is gone on from",
    )


def _refused(text: str) -> FailureError:
    return FailureError(exits.INVALID_CONFIGURATION, "InvalidSpec", text)


def _kind(model: Any) -> str:
    return type(model.get_base_model()).__name__
