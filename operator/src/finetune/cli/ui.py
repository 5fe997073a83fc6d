"""`finetune ui`: the registry's pages in a browser, on a loopback address of their own.

The registry is reached as by every other command, with the person's token; the browser never gets it. The address that
is opened holds a code that is good once: whoever else is on this machine may reach the port, but is nobody there.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import webbrowser
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .session import Session

if TYPE_CHECKING:
    from aiohttp import web

    from finetune.clients.people import PeopleClient

COOKIE = "finetune-ui"
CODE = "code"
LOOPBACK_HEADER = "X-Finetune-UI"
"""Tells the registry that the pages are on an origin of their own, though the API server's proxy passes them on."""
KEPT = frozenset({"accept", "accept-encoding", "content-type", "last-event-id", "sec-fetch-site", "sec-fetch-mode"})
"""Headers of the browser that the registry gets, beside its own cookies."""
OWN_COOKIES = ("finetune-forms", "finetune-notice")
"""A browser sends the cookies of all that this machine serves, on any port: those are nobody else's business."""
SHUTDOWN_SECONDS = 0.5
"""How long requests under way get when it is interrupted; live pages have no end of their own."""
HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"})
"""Headers of an answer that speak of one connection only."""
LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost"})


class Pages:
    """Passes a browser's requests on to the registry, once it has shown the code."""

    def __init__(self, registry: PeopleClient) -> None:
        self._registry = registry
        self._code: str | None = secrets.token_urlsafe(24)
        self._key = secrets.token_urlsafe(24)

    def address(self, port: int) -> str:
        """Where the browser begins; good once."""
        return f"http://127.0.0.1:{port}/?{CODE}={self._code}"

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """One request of the browser."""
        from aiohttp import web

        if request.url.host not in LOCAL_HOSTS:  # a name of another site that was made to point here
            return web.Response(status=403, text="This address is not the one that finetune ui has opened.\n")
        code = request.query.get(CODE)
        if request.path == "/" and code is not None:
            return self._let_in(code)
        if not secrets.compare_digest(request.cookies.get(COOKIE, "").encode(), self._key.encode()):
            return web.Response(status=403, text="Open the address that finetune ui has printed, in one browser.\n")
        if request.path != "/" and not request.path.startswith(("/ui", "/favicon.ico")):
            return web.Response(status=404, text="The pages are below /ui/.\n")
        return await self._pass_on(request)

    def _let_in(self, code: str) -> web.Response:
        from aiohttp import web

        known, self._code = self._code, None  # a wrong guess spends it, too
        if known is None or not secrets.compare_digest(code.encode(), known.encode()):
            return web.Response(status=403, text="The code is used up: run finetune ui once more.\n")
        answer = web.Response(status=303, headers={"Location": "/ui/"})
        answer.set_cookie(COOKIE, self._key, httponly=True, samesite="Strict", path="/")
        return answer

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web

        body = await request.read()
        async with self._registry.passed_on(
            request.method, request.raw_path, headers=kept(request.headers, request.cookies), body=body
        ) as found:
            answer = web.StreamResponse(status=found.status)
            for name, value in found.headers.items():
                if name.lower() not in HOP:
                    answer.headers.add(name, value)
            await answer.prepare(request)
            async for block in found.content.iter_any():
                await answer.write(block)
            await answer.write_eof()
        return answer


def kept(headers: Mapping[str, str], cookies: Mapping[str, str]) -> dict[str, str]:
    """The browser's headers that are passed on, and of its cookies the registry's."""
    own = "; ".join(f"{name}={cookies[name]}" for name in OWN_COOKIES if name in cookies)
    found = {name: value for name, value in headers.items() if name.lower() in KEPT}
    return {**found, **({"Cookie": own} if own else {}), LOOPBACK_HEADER: "1"}


async def ui(session: Session, arguments: argparse.Namespace) -> int:
    """Serve until it is interrupted."""
    from aiohttp import web

    registry = await session.registry()
    await registry.probe()  # before an address is printed that nobody would answer at
    pages = Pages(registry)
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", pages.serve)
    runner = web.AppRunner(application, access_log=None, auto_decompress=False, shutdown_timeout=SHUTDOWN_SECONDS)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", arguments.port)
        await site.start()
        address = pages.address(runner.addresses[0][1])
        print(f"{address}\nThe address is good once. Ctrl-C ends it.", flush=True)
        if arguments.open:
            await asyncio.to_thread(webbrowser.open, address)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
    return 0
