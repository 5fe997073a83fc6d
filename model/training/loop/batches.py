"""Which rows a step trains on, and in which micro-batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from model.training.processes.parallel import World

ALONE = World()


class StepBatches(Sampler[list[int]]):
    """The micro-batches of each optimizer step; their order depends on the seed and the epoch alone.

    Each step takes `batch_size` rows, drawn at random without replacement; only the last step of an epoch has fewer.
    Within the step they are sorted by length, so that micro-batches of `micro_batch_size` rows, the last of them
    smaller when it does not divide, need little padding. Steps of rows of one length would need less still, but the
    loss is a mean over the step's tokens: a token among short rows would then weigh many times one among long rows.
    A resumed run sees the same rows in the same order without anything being stored about them.

    Parameters
    ----------
    lengths
        Tokens of each row.
    batch_size, micro_batch_size
        Rows of an optimizer step and of a forward pass.
    seed
        Seed of the order.
    world
        Which of several processes this is: a step's rows are dealt over them one by one, from the longest on. All
        make the same number of micro-batches; where rows do not divide, the last ones of some are smaller or empty.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        world: World = ALONE,
    ) -> None:
        self._world = world
        self.lengths = lengths
        self._batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self._seed = seed
        self._known: tuple[int, list[list[int]]] | None = None
        self.epoch = 0

    @property
    def rows_per_step(self) -> int:
        """The rows of a full step that are this process's, at most."""
        return math.ceil(self._batch_size / self._world.size)

    @property
    def steps_per_epoch(self) -> int:
        """The optimizer steps of one pass over the rows."""
        return math.ceil(len(self.lengths) / self._batch_size)

    @property
    def micro_batches_per_step(self) -> int:
        """The forward passes of a full step."""
        return math.ceil(self.rows_per_step / self.micro_batch_size)

    def __len__(self) -> int:
        full, rest = divmod(len(self.lengths), self._batch_size)
        last = math.ceil(math.ceil(rest / self._world.size) / self.micro_batch_size)
        return full * self.micro_batches_per_step + last

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._steps(self.epoch):
            share = batch[self._world.rank :: self._world.size]
            for start in range(0, math.ceil(len(batch) / self._world.size), self.micro_batch_size):
                yield share[start : start + self.micro_batch_size]

    def of_all(self) -> Iterator[list[int]]:
        """Return the micro-batches of all processes that have a row."""
        for batch in self._steps(self.epoch):
            for rank in range(self._world.size):
                share = batch[rank :: self._world.size]
                for start in range(0, len(share), self.micro_batch_size):
                    yield share[start : start + self.micro_batch_size]

    def rows_of_step(self, step: int) -> list[int]:
        """Return all processes' rows of a step, the longest first; steps are counted from 1 over all epochs."""
        epoch, number = divmod(step - 1, self.steps_per_epoch)
        return self._steps(epoch)[number]

    def share_of_step(self, step: int) -> list[int]:
        """Return this process's rows of a step."""
        return self.rows_of_step(step)[self._world.rank :: self._world.size]

    def _steps(self, epoch: int) -> list[list[int]]:
        """Return the rows of each step of an epoch, the longest first."""
        if self._known is None or self._known[0] != epoch:
            self._known = epoch, self._drawn(epoch)
        return self._known[1]

    def _drawn(self, epoch: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        steps = (order[start : start + self._batch_size] for start in range(0, len(order), self._batch_size))
        return [sorted(rows, key=lambda row: -self.lengths[row]) for rows in steps]
