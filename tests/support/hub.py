"""A small server of the protocol that `huggingface_hub` speaks: repositories with commits, in memory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import urllib.parse
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_API = re.compile(r"/api/datasets/(?P<name>[^/]+/[^/]+?)(?:/revision/(?P<revision>.+)|/(?P<refs>refs))?")
_FILE = re.compile(r"(?:/datasets)?/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_FOLDER = re.compile(r"/api/models/(?P<name>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)/(?P<path>.+)")
"""What a folder holds; no repository has one, and the answer is that there is none."""


HELD_SECONDS = 120
"""Longest time for which a content is held back: a test that has failed must end."""


@dataclass
class Repository:
    """A repository of a dataset or a model.

    Parameters
    ----------
    revisions
        The commit of each branch.
    commits
        The files of each commit, by path.
    token
        What a reader must show; None for a public repository.
    gated
        Whether a reader without the right token is told to accept terms first.
    """

    revisions: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Mapping[str, bytes]] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Replace a branch's files, and return the new commit."""
        digest = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits[digest] = dict(files)
        self.revisions[branch] = digest
        return digest


class Hub:
    """A running server.

    Parameters
    ----------
    endpoint
        Its URL.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.repositories: dict[str, Repository] = {}
        self.downloads: Counter[str] = Counter()
        """How often the content of each path was sent."""
        self.failing: int | None = None
        """When set, every request is answered with this HTTP status."""
        self.failed = 0
        """How many requests were answered so."""
        self.cut_off = False
        """When set, a file's content ends in its middle."""
        self.heads: Counter[str] = Counter()
        """How often somebody asked for what is known about each path, which comes before a download."""
        self.held: dict[str, threading.Event] = {}
        """Paths whose content stops in its middle until the event is set."""

    def repository(self, name: str, files: Mapping[str, bytes], **access: Any) -> Repository:
        """Create a repository with one commit."""
        created = self.repositories[name] = Repository(**access)
        created.commit(files)
        return created


@contextmanager
def hub() -> Iterator[Hub]:
    """A server for the time of the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub = Hub(f"http://127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.hub  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""

    def _answer(self, *, with_body: bool) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        path = urllib.parse.unquote(self.path.split("?")[0])
        request = _API.fullmatch(path) or _FILE.fullmatch(path) or _FOLDER.fullmatch(path)
        repository = hub.repositories.get(request["name"]) if request else None
        shown = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if hub.failing is not None:
            hub.failed += 1
            # Proxies repeat a request's headers in their error pages.
            self._send(hub.failing, b"", {"X-Error-Message": f"failed for {self.headers.get('Authorization')}"})
        elif request is None or repository is None:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif repository.token is not None and repository.gated and shown != repository.token:
            self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        elif repository.token is not None and shown != repository.token:
            # What the hub says: nothing about a repository that may not be seen, all about a token that is none.
            wrong = {"X-Error-Message": "Invalid credentials in Authorization header"}
            self._send(401, b"", wrong if shown else {"X-Error-Code": "RepoNotFound"})
        else:
            self._answer_reader(hub, repository, request.groupdict(), with_body=with_body)

    def _answer_reader(
        self, hub: Hub, repository: Repository, request: dict[str, str | None], *, with_body: bool
    ) -> None:
        if request.get("refs"):
            branches = [{"name": n, "ref": n, "targetCommit": c} for n, c in repository.revisions.items()]
            self._send(200, json.dumps({"branches": branches, "tags": [], "converts": []}).encode())
            return
        revision = request["revision"] or "main"
        commit = repository.revisions.get(revision, revision)
        if commit not in repository.commits:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return
        files = repository.commits[commit]
        path = request.get("path")
        if path is None:
            siblings = [{"rfilename": name} for name in files]
            self._send(200, json.dumps({"id": request["name"], "sha": commit, "siblings": siblings}).encode())
        elif path not in files:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        else:
            content = files[path]
            tag = hashlib.sha256(content).hexdigest()
            headers = {"ETag": f'"{tag}"', "X-Repo-Commit": commit}
            (hub.downloads if with_body else hub.heads)[path] += 1
            self._send(200, content, headers, with_body=with_body, cut_off=hub.cut_off, held=hub.held.get(path))

    def _send(
        self,
        status: int,
        content: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        with_body: bool = True,
        cut_off: bool = False,
        held: threading.Event | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            half = len(content) // 2 if cut_off or held else len(content)
            self.wfile.write(content[:half])
            if held:
                held.wait(HELD_SECONDS)
                with contextlib.suppress(ConnectionError):  # the reader may have been killed
                    self.wfile.write(content[half:])
        self.close_connection = self.close_connection or cut_off
