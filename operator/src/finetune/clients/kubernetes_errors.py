"""What the API server's answers mean: a document, or a KubernetesError that carries the server's own words.

What an error means for a run is not decided here, see `controller.core.refusals`. Only three things are told apart
because every caller has to: the object is gone, its name is taken, or somebody changed it since it was read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

Document = dict[str, Any]

FIRST_WORDS = 200
"""Characters that are quoted of an answer that is no JSON."""
INVALID_ANSWER = "InvalidAnswer"
"""The reason of an answer that the API server cannot have given: HTML, another kind of object, broken JSON."""


class Asked(NamedTuple):
    """What a request was about, to compare its answer with."""

    verb: str
    path: str
    resource: str = ""
    """Plural name, such as `jobs`."""
    group: str = ""
    name: str = ""
    """Name of the object; empty for a whole collection."""
    kind: str = ""
    """Such as `Job`; some errors name the resource by it."""


class Cause(NamedTuple):
    """One of the causes in an error's details."""

    field: str
    """Such as `spec.template.spec.containers[0].name`; empty when the cause is not about a field."""
    reason: str
    message: str


class KubernetesError(Exception):
    """The API server refused a request, could not be reached, or something else answered in its place.

    Attributes
    ----------
    status: HTTP status; 0 when there was no whole answer.
    reason: the `reason` of the Status object, such as `AlreadyExists`; the error's class name when there was no
        answer; `InvalidAnswer` when the answer was none of an API server; empty when a Status has none.
    message: the server's own words, without anything of ours.
    details: the `details` of the Status object.
    causes: the causes in the details.
    retry_after: seconds that the server asks us to wait, or None.
    verb, path: the request.
    """

    def __init__(
        self,
        *,
        verb: str,
        path: str,
        status: int,
        reason: str,
        message: str,
        details: Mapping[str, Any] | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.verb = verb
        self.path = path
        self.status = status
        self.reason = reason
        self.message = message
        self.details = dict(details or {})
        self.causes = _causes(self.details.get("causes"))
        self.retry_after = retry_after
        super().__init__(f"{verb} {path}: {status or 'no answer'} {reason}: {message}")

    @property
    def log_words(self) -> str:
        """What a log may hold of it: the server's message quotes objects."""
        return f"{self.status or 'no answer'} {self.reason}, {self.verb} {self.path}"

    @property
    def said_status(self) -> int:
        """The HTTP status, if the API server said it; 0 for no answer, and for a proxy's page in its place."""
        return 0 if self.reason == INVALID_ANSWER else self.status


class NotFoundError(KubernetesError):
    """The API server says of the very object that was asked for that it does not exist."""


class NotServedError(KubernetesError):
    """Any other 404 says nothing about the object: not served, no such namespace, or another server answered."""


class AlreadyExistsError(KubernetesError):
    """HTTP 409 on create: the name is taken."""


class ConflictError(KubernetesError):
    """HTTP 409: the object changed since it was read, or it is another one of the same name."""


class ForbiddenError(KubernetesError):
    """HTTP 403, whoever said it: RBAC, admission, quota, or a proxy."""


def document_of(asked: Asked, kind: str, status: int, data: bytes) -> Document:
    """The document of a successful answer; `kind` is what it must be, or empty. Raises KubernetesError."""
    body = _json(data)
    found = body.get("kind") if isinstance(body, dict) else None
    if isinstance(body, dict) and (found == kind or not kind):
        return body
    said = f'a document of the kind "{found}"' if isinstance(found, str) else f'"{_first_words(data)}"'
    raise KubernetesError(
        verb=asked.verb,
        path=asked.path,
        status=status,
        reason=INVALID_ANSWER,
        message=f"expected {f'a {kind}' if kind else 'a JSON document'} and got {said}: is this the API server?",
    )


def error_of(asked: Asked, status: int, data: bytes, headers: Mapping[str, str]) -> KubernetesError:
    """The error of an answer that is no success."""
    body = _json(data)
    if not isinstance(body, dict) or body.get("kind") != "Status":
        reason, message, details = INVALID_ANSWER, _first_words(data) or "an empty answer", {}
    else:
        reason, message = str(body.get("reason") or ""), str(body.get("message") or "no message")
        given = body.get("details")
        details = given if isinstance(given, dict) else {}
    return _kind_of(asked, status, reason, details)(
        verb=asked.verb,
        path=asked.path,
        status=status,
        reason=reason,
        message=message,
        details=details,
        retry_after=_seconds(headers.get("Retry-After")) or _seconds(details.get("retryAfterSeconds")),
    )


def no_answer(asked: Asked, error: BaseException) -> KubernetesError:
    """The error of a request without a whole answer; whether it had an effect is not known."""
    reason = type(error).__name__
    return KubernetesError(
        verb=asked.verb, path=asked.path, status=0, reason=reason, message=str(error) or "no answer in time"
    )


def _kind_of(asked: Asked, status: int, reason: str, details: Document) -> type[KubernetesError]:
    ours = bool(asked.name) and (
        (details.get("name"), details.get("group") or "") == (asked.name, asked.group)
        and details.get("kind") in (asked.resource, asked.kind)
    )
    if status == 404:
        return NotFoundError if reason == "NotFound" and ours else NotServedError
    if status == 409 and ours and reason == "AlreadyExists":
        return AlreadyExistsError
    if status == 409 and ours and reason == "Conflict":
        return ConflictError
    if status == 422 and ours and any(cause.field == "metadata.uid" for cause in _causes(details.get("causes"))):
        return ConflictError  # how a patch that carries the uid of another object is refused
    return ForbiddenError if status == 403 else KubernetesError


def _causes(given: object) -> tuple[Cause, ...]:
    return tuple(
        Cause(*(str(cause.get(key) or "") for key in ("field", "reason", "message")))
        for cause in (given if isinstance(given, list) else [])
        if isinstance(cause, dict)
    )


def _json(data: bytes) -> object:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _first_words(data: bytes) -> str:
    """The beginning of a text without its markup, on one line."""
    text = data[: 20 * FIRST_WORDS].decode(errors="replace")
    text = re.sub(r"(?is)<(script|style)\b.*?(</\1>|$)|<[^>]*>", " ", text)
    return " ".join(text.split())[:FIRST_WORDS]


def _seconds(given: object) -> float | None:
    """A positive number of seconds; an HTTP date is none."""
    try:
        seconds = int(str(given))
    except ValueError:
        return None
    return float(seconds) if 0 < seconds <= 3600 else None
