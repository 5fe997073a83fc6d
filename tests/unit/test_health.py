"""The operator's port: its probes, and its metrics."""

from __future__ import annotations

import asyncio
import contextlib

from aiohttp import ClientSession

from finetune.controller.health import serve_health
from finetune.controller.metrics import OperatorMetrics
from tests.support.ports import free_port
from tests.support.world import wait_until_ready


async def test_alive_is_not_ready() -> None:
    port, ready = free_port(), False
    task = asyncio.create_task(serve_health(lambda: ready, OperatorMetrics().registry, port=port))
    try:
        url = f"http://127.0.0.1:{port}"
        await wait_until_ready(f"{url}/healthz")
        async with ClientSession() as session:
            async with session.get(f"{url}/readyz") as answer:
                assert answer.status == 503
            ready = True
            async with session.get(f"{url}/readyz") as answer:
                assert answer.status == 200
            async with session.get(f"{url}/metrics") as answer:
                assert answer.headers["Content-Type"].startswith("text/plain; version=")
                assert 'finetune_operator_build_info{version="0.1.0"} 1.0' in (await answer.text()).splitlines()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
