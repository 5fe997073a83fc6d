"""Ended runs, many at once: what one real run has left is written into etcd under other names.

The API server would take three requests for each (create, mark, status), ten thousand of them five minutes of its
time. It stores custom resources as JSON, and learns of what is written beside it from its watch of etcd.
"""

from __future__ import annotations

import base64
import copy
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aiohttp import ClientSession

from finetune.api import GROUP, PLURAL
from finetune.api.trainingrun import TrainingRun
from finetune.controller.core.mark import mark_of

Document = dict[str, Any]

BATCH = 50
"""Objects in one transaction: etcd takes 128 operations and 1.5 MiB."""


def ended_like(model: Mapping[str, Any], name: str) -> Document:
    """A run that has ended as the model has, with a uid, and the mark of its end, of its own."""
    run = copy.deepcopy(dict(model))
    run["metadata"] |= {"name": name, "uid": str(uuid.uuid4())}
    run["metadata"].pop("resourceVersion", None)
    adapter = (run["status"].get("result") or {}).get("adapter") or {}
    if adapter.get("stored") is False:
        adapter["stored"] = True  # what has ended long ago has sent its files, too; otherwise each is still worked on
    read = TrainingRun.from_object(run)
    run["metadata"]["annotations"] = {**run["metadata"].get("annotations", {}), **mark_of(read, read.status)}
    return run


def transactions(runs: Sequence[Mapping[str, Any]]) -> Iterator[Document]:
    """Bodies for etcd's `/v3/kv/txn` that write these runs."""
    for first in range(0, len(runs), BATCH):
        puts = [{"key": _encoded(_key(run)), "value": _encoded(run)} for run in runs[first : first + BATCH]]
        yield {"success": [{"requestPut": put} for put in puts]}


async def write(session: ClientSession, etcd: str, runs: Sequence[Mapping[str, Any]]) -> None:
    """Write runs into the etcd at this URL, one transaction after the other. Raises aiohttp.ClientError."""
    for body in transactions(runs):
        async with session.post(f"{etcd}/v3/kv/txn", json=body, raise_for_status=True):
            pass


def _key(run: Mapping[str, Any]) -> str:
    metadata = run["metadata"]
    return f"/registry/{GROUP}/{PLURAL}/{metadata['namespace']}/{metadata['name']}"


def _encoded(what: str | Mapping[str, Any]) -> str:
    text = what if isinstance(what, str) else json.dumps(what, separators=(",", ":"))
    return base64.b64encode(text.encode()).decode()
