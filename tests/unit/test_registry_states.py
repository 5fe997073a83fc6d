"""What people do with adapter versions over HTTP: states, aliases, tags, deletion; on both databases."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from finetune.registry.blobs import open_store
from tests.support.adapters import adapter_files, make_version
from tests.support.registry import pairs, run_document, serving


@pytest.fixture(scope="module")
def served(backend: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("states")
    if backend == "sqlite":
        database = f"sqlite:///{folder}/registry.db"
    else:
        database = request.getfixturevalue("postgresql_server").new_database(schema=True)
    with serving(database, store=open_store(f"file://{folder}/blobs")) as url:
        yield url


@pytest.fixture
def http(served: str, namespace: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{served}/api/v1/namespaces/{namespace}", timeout=30) as client:
        yield client


def versions(http: httpx.Client, count: int) -> list[dict[str, Any]]:
    return [make_version(http, str(uuid.uuid4()), adapter_files(salt=number)) for number in range(count)]


def refusal(answer: httpx.Response) -> tuple[int, str, str]:
    error = answer.json()["error"]
    return answer.status_code, error["reason"], f"{error['message']} {error['hint']}"


def point(http: httpx.Client, alias: str, version: int, **more: Any) -> httpx.Response:
    return http.put(f"adapters/support/aliases/{alias}", json={"version": version, **more})


def test_an_alias_names_a_version_and_can_be_moved(http: httpx.Client) -> None:
    versions(http, 2)
    assert point(http, "production", 1).json()["version"] == 1
    assert http.get("adapters/support/versions/production").json()["version"] == 1
    assert http.get("adapters/support/versions/production/files/README.md").status_code == 200
    assert point(http, "production", 2).json()["version"] == 2
    found = http.get("adapters/support/versions/production").json()
    assert (found["version"], found["aliases"]) == (2, ["production"])
    assert [item["alias"] for item in http.get("adapters/support/aliases").json()["items"]] == ["production"]
    assert http.delete("adapters/support/aliases/production").status_code == 204
    assert http.delete("adapters/support/aliases/production").status_code == 204
    status, _, words = refusal(http.get("adapters/support/versions/production"))
    assert status == 404
    assert "none yet" in words


def test_an_alias_is_moved_only_from_where_it_is_expected(http: httpx.Client) -> None:
    versions(http, 3)
    assert point(http, "candidate", 1, expected=0).status_code == 200
    assert refusal(point(http, "candidate", 2, expected=0))[:2] == (409, "Conflict")
    assert refusal(point(http, "candidate", 3, expected=2))[:2] == (409, "Conflict")
    assert point(http, "candidate", 2, expected=1).status_code == 200
    assert refusal(http.delete("adapters/support/aliases/candidate?expected=1"))[:2] == (409, "Conflict")
    assert http.get("adapters/support/versions/candidate").json()["version"] == 2


def test_of_many_who_expect_the_same_one_moves_the_alias(http: httpx.Client) -> None:
    versions(http, 2)
    point(http, "candidate", 1)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: point(http, "candidate", 2, expected=1).status_code, range(8)))
    assert sorted(answers) == [200, *[409] * 7]


@pytest.mark.parametrize("alias", ["latest", "1", "Production", "a--", "x" * 64, "a_b"])
def test_what_is_no_alias_is_refused(http: httpx.Client, alias: str) -> None:
    versions(http, 1)
    assert point(http, alias, 1).status_code == 422


def test_an_alias_of_nothing_is_refused(http: httpx.Client) -> None:
    assert refusal(point(http, "candidate", 1))[0] == 404
    versions(http, 1)
    assert refusal(point(http, "candidate", 2))[0] == 404


def test_marks_say_what_a_version_is_good_for(http: httpx.Client) -> None:
    versions(http, 3)
    newest = "adapters/support/versions/latest"
    marked = http.patch("adapters/support/versions/3", json={"mark": "Quarantined", "reason": "diverged"}).json()
    assert (marked["state"], marked["stateReason"]) == ("Quarantined", "diverged")
    assert http.get(newest).json()["version"] == 2
    status, _, words = refusal(http.get("adapters/support/versions/3/archive.tar"))
    assert status == 404
    assert "diverged" in words
    assert refusal(point(http, "candidate", 3))[0] == 404
    assert http.patch("adapters/support/versions/2", json={"mark": "Archived"}).json()["state"] == "Archived"
    assert http.get(newest).json()["version"] == 1
    assert http.patch("adapters/support/versions/1", json={"mark": "Deprecated"}).json()["state"] == "Deprecated"
    assert http.get(newest).json()["version"] == 1
    assert [item["version"] for item in http.get("adapters").json()["items"]] == [1]
    assert http.patch("adapters/support/versions/3", json={"mark": None}).json()["state"] == "Ready"
    assert http.get(newest).json()["version"] == 3


def test_tags_and_notes_stay_until_they_are_changed(http: httpx.Client) -> None:
    versions(http, 1)
    url = "adapters/support/versions/latest"
    http.patch(url, json={"tags": {"team": "ml"}, "notes": "good at dates"})
    found = http.patch(url, json={"mark": "Deprecated"}).json()
    assert (found["tags"], found["notes"], found["state"]) == ({"team": "ml"}, "good at dates", "Deprecated")
    assert http.patch(url, json={"tags": {}}).json()["tags"] == {}
    for wrong in (
        {"mark": "Deleted"},
        {"mark": "Ready"},
        {"tags": {"a b": "c"}},
        {"tags": {"a": "\x00"}},
        {"notes": "\x00"},
        {"notes": "x" * 20_000},
        {"unknown": 1},
        {"tags": {f"t{number}": "" for number in range(65)}},
    ):
        assert http.patch(url, json=wrong).status_code == 422, wrong


def test_a_deleted_version_keeps_its_number_and_what_is_known_of_it(http: httpx.Client) -> None:
    versions(http, 2)
    point(http, "production", 2)
    assert "production" in refusal(http.delete("adapters/support/versions/2"))[2]
    point(http, "production", 1)
    gone = http.delete("adapters/support/versions/2").json()
    assert (gone["state"], gone["stored"]) == ("Deleted", False)
    assert http.delete("adapters/support/versions/2").json()["state"] == "Deleted"
    assert http.get("adapters/support/versions/2").json()["sha256"] == gone["sha256"]
    assert refusal(http.get("adapters/support/versions/2/files/README.md"))[0] == 404
    assert refusal(http.patch("adapters/support/versions/2", json={"mark": None}))[:2] == (409, "Conflict")
    assert http.get("adapters/support/versions/latest").json()["version"] == 1
    assert make_version(http, str(uuid.uuid4()), adapter_files(salt=9))["version"] == 3
    assert refusal(http.delete("adapters/support/versions/latest"))[0] == 422


def test_the_parent_of_an_unfinished_run_stays(http: httpx.Client) -> None:
    versions(http, 1)
    uid = str(uuid.uuid4())
    child = run_document(name="child", parentAdapterName="support")
    assert http.put(f"runs/{uid}", json=child).status_code == 201
    assert "child" in refusal(http.delete("adapters/support/versions/1"))[2]
    end = {"phase": "Failed", "ended": True, "version": 1}
    assert http.put(f"runs/{uid}/status", json=end).status_code == 200
    assert http.delete("adapters/support/versions/1").status_code == 200
    status, reason, words = refusal(http.put(f"runs/{uuid.uuid4()}", json=child))
    assert (status, reason) == (404, "ParentAdapterNotFound")
    assert "no version" in words


def test_a_quarantined_parent_is_none(http: httpx.Client) -> None:
    versions(http, 1)
    http.patch("adapters/support/versions/1", json={"mark": "Quarantined", "reason": "leaks"})
    child = run_document(name="child", parentAdapterName="support", parentAdapterVersion=1)
    status, reason, words = refusal(http.put(f"runs/{uuid.uuid4()}", json=child))
    assert (status, reason) == (404, "ParentAdapterNotFound")
    assert "leaks" in words


def test_a_deleted_dataset_version_is_gone_and_comes_back_with_its_number(http: httpx.Client) -> None:
    for number in range(2):
        http.post("datasets/tickets/versions", content=pairs(3, tag=str(number)))
    uid = str(uuid.uuid4())
    http.put(f"runs/{uid}", json=run_document(name="reader", datasetName="tickets"))
    assert "reader" in refusal(http.delete("datasets/tickets/versions/2"))[2]
    http.put(f"runs/{uid}/status", json={"phase": "Failed", "ended": True, "version": 1})
    assert http.delete("datasets/tickets/versions/2").status_code == 204
    assert http.delete("datasets/tickets/versions/2").status_code == 204
    assert http.get("datasets/tickets/versions/latest").json()["version"] == 1
    assert [item["version"] for item in http.get("datasets/tickets").json()["items"]] == [1]
    assert refusal(http.get("datasets/tickets/versions/2/rows"))[0] == 404
    assert http.get(f"runs/{uid}").json()["datasetVersion"] == 2
    again = http.post("datasets/tickets/versions", content=pairs(3, tag="1"))
    assert (again.status_code, again.json()["version"]) == (201, 2)
    assert http.get("datasets/tickets/versions/2/rows").content == pairs(3, tag="1")
    assert http.post("datasets/tickets/versions", content=pairs(3, tag="2")).json()["version"] == 3
    assert refusal(http.delete("datasets/nothing/versions/1"))[0] == 404
