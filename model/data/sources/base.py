"""What every source of a dataset offers, and how it fails."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from model import exits
from model.data.records import Record
from model.exits import FailureError


class SourceInterruptedError(Exception):
    """The source broke off; what was read so far is worthless, reading from the start may succeed."""


class Source(Protocol):
    """A dataset's rows and what is known about them."""

    @property
    def name(self) -> str:
        """What to call the dataset in messages."""

    @property
    def version(self) -> int | None:
        """The dataset's version in the registry, None for other sources."""

    @property
    def passed_over(self) -> Sequence[str]:
        """Files that were asked for and hold no rows but describe them; known once the rows were read."""

    def request(self) -> dict[str, Any]:
        """Return what was asked for, without secrets; nothing is looked up.

        An export that was finished for the same request is what the run is made of, whatever the source holds now.
        """

    def description(self) -> dict[str, Any]:
        """Return the request and what was found for it (a commit, a digest), for the manifest.

        Raises
        ------
        SourceInterruptedError
            When the source does not answer for the moment.
        FailureError
            When it is not there or refuses.
        """

    def records(self) -> Iterator[Record]:
        """Yield the rows from the first on; one that cannot be decoded holds an `InvalidRowError`.

        Raises
        ------
        SourceInterruptedError
            When the source broke off, or changed while it was read.
        FailureError
            When it is not there, refuses, or holds something else than rows.
        """


def does_not_exist(text: str) -> FailureError:
    """Return the failure of a source that is not there: another attempt changes nothing."""
    return FailureError(exits.DOES_NOT_EXIST, "DatasetUnavailable", text)


def access_denied(text: str) -> FailureError:
    """Return the failure of a source that refuses."""
    return FailureError(exits.ACCESS_DENIED, "AccessDenied", text)


def invalid_spec(text: str) -> FailureError:
    """Return the failure of a request that makes no sense."""
    return FailureError(exits.INVALID_CONFIGURATION, "InvalidSpec", text)
