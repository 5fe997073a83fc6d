"""The learning rate's way up and down."""

from __future__ import annotations

import math

import pytest

from model.training.loop.schedule import evaluation_interval, evaluation_passes, evaluation_warning, share_of_peak


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


def test_evaluations_come_every_tenth_of_the_run_but_not_too_often() -> None:
    assert [evaluation_interval(steps) for steps in (1, 200, 2000, 2001, 60_000)] == [200, 200, 200, 201, 6000]


def test_the_held_out_rows_are_measured_twice_in_the_end_and_at_each_interval_before() -> None:
    assert [evaluation_passes(steps, 200) for steps in (1, 200, 201, 400, 401)] == [2, 2, 3, 3, 4]


def warned(rows: int, interval: int | None = None, held_out: int | None = None) -> str | None:
    """What is said of rows of 100 tokens, 16 a step."""
    steps = -(-rows // 16)
    held_out = min(rows // 20, 500) if held_out is None else held_out
    return evaluation_warning(
        trained_tokens=100 * rows,
        held_out_tokens=100 * held_out,
        held_out_rows=held_out,
        steps=steps,
        interval=interval or evaluation_interval(steps),
    )


def test_by_default_evaluations_are_worth_their_time() -> None:
    assert [warned(rows) for rows in (100, 3000, 20_000, 100_000, 1_000_000)] == [None] * 5


def test_evaluations_that_cost_more_than_they_are_worth_are_told() -> None:
    warning = warned(200_000, interval=200, held_out=10_000)
    assert warning is not None
    assert warning.startswith("evaluations will take about 52% of the time: 10000 held-out rows, 64 times")
    assert "--evaluation-max-rows" in warning
    assert "--evaluation-steps" in warning
