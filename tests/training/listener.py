"""A server that notes what a trainer tells it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Registry:
    """A server that notes what it is told: the registry, or a hub."""

    url: str = ""
    calls: list[tuple[str, str, str | None, Any]] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    """What was sent, by the last part of its path."""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@contextmanager
def listening() -> Iterator[Registry]:
    """A server for the time of the block. It wants all files of interim adapters, and none of finished ones."""
    told = Registry()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if "/blobs/" in self.path:
                told.blobs[self.path.rpartition("/")[2]] = content
                content = b""
            body = json.loads(content or b"null")
            told.calls.append((self.command, self.path, self.headers["Authorization"], body))
            self.send_response(told.status)
            for name, value in told.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.path.endswith(("/files", "/adapter")):
                wanted = [file["sha256"] for file in body["files"]] if self.path.endswith("/adapter") else []
                self.wfile.write(json.dumps({"missing": wanted}).encode())

        do_GET = do_HEAD = do_POST = do_PUT = _answer  # noqa: N815 - named by the library

        def log_message(self, *_arguments: Any) -> None:
            """Nothing: the calls are recorded."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    told.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield told
    server.shutdown()
    server.server_close()
