"""The GPU as its driver's tool sees it, from outside the trainers: it means the same for each of them."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable

SAMPLE_SECONDS = 0.2


def gpu_query(field: str) -> str | None:
    """Return what the driver's tool says about the first GPU, None without one."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    argv = [tool, "--id=0", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)  # noqa: S603 - the driver's own tool
    return done.stdout.strip() if done.returncode == 0 else None


def memory_in_use() -> int | None:
    """Return the first GPU's memory in use in MiB, None without a GPU."""
    answer = gpu_query("memory.used")
    return None if answer is None else int(answer)


class MemoryPeak:
    """The most memory of the GPU that was in use while something ran, over what was in use before, in MiB.

    None without a GPU.
    """

    def __init__(self, read: Callable[[], int | None] = memory_in_use) -> None:
        self._read = read
        self._before = self._peak = read()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryPeak:
        if self._before is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def mib(self) -> int | None:
        """The peak so far."""
        return None if self._peak is None or self._before is None else self._peak - self._before

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            now = self._read()
            if now is not None:
                self._peak = max(self._peak or 0, now)
