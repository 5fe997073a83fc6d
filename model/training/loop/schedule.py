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


LEAST_EVALUATION_STEPS, EVALUATIONS = 200, 10
FORWARD_SHARE = 1 / 3
"""What a token costs in an evaluation, of what it costs in a step."""
WORTH = 1 / 5
"""The share of the time that evaluations may take without a word."""


def evaluation_interval(total_steps: int) -> int:
    """Return the steps between evaluations when nothing is said: a tenth of the run, but not too few."""
    return max(LEAST_EVALUATION_STEPS, -(-total_steps // EVALUATIONS))


def evaluation_tokens(held_out_tokens: int, *, steps: int, interval: int) -> float:
    """Return what all evaluations of a run cost, in tokens of training; the last is of the adapter and of the base."""
    return held_out_tokens * evaluation_passes(steps, interval) * FORWARD_SHARE


def evaluation_passes(steps: int, interval: int) -> int:
    """Return how often the held-out rows go through the model."""
    return (steps - 1) // interval + 2


def evaluation_warning(
    *, trained_tokens: float, held_out_tokens: int, held_out_rows: int, steps: int, interval: int
) -> str | None:
    """Return what to say when evaluations take more of the time than they are worth.

    Parameters
    ----------
    trained_tokens
        Those of all steps.
    held_out_tokens, held_out_rows
        Those of one evaluation.
    steps, interval
        All steps, and those between two evaluations.
    """
    cost = evaluation_tokens(held_out_tokens, steps=steps, interval=interval)
    share = cost / max(1.0, cost + trained_tokens)
    if share <= WORTH:
        return None
    return (
        f"evaluations will take about {share:.0%} of the time: {held_out_rows} held-out rows, "
        f"{evaluation_passes(steps, interval)} times; hold out fewer (dataset.evaluation.maxRows, "
        "--evaluation-max-rows), or raise training.evaluationSteps (--evaluation-steps)"
    )
