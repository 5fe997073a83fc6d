"""The probes' endpoint.

`/healthz` says that the event loop works, and nothing else: every loop of the operator ends the process when it breaks,
and killing an operator helps nobody while the API server is away or refuses something. `/readyz` says that the API
server has answered for every namespace at least once, if only with a refusal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web

PORT = 8080


async def serve_health(ready: Callable[[], bool], *, port: int = PORT) -> None:
    """Serve both probes on all addresses until cancelled."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        if ready():
            return web.Response(text="ok\n")
        return web.Response(status=503, text="the API server has not answered yet\n")

    application = web.Application()
    application.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz)])
    runner = web.AppRunner(application, handle_signals=False, shutdown_timeout=0.5, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "0.0.0.0", port).start()  # noqa: S104 - the kubelet asks from outside the pod
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
