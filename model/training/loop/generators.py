"""The states of all random number generators that a training draws from."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def states() -> tuple[Any, ...]:
    """Return the states of Python's, NumPy's and PyTorch's generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def restore(saved: tuple[Any, ...]) -> None:
    """Set the generators to states that `states` returned."""
    random.setstate(saved[0])
    np.random.set_state(saved[1])
    torch.set_rng_state(saved[2])
    if saved[3]:
        torch.cuda.set_rng_state_all(saved[3])


@contextlib.contextmanager
def untouched() -> Iterator[None]:
    """Keep the training's random numbers for the training, whatever is drawn inside."""
    saved = states()
    try:
        yield
    finally:
        restore(saved)
