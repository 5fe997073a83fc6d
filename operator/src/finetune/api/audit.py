"""The documents of the registry's audit trail; see `finetune.api.registry`."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from .registry import Document, Time


class AuditEntry(Document):
    """Something that somebody did."""

    time: Time
    actor: str
    """The user's name as the cluster knows it; `administrator` for commands on the database, `retention` for itself."""
    action: str
    """Such as `CreateDatasetVersion`, `MoveAlias`, `DeleteAdapter`."""
    namespace: str
    subject: str
    """What it was done to: `name/version`, or a name."""
    details: dict[str, Any]
    """Digests, marks, tags; no contents."""


class AuditEntries(Document):
    """Entries, newest first."""

    items: list[AuditEntry]
    continue_: str | None = Field(default=None, alias="continue")
