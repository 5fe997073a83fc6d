"""A registry in a backup and back, between both databases; and its audit trail, as it is read."""

from __future__ import annotations

import json
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from finetune.registry import backup
from finetune.registry.blobs import open_store
from finetune.registry.database import parse_url
from finetune.registry.migrate import migrate, synchronous_engine
from finetune.registry.schema import metadata
from tests.support.adapters import adapter_files, make_version
from tests.support.registry import pairs, run_document, serving
from tests.unit.test_registry_server import Finetune, finetune

__all__ = ["finetune"]

ROWS = pairs(40)
FILES = adapter_files(salt=7)


@contextmanager
def registry(url: str, folder: Path) -> Iterator[httpx.Client]:
    with (
        serving(url, store=open_store(f"file://{folder}/blobs")) as served,
        httpx.Client(base_url=f"{served}/api/v1/namespaces/ml", timeout=30) as client,
    ):
        yield client


def fill(http: httpx.Client) -> None:
    """Something in every table that people and runs fill."""
    http.post("datasets/tickets/versions", content=ROWS).raise_for_status()
    uid = str(uuid.uuid4())
    make_version(http, uid, FILES)
    http.put("adapters/support/aliases/production", json={"version": 1}).raise_for_status()
    child = {**run_document(name="child"), "parentAdapterName": "support"}
    http.put("runs/child", json=child).raise_for_status()
    point = {"step": 1, "values": {"loss": 2.5}}
    status = {
        "trainerStatus": {"progressPercentage": 5, "metrics": []},
        "attempt": 1,
        "startStep": 0,
        "points": [point],
    }
    http.post("runs/child/status", json=status).raise_for_status()
    http.patch("adapters/support/versions/1", json={"notes": "good", "tags": {"a": "b"}}).raise_for_status()


def rows_of(url: str) -> dict[str, list[dict[str, Any]]]:
    """All rows of a database, in words that are the same for both kinds."""
    engine = synchronous_engine(parse_url(url))
    with engine.connect() as connection:
        found = {
            table.name: sorted((dict(row._mapping) for row in connection.execute(select(table))), key=str)
            for table in metadata.sorted_tables
            if table.name not in backup.LEFT_OUT
        }
    engine.dispose()
    return found


