"""What the registry counts, through its own HTTP API, and that no series grows with what people send."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.registry import pairs, run_document, serving
from tests.support.waiting import wait_for

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
ROOT = "/api/v1/namespaces/{namespace}"


@pytest.fixture
def url(database_url: str) -> Iterator[str]:
    """A registry of this test's own: what others send would be counted, too."""
    with serving(database_url) as served:
        yield served


def samples(url: str) -> Samples:
    answer = httpx.get(f"{url}/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(answer.text)
    return {(each.name, frozenset(each.labels.items())): each.value for family in families for each in family.samples}


def value(found: Samples, name: str, **labels: str) -> float | None:
    return found.get((f"finetune_registry_{name}", frozenset(labels.items())))


def requests(found: Samples, route: str, method: str, code: str) -> float | None:
    return value(found, "requests_total", route=route, method=method, code=code)


def test_requests_are_counted_by_the_routes_template(url: str) -> None:
    for name in ("tickets", "chats"):
        sent = httpx.post(f"{url}/api/v1/namespaces/ml/datasets/{name}/versions", content=pairs(3, tag=name))
        assert sent.status_code == 201
    again = httpx.post(f"{url}/api/v1/namespaces/ml/datasets/tickets/versions", content=pairs(3, tag="tickets"))
    assert again.status_code == 200
    assert httpx.get(f"{url}/api/v1/namespaces/ml/datasets/nothing").status_code == 404
    found = samples(url)
    route = f"{ROOT}/datasets/{{name}}/versions"
    assert requests(found, route, "POST", "201") == 2
    assert requests(found, route, "POST", "200") == 1
    assert requests(found, f"{ROOT}/datasets/{{name}}", "GET", "404") == 1
    assert value(found, "request_duration_seconds_count", route=route, method="POST") == 3
    assert value(found, "uploaded_rows_total") == 6
    assert value(found, "uploaded_bytes_total") == len(pairs(3, tag="tickets")) + len(pairs(3, tag="chats"))


def test_points_are_counted(url: str) -> None:
    uid = str(uuid.uuid4())
    base = f"{url}/api/v1/namespaces/ml/runs/{uid}"
    assert httpx.put(base, json=run_document()).status_code == 201
    metrics = [{"name": "loss", "value": "2.5"}, {"name": "step", "value": "1"}]
    post = {"trainerStatus": {"metrics": metrics, "lastUpdatedTime": "2026-11-24T06:00:00Z"}}
    assert httpx.post(f"{base}/status", json=post).is_success
    assert value(samples(url), "points_total") == 2


def test_the_database_is_measured(url: str, backend: str) -> None:
    # Who cleans up holds one as the registry starts.
    wait_for(lambda: value(samples(url), "pool_connections_in_use") == 0)
    found = samples(url)
    assert (value(found, "database_bytes") or 0) > 10_000
    assert value(found, "store_bytes") == 0
    assert value(found, "pool_connections") == (8 if backend == "sqlite" else 20)
    on_a_volume = value(found, "volume_bytes")
    assert (on_a_volume is not None) == (backend == "sqlite")
    if on_a_volume is not None:
        assert 0 < (value(found, "volume_free_bytes") or 0) <= on_a_volume


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_no_label_grows_with_what_is_sent(url: str) -> None:
    def series() -> set[tuple[str, frozenset[tuple[str, str]]]]:
        return {each for each in samples(url) if each[0].startswith("finetune_registry_")}

    def odd(client: httpx.Client, word: str) -> None:
        client.request("BREW", f"/api/v1/namespaces/{word}/datasets")
        client.request(word.upper(), f"/{word}")
        client.get(f"/api/v1/namespaces/{word}/datasets/{word}?{word}={word}", headers={word: word})
        client.get(f"/healthz/{word}%0a%22")
        client.put(f"/api/v1/namespaces/{word}/runs/{word}", content=word)

    with httpx.Client(base_url=url) as client:
        odd(client, "word")
        series()  # the page counts itself from its second time on
        before = series()
        for number in range(50):
            odd(client, f"word{number}")
        assert series() == before
    assert not any("word" in text for _, labels in before for _, text in labels)


def test_a_page_without_a_database_is_still_a_page(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with serving(f"sqlite:///{folder}/registry.db") as url:
        for file in folder.iterdir():
            file.unlink()
        found = samples(url)
    assert requests(found, "/metrics", "GET", "200") is None  # it counts itself once it is sent
    assert value(found, "pool_connections") == 8
