"""A hundred runs that are killed at random moments end as if nothing had happened.

`CHAOS_SEEDS=17,18 python -m pytest tests/chaos` repeats some of them, `CHAOS_SEEDS=100-999` goes on with others.
A seed gives the share of a run's time at which a signal comes; what the process does at that moment is the machine's.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.chaos.kills import Plan, Uninterrupted, carry_out


def seeds() -> list[int]:
    """The seeds to try: all of 0 to 99, or those of CHAOS_SEEDS."""
    chosen: list[int] = []
    for part in os.environ.get("CHAOS_SEEDS", "0-99").split(","):
        first, _, last = part.partition("-")
        chosen += range(int(first), int(last or first) + 1)
    return chosen


@pytest.mark.parametrize("seed", seeds())
def test_a_killed_run_ends_with_the_same_bits(seed: int, uninterrupted: Uninterrupted, tmp_path: Path) -> None:
    plan = Plan.of(seed)
    print(f"repeat with CHAOS_SEEDS={seed} python -m pytest tests/chaos; {plan}")
    carry_out(plan, uninterrupted, tmp_path)
