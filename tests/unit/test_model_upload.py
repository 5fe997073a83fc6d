"""The trainer's side of the registry's store, against a real registry: what is sent, again, and not at all."""

from __future__ import annotations

import json
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from finetune.registry.blobs import open_store
from finetune.registry.blobs.folder import FolderStore
from model import exits, upload
from model.files import FileDigest, RunDirectory, combined_digest
from model.registry import RunRegistry
from model.training import cli
from tests.support.adapters import adapter_files, listing, registered
from tests.support.ports import free_port
from tests.support.registry import run_document, serving


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("upload")
    with serving(f"sqlite:///{folder}/registry.db", store=open_store(f"file://{folder}/blobs")) as served:
        yield served


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "DELAYS_SECONDS", (0.0, 0.0, 0.0))


def written(directory: Path, files: dict[str, bytes]) -> list[dict[str, Any]]:
    for path, content in files.items():
        (directory / path).write_bytes(content)
    return listing(files)


def recorded(url: str) -> RunRegistry:
    uid = str(uuid.uuid4())
    httpx.put(f"{url}/api/v1/namespaces/ml/runs/{uid}", json=run_document()).raise_for_status()
    return RunRegistry(url=url, namespace="ml", run_uid=uid)


def test_a_finished_adapter_is_ready_when_its_files_were_sent(url: str, tmp_path: Path) -> None:
    files = adapter_files(salt=1, numbers=100_000)
    registry = recorded(url)
    said: list[str] = []
    assert upload.send(registry, tmp_path, written(tmp_path, files), warn=said.append)
    assert upload.send(registry, tmp_path / "gone", listing(files), warn=said.append)  # nothing is read again
    run = f"{url}/api/v1/namespaces/ml/runs/{registry.run_uid}"
    version = httpx.put(f"{run}/adapter", json=registered(registry.run_uid, files, name="sent")).json()
    assert (version["state"], said) == ("Ready", [])
    weights = f"{url}/api/v1/namespaces/ml/adapters/sent/versions/1/files/adapter_model.safetensors"
    assert httpx.get(weights).content == files["adapter_model.safetensors"]


