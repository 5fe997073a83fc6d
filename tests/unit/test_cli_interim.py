"""`finetune adapters` of a run that still trains; a registry behind the API server's proxy, with TLS and without."""

from __future__ import annotations

import hashlib
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from finetune.cli.main import main
from finetune.registry.blobs import open_store
from tests.support.adapters import adapter_files, listing, send
from tests.support.registry import run_document, serving

FILES = adapter_files(salt=20)
Finetune = Callable[..., tuple[int, str]]


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A registry with run `support-1`, which trains and has sent its adapters of the steps 10 and 20."""
    with serving(f"sqlite:///{tmp_path}/registry.db", store=open_store(f"file://{tmp_path}/blobs")) as served:
        with httpx.Client(base_url=f"{served}/api/v1/namespaces/ml", timeout=30) as http:
            uid = str(uuid.uuid4())
            spec = {"method": "SFT", "adapter": {"name": "answers"}}
            http.put(f"runs/{uid}", json=run_document(name="support-1", spec=spec)).raise_for_status()
            told = {"trainerStatus": {"metrics": [{"name": "step", "value": "21"}]}}
            http.post(f"runs/{uid}/status", json=told).raise_for_status()
            for step, loss, files in ((10, "1.25", adapter_files(salt=10)), (20, "1.5", FILES)):
                said = {"evaluationLoss": loss, "baseEvaluationLoss": "2.5", "trainLoss": "1.125"}
                document = {**said, "files": listing(files)}
                http.put(f"runs/{uid}/steps/{step}/adapter", json=document).raise_for_status()
                for content in files.values():
                    send(http, uid, content).raise_for_status()
        yield served


@pytest.fixture
def finetune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Finetune:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str]:
        try:
            code = main(words)
        except SystemExit as ended:  # of the parser
            code = int(ended.code or 0)
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


def test_it_is_listed_shown_pulled_verified_and_deleted(finetune: Finetune, url: str, tmp_path: Path) -> None:
    there = ("-n", "ml", "--registry-url", url)
    code, said = finetune("adapters", "list", "--run", "support-1", *there)
    assert code == 0
    assert [line.split()[:5] for line in said.splitlines()[1:]] == [
        ["answers@support-1/10", "10", "1.25", "-50", "%"],
        ["answers@support-1/20", "20", "1.5", "-40", "%"],
    ]
    assert [line.rsplit("  ", 1)[1] for line in said.splitlines()] == ["KEPT AS", "best", "newest"]
    assert finetune("adapters", "list", "--run", "support-1", "-o", "name", *there) == (
        *(0, "answers@support-1/10\nanswers@support-1/20\n"),
    )
    assert "Training loss:" in finetune("adapters", "show", "answers@support-1/best", *there)[1]
    code, said = finetune("adapters", "show", "answers@support-1/best", "-o", "json", *there)
    assert (json.loads(said)["step"], json.loads(said)["best"]) == (10, True)
    code, said = finetune("status", "support-1", *there)
    assert "To pull:         answers@support-1/10  loss 1.25, best\n" in said
    code, said = finetune("adapters", "pull", "answers@support-1/latest", *there)
    assert (code, said.split(":")[0]) == (0, "answers@support-1/20")
    folder = tmp_path / "answers-support-1-20"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    digest = json.loads(finetune("adapters", "show", "answers@support-1/20", "-o", "json", *there)[1])["sha256"]
    lines = "".join(f"{hashlib.sha256(FILES[name]).hexdigest()}  {name}\n" for name in sorted(FILES))
    assert digest == hashlib.sha256(lines.encode()).hexdigest()
    assert finetune("adapters", "verify", "answers@support-1/20", str(folder), *there)[0] == 0
    (folder / "README.md").write_text("changed")
    assert finetune("adapters", "verify", "answers@support-1/20", str(folder), *there)[0] == 1
    assert finetune("adapters", "delete", "answers@support-1/best", *there) == (0, "deleted answers@support-1/10\n")
    code, said = finetune("adapters", "pull", "answers@support-1/10", *there)
    assert code == 1
    assert "hint: kept are those of the steps 20" in said
    for words in (("show", "answers@support-1/0"), ("show", "answers@support-1/x"), ("list", "a", "--run", "b")):
        assert finetune("adapters", *words, *there)[0] == 2, words


@dataclass
class ApiServer:
    """What an API server is to the commands: it has a Service, and passes on what is sent to its proxy."""

    url: str = ""
    services: dict[str, Any] | None = None
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def api_server() -> Iterator[ApiServer]:
    told = ApiServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told.asked.append(self.path)
            found = {"items": []} if "/proxy/" in self.path else told.services
            if found and "items" in found and "/services/" in self.path and "/proxy/" not in self.path:
                found = found["items"][0]
            body = json.dumps(found or {"kind": "Status", "message": "forbidden", "reason": "Forbidden"}).encode()
            self.send_response(200 if found else 403)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: Any) -> None:
            """Nothing: the paths are noted."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    told.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield told
    server.shutdown()
    server.server_close()


def service(protocol: str) -> dict[str, Any]:
    ports = [{"name": "http", "port": 8080, "appProtocol": protocol}]
    return {"items": [{"metadata": {"namespace": "tools", "name": "reg"}, "spec": {"ports": ports}}]}


@pytest.mark.parametrize(
    ("services", "words", "target"),
    [
        (service("http"), (), "tools/services/http:reg:http"),
        (service("https"), (), "tools/services/https:reg:http"),
        (service("https"), ("--registry-service=tools/reg",), "tools/services/https:reg:http"),
        (None, ("--registry-service=tools/reg",), "tools/services/http:reg:http"),
        (None, ("--registry-service=tools/https:reg",), "tools/services/https:reg:http"),
        (None, (), "finetune-system/services/http:finetune-operator-registry:http"),
    ],
)
def test_the_proxy_speaks_as_the_registry_does(
    finetune: Finetune, api_server: ApiServer, tmp_path: Path, *, services: Any, words: tuple[str, ...], target: str
) -> None:
    api_server.services = services
    kubeconfig = tmp_path / "config"
    context = {"name": "here", "context": {"cluster": "here", "user": "me"}}
    document = {
        "current-context": "here",
        "contexts": [context],
        "clusters": [{"name": "here", "cluster": {"server": api_server.url}}],
        "users": [{"name": "me", "user": {"token": "t"}}],
    }
    kubeconfig.write_text(yaml.safe_dump(document))
    code, said = finetune("datasets", "list", "-n", "ml", "--kubeconfig", str(kubeconfig), *words)
    assert code == 0, said
    assert api_server.asked[-1] == f"/api/v1/namespaces/{target}/proxy/api/v1/namespaces/ml/datasets"
