"""The held-out examples, by forward pass, each measured in as many parts as the memory asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from model import exits, gpus
from model.exits import FailureError
from model.training.loop import memory
from model.training.loop.batches import MicroBatch
from model.training.loop.examples import Examples, PairExamples
from model.training.processes import parallel

Sums = dict[str, float]


class HeldOut:
    """Examples to evaluate on.

    Parameters
    ----------
    examples
        As the collator takes them.
    """

    def __init__(self, examples: Examples | PairExamples) -> None:
        self._examples = examples
        self._parts = 1

    def __len__(self) -> int:
        return len(self._examples)

    def groups(self, micro_batch: MicroBatch) -> list[list[dict[str, Any]]]:
        """Return this process's examples by forward pass, the longest first."""
        world = parallel.world()
        cut = micro_batch.cut(self.order, self._examples.lengths)[world.rank :: world.size]
        return [[self._examples[row] for row in rows] for rows in cut]

    @property
    def order(self) -> list[int]:
        """The examples by number, the longest first."""
        lengths = self._examples.lengths
        return sorted(range(len(lengths)), key=lambda row: -lengths[row])

    def measure(self, group: Sequence[Any], measure: Callable[[Sequence[Any]], Sums], *, max_length: int) -> Sums:
        """Return the sums of a forward pass; when the GPU's memory does not suffice, from halves, and so from then on.

        Held-out examples may be longer than those that the size of a batch was found with.

        Raises
        ------
        FailureError
            When not even one example fits.
        """
        while True:
            size = math.ceil(len(group) / self._parts)
            try:
                return total([measure(group[start : start + size]) for start in range(0, len(group), size)])
            except RuntimeError as error:
                if not gpus.out_of_memory(error):
                    raise
                if size == 1:
                    raise memory.too_large(max_length) from error
            self._parts *= 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def total(shares: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the sums of the sums by name; those of a device stay there."""
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
