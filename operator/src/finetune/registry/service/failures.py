"""Every failure becomes the same error document: reason, message, hint."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from finetune.api.registry import ErrorDetail, ErrorDocument
from finetune.registry.errors import RegistryFault, TooManyRequests, Unauthorized

log = logging.getLogger(__name__)

DISK_FULL = "53100"
"""PostgreSQL's SQLSTATE for it."""
MAX_PROBLEMS = 10
"""Told of one document: what the caller wrote comes back in the answer, and must not fill it."""
REASONS = {404: "NotFound", 405: "MethodNotAllowed", 413: "TooLarge"}
HINTS = {
    404: "the paths are in /openapi.json",
    405: "the methods of each path are in /openapi.json",
    413: "send less",
}


def add_failure_handlers(app: FastAPI) -> None:
    """Make an application answer every failure with an error document."""
    app.add_exception_handler(RegistryFault, _fault)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _gone)
    for kind in (OperationalError, InterfaceError, PoolTimeoutError):
        app.add_exception_handler(kind, _database)
    app.add_exception_handler(DataError, _unstorable)
    app.add_exception_handler(Exception, _unexpected)


def _answer(
    status: int, *, reason: str, message: str, hint: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    document = ErrorDocument(error=ErrorDetail(reason=reason, message=message, hint=hint))
    return JSONResponse(document.model_dump(by_alias=True), status_code=status, headers=headers)


async def _fault(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RegistryFault)
    headers = None
    if isinstance(error, Unauthorized):
        headers = {"WWW-Authenticate": "Bearer"}
    elif isinstance(error, TooManyRequests):
        headers = {"Retry-After": str(error.retry_seconds)}
    return _answer(error.status, reason=error.reason, message=error.message, hint=error.hint, headers=headers)


async def _invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = []
    for problem in error.errors()[:MAX_PROBLEMS]:
        where = ".".join(str(part)[:100] for part in problem["loc"])
        problems.append(f"{where}: {problem['msg'][:500]}")
    return _answer(
        422, reason="Invalid", message="; ".join(problems), hint="the documents are described in /openapi.json"
    )


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = error.detail
    if error.status_code in {404, 405}:
        message = f"there is no {request.method} {request.url.path[:200]}"
    return _answer(
        error.status_code,
        reason=REASONS.get(error.status_code, "Refused"),
        message=message,
        hint=HINTS.get(error.status_code, "see the message"),
        headers=dict(error.headers or {}),
    )


async def _gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it


async def _database(_request: Request, error: Exception) -> Response:
    # a server's or a driver's words about the connection; the statement and its values are left out
    cause = getattr(error, "orig", error)
    log.error("the database failed: %s", cause)
    if "disk is full" in str(cause) or getattr(cause, "sqlstate", None) == DISK_FULL:
        return _answer(
            507,
            reason="StorageFull",
            message="the disk of the registry's database is full",
            hint="an administrator enlarges its claim: on a full disk nothing can be deleted either",
        )
    return _answer(
        503,
        reason="Unavailable",
        message="the registry's database does not answer",
        hint="try again; the registry's log and /readyz say more",
    )


async def _unstorable(_request: Request, error: Exception) -> Response:
    log.error("a value that the database refuses: %s", type(error).__name__)
    return _answer(
        422,
        reason="Invalid",
        message="the request holds a value that the database cannot store",
        hint="no NUL characters, no numbers beyond 64 bits; please report which value it was",
    )


async def _unexpected(_request: Request, error: Exception) -> Response:
    # Starlette raises the error again after this answer, and the server logs it with its traceback.
    return _answer(
        500,
        reason="InternalError",
        message=f"the registry failed: {type(error).__name__}",
        hint="this is a bug: the traceback is in the registry's log",
    )
