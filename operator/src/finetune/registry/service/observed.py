"""Every request seen from outside its route: counted, and logged with one line that holds nothing of its contents.

The line has the route's template, not the path: names, numbers and what somebody mistook for one stay out of logs.
"""

from __future__ import annotations

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetune.logs import fields
from finetune.registry.metrics import RegistryMetrics, method_label

_log = logging.getLogger(__name__)

UNMATCHED = "unmatched"
"""The route of a request that no route takes."""
QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked for every few seconds by machines: logged only when the answer is no success."""


class Observed:
    """ASGI middleware around all of an application."""

    def __init__(self, app: ASGIApp, *, metrics: RegistryMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, and tell of it when its answer is sent."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 0

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sent)
        except Exception:
            status = status or 500  # that is what the server makes of it
            raise
        finally:
            self._tell(scope, status, time.monotonic() - started)

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", UNMATCHED)
        method = method_label(scope["method"])
        self._metrics.answered(route, method, status, seconds)
        if route in QUIET and status < 400:
            return
        facts = fields(
            method=method,
            route=route,
            status=status or None,
            milliseconds=round(1000 * seconds, 1),
            user=scope.get("state", {}).get("caller"),
        )
        _log.info("%s %s %s", method, route, status or "no answer", extra=facts)
