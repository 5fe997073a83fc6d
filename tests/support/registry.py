"""A registry on a loopback port of its own, over a real database, and documents to send to it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from finetune.registry.access import Access, OpenAccess
from finetune.registry.blobs import BlobStore
from finetune.registry.database import parse_url
from finetune.registry.service.app import create_app
from tests.support.schema import provide_schema

START_SECONDS = 20


async def open_access() -> Access:
    """Everybody may do everything."""
    return OpenAccess()


@contextmanager
def serving(
    database_url: str,
    *,
    access: Callable[[], Awaitable[Access]] = open_access,
    store: BlobStore | None = None,
    host: str = "127.0.0.1",
    **settings: Any,
) -> Iterator[str]:
    """Migrate the database and serve it from a thread; gives the base URL. `settings` are those of `create_app`."""
    provide_schema(database_url)
    app = create_app(database_url=parse_url(database_url), access=access, store=store, **settings)
    server = uvicorn.Server(
        uvicorn.Config(app, host=host, port=0, log_level="warning", lifespan="on", timeout_graceful_shutdown=5)
    )
    app.state.is_stopping = lambda: server.should_exit
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), name="registry")
    thread.start()
    try:
        deadline = time.monotonic() + START_SECONDS
        while not server.started:
            if not thread.is_alive() or time.monotonic() > deadline:
                raise RuntimeError("the registry did not start; its log says why")
            thread.join(timeout=0.01)
        yield f"http://{host}:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def lines(*rows: dict[str, Any]) -> bytes:
    """Rows as JSON lines."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def new_uid() -> str:
    """A uid that no other object has."""
    return str(uuid.uuid4())


def pairs(count: int, *, tag: str = "") -> bytes:
    """Prompt/completion rows; another `tag` is other content."""
    return lines(*({"prompt": f"question {tag}{i}", "completion": f"answer {i}"} for i in range(count)))


def sha256(text: str) -> str:
    """Hex SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def run_document(**changes: Any) -> dict[str, Any]:
    """What the operator PUTs for a run."""
    document = {"name": "run-1", "experiment": "support", "method": "SFT", "spec": {"method": "SFT"}}
    return {**document, **changes}


def adapter_document(uid: str, *, name: str = "support", **changes: Any) -> dict[str, Any]:
    """What the operator PUTs for a finished run; files and digests depend on the uid."""
    files = [
        {"path": "adapter_config.json", "bytes": 812, "sha256": sha256(f"config {uid}")},
        {"path": "adapter_model.safetensors", "bytes": 19_000_000, "sha256": sha256(f"model {uid}")},
    ]
    listing = "".join(f"{file['sha256']}  {file['path']}\n" for file in files)
    result = {
        "runUid": uid,
        "finalLoss": "1.8342",
        "evaluationLoss": "1.9011",
        "baseEvaluationLoss": "2.7700",
        "steps": 55,
        "tokens": 41234,
        "resumedFromStep": 0,
        "adapter": {"sha256": sha256(listing), "bytes": 19_000_812, "files": files},
    }
    dataset = {"version": 1, "rows": 400, "evaluationRows": 40, "dropped": 0, "bytes": 91234, "sha256": sha256("rows")}
    document = {
        "adapterName": name,
        "claimName": "adapters",
        "baseModel": {"name": "HuggingFaceTB/SmolLM2-135M-Instruct"},
        "dataset": dataset,
        "result": result,
    }
    return {**document, **changes}
