"""A loss beside the base model's: the one number that says whether a training was worth it."""

from __future__ import annotations

import math


def loss_change(loss: str | None, base: str | None) -> str | None:
    """How much lower a loss is than the base model's, such as `-31 %`; None where that says nothing."""
    try:
        change = 100 * (float(loss or "") / float(base or "") - 1)
    except (ValueError, ZeroDivisionError, OverflowError):
        return None
    if not math.isfinite(change) or not float(base or "") > 0:
        return None
    return f"{round(change):+d} %" if round(change) else "0 %"
