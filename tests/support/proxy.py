"""A proxy that sees every request of a process under test: a test can count writes, or kill the process after one.

The answer of a write is read to its end before anybody is told, and the client gets it only afterwards: a process that
is killed from `on_write` has had its effect and never learnt of it, which is the worst moment to die. What else may
happen on the way is in `faults.py`.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

from tests.support.faults import ANSWER, Fault

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
        self.requests: list[str] = []
        """All requests as they came, such as `GET /api/v1/namespaces/ml/pods?limit=1`."""
        self.faults: list[Fault] = []
        self.url = ""

    @contextmanager
    def faulty(self, *faults: Fault) -> Iterator[None]:
        """Let these troubles happen for the time of the block."""
        self.faults += faults
        try:
            yield
        finally:
            for fault in faults:
                self.faults.remove(fault)
                fault.over.set()

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """The server is away for the time of the block: what is open is reset, and nobody listens."""
        await self._site.stop()
        self.cut()
        try:
            yield
        finally:
            await self._listen(int(self.url.rpartition(":")[2]))

    def cut(self) -> None:
        """Reset all open connections, those of watches too."""
        server = self._runner.server
        for connection in list(server.connections) if server else []:
            if connection.transport is not None:
                connection.transport.abort()

    async def _listen(self, port: int) -> None:
        self._site = web.TCPSite(self._runner, "127.0.0.1", port)
        await self._site.start()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[RecordingProxy]:
        """Listen on a free loopback port, see `url`."""
        connector = TCPConnector(ssl=self._tls or True, limit=0)
        async with ClientSession(connector=connector, auto_decompress=False) as self._session:
            application = web.Application(client_max_size=64 * 2**20)
            application.router.add_route("*", "/{path:.*}", self._forward)
            self._runner = web.AppRunner(application, shutdown_timeout=1)
            await self._runner.setup()
            await self._listen(0)
            self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
            try:
                yield self
            finally:
                await self._runner.cleanup()

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        path = str(request.rel_url)
        self.requests.append(f"{request.method} {path}")
        # Faults that count are asked only once for a request, in the order in which they were given.
        fault = next((each for each in self.faults if each.takes(request.method, path)), None)
        if fault is not None and not fault.after:
            answer = await fault.answer(request)
            if answer is not None:
                return answer
        return await self._ask(request, body, lost=fault if fault is not None and fault.after else None)

    async def _ask(self, request: web.Request, body: bytes, lost: Fault | None) -> web.StreamResponse:
        headers = {key: value for key, value in request.headers.items() if key.lower() not in HOP_BY_HOP}
        url = f"{self._upstream}{request.rel_url}"
        async with self._session.request(
            request.method, url, headers=headers, data=body or None, timeout=ClientTimeout(total=None)
        ) as answer:
            kept = {
                key: value
                for key, value in answer.headers.items()
                if key.lower() not in HOP_BY_HOP - {"content-encoding"}
            }
            writes = request.method in ("POST", "PUT", "PATCH", "DELETE")
            if writes or lost is not None:
                request[ANSWER] = data = await answer.read()
                if writes and answer.status < 300:
                    await self._tell(Write(request.method, request.path, answer.status))
                instead = await lost.answer(request) if lost is not None else None
                return instead or web.Response(status=answer.status, headers=kept, body=data)
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
