"""Waiting for what happens in another thread or process."""

from __future__ import annotations

import time
from collections.abc import Callable

SECONDS = 30.0


def wait_for(condition: Callable[[], bool], seconds: float = SECONDS) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"nothing happened within {seconds:.0f} s")
        time.sleep(0.01)
