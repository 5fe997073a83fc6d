"""The operator's port: the probes, and its metrics.

`/healthz` says that the event loop works, and nothing else: every loop of the operator ends the process when it breaks,
and killing an operator helps nobody while the API server is away or refuses something. `/readyz` says that what there
is to serve is known: the runs of every namespace were listed once, or their list was refused. `/metrics` is for
Prometheus. None of them asks who calls: they hold no names and no contents.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import hdrs, web
from prometheus_client import CollectorRegistry

from finetune.metrics import page

PORT = 8080


async def serve_health(ready: Callable[[], bool], metrics: CollectorRegistry, *, port: int = PORT) -> None:
    """Serve probes and metrics on all addresses until cancelled."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        if ready():
            return web.Response(text="ok\n")
        return web.Response(status=503, text="the runs of some namespace have not been listed yet\n")

    async def show_metrics(request: web.Request) -> web.Response:
        body, content_type = page(metrics, request.headers.get(hdrs.ACCEPT, ""))
        return web.Response(body=body, headers={hdrs.CONTENT_TYPE: content_type})

    application = web.Application()
    application.add_routes(
        [web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", show_metrics)]
    )
    runner = web.AppRunner(application, handle_signals=False, shutdown_timeout=0.5, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, None, port).start()  # every address of both families: the kubelet asks from outside
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
