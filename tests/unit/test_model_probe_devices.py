"""Which devices the probe of a plan sees."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from model.training.commands import probe
from model.training.processes import parallel


@pytest.mark.parametrize(
    ("gpus", "visible", "expected"),
    [(1, "GPU-a,GPU-b", "GPU-a"), (2, "GPU-a,GPU-b", "GPU-a"), (2, None, "0"), (0, "GPU-a,GPU-b", "")],
)
def test_the_probe_sees_one_gpu_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, visible: str | None, expected: str
) -> None:
    monkeypatch.setattr(parallel, "_world", parallel.World())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(probe, "probe", lambda _settings: {"visible": os.environ["CUDA_VISIBLE_DEVICES"]})
    arguments = [f"--run-directory={tmp_path}", "--run-uid=u", "--method=SFT", "--base-model=m", f"--gpus={gpus}"]
    assert probe.main(arguments) == 0
    assert json.loads((tmp_path / probe.RESULT).read_text()) == {"visible": expected}
