"""A registry without tokens is for its own machine: pages of other web sites must not reach it through a browser there.

A page of another site can send requests to any address that the browser reaches. Such a request carries the site's
`Origin`, or says `Sec-Fetch-Site: cross-site`; one of a name that was made to point here has that name as its `Host`.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from finetune.api.registry import ErrorDetail, ErrorDocument

LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})


class LocalOnly:
    """Lets requests pass that a program on this machine makes, or a page of the registry itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve, or answer 403."""
        if scope["type"] == "http" and scope["app"].state.services.access.is_open:
            refusal = refusal_of(Headers(scope=scope))
            if refusal is not None:
                error = ErrorDetail(
                    reason="Forbidden",
                    message=refusal,
                    hint="without tokens (--auth=none) only programs on the registry's own machine may call, by the "
                    "name localhost or its loopback address",
                )
                answer = JSONResponse(ErrorDocument(error=error).model_dump(by_alias=True), status_code=403)
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)


def refusal_of(headers: Headers) -> str | None:
    """Why a request is not one of this machine; None when it is."""
    host = headers.get("host", "")
    if _name(host) not in LOCAL_HOSTS:
        return f"the request is for host {host[:100]!r}, which is not this machine"
    origin = headers.get("origin")
    if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
        return f"the request comes from a page of {origin[:100]!r}"
    if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        return "the request comes from a page of another site"
    return None


def _name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
