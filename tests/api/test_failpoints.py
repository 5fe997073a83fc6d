"""The operator killed after twenty of its writes; `make chaos` goes on with five hundred, see tests/chaos."""

from __future__ import annotations

from pathlib import Path

from tests.support.failpoints import carry_out
from tests.support.kubectl import Kubectl

SEED = 1
KILLS = 20


async def test_killed_after_each_write_every_run_still_ends_once(managed_kubectl: Kubectl, tmp_path: Path) -> None:
    kills = await carry_out(managed_kubectl, tmp_path, seed=SEED, limit=KILLS)
    assert len(kills) == KILLS
