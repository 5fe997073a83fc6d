"""Two pods with the same base model of the hub, on one claim: both get it whole, also when one is killed."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support.hub import hub
from tests.training.harness import DEADLINE_SECONDS, wait_for
from tests.training.loaded import describe

WEIGHTS = "model.safetensors"
LOAD = "from tests.training.loaded import describe; print(describe('owner/tiny'))"


@pytest.mark.parametrize("killed", [pytest.param(False, marks=pytest.mark.long), True], ids=["both live", "one killed"])
def test_pods_that_start_together_share_one_download(base_model: Path, tmp_path: Path, killed: bool) -> None:
    files = {path.name: path.read_bytes() for path in base_model.iterdir()}
    cache = tmp_path / "cache" / "huggingface"
    with hub() as server:
        server.repository("owner/tiny", files)
        released = server.held[WEIGHTS] = threading.Event()
        environment = {
            "HF_ENDPOINT": server.endpoint,
            "HF_HOME": str(cache),
            "HF_HUB_DOWNLOAD_TIMEOUT": f"{DEADLINE_SECONDS:.0f}",  # the held download must not be asked for again
            "OMP_NUM_THREADS": "1",
        }

        def start() -> subprocess.Popen[str]:
            return subprocess.Popen([sys.executable, "-c", LOAD], env=environment, stdout=subprocess.PIPE, text=True)

        pods = [start()]
        try:
            wait_for(lambda: server.downloads[WEIGHTS] == 1)
            pods.append(start())
            wait_for(lambda: server.heads[WEIGHTS] == 2)
            if killed:
                pods.pop(0).kill()
            released.set()
            said = {pod.communicate(timeout=DEADLINE_SECONDS)[0] for pod in pods}
        finally:
            released.set()
            for pod in pods:
                pod.kill()
    assert said == {describe(str(base_model)) + "\n"}
    assert server.downloads[WEIGHTS] == 1 + killed
    assert {count for path, count in server.downloads.items() if path != WEIGHTS} == {1}
