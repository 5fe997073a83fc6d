"""The learning rate's way up and down."""

from __future__ import annotations

import math

import pytest

from model.training.loop.schedule import share_of_peak


def shares(schedule: str, warmup_steps: int, total_steps: int) -> list[float]:
    return [
        share_of_peak(step, schedule=schedule, warmup_steps=warmup_steps, total_steps=total_steps)
        for step in range(total_steps)
    ]


@pytest.mark.parametrize(
    ("schedule", "warmup_steps", "expected"),
    [
        ("Constant", 0, [1, 1, 1, 1]),
        ("Constant", 3, [0.25, 0.5, 0.75, 1]),
        ("Linear", 0, [1, 0.75, 0.5, 0.25]),
        ("Linear", 2, [1 / 3, 2 / 3, 1, 0.5]),
        ("Cosine", 0, [1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]),
        ("Cosine", 2, [1 / 3, 2 / 3, 1, 0.5]),
    ],
)
def test_the_rate_rises_and_falls(schedule: str, warmup_steps: int, expected: list[float]) -> None:
    assert shares(schedule, warmup_steps, 4) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["Cosine", "Linear", "Constant"])
@pytest.mark.parametrize("total_steps", [1, 2, 7])
def test_no_step_is_made_in_vain(schedule: str, total_steps: int) -> None:
    for warmup_steps in range(total_steps + 1):
        assert min(shares(schedule, warmup_steps, total_steps)) > 0
