"""What goes wrong between us and the registry."""

from __future__ import annotations


class RegistryError(Exception):
    """Any failure of a call to the registry."""


class RegistryUnavailable(RegistryError):  # noqa: N818 - reads as the condition that it is
    """No answer, a broken answer, or an error of the server: try again later."""


class RegistrySilent(RegistryUnavailable):
    """No answer, or not a whole one."""


class RegistryDenied(RegistryUnavailable):
    """The caller's token or rights are not enough (401, 403): an administrator can mend that, nothing is lost."""


class RegistryRefused(RegistryError):  # noqa: N818 - reads as the condition that it is
    """The registry said no.

    Attributes: `status` (HTTP), `reason` (one word), `message` and `hint` (sentences).
    """

    def __init__(self, *, status: int, reason: str, message: str, hint: str) -> None:
        super().__init__(f"{message} ({hint})" if hint else message)
        self.status = status
        self.reason = reason
        self.message = message
        self.hint = hint

    @property
    def log_words(self) -> str:
        """What a log may hold of it: the message may quote rows and names."""
        return f"{self.status} {self.reason}"


class RegistryNotFound(RegistryRefused):
    """What was asked for does not exist (yet)."""
