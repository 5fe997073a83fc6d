"""One request of somebody who may make it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from finetune.api.registry import NAME_PATTERN, NAMESPACE_PATTERN, UID_PATTERN
from finetune.registry.errors import Forbidden, NotFound, Unauthorized
from finetune.registry.reviews import Question
from finetune.registry.service.common import Services

from .curves import Curves
from .forms import Notice, keep_key, leave_notice, read_form
from .keeping import RunKeeping
from .live import Hub
from .people import Person, SignInNeeded, may, person_of
from .queries import PageQueries
from .rendering import HEADERS, render

_PATTERNS = {
    "namespace": re.compile(NAMESPACE_PATTERN),
    "name": re.compile(NAME_PATTERN),
    "uid": re.compile(UID_PATTERN),
    "version": re.compile(r"^[1-9][0-9]{0,8}$"),
}


@dataclass(frozen=True, kw_only=True)
class Site:
    """What all pages share."""

    services: Services
    queries: PageQueries
    curves: Curves
    keeping: RunKeeping
    hub: Hub
    differences: dict[tuple[str, str], str] = field(default_factory=dict)
    """How many rows two versions of a dataset do not share, in words, by their digests."""
    proxy_user: str | None
    """The account whose headers say who is asking; None: nobody's."""


@dataclass(frozen=True, kw_only=True)
class Visit:
    """A request, who makes it and what it is about."""

    request: Request
    site: Site
    person: Person
    namespace: str

    @property
    def services(self) -> Services:
        """The registry's stores."""
        return self.site.services

    def path(self, name: str) -> str:
        """A part of the address."""
        value: str = self.request.path_params[name]
        return value

    def query(self, name: str) -> str:
        """A parameter of the address; empty when it is not there."""
        return self.request.query_params.get(name, "").strip()

    async def may(self, verb: str, resource: str, name: str = "") -> bool:
        """Whether the person may do something here."""
        question = Question(verb=verb, resource=resource, namespace=self.namespace, name=name)
        return await may(self.services, self.person, question)

    async def require(self, verb: str, resource: str, name: str = "") -> None:
        """Raises `Forbidden` unless the person may do it."""
        if not await self.may(verb, resource, name):
            raise Forbidden(
                f"{self.person.name!r} may not {verb} {resource}.finetune.dev in namespace {self.namespace!r}",
                hint=f"ask for a Role with verb {verb!r} on {resource!r} of API group finetune.dev",
            )

    async def still_may(self, verb: str, resource: str, name: str = "") -> bool:
        """As `may`, once more for somebody who stays: also whether the session or the token is good yet.

        Raises `Unavailable`.
        """
        try:
            person = await person_of(self.request, self.services, proxy_user=self.site.proxy_user)
        except (SignInNeeded, Unauthorized, Forbidden):
            return False
        return await replace(self, person=person).may(verb, resource, name)

    async def form(self) -> dict[str, list[str]]:
        """The fields of the form that was sent. Raises `Forbidden`, `Invalid`."""
        return await read_form(self.request)

    def page(self, template: str, area: str, **context: Any) -> Response:
        """A page of this namespace."""
        return render(
            self.request, template, person=self.person, namespace=self.namespace or None, area=area, **context
        )

    def done(self, where: str, notice: Notice) -> Response:
        """Go on to a page that says what was done."""
        response = RedirectResponse(where, status_code=303, headers=HEADERS)
        leave_notice(self.request, response, notice)
        keep_key(self.request, response)
        return response


Handler = Callable[[Visit], Awaitable[Response]]


def screen(path: str, handler: Handler, *, verb: str, resource: str, method: str = "GET") -> Route:
    """A route for those who may `verb` the `resource` of the namespace in the path."""
    shown = SimpleNamespace(path=f"/ui{path}")

    async def endpoint(request: Request) -> Response:
        request.scope["route"] = shown  # what metrics and the log call it
        for name, value in request.path_params.items():
            if name in _PATTERNS and not _PATTERNS[name].fullmatch(value):
                raise NotFound(f"there is no {name} {value[:80]!r}", hint="follow the links of the pages")
        visit = await visit_of(request)
        if verb:
            await visit.require(verb, resource, request.path_params.get("name", ""))
        await _meet(visit)
        return await handler(visit)

    return Route(path, endpoint, methods=[method])


async def visit_of(request: Request) -> Visit:
    """Who visits, and where. Raises `SignInNeeded`, `Forbidden`, `Unavailable`."""
    site: Site = request.app.state.site()
    person = await person_of(request, site.services, proxy_user=site.proxy_user)
    request.state.caller = person.name  # for the request's line in the log
    namespace = request.path_params.get("namespace", "")
    return Visit(request=request, site=site, person=person, namespace=namespace)


async def _meet(visit: Visit) -> None:
    """As for every caller: a namespace that came back under its name shows nothing of the former one."""
    if not visit.namespace:
        return
    uid = await visit.services.access.namespace_uid(visit.namespace)
    if uid is not None:
        await visit.services.namespaces.meet(visit.namespace, uid, actor=visit.person.name)
