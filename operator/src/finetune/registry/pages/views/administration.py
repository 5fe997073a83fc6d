"""The audit trail."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from finetune.registry.pages.text import shortened


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of the audit trail."""

    time: str
    actor: str
    action: str
    namespace: str
    subject: str
    details: str


def entry(row: Any) -> Entry:
    """A row of the table as it is shown."""
    details = {key: value for key, value in (row.details or {}).items() if value is not None}
    return Entry(
        time=f"{row.time:%Y-%m-%d %H:%M:%S}",
        actor=row.actor,
        action=row.action,
        namespace=row.namespace,
        subject=row.subject,
        details=shortened(json.dumps(details, ensure_ascii=False), 300) if details else "",
    )


def page_address(namespace: str | None, before: int | None) -> str:
    """Where a page of the audit trail is."""
    query = {"namespace": namespace, "continue": before}
    said = urlencode({key: value for key, value in query.items() if value is not None})
    return f"/ui/-/audit?{said}" if said else "/ui/-/audit"
