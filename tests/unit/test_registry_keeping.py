"""A registry in a backup and back, between both databases; and its audit trail, as it is read."""

from __future__ import annotations

import json
import random
import tracemalloc
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import insert, select, text

from finetune.registry import backup
from finetune.registry.blobs import open_store
from finetune.registry.database import parse_url
from finetune.registry.migrate import migrate, synchronous_engine
from finetune.registry.schema import content_chunks, contents, metadata
from tests.support.adapters import adapter_files, make_version
from tests.support.postgresql import PostgreSQL
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
    """What an older registry wrote had no tables of rows in the store and of interim adapters, and columns less."""
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
            if name not in {"tables/content_blobs.jsonl", "tables/interim_adapters.jsonl"}:
                target.writestr(name, content)
    url = another("sqlite")
    backup.restore(old, parse_url(url))
    with serving(url) as served:
        assert httpx.get(f"{served}/api/v1/namespaces/ml/datasets/tickets/versions/1/rows").content == ROWS


def test_what_is_no_backup_and_what_fails_halfway_leaves_the_database_empty(
    empty_database_url: str, another: Callable[[str], str], tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("something else")
    with pytest.raises(backup.BackupError, match="is no backup"):
        backup.restore(wrong, parse_url(empty_database_url))
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
    with pytest.raises(backup.BackupError, match="do not fit together"):
        backup.restore(twice, parse_url(empty_database_url))
    migrate(parse_url(empty_database_url))
    assert {name: len(rows) for name, rows in rows_of(empty_database_url).items() if rows} == {"compatibility": 1}
    backup.restore(good, parse_url(empty_database_url))
    assert rows_of(empty_database_url) == rows_of(url)


def blob_folder(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "blobs").rglob("*") if path.is_file())


def test_files_that_cannot_be_read_leave_no_half_of_a_backup(tmp_path: Path, finetune: Finetune) -> None:
    url, file = f"sqlite:///{tmp_path}/registry.db", tmp_path / "registry.backup"
    with registry(url, tmp_path) as http:
        fill(http)
    files = blob_folder(tmp_path)
    last = files[-1]
    last.rename(last.with_name("elsewhere"))
    last.mkdir()  # a disk that fails
    at = ("registry", "backup", str(file), f"--database-url={url}", "--files")
    failed = finetune(*at)
    assert (failed.code, "does not answer" in failed.err) == (1, True), failed
    assert [path.name for path in tmp_path.iterdir() if "backup" in path.name] == []
    last.rmdir()
    made = finetune(*at)  # a deletion while it was made looks like this
    assert (made.code, f"1 files are not in the store {tmp_path}/blobs" in made.err, last.name in made.err) == (
        0,
        True,
        True,
    ), made
    assert f"and {len(files) - 1} files" in made.out
    missing = finetune("registry", "backup", f"{tmp_path}/none/of/it", f"--database-url={url}")
    assert (missing.code, "cannot be written: No such file" in missing.err) == (1, True), missing


def test_a_restore_puts_nothing_into_a_store_that_is_not_its_own(tmp_path: Path, finetune: Finetune) -> None:
    url, file = f"sqlite:///{tmp_path}/registry.db", tmp_path / "registry.backup"
    with registry(url, tmp_path) as http:
        fill(http)
    backup.back_up(parse_url(url), file, open_store(f"file://{tmp_path}/blobs"))
    full = tmp_path / "full"
    with registry(f"sqlite:///{full}/registry.db", full) as http:
        http.post("datasets/other/versions", content=pairs(2)).raise_for_status()
    before = blob_folder(full)
    refused = finetune("registry", "restore", str(file), f"--database-url=sqlite:///{full}/registry.db")
    assert (refused.code, "has rows already" in refused.err) == (1, True), refused
    assert blob_folder(full) == before
    kept = len(blob_folder(tmp_path))
    with pytest.raises(backup.BackupError, match=f"has {kept} files, and there is no store"):
        backup.restore(file, parse_url(f"sqlite:///{tmp_path}/new.db"))
    content = bytearray(file.read_bytes())
    name = b"tables/dataset_versions.jsonl"
    content[content.index(name) + len(name) + 30] ^= 0xFF  # beyond the header that stands between: in the rows
    file.write_bytes(content)
    damaged = finetune("registry", "restore", str(file), f"--database-url=sqlite:///{tmp_path}/new/registry.db")
    assert (damaged.code, f"{file} is damaged" in damaged.err) == (1, True), damaged


