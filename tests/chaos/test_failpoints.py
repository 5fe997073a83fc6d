"""The operator killed five hundred times after its writes, over runs of all kinds.

`FAILPOINT_SEEDS=17 pytest tests/chaos/test_failpoints.py` repeats one of the lives, each of twenty kills.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("kopf", reason="needs the operator's environment; the trainer's image has none")

from tests.api.conftest import managed_everywhere, managed_kubectl, managed_server
from tests.support.failpoints import carry_out
from tests.support.kubectl import Kubectl

__all__ = ["managed_everywhere", "managed_kubectl", "managed_server"]

LIVES = 25
KILLS = 20


def seeds() -> list[int]:
    """The seeds to try: the first ones, or those of FAILPOINT_SEEDS."""
    chosen = os.environ.get("FAILPOINT_SEEDS")
    return [int(part) for part in chosen.split(",")] if chosen else list(range(100, 100 + LIVES))


@pytest.mark.parametrize("seed", seeds())
async def test_a_killed_operator_brings_every_run_to_its_end(
    seed: int, managed_kubectl: Kubectl, tmp_path: Path
) -> None:
    print(f"repeat with FAILPOINT_SEEDS={seed} pytest tests/chaos/test_failpoints.py")
    kills = await carry_out(managed_kubectl, tmp_path, seed=seed, limit=KILLS)
    assert len(kills) == KILLS
