"""Forms: read from a request, and only from one of our own pages."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response

from finetune.registry.errors import Forbidden, Invalid

from .people import is_secure

TOKEN_FIELD = "form-token"  # noqa: S105 - a name
MAX_FORM_BYTES = 64 * 1024
MAX_FIELDS = 256
NOTICE_SECONDS = 120
MAX_NOTICE = 3500
"""Of the notice's cookie: browsers drop one of more than 4096 bytes, and proxies refuse long headers."""


def _cookie_name(request: Request, what: str) -> str:
    return f"__Host-finetune-{what}" if is_secure(request) else f"finetune-{what}"


def set_cookie(request: Request, response: Response, what: str, value: str, *, seconds: int | None = None) -> None:
    """Set a cookie that no script reads and no other site sends."""
    response.set_cookie(
        _cookie_name(request, what),
        value,
        max_age=seconds,
        path="/",
        httponly=True,
        samesite="strict",
        secure=is_secure(request),
    )


def drop_cookie(request: Request, response: Response, what: str) -> None:
    """Take a cookie back."""
    response.delete_cookie(_cookie_name(request, what), path="/", httponly=True, samesite="strict")


def cookie(request: Request, what: str) -> str | None:
    """The value of one of our cookies."""
    return request.cookies.get(_cookie_name(request, what))


def form_key(request: Request) -> str:
    """The browser's secret that its forms are signed with: the cookie's, or a new one that `keep_key` sets."""
    found = cookie(request, "forms") or getattr(request.state, "form_key", None)
    if not found or len(found) > 64:
        found = secrets.token_urlsafe(24)
    request.state.form_key = found
    return found


def keep_key(request: Request, response: Response) -> None:
    """Set the cookie, if this answer has forms and the browser has no key yet."""
    key = getattr(request.state, "form_key", None)
    if key is not None and key != cookie(request, "forms"):
        set_cookie(request, response, "forms", key)


def form_token(request: Request) -> str:
    """What a form must bring back: only a page of ours can have it, for the key is in a cookie."""
    return _signature(form_key(request), b"form")


async def read_form(request: Request) -> dict[str, list[str]]:
    """The fields of a form of one of our pages. Raises `Forbidden` for another's, `Invalid`."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise Forbidden("the form was sent by another site", hint="use the registry's own page")
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        raise Invalid("this is no form", hint="use the registry's own page")
    body = bytearray()
    async for block in request.stream():
        body += block
        if len(body) > MAX_FORM_BYTES:
            raise Invalid(f"the form holds more than {MAX_FORM_BYTES // 1024} KiB", hint="write less")
    try:
        pairs = parse_qsl(body.decode("utf-8"), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict")
    except ValueError:
        raise Invalid("the form cannot be read", hint="load the page again and send it once more") from None
    fields: dict[str, list[str]] = {}
    for name, value in pairs:
        fields.setdefault(name, []).append(value.replace("\r\n", "\n"))
    sent = (fields.pop(TOKEN_FIELD, None) or [""])[0]
    if cookie(request, "forms") is None or not hmac.compare_digest(sent.encode(), form_token(request).encode()):
        raise Forbidden(
            "the form is not one of this session's pages",
            hint="load the page again and send it once more; the browser must keep cookies",
        )
    return fields


def single(fields: Mapping[str, list[str]], name: str) -> str:
    """The only value of a field; empty when it was not sent."""
    return (fields.get(name) or [""])[0]


@dataclass(frozen=True, kw_only=True)
class Notice:
    """What the next page says of what was done, and the form that undoes it."""

    text: str
    undo: str | None = None
    """The path that takes it back."""
    fields: Mapping[str, str] = field(default_factory=dict)


def leave_notice(request: Request, response: Response, notice: Notice) -> None:
    """Let the next page show the notice, without its undo where that does not fit a cookie."""
    body = _packed({"text": notice.text, "undo": notice.undo, "fields": dict(notice.fields)})
    if len(body) > MAX_NOTICE:
        body = _packed({"text": notice.text[:200], "undo": None, "fields": {}})
    signed = f"{body}.{_signature(form_key(request), body.encode())}"
    set_cookie(request, response, "notice", signed, seconds=NOTICE_SECONDS)


def _packed(document: Mapping[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(document, ensure_ascii=False).encode()).decode().rstrip("=")


def take_notice(request: Request) -> Notice | None:
    """The notice that was left; None also for one that we did not write."""
    body, _, signature = (cookie(request, "notice") or "").partition(".")
    if not body or not hmac.compare_digest(signature.encode(), _signature(form_key(request), body.encode()).encode()):
        return None
    try:
        said: Any = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (ValueError, binascii.Error):
        return None
    return Notice(text=said["text"], undo=said["undo"], fields=said["fields"])


def _signature(key: str, message: bytes) -> str:
    return hmac.new(key.encode(), message, hashlib.sha256).hexdigest()