def test_a_database_that_a_newer_registry_has_changed_is_not_backed_up_without_its_columns(tmp_path: Path) -> None:
    url = parse_url(f"sqlite:///{tmp_path}/registry.db")
    migrate(url)
    engine = synchronous_engine(url)
    with engine.connect() as connection, connection.begin():
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(backup.BackupError, match="schema 9999"):
        backup.back_up(url, tmp_path / "registry.backup")
    assert not list(tmp_path.glob("*backup*"))


def test_a_user_of_the_database_who_may_not_is_one_line(postgresql_server: PostgreSQL, finetune: Finetune) -> None:
    url = postgresql_server.new_database()
    user = f"guest_{uuid.uuid4().hex[:6]}"
    engine = synchronous_engine(parse_url(url))
    with engine.connect() as connection, connection.begin():
        connection.execute(text(f"CREATE ROLE {user} LOGIN"))
        connection.execute(text("REVOKE CREATE ON SCHEMA public FROM PUBLIC"))  # as it is from PostgreSQL 15 on
    engine.dispose()
    guest = f"--database-url={url.replace('finetune@', f'{user}@')}"
    for command in ("migrate", "namespaces"):
        done = finetune("registry", command, guest)
        assert (done.code, "the database refuses: " in done.err, "permission denied" in done.err) == (1, True, True)
        assert "Traceback" not in done.err


def test_rows_of_many_bytes_are_not_all_held_in_memory(postgresql_server: PostgreSQL, tmp_path: Path) -> None:
    database_url = postgresql_server.new_database()  # where rows are in the database
    url, count, mib = parse_url(database_url), 24, 1024 * 1024
    migrate(url)
    engine = synchronous_engine(url)
    chunk = random.Random(7).randbytes(mib)
    with engine.connect() as connection, connection.begin():
        (content,) = connection.execute(
            insert(contents).values(touched_time=datetime.now(UTC), attached=True).returning(contents.c.id)
        ).one()
        for number in range(count):
            connection.execute(insert(content_chunks).values(content_id=content, number=number, data=chunk))
    engine.dispose()
    tracemalloc.start()
    backup.back_up(url, tmp_path / "registry.backup")
    backup.restore(tmp_path / "registry.backup", parse_url(f"sqlite:///{tmp_path}/new/registry.db"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * mib
    assert rows_of(f"sqlite:///{tmp_path}/new/registry.db") == rows_of(database_url)


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
        of_adapter = http.get("audit", params={"subject": "support"}).json()["items"]
        assert [each["subject"] for each in of_adapter] == ["support/1", "support@production", "support/1"]
        assert http.get("audit", params={"subject": "ticket"}).json()["items"] == []
        assert http.get("audit", params={"since": "2100-01-01T00:00:00Z"}).json()["items"] == []
        assert http.get("audit", params={"limit": 0}).status_code == 422
        assert httpx.get(f"{str(http.base_url).replace('/ml', '/other')}audit").json()["items"] == []
    at = f"--database-url={database_url}"
    listed = finetune("registry", "audit", "ml", at, "-o", "json", "--limit=3")
    assert [json.loads(line)["action"] for line in listed.out.splitlines()] == [each["action"] for each in whole[:3]]
    told = finetune("registry", "audit", "--action=CreateDatasetVersion", at).out
    assert "  local  CreateDatasetVersion  ml  tickets/1  " in told
