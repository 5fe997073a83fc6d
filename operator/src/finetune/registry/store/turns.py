"""Turns of uploads: a few at once, because each holds something in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from finetune.registry.blobs.errors import TooManyUploads

TURN_SECONDS = 20.0


@asynccontextmanager
async def turn(uploads: asyncio.Semaphore, at_once: int) -> AsyncIterator[None]:
    """Wait for one of the turns and keep it for the block. Raises `TooManyUploads` when none gets free in time."""
    try:
        async with asyncio.timeout(TURN_SECONDS):
            await uploads.acquire()
    except TimeoutError:
        raise TooManyUploads(at_once) from None
    try:
        yield
    finally:
        uploads.release()
