"""A registry killed four times; `make chaos` goes on to two hundred, on both databases."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.registry_kills import Killed


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True, scope="session")
async def test_a_registry_that_is_killed_keeps_what_it_has_answered(empty_database_url: str, tmp_path: Path) -> None:
    told = await Killed(empty_database_url, tmp_path, seed=1).carry_out(kills=4)
    assert told.datasets or told.steps
