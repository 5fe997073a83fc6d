"""What the store has lost is taken again, and what no row knows of is found; on both databases."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from finetune.registry.blobs import open_store
from finetune.registry.database import Database, parse_url
from finetune.registry.store import garbage
from tests.support.adapters import adapter_files, announce, make_version, send
from tests.support.registry import pairs, serving

NOW = timedelta(0)


@pytest.fixture
def blobs(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
def http(database_url: str, blobs: Path) -> Iterator[httpx.Client]:
    with (
        serving(database_url, store=open_store(f"file://{blobs}")) as url,
        httpx.Client(base_url=f"{url}/api/v1/namespaces/ml", timeout=30) as client,
    ):
        yield client


def files_in(blobs: Path) -> list[Path]:
    return [path for path in blobs.rglob("*") if path.is_file()]


def test_a_file_that_was_lost_is_sent_again(http: httpx.Client, blobs: Path) -> None:
    files, uid = adapter_files(), str(uuid.uuid4())
    make_version(http, uid, files)
    content = files["adapter_model.safetensors"]
    digest = hashlib.sha256(content).hexdigest()
    (blobs / digest[:2] / digest).unlink()
    url = "adapters/support/versions/1/files/adapter_model.safetensors"
    lost = http.get(url)
    assert (lost.status_code, lost.json()["error"]["reason"]) == (503, "BlobMissing")
    assert announce(http, uid, files).json()["missing"] == [digest]
    assert send(http, uid, content).status_code == 201
    assert http.get(url).content == content
    assert announce(http, uid, files).json() == {"missing": [], "stored": True}
    # Of another run that has the same bytes, too: it does not take them for sent.
    other = str(uuid.uuid4())
    (blobs / digest[:2] / digest).unlink()
    assert http.put(f"runs/{other}", json={"name": "o", "experiment": "o", "method": "SFT", "spec": {}}).is_success
    assert announce(http, other, files).json()["missing"] == [digest]


def test_rows_that_were_lost_are_pushed_again(http: httpx.Client, blobs: Path) -> None:
    rows = pairs(50)
    assert http.post("datasets/tickets/versions", content=rows).status_code == 201
    for path in files_in(blobs):
        path.unlink()
    assert http.get("datasets/tickets/versions/1/rows").status_code == 503
    again = http.post("datasets/tickets/versions", content=rows)
    assert (again.status_code, again.json()["version"]) == (200, 1)
    assert http.get("datasets/tickets/versions/1/rows").content == rows
    kept = files_in(blobs)
    assert http.post("datasets/tickets/versions", content=rows).status_code == 200
    assert files_in(blobs) == kept


async def test_files_of_which_no_row_knows_are_removed_when_it_is_asked_for(
    http: httpx.Client, database_url: str, blobs: Path
) -> None:
    make_version(http, str(uuid.uuid4()), adapter_files())
    known = set(files_in(blobs))
    stranger = blobs / "ab" / ("ab" + "0" * 62)
    stranger.parent.mkdir(exist_ok=True)
    stranger.write_bytes(b"left by a database that was lost")
    store = open_store(f"file://{blobs}")
    database = Database(parse_url(database_url))
    try:
        assert (await garbage.collect(database, store, dry_run=False, older_than=NOW)).blobs == 0
        assert (await garbage.collect_orphans(database, store, dry_run=False)).blobs == 0  # it is young
        for dry_run in (True, False):
            found = await garbage.collect_orphans(database, store, dry_run=dry_run, older_than=NOW)
            assert (found.blobs, found.bytes) == (1, len(b"left by a database that was lost"))
            assert stranger.exists() is dry_run
        assert (await garbage.collect_orphans(database, store, dry_run=True, older_than=NOW)).blobs == 0
    finally:
        await database.close()
        await store.close()
    assert set(files_in(blobs)) == known
