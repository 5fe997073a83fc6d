"""What the routes share: the stores, who may call, and the types of path parameters."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, cast

from fastapi import Depends, HTTPException, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute

from finetune.api.registry import NAME_PATTERN, NAMESPACE_PATTERN, UID_PATTERN, DatasetVersion, VersionNumber
from finetune.registry.access import Access, Rule
from finetune.registry.database import Database
from finetune.registry.errors import Invalid
from finetune.registry.metrics import RegistryMetrics
from finetune.registry.reviews import Question
from finetune.registry.store.adapters import AdapterStore
from finetune.registry.store.datasets import DatasetStore
from finetune.registry.store.runs import RunStore

MAX_DOCUMENT_BYTES = 4 * 1024 * 1024

NamespacePath = Annotated[str, Path(pattern=NAMESPACE_PATTERN)]
NamePath = Annotated[str, Path(pattern=NAME_PATTERN)]
UidPath = Annotated[str, Path(pattern=UID_PATTERN)]
VersionPath = Annotated[str, Path(pattern=r"^(latest|[1-9][0-9]{0,8})$", description='a number, or "latest"')]
Continue = Annotated[str | None, Query(alias="continue", max_length=63, description="from the page before")]


class _LimitedRequest(Request):
    async def stream(self) -> AsyncGenerator[bytes, None]:
        size = 0
        async for block in super().stream():
            size += len(block)
            if size > MAX_DOCUMENT_BYTES:
                raise HTTPException(413, f"the document is larger than {MAX_DOCUMENT_BYTES // 1024 // 1024} MiB")
            yield block


class LimitedRoute(APIRoute):
    """A route whose body is a document, held in memory and therefore limited in size."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, reading through the limit."""
        handler = super().get_route_handler()

        async def limited(request: Request) -> Response:
            return await handler(_LimitedRequest(request.scope, request.receive))

        return limited


@dataclass(frozen=True, kw_only=True)
class Services:
    """Everything that a route can use."""

    database: Database
    metrics: RegistryMetrics
    access: Access
    datasets: DatasetStore
    runs: RunStore
    adapters: AdapterStore


def services_of(request: Request) -> Services:
    """The services of the application that got this request."""
    return cast(Services, request.app.state.services)


ServicesOf = Annotated[Services, Depends(services_of)]


async def _check(request: Request, rule: Rule) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    caller = await services_of(request).access.check(token.strip() if scheme.lower() == "bearer" else None, rule)
    request.state.caller = caller  # for the request's line in the log
    return caller


def people(verb: str, resource: str, *, operator: bool = False) -> Any:
    """A dependency that lets people pass whom RBAC allows `verb` on `resource`; gives the caller's name."""

    async def dependency(request: Request, namespace: NamespacePath) -> str:
        name = request.path_params.get("name", "")
        question = Question(verb=verb, resource=resource, namespace=namespace, name=name)
        return await _check(request, Rule(namespace=namespace, operator=operator, people=question))

    return Depends(dependency)


def run_callers(*, pod: bool = False, operator: bool = False) -> Any:
    """A dependency that lets the run's pod pass, or the operator, or both; gives the caller's name."""

    async def dependency(request: Request, namespace: NamespacePath, uid: UidPath) -> str:
        rule = Rule(namespace=namespace, operator=operator, run_uid=uid if pod else None)
        return await _check(request, rule)

    return Depends(dependency)


def operator_everywhere() -> Any:
    """A dependency that lets the operator pass on a path without a namespace."""

    async def dependency(request: Request) -> str:
        return await _check(request, Rule(namespace="", operator=True))

    return Depends(dependency)


def version_number(text: str) -> VersionNumber | None:
    """The version that a path names; None for the newest."""
    return None if text == "latest" else int(text)


def page_number(token: str | None) -> int | None:
    """The number in a page's `continue`. Raises `Invalid`."""
    if token is None:
        return None
    if not (token.isascii() and token.isdigit()):
        raise Invalid(f"continue={token!r} is not from this list", hint="pass on what the page before gave")
    return int(token)


def rows_response(version: DatasetVersion, blocks: AsyncIterator[bytes]) -> StreamingResponse:
    """An answer that streams rows; its length lets the reader notice when the connection was cut."""
    headers = {"Content-Length": str(version.bytes), "ETag": f'"{version.sha256}"'}
    return StreamingResponse(blocks, media_type="application/jsonl", headers=headers)
