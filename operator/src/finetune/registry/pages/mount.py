"""The pages as an application of their own below `/ui`: its failures are pages, and the API's description has none."""

from __future__ import annotations

import gzip
import logging
import re
from collections.abc import Callable
from http import HTTPStatus

from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetune.registry.errors import RegistryFault
from finetune.registry.service.common import Services

from .assets import asset_url
from .curves import Curves
from .keeping import RunKeeping
from .live import Hub
from .people import SignInNeeded
from .queries import PageQueries
from .rendering import HEADERS, render
from .routes import routes
from .routes.sessions import to_sign_in
from .visit import Site

log = logging.getLogger(__name__)

LOOPBACK_HEADER = "x-finetune-ui"
"""Set by `finetune ui`, which shows the pages on an origin of its own; a browser's navigation cannot set it."""
_SERVICE_PROXY = re.compile(r"/api/v1/namespaces/[^/]+/(services|pods)/[^/]+/proxy(/|$)")
_PACKED = ("text/", "application/json")
MIN_PACKED_BYTES = 1024


def mount_pages(app: FastAPI, *, proxy_user: str | None = None) -> None:
    """Hang the pages into the registry's application, whose `state.services` they use."""
    site: list[Site] = []

    def the_site() -> Site:
        services: Services = app.state.services
        if not site or site[0].services is not services:
            site[:] = [_site(services, app, proxy_user)]
        return site[0]

    pages = Starlette(
        routes=routes(),
        exception_handlers={
            SignInNeeded: _sign_in,
            RegistryFault: _fault,
            HTTPException: _http,
            SQLAlchemyError: _database,
        },
    )
    pages.state.site = the_site
    pages.add_middleware(Packed)
    pages.add_middleware(OwnOrigin)
    app.mount("/ui", pages)
    app.add_route("/", _home, include_in_schema=False)
    app.add_route("/favicon.ico", _icon, include_in_schema=False)  # a browser asks for it beside what is no HTML


def _site(services: Services, app: FastAPI, proxy_user: str | None) -> Site:
    is_stopping: Callable[[], bool] = getattr(app.state, "is_stopping", lambda: False)
    queries = PageQueries(services.database)
    return Site(
        services=services,
        queries=queries,
        curves=Curves(queries),
        keeping=RunKeeping(services.database),
        hub=Hub(services.database, is_stopping=is_stopping),
        proxy_user=proxy_user,
    )


async def _home(_request: Request) -> Response:
    return RedirectResponse("/ui/", status_code=303, headers=HEADERS)


async def _icon(_request: Request) -> Response:
    return RedirectResponse(asset_url("icon.svg"), status_code=303, headers=HEADERS)


class OwnOrigin:
    """No page on the origin of the Kubernetes API server: what runs there speaks with the reader's credentials.

    The API server's proxy says in `X-Forwarded-Uri` where it was called.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve, or say how the pages are opened."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if _SERVICE_PROXY.match(headers.get("x-forwarded-uri", "")) and LOOPBACK_HEADER not in headers:
                answer = PlainTextResponse(
                    "The pages are not shown on the API server's own address. Open them with: finetune ui\n",
                    status_code=403,
                    headers={**HEADERS, "Content-Security-Policy": "default-src 'none'; sandbox"},
                )
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)


class Packed:
    """Packs answers that are there as a whole; streams are left as they are."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve."""
        if scope["type"] != "http" or "gzip" not in Headers(scope=scope).get("accept-encoding", ""):
            await self._app(scope, receive, send)
            return
        held: list[Message] = []

        async def packing(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                fits = headers.get("content-type", "").startswith(_PACKED) and "content-encoding" not in headers
                if fits and int(headers.get("content-length", "0")) >= MIN_PACKED_BYTES:
                    held.append(message)
                    return
            elif held:
                start = held.pop()
                body = gzip.compress(message.get("body", b""), compresslevel=5, mtime=0)
                headers = MutableHeaders(scope=start)
                headers["Content-Encoding"], headers["Content-Length"] = "gzip", str(len(body))
                headers.add_vary_header("Accept-Encoding")
                await send(start)
                message = {**message, "body": body}
            await send(message)

        await self._app(scope, receive, packing)


async def _sign_in(request: Request, error: Exception) -> Response:
    assert isinstance(error, SignInNeeded)
    if request.headers.get("accept", "").startswith("text/event-stream"):
        return _problem(request, error.status, error.reason, error.message, error.hint)
    return to_sign_in(request)


async def _fault(request: Request, error: Exception) -> Response:
    assert isinstance(error, RegistryFault)
    return _problem(request, error.status, error.reason, error.message, error.hint)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"there is no page {request.url.path[:200]}" if error.status_code == 404 else error.detail
    reason = HTTPStatus(error.status_code).phrase
    return _problem(request, error.status_code, reason, message, "follow the links above")


async def _database(request: Request, error: Exception) -> Response:
    log.error("the database failed: %s", getattr(error, "orig", error))
    hint = "load the page again; the registry's log and /readyz say more"
    return _problem(request, 503, "Unavailable", "the registry's database does not answer", hint)


def _problem(request: Request, status: int, reason: str, message: str, hint: str) -> Response:
    return render(request, "problem.html", person=None, status=status, reason=reason, message=message, hint=hint)