@pytest.fixture
def another(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """Makes an empty database of a kind."""

    def make(kind: str) -> str:
        if kind == "sqlite":
            return f"sqlite:///{tmp_path}/restored-{uuid.uuid4().hex[:6]}/registry.db"
        return str(request.getfixturevalue("postgresql_server").new_database())

    return make


@pytest.mark.parametrize("target", ["sqlite", "postgresql"])
def test_a_registry_comes_back_from_its_backup_in_either_database(
    database_url: str, another: Callable[[str], str], target: str, tmp_path: Path, finetune: Finetune
) -> None:
    with registry(database_url, tmp_path) as http:
        fill(http)
        file, store = str(tmp_path / "registry.backup"), f"--store=file://{tmp_path}/blobs"
        done = finetune(
            "registry", "backup", file, f"--database-url={database_url}", store, "--files"
        )  # while it serves
        assert (done.code, "rows and" in done.out) == (0, True), done
    assert (tmp_path / "registry.backup").stat().st_mode & 0o777 == 0o600
    before = rows_of(database_url)
    url, place = another(target), tmp_path / "new"
    restored = finetune("registry", "restore", file, f"--database-url={url}", f"--store=file://{place}/blobs")
    assert restored.code == 0, restored
    assert rows_of(url) == before
    again = finetune("registry", "restore", file, f"--database-url={url}", f"--store=file://{place}/blobs")
    assert (again.code, "has rows already" in again.err) == (1, True)
    with registry(url, place) as http:
        assert http.get("datasets/tickets/versions/1/rows").content == ROWS
        weights = http.get("adapters/support/versions/production/files/adapter_model.safetensors")
        assert weights.content == FILES["adapter_model.safetensors"]
        # Numbers go on after those that came with the backup.
        assert make_version(http, str(uuid.uuid4()), adapter_files(salt=8))["version"] == 2


def test_a_backup_of_an_older_schema_is_migrated_when_it_is_restored(
    database_url: str, another: Callable[[str], str], tmp_path: Path
) -> None:
    """What an older registry wrote had no table of rows in the store, and columns less."""
    with serving(database_url) as served:
        rows = httpx.post(f"{served}/api/v1/namespaces/ml/datasets/tickets/versions", content=ROWS)
        assert rows.status_code == 201
    new, old = tmp_path / "new.backup", tmp_path / "old.backup"
    backup.back_up(parse_url(database_url), new)
    with zipfile.ZipFile(new) as source, zipfile.ZipFile(old, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "backup.json":
                content = json.dumps({**json.loads(content), "schema": "0004"}).encode()
            if name != "tables/content_blobs.jsonl":
                target.writestr(name, content)
    url = another("sqlite")
    backup.restore(old, parse_url(url))
    with serving(url) as served:
        assert httpx.get(f"{served}/api/v1/namespaces/ml/datasets/tickets/versions/1/rows").content == ROWS


def test_what_is_no_backup_and_what_fails_halfway_leaves_the_database_empty(
    database_url: str, another: Callable[[str], str], tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("something else")
    with pytest.raises(backup.BackupError, match="is no backup"):
        backup.restore(wrong, parse_url(database_url))
    url = another("sqlite")
    with registry(url, tmp_path) as http:
        fill(http)
    good, twice = tmp_path / "good", tmp_path / "twice"
    backup.back_up(parse_url(url), good)
    with pytest.raises(backup.BackupError, match="is there already"):
        backup.back_up(parse_url(url), good)
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(twice, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, content * 2 if name == "tables/audit.jsonl" else content)
    with pytest.raises(IntegrityError):
        backup.restore(twice, parse_url(database_url))
    migrate(parse_url(database_url))
    assert {name: len(rows) for name, rows in rows_of(database_url).items() if rows} == {"compatibility": 1}
    backup.restore(good, parse_url(database_url))
    assert rows_of(database_url) == rows_of(url)


def test_the_audit_trail_is_read_by_page_and_by_what_is_asked(
    database_url: str, tmp_path: Path, finetune: Finetune
) -> None:
    with registry(database_url, tmp_path) as http:
        fill(http)
        whole = http.get("audit").json()["items"]
        assert [each["action"] for each in whole] == [
            "ChangeAdapter", "CreateRun", "MoveAlias", "StoreAdapter", "RegisterAdapter", "CreateRun",
            "CreateDatasetVersion",
        ]  # fmt: skip
        times = [each["time"] for each in whole]
        assert times == sorted(times, reverse=True)
        pages, after = [], None
        while True:
            page = http.get("audit", params={"limit": 2, **({"continue": after} if after else {})}).json()
            pages += page["items"]
            if (after := page.get("continue")) is None:
                break
        assert pages == whole
        (pushed,) = http.get("audit", params={"action": "CreateDatasetVersion", "actor": "local"}).json()["items"]
        assert (pushed["subject"], pushed["details"]["rows"]) == ("tickets/1", 40)
        assert http.get("audit", params={"subject": "tickets"}).json()["items"] == [pushed]
        assert http.get("audit", params={"subject": "ticket"}).json()["items"] == []
        assert http.get("audit", params={"since": "2100-01-01T00:00:00Z"}).json()["items"] == []
        assert http.get("audit", params={"limit": 0}).status_code == 422
        assert httpx.get(f"{str(http.base_url).replace('/ml', '/other')}audit").json()["items"] == []
    at = f"--database-url={database_url}"
    listed = finetune("registry", "audit", "ml", at, "-o", "json", "--limit=3")
    assert [json.loads(line)["action"] for line in listed.out.splitlines()] == [each["action"] for each in whole[:3]]
    told = finetune("registry", "audit", "--action=CreateDatasetVersion", at).out
    assert "  local  CreateDatasetVersion  ml  tickets/1  " in told
