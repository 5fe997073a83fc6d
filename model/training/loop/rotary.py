"""Rotary positions whose angles depend on the longest row that goes through the model at once.

LongRoPE (Phi-3 and Phi-4-mini with 128k positions, https://arxiv.org/abs/2402.13753) has two sets of angles: one for
what its base was first trained on, another as soon as one row is longer. transformers chooses for a whole forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.training.config import TrainSettings


def first_positions(config: Any) -> int | None:
    """Return up to how many tokens the first set of angles is taken, None where there are not two.

    Parameters
    ----------
    config
        The language model's, whose rotary positions may differ by the kind of layer.
    """
    told = getattr(config, "rope_parameters", None) or {}
    kinds = [told, *(one for one in told.values() if isinstance(one, Mapping))]
    found = [int(one["original_max_position_embeddings"]) for one in kinds if one.get("rope_type") == "longrope"]
    return min(found, default=None)


def warning(config: Any, settings: TrainSettings, shortest: int, longest: int) -> str | None:
    """Return what to say when rows on both sides of that border go through the model together, else None.

    Parameters
    ----------
    config
        The language model's.
    settings
        The run's settings.
    shortest, longest
        The tokens of the shortest and of the longest row.
    """
    border, pairs = first_positions(config), settings.method == "DPO"
    if border is None or not shortest <= border < longest or (settings.micro_batch_size == 1 and not pairs):
        return None
    return (
        f"the base model has other angles (longrope) for positions as soon as a row has more than {border} tokens, and "
        "takes them for all rows that go through it together: what it makes of a shorter row depends on those beside "
        f"it, and the longest has {longest} tokens: lower maxLength (--max-length) to {border}"
        + ("" if pairs else ", or set microBatchSize (--micro-batch-size) to 1")
    )
