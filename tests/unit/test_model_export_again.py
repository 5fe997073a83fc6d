"""Rows that an earlier attempt has exported need their source no more, nor its Secret, nor the network."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from model import exits
from model.data import export
from model.files import RunDirectory
from tests.support.hub import hub
from tests.support.registry import pairs, run_document, serving
from tests.support.s3 import s3

ROWS = pairs(20)


@dataclass
class Given:
    """A source that is there: flags, and what its Secret gives."""

    flags: list[str]
    environment: dict[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def config_map(folder: Path) -> Iterator[Given]:
    (folder / "train.jsonl").write_bytes(ROWS)
    yield Given(["--source=configMap", f"--path={folder / 'train.jsonl'}"])
    (folder / "train.jsonl").unlink()


@contextlib.contextmanager
def volume(folder: Path) -> Iterator[Given]:
    (folder / "a.jsonl").write_bytes(ROWS)
    yield Given(["--source=volume", f"--path={folder}/*.jsonl"])
    (folder / "a.jsonl").unlink()
    folder.rmdir()


@contextlib.contextmanager
def sql(folder: Path) -> Iterator[Given]:
    path = folder / "rows.db"
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("create table pairs (prompt text, completion text)")
        rows = [json.loads(line) for line in ROWS.splitlines()]
        database.executemany("insert into pairs values (:prompt, :completion)", rows)
    yield Given(["--source=sql", "--query=select * from pairs"], {"DATASET_URL": f"sqlite:///{path}"})
    path.unlink()


@contextlib.contextmanager
def object_store(_folder: Path) -> Iterator[Given]:
    with s3() as server:
        server.create_bucket("data")
        server.put("data", "a.jsonl", ROWS)
        yield Given(
            ["--source=objectStore", "--uri=s3://data/*.jsonl", f"--endpoint={server.endpoint}"], server.environment
        )


@contextlib.contextmanager
def hub_repository(folder: Path) -> Iterator[Given]:
    with hub() as server:
        server.repository("o/d", {"train.jsonl": ROWS}, token="secret")
        found = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(folder), "HF_TOKEN": "secret"}
        yield Given(["--source=hub", "--repository=o/d"], found)


@contextlib.contextmanager
def registry(folder: Path) -> Iterator[Given]:
    with serving(f"sqlite:///{folder / 'registry.db'}") as url:
        base = f"{url}/api/v1/namespaces/ml"
        put("POST", f"{base}/datasets/support/versions", ROWS)
        put("PUT", f"{base}/runs/uid-1", json.dumps(run_document(datasetName="support")).encode())
        token = folder / "token"
        token.write_text("t")
        flags = ["--source=registry", f"--registry-url={url}", f"--registry-token-file={token}", "--namespace=ml"]
        yield Given(flags)
        token.unlink()


def put(method: str, url: str, content: bytes) -> None:
    request = urllib.request.Request(url, content, {"Content-Type": "application/json"}, method=method)
    urllib.request.urlopen(request, timeout=10).close()


SOURCES = {
    "configMap": config_map, "volume": volume, "sql": sql, "objectStore": object_store, "hub": hub_repository,
    "registry": registry,
}  # fmt: skip


@pytest.mark.parametrize("kind", SOURCES)
def test_the_source_is_not_touched_again(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERMINATION_LOG", str(tmp_path / "words"))
    (tmp_path / "source").mkdir()
    directory = RunDirectory(tmp_path / "output")
    usual = [f"--run-directory={directory.path}", "--run-uid=uid-1", "--method=SFT"]
    with SOURCES[kind](tmp_path / "source") as given, monkeypatch.context() as secret:
        for name, value in given.environment.items():
            secret.setenv(name, value)
        assert export.main([*usual, *given.flags]) == 0
    said, files = words(tmp_path), content(directory)
    assert said["dataset"]["rows"] + said["dataset"]["evaluationRows"] == 20
    (tmp_path / "words").unlink()
    assert export.main([*usual, *given.flags]) == 0
    assert (words(tmp_path), content(directory)) == (said, files)
    directory.train_rows.write_text("")
    assert export.main([*usual, *given.flags]) != 0  # the files are not those that the manifest tells of


@pytest.mark.parametrize("url", ["", "postgresql://reader:new@elsewhere/d", "no URL"])
def test_a_runs_rows_stay_whatever_the_secret_says_now(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A password, a user and a host may change while a run trains."""
    monkeypatch.setenv("TERMINATION_LOG", str(tmp_path / "words"))
    usual = [f"--run-directory={tmp_path / 'output'}", "--run-uid=uid-1"]
    with sql(tmp_path) as given:
        monkeypatch.setenv("DATASET_URL", given.environment["DATASET_URL"])
        assert export.main([*usual, *given.flags]) == 0
    said = words(tmp_path)
    monkeypatch.setenv("DATASET_URL", url)
    assert export.main([*usual, *given.flags]) == 0
    assert words(tmp_path) == said


def test_another_query_needs_the_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with ExitStack() as stack:
        given = stack.enter_context(sql(tmp_path))
        monkeypatch.setenv("DATASET_URL", given.environment["DATASET_URL"])
        usual = [f"--run-directory={tmp_path / 'output'}", "--run-uid=uid-1", "--source=sql"]
        assert export.main([*usual, "--query=select * from pairs"]) == 0
        monkeypatch.delenv("DATASET_URL")
        assert export.main([*usual, "--query=select * from pairs limit 9"]) == exits.INVALID_CONFIGURATION
    assert "--source=sql needs the environment variable DATASET_URL" in capsys.readouterr().err


def test_without_a_run_another_database_is_another_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a laptop, where a directory is exported into again."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    usual = [f"--run-directory={tmp_path / 'output'}"]
    times = []
    with sql(tmp_path / "a") as first, sql(tmp_path / "b") as second:
        for given in (first, second):
            monkeypatch.setenv("DATASET_URL", given.environment["DATASET_URL"])
            assert export.main([*usual, *given.flags]) == 0
            times.append(RunDirectory(tmp_path / "output").manifest.stat().st_ino)
    assert times[0] != times[1]


def words(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "words").read_text())
    return document


def content(directory: RunDirectory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.dataset.iterdir()}
