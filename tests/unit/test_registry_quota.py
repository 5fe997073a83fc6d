"""What a namespace may keep, and which versions retention takes; on both databases."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from finetune.registry.blobs import open_store
from finetune.registry.server import InvalidSettings, Settings
from finetune.registry.store.files import FileLimits
from tests.support.adapters import adapter_files, announce, make_version, send
from tests.support.registry import pairs, run_document, serving

FILES = adapter_files(numbers=1000)
SIZE = sum(map(len, FILES.values()))


@contextmanager
def registry(database_url: str, folder: Path, **settings: Any) -> Iterator[httpx.Client]:
    with (
        serving(database_url, store=open_store(f"file://{folder}/blobs"), **settings) as url,
        httpx.Client(base_url=f"{url}/api/v1/namespaces/ml", timeout=30) as client,
    ):
        yield client


@pytest.fixture
def http(database_url: str, tmp_path: Path) -> Iterator[httpx.Client]:
    """A registry whose namespaces may have two such adapters and a few rows."""
    with registry(database_url, tmp_path, limits=FileLimits(namespace_bytes=2 * SIZE + 1000)) as client:
        yield client


def test_a_namespace_has_no_more_than_it_may(http: httpx.Client) -> None:
    make_version(http, str(uuid.uuid4()), FILES)
    make_version(http, str(uuid.uuid4()), FILES)  # the same bytes count once
    make_version(http, str(uuid.uuid4()), adapter_files(salt=1))
    uid = str(uuid.uuid4())
    http.put(f"runs/{uid}", json=run_document())
    refused = announce(http, uid, adapter_files(salt=2))
    assert (refused.status_code, refused.json()["error"]["reason"]) == (507, "QuotaExceeded")
    assert "'ml' has " in refused.json()["error"]["message"]
    rows = pairs(40)
    assert len(rows) > 1000
    refused = http.post("datasets/tickets/versions", content=rows)
    assert (refused.status_code, refused.json()["error"]["reason"]) == (507, "QuotaExceeded")
    assert http.get("datasets").json()["items"] == []
    # Another namespace has a quota of its own, and deleting makes room at once.
    other = httpx.post(f"{str(http.base_url).replace('/ml', '/other')}datasets/tickets/versions", content=rows)
    assert other.status_code == 201
    assert http.delete("adapters/support/versions/3").status_code == 200
    assert http.post("datasets/tickets/versions", content=rows).status_code == 201
    assert announce(http, uid, FILES).json()["missing"] == []  # needs no room


def test_some_namespaces_have_quotas_of_their_own(database_url: str, tmp_path: Path) -> None:
    limits = FileLimits(namespace_bytes=100, namespace_quotas={"ml": 10_000, "free": 0})
    with registry(database_url, tmp_path, limits=limits) as http:
        for namespace, size, status in (("ml", 40, 201), ("ml", 400, 507), ("free", 400, 201), ("others", 40, 507)):
            url = str(http.base_url).replace("/ml", f"/{namespace}")
            answer = httpx.post(f"{url}datasets/tickets/versions", content=pairs(size), timeout=30)
            assert answer.status_code == status, (namespace, size)


def test_other_files_of_a_run_need_the_room_of_those_before(http: httpx.Client) -> None:
    make_version(http, str(uuid.uuid4()), FILES)
    uid = str(uuid.uuid4())
    http.put(f"runs/{uid}", json=run_document()).raise_for_status()
    for salt in (1, 2):
        files = adapter_files(salt=salt)
        missing = announce(http, uid, files)
        assert missing.status_code == 200, missing.text
        for content in files.values():
            assert send(http, uid, content).status_code in {200, 201}


def test_retention_keeps_the_newest_what_has_an_alias_and_what_a_run_goes_on_from(
    database_url: str, tmp_path: Path
) -> None:
    with registry(database_url, tmp_path) as http:
        for salt in range(1, 7):
            make_version(http, str(uuid.uuid4()), adapter_files(salt=salt))
        http.put("adapters/support/aliases/production", json={"version": 2}).raise_for_status()
        parent = {**run_document(), "parentAdapterName": "support", "parentAdapterVersion": 3}
        http.put(f"runs/{uuid.uuid4()}", json=parent).raise_for_status()
    with registry(database_url, tmp_path, keep_versions=2) as http:  # it cleans up as it starts
        deadline = time.monotonic() + 60
        while (states := states_of(http)) != {
            1: "Deleted",
            2: "Ready",
            3: "Ready",
            4: "Deleted",
            5: "Ready",
            6: "Ready",
        }:
            assert time.monotonic() < deadline, states
    # What versions share is kept: the card. Of each one that is left there are two more files.
    assert len(list((tmp_path / "blobs").glob("??/*"))) == 1 + 2 * 4


def states_of(http: httpx.Client) -> dict[int, str]:
    return {each["version"]: each["state"] for each in http.get("adapters/support").json()["items"]}


def test_rows_are_bounded_as_an_administrator_says(database_url: str, tmp_path: Path) -> None:
    with registry(database_url, tmp_path, limits=FileLimits(line_bytes=2**20, line_values=100)) as http:
        for row, words in (
            ({"prompt": "x" * 2**20, "completion": "y"}, "line 1: longer than 1 MiB"),
            ({"prompt": "x", "completion": "y", "more": [0] * 101}, "line 1: has more than 100 values"),
        ):
            refused = http.post("datasets/tickets/versions", content=json.dumps(row) + "\n")
            assert (refused.status_code, words in refused.json()["error"]["message"]) == (422, True), refused.text
        assert http.post("datasets/tickets/versions", content=pairs(2)).status_code == 201


@pytest.mark.parametrize("field", ["namespace_bytes", "keep_versions", "line_bytes", "line_values"])
def test_nothing_at_all_is_no_limit(field: str) -> None:
    with pytest.raises(InvalidSettings, match="more than 0"):
        Settings(database_url="sqlite:////x/registry.db", **{field: 0}).check()  # type: ignore[arg-type]
