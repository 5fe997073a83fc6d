"""What the routes share: the stores, who may call, and the types of path parameters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, cast

from fastapi import Depends, HTTPException, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from pydantic import ValidationError
from pydantic_core import from_json

from finetune.api.files import ALIAS_PATTERN
from finetune.api.registry import NAME_PATTERN, NAMESPACE_PATTERN, UID_PATTERN, DatasetVersion, Document, VersionNumber
from finetune.registry.access import Access, Rule
from finetune.registry.database import Database
from finetune.registry.errors import Forbidden, Invalid
from finetune.registry.limits import PostLimits
from finetune.registry.metrics import RegistryMetrics
from finetune.registry.reviews import Question
from finetune.registry.store.adapters import AdapterStore
from finetune.registry.store.datasets import DatasetStore
from finetune.registry.store.files import FileStore
from finetune.registry.store.interim import InterimStore
from finetune.registry.store.listing import RunLists
from finetune.registry.store.namespaces import NamespaceStore
from finetune.registry.store.outcomes import OutcomeStore
from finetune.registry.store.points import PointStore
from finetune.registry.store.runs import RunStore
from finetune.registry.store.states import AdapterStates

MAX_DOCUMENT_BYTES = 4 * 1024 * 1024
INPUT_NAME = "{model}-Input"
"""How /openapi.json calls the form of a document that is sent; what is answered has more that is always there."""

NamespacePath = Annotated[str, Path(pattern=NAMESPACE_PATTERN)]
NamePath = Annotated[str, Path(pattern=NAME_PATTERN)]
UidPath = Annotated[str, Path(pattern=UID_PATTERN)]
VersionPath = Annotated[str, Path(pattern=r"^(latest|[1-9][0-9]{0,8})$", description='a number, or "latest"')]
NumberPath = Annotated[str, Path(alias="version", pattern=r"^[1-9][0-9]{0,8}$", description="a number")]
AliasPath = Annotated[str, Path(pattern=ALIAS_PATTERN)]
ReferencePath = Annotated[
    str,
    Path(
        alias="version",
        pattern=f"^([1-9][0-9]{{0,8}}|{ALIAS_PATTERN.strip('^$')})$",
        description='a number, an alias, or "latest"',
    ),
]
Continue = Annotated[str | None, Query(alias="continue", max_length=512, description="from the page before")]
NameAfter = Annotated[str | None, Query(alias="continue", pattern=NAME_PATTERN, description="from the page before")]
NumberBefore = Annotated[
    str | None, Query(alias="continue", pattern=r"^[1-9][0-9]{0,8}$", description="from the page before")
]
RowAfter = Annotated[
    str | None, Query(alias="continue", pattern=r"^[1-9][0-9]{0,17}$", description="from the page before")
]

TOKEN_HEADER = "x-finetune-token"  # noqa: S105 - a name, not a token
"""The API server's proxy takes `Authorization` for itself and does not pass it on; this it does."""


@dataclass(frozen=True, kw_only=True)
class Services:
    """Everything that a route can use."""

    database: Database
    metrics: RegistryMetrics
    access: Access
    namespaces: NamespaceStore
    limits: PostLimits
    datasets: DatasetStore
    runs: RunStore
    outcomes: OutcomeStore
    lists: RunLists
    points: PointStore
    adapters: AdapterStore
    states: AdapterStates
    files: FileStore
    interim: InterimStore


def services_of(request: Request) -> Services:
    """The services of the application that got this request."""
    return cast(Services, request.app.state.services)


ServicesOf = Annotated[Services, Depends(services_of)]


async def _check(request: Request, rule: Rule) -> str:
    token = request.headers.get(TOKEN_HEADER)
    if token is None:
        scheme, _, said = request.headers.get("authorization", "").partition(" ")
        token = said if scheme.lower() == "bearer" else None
    services = services_of(request)
    caller = await services.access.check(token and token.strip(), rule)
    request.state.caller = caller  # for the request's line in the log
    uid = await services.access.namespace_uid(rule.namespace) if rule.namespace else None
    if uid is not None:
        await services.namespaces.meet(rule.namespace, uid, actor=caller)
    return caller


