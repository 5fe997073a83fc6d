"""A proxy that sees every request of a process under test: a test can count writes, or kill the process after one.

The answer of a write is read to its end before anybody is told, and the client gets it only afterwards: a process that
is killed from `on_write` has had its effect and never learnt of it, which is the worst moment to die.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HOP_BY_HOP = {"host", "connection", "transfer-encoding", "content-length", "content-encoding", "keep-alive"}


@dataclass(frozen=True)
class Write:
    """One request that changed something."""

    method: str
    path: str
    status: int


OnWrite = Callable[[Write], Awaitable[None]]


class RecordingProxy:
    """An HTTP proxy in front of one server.

    Parameters
    ----------
    upstream: base URL of the server.
    tls: how to reach it, with the client's certificate.
    on_write: told of every successful POST, PUT, PATCH and DELETE before the client gets its answer.
    """

    def __init__(self, *, upstream: str, tls: ssl.SSLContext | None = None, on_write: OnWrite | None = None) -> None:
        self._upstream = upstream.rstrip("/")
        self._tls = tls
        self.on_write = on_write
        self.writes: list[Write] = []
        self.url = ""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[RecordingProxy]:
        """Listen on a free loopback port, see `url`."""
        connector = TCPConnector(ssl=self._tls or True, limit=0)
        async with ClientSession(connector=connector, auto_decompress=False) as self._session:
            application = web.Application(client_max_size=64 * 2**20)
            application.router.add_route("*", "/{path:.*}", self._forward)
            runner = web.AppRunner(application, shutdown_timeout=1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            try:
                yield self
            finally:
                await runner.cleanup()

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        headers = {key: value for key, value in request.headers.items() if key.lower() not in HOP_BY_HOP}
        body = await request.read()
        url = f"{self._upstream}{request.rel_url}"
        async with self._session.request(
            request.method, url, headers=headers, data=body or None, timeout=ClientTimeout(total=None)
        ) as answer:
            kept = {
                key: value
                for key, value in answer.headers.items()
                if key.lower() not in HOP_BY_HOP - {"content-encoding"}
            }
            if request.method in ("POST", "PUT", "PATCH", "DELETE"):
                data = await answer.read()
                if answer.status < 300:
                    await self._tell(Write(request.method, request.path, answer.status))
                return web.Response(status=answer.status, headers=kept, body=data)
            response = web.StreamResponse(status=answer.status, headers=kept)
            with contextlib.suppress(ConnectionResetError):  # the process under test was killed while it was being told
                await response.prepare(request)
                async for block in answer.content.iter_any():
                    await response.write(block)
            return response

    async def _tell(self, write: Write) -> None:
        self.writes.append(write)
        if self.on_write is not None:
            await self.on_write(write)
