"""Which rows a step trains on, and which of them go through the model at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler

from model.training.processes.parallel import World

ALONE = World()


@dataclass(frozen=True)
class MicroBatch:
    """How much goes through the model at once."""

    rows: int
    """So many examples; with `tokens`, so many of the longest ones."""
    tokens: int | None = None
    """So many tokens, however many examples they are: short ones would leave a GPU idle. None: count examples."""
    width: int = 0
    """Examples are filled up to the longest among them, and to a multiple of this; 0: they are joined."""

    def cut(self, examples: Sequence[int], lengths: Sequence[int], *, parts: int = 1) -> list[list[int]]:
        """Cut examples, in their order, into as few groups as fit; one that fits nowhere is a group of its own.

        Parameters
        ----------
        examples
            Their numbers.
        lengths
            The positions that each example of the run takes.
        parts
            Into how many groups each group that would fit is cut at most, since the memory ran out.
        """
        groups: list[list[int]] = []
        tokens = longest = 0
        for example in examples:
            longest, tokens = max(longest, lengths[example]), tokens + lengths[example]
            group = groups[-1] if groups else []
            if group and self._fits(len(group) + 1, longest, tokens):
                group.append(example)
            else:
                groups.append([example])
                longest = tokens = lengths[example]
        halved = ((group, math.ceil(len(group) / parts)) for group in groups)
        return [group[start : start + size] for group, size in halved for start in range(0, len(group), size)]

    def _fits(self, rows: int, longest: int, tokens: int) -> bool:
        if self.tokens is None:
            return rows <= self.rows
        return (rows * self.filled(longest) if self.width else tokens) <= self.tokens

    def filled(self, tokens: int) -> int:
        """Return the positions that an example of so many tokens takes beside shorter ones."""
        return math.ceil(tokens / self.width) * self.width if self.width else tokens


class StepBatches(Sampler[list[int]]):
    """The rows of each optimizer step; their order depends on the seed and the epoch alone.

    Each step takes `batch_size` rows, drawn at random without replacement; only the last step of an epoch has fewer.
    Within the step they are sorted by length, so that those that go through the model together need little padding.
    Steps of rows of one length would need less still, but the loss is a mean over the step's tokens: a token among
    short rows would then weigh many times one among long rows. A resumed run sees the same rows in the same order
    without anything being stored about them.

    Parameters
    ----------
    lengths
        Of each row, in positions of a forward pass: see `examples.positions`.
    batch_size
        Rows of an optimizer step.
    micro_batch
        How much goes through the model at once.
    seed
        Seed of the order.
    world
        Which of several processes this is: a step's rows are dealt over them one by one, from the longest on. Where
        they do not divide, some processes have one fewer, or none.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        batch_size: int,
        micro_batch: MicroBatch,
        seed: int,
        world: World = ALONE,
    ) -> None:
        self._world = world
        self.lengths = lengths
        self._batch_size = batch_size
        self.micro_batch = micro_batch
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

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[list[int]]:
        """Return this process's rows of each step of the epoch."""
        return (rows[self._world.rank :: self._world.size] for rows in self._steps(self.epoch))

    def cut(self, rows: Sequence[int], *, parts: int = 1) -> list[list[int]]:
        """Return a step's rows by forward pass, each in so many parts."""
        return self.micro_batch.cut(rows, self.lengths, parts=parts)

    def of_all(self) -> Iterator[list[int]]:
        """Return the micro-batches of all processes."""
        for batch in self._steps(self.epoch):
            for rank in range(self._world.size):
                yield from self.cut(batch[rank :: self._world.size])

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
