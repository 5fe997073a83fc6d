"""The registry's client against a real HTTP server, and the export that reads from it."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from model import registry
from model.data import export
from model.registry import RegistryRefusedError, RegistryUnavailableError, RunRegistry
from tests.support.ports import free_port

ROWS = b"".join(b'{"prompt": "p%d", "completion": "c"}\n' % number for number in range(20))
BASE = "/api/v1/namespaces/ml/runs/u1"


@dataclass
class Server:
    """What the server answers, and what it was asked."""

    url: str = ""
    rows: bytes = ROWS
    statuses: list[int] = field(default_factory=list)
    cut_off: int = 0
    calls: list[tuple[str, str, str | None, bytes]] = field(default_factory=list)

    def metadata(self) -> dict[str, Any]:
        """The dataset version's metadata."""
        return {"name": "tickets", "version": 2, "rows": 20, "sha256": hashlib.sha256(ROWS).hexdigest()}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(registry, "RETRY_DELAYS_SECONDS", (0, 0))
    monkeypatch.setattr(export, "READ_DELAY_SECONDS", 0)
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            state.calls.append((self.command, self.path, self.headers["Authorization"], self.rfile.read(length)))
            if state.statuses and (status := state.statuses.pop(0)) != 200:
                body = json.dumps({"error": {"reason": "X", "message": "run u1 is not known"}}).encode()
                self.send_response(status)
            else:
                body = state.rows if self.path.endswith("rows") else json.dumps(state.metadata()).encode()
                self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.path.endswith("rows") and state.cut_off:
                state.cut_off -= 1
                body = body[: len(body) // 2]
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = _answer  # noqa: N815 - named by the library

        def log_message(self, *_arguments: Any) -> None:
            """Nothing: the calls are recorded."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=lambda: http.serve_forever(poll_interval=0.01), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{http.server_address[1]}"
    yield state
    http.shutdown()
    http.server_close()


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("first\n")
    return path


Export = Callable[[str], tuple[int, Any]]


@pytest.fixture
def run_export(tmp_path: Path, token: Path, monkeypatch: pytest.MonkeyPatch) -> Export:
    """Exports from a server, and returns the exit code and the last words."""
    monkeypatch.setenv("TERMINATION_LOG", str(tmp_path / "log"))
    return lambda server_url: export_from(server_url, tmp_path, token)


def export_from(server_url: str, tmp_path: Path, token: Path) -> tuple[int, Any]:
    code = export.main(
        [
            f"--run-directory={tmp_path}/output", "--source=registry", f"--registry-url={server_url}/",
            f"--registry-token-file={token}", "--namespace=ml", "--run-uid=u1", "--evaluation-percent=0",
        ]
    )  # fmt: skip
    return code, json.loads((tmp_path / "log").read_text())


def test_the_dataset_of_the_run_is_exported(server: Server, run_export: Export, tmp_path: Path) -> None:
    code, said = run_export(server.url)
    assert code == 0
    assert (said["dataset"]["version"], said["dataset"]["rows"]) == (2, 20)
    assert [(method, path, bearer) for method, path, bearer, _ in server.calls] == [
        ("GET", f"{BASE}/dataset", "Bearer first"),
        ("GET", f"{BASE}/dataset/rows", "Bearer first"),
    ]
    manifest = json.loads((tmp_path / "output" / "dataset" / "manifest.json").read_text())
    assert manifest["source"]["name"] == "tickets"
    assert manifest["source"]["sha256"] == server.metadata()["sha256"]


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [(404, 10, "DatasetUnavailable"), (401, 5, "AccessDenied"), (403, 5, "AccessDenied"), (422, 2, "InvalidSpec")],
)
def test_a_refusal_ends_the_export_at_once_and_is_quoted(
    server: Server, run_export: Export, status: int, code: int, reason: str
) -> None:
    server.statuses = [status]
    got, said = run_export(server.url)
    assert (got, said["failure"]["reason"]) == (code, reason)
    assert f"{status}: run u1 is not known" in said["failure"]["message"]
    assert len(server.calls) == 1


def test_a_registry_that_restarts_is_waited_for(server: Server, run_export: Export) -> None:
    server.statuses = [503, 500]
    assert run_export(server.url)[0] == 0


def test_a_registry_that_stays_away(run_export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "RETRY_DELAYS_SECONDS", (0, 0))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        code, said = run_export(url)
    assert (code, said["failure"]["reason"]) == (4, "DatasetUnavailable")
    assert "Connection refused" in said["failure"]["message"]


def test_rows_that_break_off_are_read_again_from_the_start(server: Server, run_export: Export) -> None:
    server.cut_off = 2
    code, said = run_export(server.url)
    assert (code, said["dataset"]["rows"]) == (0, 20)


def test_rows_that_are_not_those_of_the_version_are_not_used(
    server: Server, run_export: Export, tmp_path: Path
) -> None:
    server.rows = ROWS.replace(b"p7", b"q7")
    code, said = run_export(server.url)
    assert (code, said["failure"]["reason"]) == (4, "DatasetUnavailable")
    assert "another SHA-256" in said["failure"]["message"]
    assert not (tmp_path / "output" / "dataset" / "train.jsonl").exists()


def test_the_token_is_read_for_each_request(server: Server, token: Path) -> None:
    client = RunRegistry(server.url, "ml", "u1", token)
    client.post_status({"trainerStatus": {}})
    token.write_text("second")
    client.put_result({"result": {}})
    assert [(call[0], call[1], call[2]) for call in server.calls] == [
        ("POST", f"{BASE}/status", "Bearer first"),
        ("PUT", f"{BASE}/result", "Bearer second"),
    ]
    assert server.calls[1][3] == b'{"result": {}}'


def test_the_registry_is_not_asked_through_a_proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod may have one for a hub; the registry is a service of the cluster, and its token is for nobody else."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
        monkeypatch.setenv(name.upper(), f"http://127.0.0.1:{free_port()}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # what urllib has read of the environment before
    assert RunRegistry(url=server.url, namespace="ml", run_uid="u1").dataset() == server.metadata()


def test_a_missing_token_is_a_refusal(server: Server, tmp_path: Path) -> None:
    with pytest.raises(RegistryRefusedError, match="no token to show") as caught:
        RunRegistry(server.url, "ml", "u1", tmp_path / "none").dataset()
    assert caught.value.status == 401
    assert server.calls == []


def test_retries_are_bounded(server: Server) -> None:
    server.statuses = [500] * 10
    client = RunRegistry(server.url, "ml", "u1")
    warnings: list[str] = []
    with pytest.raises(RegistryUnavailableError):
        registry.retry(client.dataset, warn=warnings.append)
    assert len(server.calls) == 3
    assert len(warnings) == 2
