"""A registry killed ten times on each database; `make chaos` goes on to two hundred."""

from __future__ import annotations

from pathlib import Path

from tests.support.registry_kills import Killed


async def test_a_registry_that_is_killed_keeps_what_it_has_answered(database_url: str, tmp_path: Path) -> None:
    told = await Killed(database_url, tmp_path, seed=1).carry_out(kills=5)
    assert told.datasets or told.steps
