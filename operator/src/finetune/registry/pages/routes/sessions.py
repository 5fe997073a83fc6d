"""Coming in, going out, and choosing a namespace."""

from __future__ import annotations

import asyncio
import re
from datetime import datetime
from urllib.parse import quote, urlencode, urlsplit

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from finetune.api.registry import NAMESPACE_PATTERN
from finetune.registry.errors import RegistryFault, Unauthorized
from finetune.registry.pages.forms import keep_key, read_form, single
from finetune.registry.pages.people import SessionStore, is_secure, session_cookie, token_end
from finetune.registry.pages.rendering import HEADERS, render
from finetune.registry.pages.visit import Site, Visit, screen, visit_of
from finetune.registry.store.common import now

MAX_ASKED = 200
"""Namespaces of which it is asked whether the person may see them; others are opened by their name."""


def routes() -> list[BaseRoute]:
    """Routes without a namespace."""
    return [
        screen("/", _namespaces, verb="", resource=""),
        Route("/sign-in", _sign_in_page, methods=["GET"]),
        Route("/sign-in", _sign_in, methods=["POST"]),
        Route("/sign-out", _sign_out, methods=["POST"]),
    ]


async def visible(visit: Visit) -> list[str]:
    """The namespaces whose runs the person may list."""
    names = (await visit.site.queries.namespaces())[:MAX_ASKED]
    if visit.person.user is None:
        return names
    seen = await asyncio.gather(*(_may_list(visit, name) for name in names))
    return [name for name, is_seen in zip(names, seen, strict=True) if is_seen]


async def _may_list(visit: Visit, name: str) -> bool:
    there = Visit(request=visit.request, site=visit.site, person=visit.person, namespace=name)
    return await there.may("list", "trainingruns")


async def _namespaces(visit: Visit) -> Response:
    wanted = visit.query("namespace")
    if re.fullmatch(NAMESPACE_PATTERN, wanted):
        return RedirectResponse(f"/ui/{wanted}/runs", status_code=303, headers=HEADERS)
    names = await visible(visit)
    if len(names) == 1 and not visit.query("all"):
        return RedirectResponse(f"/ui/{names[0]}/runs", status_code=303, headers=HEADERS)
    return visit.page("namespaces.html", "", names=names, is_administrator=await visit.may("list", "trainingruns"))


def local_path(wanted: str) -> str:
    """Where to go on: a page of ours, never another site."""
    return wanted if re.fullmatch(r"/ui/[A-Za-z0-9._~/?=&%:,+-]*", wanted) and "//" not in wanted else "/ui/"


def to_sign_in(request: Request) -> Response:
    """Ask who it is, and come back to where they wanted to go; after a form to the page that had it."""
    shown = urlsplit(str(request.url) if request.method == "GET" else request.headers.get("referer", ""))
    there = shown.path + (f"?{shown.query}" if shown.query else "")
    where = "/ui/sign-in"
    if there not in {"", "/ui/"}:  # what is no page of ours is left out when one has signed in
        where += "?" + urlencode({"next": there})
    return RedirectResponse(where, status_code=303, headers=HEADERS)


async def _sign_in_page(request: Request) -> Response:
    site: Site = request.app.state.site()
    if site.services.access.is_open:
        return RedirectResponse("/ui/", status_code=303, headers=HEADERS)
    return _form(request, next_=request.query_params.get("next", ""))


def _form(request: Request, *, next_: str, problem: RegistryFault | None = None, status: int = 200) -> Response:
    return render(
        request,
        "sign-in.html",
        person=None,
        status=status,
        next=local_path(next_),
        problem=problem,
        audience="finetune.dev/registry",
    )


async def _sign_in(request: Request) -> Response:
    site: Site = request.app.state.site()
    fields = await read_form(request)
    token, next_ = single(fields, "token").strip(), single(fields, "next")
    try:
        if not token:
            raise Unauthorized("there is no token in the form", hint="make one with the command below")
        user = await site.services.access.person(token)
    except Unauthorized as error:
        return _form(request, next_=next_, problem=error, status=401)
    key, expires = await SessionStore(site.services.database).begin(user, ends=token_end(token))
    response = RedirectResponse(quote(local_path(next_), safe="/?=&%:,+~"), status_code=303, headers=HEADERS)
    _set(request, response, key, expires)
    keep_key(request, response)
    return response


def _set(request: Request, response: Response, key: str, expires: datetime) -> None:
    response.set_cookie(
        session_cookie(request),
        key,
        max_age=max(1, int((expires - now()).total_seconds())),
        path="/",
        httponly=True,
        samesite="strict",
        secure=is_secure(request),
    )


async def _sign_out(request: Request) -> Response:
    await read_form(request)
    visit = await visit_of(request)
    if visit.person.session is not None:
        await SessionStore(visit.services.database).end(visit.person.session)
    response = RedirectResponse("/ui/sign-in", status_code=303, headers=HEADERS)
    response.delete_cookie(session_cookie(request), path="/", httponly=True, samesite="strict")
    return response
