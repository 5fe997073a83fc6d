"""What the registry refuses, and why: a status, a reason for programs and two sentences for people."""

from __future__ import annotations

from finetune.api.registry import DATASET_CHANGED, PARENT_ADAPTER_CHANGED, PARENT_ADAPTER_NOT_FOUND


class RegistryFault(Exception):  # noqa: N818 - "error" is the document that it becomes
    """A refusal that becomes the error document of an HTTP answer.

    Attributes: `status` (HTTP), `reason` (one CamelCase word), `message` (what and where), `hint` (what
    to do).
    """

    status = 500
    reason = "InternalError"

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class NotFound(RegistryFault):
    """It does not exist, or not yet."""

    status = 404
    reason = "NotFound"


class ParentAdapterNotFound(NotFound):
    """A run names a parent adapter that does not exist, or not yet."""

    reason = PARENT_ADAPTER_NOT_FOUND


class Conflict(RegistryFault):
    """It exists, and is something else than what was asked for."""

    status = 409
    reason = "Conflict"


class ParentAdapterChanged(Conflict):
    """A run's parent adapter has the digest of another one: its number was given again."""

    reason = PARENT_ADAPTER_CHANGED


class DatasetChanged(Conflict):
    """A run's dataset version has other rows: its number was given again."""

    reason = DATASET_CHANGED


class RunEnded(Conflict):
    """The run has ended: its trainer has nothing to say any more."""

    reason = "RunEnded"


class AttemptOver(Conflict):
    """A later attempt of the run has begun."""

    reason = "AttemptOver"


class Invalid(RegistryFault):
    """The request is well-formed HTTP and makes no sense."""

    status = 422
    reason = "Invalid"


class InvalidRows(Invalid):
    """The rows of a dataset are not JSON lines of one shape; the message names the line."""

    reason = "InvalidRows"


class DigestMismatch(Invalid):
    """The digest or the size of an adapter does not follow from its files."""

    reason = "DigestMismatch"


class Unauthorized(RegistryFault):
    """No token, or one that the API server does not accept for this registry."""

    status = 401
    reason = "Unauthorized"


class Forbidden(RegistryFault):
    """The caller is known and may not do this."""

    status = 403
    reason = "Forbidden"


class TooManyRequests(RegistryFault):
    """A run's trainer posts faster than it may."""

    status = 429
    reason = "TooManyRequests"

    def __init__(self, message: str, *, hint: str, retry_seconds: int) -> None:
        super().__init__(message, hint=hint)
        self.retry_seconds = retry_seconds


class Unavailable(RegistryFault):
    """The database or the Kubernetes API does not answer; the same request may succeed later."""

    status = 503
    reason = "Unavailable"
