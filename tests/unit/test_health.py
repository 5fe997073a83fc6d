"""The probes' endpoint."""

from __future__ import annotations

import asyncio
import contextlib

from aiohttp import ClientSession

from finetune.controller.health import serve_health
from tests.support.ports import free_port
from tests.support.world import wait_until_ready


async def test_alive_is_not_ready() -> None:
    port, answered = free_port(), False
    task = asyncio.create_task(serve_health(lambda: answered, port=port))
    try:
        url = f"http://127.0.0.1:{port}"
        await wait_until_ready(f"{url}/healthz")
        async with ClientSession() as session:
            async with session.get(f"{url}/readyz") as answer:
                assert answer.status == 503
            answered = True
            async with session.get(f"{url}/readyz") as answer:
                assert answer.status == 200
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
