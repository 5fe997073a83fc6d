"""How the learning rate rises and falls."""

from __future__ import annotations

import math


def share_of_peak(step: int, *, schedule: str, warmup_steps: int, total_steps: int) -> float:
    """Return the learning rate of a step as a share of the highest.

    The usual warm-up begins with 0, so that the first step, the only one of the shortest runs, changes nothing. This
    one rises in equal steps from above 0, and what follows is as usual.

    Parameters
    ----------
    step
        The steps made so far.
    schedule
        Cosine, Linear or Constant.
    warmup_steps, total_steps
        Steps in which the rate rises, and all steps.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    if schedule == "Cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1 - done if schedule == "Linear" else 1.0
