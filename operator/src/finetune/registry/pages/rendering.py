"""Templates to answers: escaped, cleaned, and with headers that let a browser run nothing but our own files."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from . import text
from .assets import asset_url
from .forms import drop_cookie, form_token, keep_key, take_notice
from .people import Person

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Of every page. Nothing is kept: what somebody may see changes, and so does what there is."""


def finished(value: Any) -> Any:
    """What an expression of a template becomes before it is escaped."""
    if isinstance(value, Markup):
        return value
    return text.clean(value) if isinstance(value, str) else value


@cache
def environment() -> Environment:
    """The templates, compiled once."""
    made = Environment(
        loader=PackageLoader("finetune.registry.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finished,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    for function in (text.number, text.percent, text.size, text.duration, text.moment, text.shortened, text.age):
        made.filters[function.__name__] = function
    made.globals["asset"] = asset_url
    return made


def render(request: Request, template: str, *, person: Person | None, status: int = 200, **context: Any) -> Response:
    """A page."""
    notice = take_notice(request)
    body = (
        environment()
        .get_template(template)
        .render(
            **{
                "namespace": None,
                "area": "",
                "form_token": form_token(request),
                "here": request.url.path,
                "notice": notice,
                "now": datetime.now(UTC),
                "person": person,
                **context,
            }
        )
    )
    response = HTMLResponse(body, status_code=status, headers=HEADERS)
    keep_key(request, response)
    if notice is not None:
        drop_cookie(request, response, "notice")
    return response
