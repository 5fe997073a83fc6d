"""The held-out examples: laid out in batches, each measured in as many parts as the memory asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from model import exits, gpus
from model.exits import FailureError
from model.training.loop import memory
from model.training.loop.layout import Batch, Collator, LabelCollator, PairCollator, count_rows, split
from model.training.processes import parallel

Sums = dict[str, float]


class HeldOut:
    """Examples to evaluate on.

    Parameters
    ----------
    examples
        A `datasets.Dataset` whose items the collator takes.
    lengths
        The number of tokens of each of them.
    rows_per_example
        Rows that go through the model together: 2 for pairs.
    """

    def __init__(self, examples: Any, lengths: Sequence[int], *, rows_per_example: int) -> None:
        self._examples, self._lengths = examples, lengths
        self._rows_per_example = rows_per_example
        self._parts = 1

    def __len__(self) -> int:
        return len(self._examples)

    def batches(self, collator: Collator | PairCollator | LabelCollator, size: int) -> Iterator[Batch]:
        """Return this process's batches of so many examples, the longest first."""
        order, world = self.order, parallel.world()
        for start in range(world.rank * size, len(order), world.size * size):
            yield collator([self._examples[row] for row in order[start : start + size]])

    @property
    def order(self) -> list[int]:
        """The examples by number, the longest first."""
        return sorted(range(len(self._lengths)), key=lambda row: -self._lengths[row])

    def measure(self, batch: Batch, measure: Callable[[Batch], Sums], *, max_length: int) -> Sums:
        """Return a batch's sums; when the GPU's memory does not suffice, from halves, and so from then on.

        Held-out examples may be longer than those that the size of a batch was found with.

        Raises
        ------
        FailureError
            When not even one example fits.
        """
        while True:
            parts = split(batch, self._parts, rows_per_example=self._rows_per_example)
            try:
                return total([measure(part) for part in parts])
            except RuntimeError as error:
                if not gpus.out_of_memory(error):
                    raise
                if len(parts) * self._rows_per_example >= count_rows(batch):
                    raise memory.too_large(max_length) from error
            self._parts *= 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def total(shares: Sequence[Sums]) -> Sums:
    """Return the sums of the sums by name."""
    return {name: sum(share[name] for share in shares) for name in (shares[0] if shares else ())}


def check_finite(loss: float, step: int) -> None:
    """Refuse a loss on the held-out rows that is no number.

    Raises
    ------
    FailureError
        When it is NaN or infinite.
    """
    if not math.isfinite(loss):
        raise FailureError(
            exits.DIVERGED,
            "Diverged",
            f"the loss on the held-out rows is {loss} after step {step}: lower training.learningRate "
            "(--learning-rate), or look for rows that are no text",
        )
