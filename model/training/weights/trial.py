"""Trials of a model before the training: whether a faster way gives the numbers of the plain one, on the very model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

TOKENS = (2, 3, 5, 7, 11, 13, 4, 6)
"""What goes through the model: tokens that even the smallest vocabularies have."""
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
_ROUNDED = 0.1
"""Of types with fewer bits."""


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Without dropout within; afterwards the model is as it was. Nothing draws random numbers."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def logits(model: Any) -> torch.Tensor:
    """Return what the model says about the tokens, (1, tokens, vocabulary)."""
    ids = torch.tensor([TOKENS], device=model.get_input_embeddings().weight.device)
    found: torch.Tensor = model(ids, use_cache=False).logits
    return found


def close(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> bool:
    """Whether each difference is small beside what is expected, by the type with the fewest bits among them."""
    coarsest = max((_TOLERANCE.get(tensor.dtype, _ROUNDED) for tensor in expected), default=0.0)
    return all(
        bool((one.double() - other.double()).norm() <= coarsest * other.double().norm())  # nor when it is no number
        for one, other in zip(found, expected, strict=True)
    )
