"""Uploads whose sender has fallen silent are given up: they hold memory, and a turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from .errors import SlowSender

BLOCK_SECONDS = 60.0
"""How long a sender may be silent."""


async def paced(blocks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same blocks; raises `SlowSender` when the next one does not come."""
    stream = aiter(blocks)
    while True:
        try:
            async with asyncio.timeout(BLOCK_SECONDS):
                block = await anext(stream, None)
        except TimeoutError:
            raise SlowSender(BLOCK_SECONDS) from None
        if block is None:
            return
        yield block
