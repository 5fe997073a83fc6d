"""Who looks at a page: by a session, by a token, through an authenticating proxy, or on the registry's own machine."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.datastructures import Headers
from starlette.requests import Request

from finetune.registry.database import Database
from finetune.registry.errors import Forbidden, RegistryFault
from finetune.registry.reviews import Question, User
from finetune.registry.schema import sessions
from finetune.registry.service.common import TOKEN_HEADER, Services
from finetune.registry.store.common import now

SESSION_TIME = timedelta(hours=8)
"""Longest time of a session; one whose token ends earlier ends with it."""
PROXY_USER = "x-forwarded-user"
PROXY_GROUPS = "x-forwarded-groups"
MAX_GROUPS = 256
SYSTEM = "system:"
"""Begins the names of the cluster's own users and groups: no proxy may speak for those."""
LOCAL_NAME = "local"


class SignInNeeded(RegistryFault):
    """Nobody knows who is asking."""

    status = 401
    reason = "Unauthorized"


@dataclass(frozen=True, kw_only=True)
class Person:
    """Somebody who looks at pages; `user` is None where everybody may do everything."""

    name: str
    user: User | None = None
    session: str | None = None
    """The cookie's value, where a session was how they came in."""


def is_secure(request: Request) -> bool:
    """Whether the browser came by https, perhaps to a proxy before us."""
    said = request.headers.get("x-forwarded-proto", request.url.scheme)
    return said.split(",", maxsplit=1)[0].strip() == "https"  # of several proxies the first one talks to the browser


def session_cookie(request: Request) -> str:
    """The cookie's name. Browsers let no other host of a domain set one that begins with `__Host-`."""
    return "__Host-finetune-session" if is_secure(request) else "finetune-session"


async def person_of(request: Request, services: Services, *, proxy_user: str | None) -> Person:
    """Who makes the request. Raises `SignInNeeded`, `Forbidden`, `Unavailable`."""
    access = services.access
    if access.is_open:
        return Person(name=LOCAL_NAME)
    token = token_of(request)
    if token is not None:
        user = await access.person(token)
        if proxy_user is not None and user.name == proxy_user:
            user = forwarded(request.headers, user)
        return Person(name=user.name, user=user)
    key = request.cookies.get(session_cookie(request))
    found = None if not key else await SessionStore(services.database).find(key)
    if found is None:
        raise SignInNeeded("you have not signed in, or the session has ended", hint="sign in")
    return Person(name=found.name, user=found, session=key)


def token_of(request: Request) -> str | None:
    """The token in the request's headers."""
    token = request.headers.get(TOKEN_HEADER)
    if token is None:
        scheme, _, said = request.headers.get("authorization", "").partition(" ")
        token = said if scheme.lower() == "bearer" else None
    return (token and token.strip()) or None


def forwarded(headers: Headers, proxy: User) -> User:
    """Whom the authenticating proxy speaks for.

    Raises `Forbidden` for one of the cluster's own users, and for a header that is there twice: one may be the
    browser's, which the proxy has let pass.
    """
    names, lists = headers.getlist(PROXY_USER), headers.getlist(PROXY_GROUPS)
    name = names[0].strip() if len(names) == 1 and len(lists) < 2 else ""
    if not name or name.startswith(SYSTEM) or len(name) > 256:
        raise Forbidden(
            f"the proxy {proxy.name!r} names no person that it may speak for",
            hint=f"it must send {PROXY_USER} once, {PROXY_GROUPS} at most once, and no name that begins with {SYSTEM}",
        )
    said = (group.strip() for group in ",".join(lists).split(","))
    groups = tuple(group for group in said if group and not group.startswith(SYSTEM))[:MAX_GROUPS]
    return User(name=name, uid="", groups=(*groups, "system:authenticated"), extra={}, audiences=proxy.audiences)


async def may(services: Services, person: Person, question: Question) -> bool:
    """Whether the cluster's rules let the person do this. Raises `Unavailable`."""
    if person.user is None:
        return True
    return await services.access.allows(person.user, question)


def token_end(token: str) -> datetime | None:
    """When a token ends, as it says itself; None where it does not. The API server has checked its signature."""
    try:
        part = token.split(".")[1]
        said = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        return datetime.fromtimestamp(int(said["exp"]), UTC)
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, binascii.Error):
        return None


class SessionStore:
    """Sessions in the database, so that every replica knows them. It holds neither cookies nor tokens."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, user: User, *, ends: datetime | None) -> tuple[str, datetime]:
        """A session of the user: the cookie's value, and when it ends."""
        key = secrets.token_urlsafe(32)
        expires = min(now() + SESSION_TIME, ends) if ends is not None else now() + SESSION_TIME
        values = {"key_sha256": _digest(key), "person": asdict(user), "expires_time": expires}

        async def transaction(connection: AsyncConnection) -> None:
            await connection.execute(delete(sessions).where(sessions.c.expires_time < now()))
            await connection.execute(insert(sessions).values(**values))

        await self._database.write(transaction)
        return key, expires

    async def find(self, key: str) -> User | None:
        """Whose session it is; None once it has ended."""
        query = select(sessions).where(sessions.c.key_sha256 == _digest(key), sessions.c.expires_time > now())
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        return None if row is None else _user(row.person)

    async def end(self, key: str) -> None:
        """End a session. Idempotent."""

        async def transaction(connection: AsyncConnection) -> None:
            await connection.execute(delete(sessions).where(sessions.c.key_sha256 == _digest(key)))

        await self._database.write(transaction)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _user(stored: Mapping[str, Any]) -> User:
    return User(
        name=stored["name"],
        uid=stored["uid"],
        groups=tuple(stored["groups"]),
        extra={key: tuple(values) for key, values in stored["extra"].items()},
        audiences=tuple(stored["audiences"]),
    )
