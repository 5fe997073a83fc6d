"""Troubles between a process and a server, for `RecordingProxy`: which requests are hit, and what becomes of them.

    with proxy.faulty(Answer("POST", "/jobs$", status=503, body=status_document(503, "ServiceUnavailable", "no"))):
        ...

A fault is asked before the request goes on, or, with `after=True`, once the server has done it: the answer is lost.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

GATEWAY_PAGE = "<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"


ANSWER = web.RequestKey("answer", bytes)
"""What the server has answered, for faults that come after it."""


def status_document(code: int, reason: str, message: str, **details: Any) -> str:
    """A Kubernetes Status, as the API server refuses with."""
    head = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    return json.dumps({**head, "message": message, "reason": reason, "details": details, "code": code})


@dataclass
class Fault:
    """Which requests are hit.

    Parameters
    ----------
    methods, path: regular expressions; the path's is searched in path and query.
    times: how many requests are hit; all of them where it is None.
    after: whether the server does what was asked before.
    watches: whether it hits watches instead of plain requests.
    """

    methods: str = ".*"
    path: str = ""
    times: int | None = None
    after: bool = False
    watches: bool = False
    hits: int = 0
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the fault is taken away."""

    def takes(self, method: str, path: str) -> bool:
        """Whether a request is hit; counts it."""
        watch = "watch=" in path
        if self.over.is_set() or watch != self.watches or (self.times is not None and self.hits >= self.times):
            return False
        if not re.fullmatch(self.methods, method) or not re.search(self.path, path):
            return False
        self.hits += 1
        return True

    async def answer(self, request: web.Request) -> web.StreamResponse | None:
        """What the client gets; None: go on."""
        raise NotImplementedError


@dataclass
class Answer(Fault):
    """Another answer than the server's."""

    status: int = 500
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    async def answer(self, request: web.Request) -> web.StreamResponse | None:
        del request
        type_ = "text/html" if self.body.startswith("<") else "application/json"
        return web.Response(status=self.status, text=self.body, headers=self.headers, content_type=type_)


@dataclass
class Reset(Fault):
    """The connection is reset; after so many bytes of an answer that promised more, where there are any."""

    body: str = ""

    async def answer(self, request: web.Request) -> web.StreamResponse | None:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        if self.body:
            response.content_length = len(self.body) + 1000
            await response.prepare(request)
            await response.write(self.body.encode())
        if request.transport is not None:
            request.transport.abort()
        return response


@dataclass
class Hang(Fault):
    """Nobody ever answers, until the fault is taken away."""

    async def answer(self, request: web.Request) -> web.StreamResponse | None:
        await self.over.wait()
        return await Reset().answer(request)


@dataclass
class Edit(Fault):
    """The server's answer, a JSON object, with changes: as another version of it would answer."""

    after: bool = True
    change: Callable[[dict[str, Any]], dict[str, Any]] = dict

    async def answer(self, request: web.Request) -> web.StreamResponse | None:
        return web.json_response(self.change(json.loads(request[ANSWER])))


@dataclass
class Delay(Fault):
    """It takes longer."""

    seconds: float = 5.0

    async def answer(self, request: web.Request) -> web.StreamResponse | None:
        del request
        await asyncio.sleep(self.seconds)
        return None


@dataclass
class Meanwhile(Fault):
    """Somebody does something else just before the request arrives."""

    act: Callable[[], object] = dict

    async def answer(self, request: web.Request) -> web.StreamResponse | None:
        del request
        await asyncio.to_thread(self.act)
        return None


@dataclass
class RefusedField(Fault):
    """The API server has another definition of the status, and refuses this field of it."""

    name: str = ""
    cause: str = ""
    """The path that it complains of."""

    async def answer(self, request: web.Request) -> web.StreamResponse | None:
        if self.name not in json.loads(await request.read()).get("status", {}):
            return None
        cause = {"reason": "FieldValueInvalid", "message": "Invalid value", "field": self.cause}
        body = status_document(422, "Invalid", f"{self.cause}: Invalid value", causes=[cause])
        return await Answer(status=422, body=body).answer(request)


@dataclass
class WatchError(Fault):
    """A watch that ends at once with an ERROR event."""

    watches: bool = True
    code: int = 410
    reason: str = "Expired"

    async def answer(self, request: web.Request) -> web.StreamResponse | None:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        error = json.loads(status_document(self.code, self.reason, "too old resource version"))
        await response.write(json.dumps({"type": "ERROR", "object": error}).encode() + b"\n")
        return response


@dataclass
class FrozenWatch(Fault):
    """A watch that is open and says nothing, until the fault is taken away."""

    watches: bool = True

    async def answer(self, request: web.Request) -> web.StreamResponse | None:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        await self.over.wait()
        if request.transport is not None:
            request.transport.abort()
        return response
