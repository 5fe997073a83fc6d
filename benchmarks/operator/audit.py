"""Requests of one client, counted from the API server's own audit log: no proxy stands in the way."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

POLICY: dict[str, Any] = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "rules": [{"level": "Metadata"}],
}
"""One line for each request once it is over; watches write theirs when they end."""
READS = frozenset({"get", "list"})


def flags(folder: Path) -> tuple[str, ...]:
    """Flags of an API server that writes its audit log into the folder."""
    policy = folder / "audit-policy.json"
    policy.write_text(json.dumps(POLICY))
    return (
        f"--audit-policy-file={policy}",
        f"--audit-log-path={log_of(folder)}",
        "--audit-log-maxsize=4000",
        "--audit-log-mode=batch",
        "--audit-log-batch-max-wait=200ms",
    )


def log_of(folder: Path) -> Path:
    """The log of an API server with these `flags`."""
    return folder / "audit.log"


def kind_of(entry: dict[str, Any]) -> str:
    """What a request is: read, watch, status, event or write."""
    verb, about = entry["verb"], entry.get("objectRef") or {}
    if verb in READS:
        return "read"
    if verb == "watch":
        return "watch"
    if about.get("resource") == "events":
        return "event"
    if about.get("resource") == "trainingruns" and about.get("subresource") == "status":
        return "status"
    return "write"


def count(lines: Iterable[str], user_agent: str) -> Counter[str]:
    """How many requests of each kind a client has made; half a line at the end is left for the next time."""
    counts: Counter[str] = Counter()
    for line in lines:
        if line.endswith("\n") and f'"{user_agent}/' in line:
            counts[kind_of(json.loads(line))] += 1
    return counts


def naming(lines: Iterable[str], user_agent: str, start: str) -> int:
    """How many requests of a client were about an object whose name begins so."""
    return sum(f'"{user_agent}/' in line and f'"name":"{start}' in line for line in lines)
