"""The registry killed two hundred times, on SQLite and on PostgreSQL, while it is written to by four callers.

`REGISTRY_SEEDS=3 pytest tests/chaos/test_registry.py` repeats one of the lives, each of twenty kills.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="needs the registry's environment; the trainer's image has none")

from tests.support.registry_kills import Killed
from tests.unit.conftest import backend, empty_database_url, postgresql_server

__all__ = ["backend", "empty_database_url", "postgresql_server"]

LIVES = 5
KILLS = 20


def seeds() -> list[int]:
    """The seeds to try: the first ones, or those of REGISTRY_SEEDS."""
    chosen = os.environ.get("REGISTRY_SEEDS")
    return [int(part) for part in chosen.split(",")] if chosen else list(range(100, 100 + LIVES))


@pytest.mark.parametrize("seed", seeds())
async def test_a_registry_that_is_killed_keeps_what_it_has_answered(
    seed: int, empty_database_url: str, tmp_path: Path
) -> None:
    print(f"repeat with REGISTRY_SEEDS={seed} pytest tests/chaos/test_registry.py")
    told = await Killed(empty_database_url, tmp_path, seed=seed).carry_out(kills=KILLS)
    assert told.datasets or told.steps
