"""Which GPU a process sees."""

from __future__ import annotations

import os

import pytest

from model.training.processes import parallel


@pytest.mark.parametrize(
    ("gpus", "size", "shown", "sees"),
    [(0, 1, "0,1", ""), (0, 1, None, ""), (0, 2, "0,1", ""), (1, 1, "3,1", "3"), (1, 1, None, "0"), (2, 2, "5,7", "7")],
)
def test_a_process_sees_its_own_gpu_alone(
    monkeypatch: pytest.MonkeyPatch, gpus: int, size: int, shown: str | None, sees: str
) -> None:
    monkeypatch.setattr(parallel, "_world", parallel.World())
    # Set first, so that what is taken out of the environment comes back.
    for name in ("CUDA_VISIBLE_DEVICES", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", parallel.PARENT):
        monkeypatch.setenv(name, "0")
    monkeypatch.delenv(parallel.PARENT)
    monkeypatch.setenv("WORLD_SIZE", str(size))
    monkeypatch.setenv("RANK", str(size - 1))
    monkeypatch.setenv("LOCAL_RANK", str(size - 1))
    if shown is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    parallel.enter(gpus)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == sees
    assert parallel.world() == parallel.World(size - 1, size)