def people(verb: str, resource: str, *, operator: bool = False) -> Any:
    """A dependency that lets people pass whom RBAC allows `verb` on `resource`; gives the caller's name."""

    async def dependency(request: Request, namespace: NamespacePath) -> str:
        name = request.path_params.get("name", "")
        question = Question(verb=verb, resource=resource, namespace=namespace, name=name)
        return await _check(request, Rule(namespace=namespace, operator=operator, people=question))

    return Depends(dependency)


async def may(request: Request, verb: str, resource: str, *, namespace: str, name: str) -> bool:
    """Whether the caller, who has passed already, may do this too. Raises `Unavailable`."""
    question = Question(verb=verb, resource=resource, namespace=namespace, name=name)
    try:
        await _check(request, Rule(namespace=namespace, people=question))
    except Forbidden:
        return False
    return True


def run_callers(*, pod: bool = False, operator: bool = False, readers: bool = False) -> Any:
    """A dependency that lets the run's pod pass, the operator, and who may read runs; gives the caller's name."""

    async def dependency(request: Request, namespace: NamespacePath, uid: UidPath) -> str:
        question = Question(verb="get", resource="trainingruns", namespace=namespace, name=uid)
        return await _check(
            request,
            Rule(
                namespace=namespace,
                operator=operator,
                run_uid=uid if pod else None,
                people=question if readers else None,
            ),
        )

    return Depends(dependency)


def limited() -> Any:
    """A dependency that lets a run's trainer post as often as it may. Raises `TooManyRequests`."""

    async def dependency(request: Request, uid: UidPath) -> None:
        services_of(request).limits.take(uid)

    return Depends(dependency)


def operator_everywhere() -> Any:
    """A dependency that lets the operator pass on a path without a namespace."""

    async def dependency(request: Request) -> str:
        return await _check(request, Rule(namespace="", operator=True))

    return Depends(dependency)


def reference(text: str) -> int | str | None:
    """The version that a path names: a number, an alias, or None for the newest."""
    return int(text) if text.isdigit() else None if text == "latest" else text


def version_number(text: str) -> VersionNumber | None:
    """The version that a path names; None for the newest."""
    return None if text == "latest" else int(text)


def page_number(token: str | None) -> int | None:
    """The number in a page's `continue`."""
    return None if token is None else int(token)


def body_of(model: type[Document]) -> dict[str, Any]:
    """What the description of a route says of a body that `document` reads."""
    schema = {"$ref": f"#/components/schemas/{INPUT_NAME.format(model=model.__name__)}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def document(model: type[Document]) -> Any:
    """A dependency that reads a run's JSON document. Declared after the caller's, it is not read for strangers.

    It is stricter than the framework's own reading: no NaN, no infinite numbers, no half surrogate pairs.
    """

    async def dependency(request: Request, namespace: NamespacePath, uid: UidPath) -> Document:  # noqa: ARG001 - checked first
        return await _read(request, model)

    return Depends(dependency)


def document_about(model: type[Document]) -> Any:
    """As `document`, for the paths of what people name."""

    async def dependency(request: Request, namespace: NamespacePath, name: NamePath) -> Document:  # noqa: ARG001 - checked first
        return await _read(request, model)

    return Depends(dependency)


async def _read(request: Request, model: type[Document]) -> Document:
    data = await read_body(request)
    try:
        return model.model_validate(read_json(data))
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in problems]) from None


async def read_body(request: Request) -> bytes:
    """A document's bytes. Raises 413; the framework's own limit would answer without an error document."""
    body = bytearray()
    async for block in request.stream():
        body += block
        if len(body) > MAX_DOCUMENT_BYTES:
            raise HTTPException(413, f"the document is larger than {MAX_DOCUMENT_BYTES // 1024 // 1024} MiB")
    return bytes(body)


def read_json(data: bytes) -> Any:
    """The value of a JSON document that both databases can store. Raises `Invalid`."""
    try:
        return from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise Invalid(f"the document is not valid JSON: {error}", hint="send JSON as RFC 8259 has it") from None


def rows_response(version: DatasetVersion, blocks: AsyncIterator[bytes]) -> StreamingResponse:
    """An answer that streams rows; its length lets the reader notice when the connection was cut."""
    headers = {"Content-Length": str(version.bytes), "ETag": f'"{version.sha256}"'}
    return StreamingResponse(blocks, media_type="application/jsonl", headers=headers)
