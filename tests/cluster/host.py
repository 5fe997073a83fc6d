"""Where things are on this machine, and how commands are run on it."""

from __future__ import annotations

import os
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from images import shell
from images.shell import cache_dir
from tests.cluster.base import ClusterError

__all__ = [
    "DEFAULT_GPUS",
    "GO_SOURCES",
    "GPU_RESOURCE",
    "NODE",
    "answers",
    "cache_dir",
    "gpu_count",
    "install",
    "run",
    "wait_until",
]

GO_SOURCES = Path(__file__).resolve().parent / "go"

T = TypeVar("T")

NODE = "node0"
GPU_RESOURCE = "nvidia.com/gpu"
DEFAULT_GPUS = 8


def gpu_count() -> int:
    """How many GPUs the node pretends to have: ``FINETUNE_CLUSTER_GPUS`` or 8."""
    configured = os.environ.get("FINETUNE_CLUSTER_GPUS", str(DEFAULT_GPUS))
    if not configured.isdigit():
        raise ClusterError(f"FINETUNE_CLUSTER_GPUS={configured!r} is not a number: set it to 0 or more")
    return int(configured)


def run(
    argv: Sequence[str | Path],
    *,
    timeout: float = 600,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | None = None,
) -> str:
    """Run a command to its end and return its output, as ``images.shell.run``, but raise ClusterError."""
    try:
        return shell.run(argv, timeout=timeout, env=env, cwd=cwd, stdin=stdin)
    except shell.CommandError as error:
        raise ClusterError(str(error)) from error


def install(packages: Mapping[str, str]) -> None:
    """Install the Debian packages whose program is missing, as ``images.shell.install``, but raise ClusterError."""
    try:
        shell.install(packages)
    except shell.CommandError as error:
        raise ClusterError(f"{error}, or use another cluster (CLUSTER=kind or CLUSTER=existing)") from error


def answers(url: str) -> bool:
    """Whether an HTTP server of this machine answers a GET with success."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(200 <= answer.status < 300)
    except OSError:
        return False


def wait_until(
    what: str,
    condition: Callable[[], T | None],
    *,
    seconds: float = 60,
    check: Callable[[], None] = lambda: None,
) -> T:
    """Ask until the answer is true, and return it.

    Args:
        what: what is waited for, for the message.
        condition: the question, asked 20 times a second.
        seconds: how long to ask.
        check: called between the questions; raises where waiting has become pointless.

    Raises:
        TimeoutError: it did not become true in time.
    """
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"not reached within {seconds:g} s: {what}")
        time.sleep(0.05)
    return answer