@pytest.mark.usefixtures("delays")
def test_an_attempt_goes_on_where_the_one_before_was_cut(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = recorded(url)
    sent: list[str] = []
    real = RunRegistry.send_file

    def cut_once(self: RunRegistry, path: Path, *, sha256: str, size: int) -> None:
        sent.append(path.name)
        if len(sent) == 2:
            raise ConnectionResetError("cut")
        real(self, path, sha256=sha256, size=size)

    monkeypatch.setattr(RunRegistry, "send_file", cut_once)
    said: list[str] = []
    files = {**adapter_files(salt=2), "README.md": b"# another\n"}
    assert upload.send(registry, tmp_path, written(tmp_path, files), warn=said.append)
    assert sent == ["README.md", "adapter_config.json", "adapter_config.json", "adapter_model.safetensors"]
    assert len(said) == 1


@pytest.mark.usefixtures("delays")
def test_a_file_that_changed_on_the_claim_is_refused_and_the_run_ends_well(url: str, tmp_path: Path) -> None:
    files = adapter_files(salt=3)
    items = written(tmp_path, files)
    (tmp_path / "adapter_config.json").write_bytes(b"x" * len(files["adapter_config.json"]))
    said: list[str] = []
    assert not upload.send(recorded(url), tmp_path, items, warn=said.append)
    assert len(said) == 1
    assert "SHA-256" in said[0]


@pytest.mark.usefixtures("delays")
def test_a_registry_that_is_away_is_said_and_left(tmp_path: Path) -> None:
    registry = RunRegistry(url=f"http://127.0.0.1:{free_port()}", namespace="ml", run_uid="u1")
    said: list[str] = []
    assert not upload.send(registry, tmp_path, written(tmp_path, adapter_files()), warn=said.append)
    assert len(said) == 4
    assert "stay on the claim" in said[-1]


def test_what_a_finished_run_could_not_send_is_sent_from_its_claim(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command of the send Job: its exit code says whether another attempt makes sense."""
    files = adapter_files(salt=4)
    registry = recorded(url)
    run = RunDirectory(tmp_path)
    run.adapter.mkdir()
    listed = written(run.adapter, files)
    digest = combined_digest([FileDigest(**each) for each in listed])
    adapter = {"sha256": digest, "bytes": sum(each["bytes"] for each in listed), "files": listed}
    run.training_config.write_text(json.dumps({"schemaVersion": 1, "result": {"adapter": adapter}}))
    monkeypatch.setenv("TERMINATION_LOG", str(tmp_path / "last-words"))

    def send(url: str, uid: str = registry.run_uid) -> int:
        return cli.main(["send", str(tmp_path), f"--registry-url={url}", "--namespace=ml", f"--run-uid={uid}"])

    registering = registered(registry.run_uid, files, name="later")
    version = httpx.put(f"{url}/api/v1/namespaces/ml/runs/{registry.run_uid}/adapter", json=registering).json()
    assert (version["state"], version["stored"]) == ("Registered", False)
    assert send(f"http://127.0.0.1:{free_port()}") == exits.UNAVAILABLE
    assert "RegistryUnavailable" in (tmp_path / "last-words").read_text()
    assert send(url, uid=str(uuid.uuid4())) == exits.INVALID_CONFIGURATION  # not known: in vain for ever
    assert send(url) == exits.OK
    found = httpx.get(f"{url}/api/v1/namespaces/ml/runs/{registry.run_uid}").json()["adapter"]
    assert (found["state"], found["stored"]) == ("Ready", True)


def test_a_registry_that_does_not_know_the_run_is_said_and_left(url: str, tmp_path: Path) -> None:
    registry = RunRegistry(url=url, namespace="ml", run_uid=str(uuid.uuid4()))
    said: list[str] = []
    assert not upload.send(registry, tmp_path, written(tmp_path, adapter_files()), warn=said.append)
    assert len(said) == 1
    assert "is not known in namespace 'ml'" in said[0]


def test_an_answer_that_means_nothing_is_not_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunRegistry, "_request", lambda self, *_: urllib.request.Request(f"{self.url}/healthz"))
    said: list[str] = []
    with serving(f"sqlite:///{tmp_path}/registry.db") as url:
        registry = RunRegistry(url=url, namespace="ml", run_uid="u1")
        assert not upload.send(registry, tmp_path, written(tmp_path, adapter_files()), warn=said.append)
    assert len(said) == 1
    assert "not understood" in said[0]


def test_a_registry_without_a_store_is_no_trouble(tmp_path: Path) -> None:
    said: list[str] = []
    with serving(f"sqlite:///{tmp_path}/registry.db") as url:
        registry = recorded(url)
        files = adapter_files()
        assert not upload.send(registry, tmp_path, written(tmp_path, files), warn=said.append)
        run = f"{url}/api/v1/namespaces/ml/runs/{registry.run_uid}"
        # The operator must know that nothing can be sent later, either.
        assert httpx.put(f"{run}/adapter", json=registered(registry.run_uid, files)).json()["stored"] is None
    assert said == []


@pytest.mark.usefixtures("delays")
def test_a_full_store_is_said_and_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.registry.blobs.folder.RESERVE_SHARE", 1.0)
    monkeypatch.setattr("finetune.registry.blobs.folder.RESERVE_BYTES", 2**60)
    said: list[str] = []
    store = FolderStore(tmp_path / "blobs", label="claim registry")
    with serving(f"sqlite:///{tmp_path}/registry.db", store=store) as url:
        assert not upload.send(recorded(url), tmp_path, written(tmp_path, adapter_files()), warn=said.append)
    assert "claim registry" in said[-1]
