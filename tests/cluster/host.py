"""Where things are on this machine, and how commands are run on it."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from tests.cluster.base import ClusterError

REPOSITORY = Path(__file__).resolve().parents[2]
GO_SOURCES = Path(__file__).resolve().parent / "go"

T = TypeVar("T")

NODE = "node0"
GPU_RESOURCE = "nvidia.com/gpu"
DEFAULT_GPUS = 8


def cache_dir() -> Path:
    """The folder outside the clone for everything that is slow to make: ``FINETUNE_CACHE`` or ~/.cache/finetune."""
    configured = os.environ.get("FINETUNE_CACHE")
    base = Path(configured) if configured else Path.home() / ".cache" / "finetune"
    return base.expanduser().resolve()


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
    """Run a command to its end.

    Args:
        argv: the command and its arguments; no shell.
        timeout: seconds.
        env: variables added to this process's own.
        cwd: the folder to run in.
        stdin: text for its standard input.

    Returns:
        Its standard output.

    Raises:
        ClusterError: it failed, could not be started or ran too long; with the end of its output.
    """
    words = [str(word) for word in argv]
    line = shlex.join(words)
    try:
        done = subprocess.run(
            words,
            env=dict(os.environ) | dict(env or {}),
            cwd=cwd,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise ClusterError(f"{words[0]} is not installed on this machine (wanted for: {line})") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{line} did not end within {timeout:g} s") from error
    if done.returncode != 0:
        output = "\n".join((done.stdout + done.stderr).strip().splitlines()[-20:])
        raise ClusterError(f"{line} ended with code {done.returncode}:\n{output}")
    return done.stdout


def answers(url: str) -> bool:
    """Whether an HTTP server of this machine answers a GET with success."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - always http, to a fixed port
            return 200 <= answer.status < 300
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
