"""Requests that mean no good, or no sense: each ends in its 4xx with an error document, and changes nothing."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.support.registry import adapter_document, pairs, run_document

BASE = "/api/v1/namespaces/{namespace}"
RUN = f"{BASE}/runs/{{uid}}"
BIG = "1" * 30
DEEP = "[" * 100_000


def run_with(**changes: Any) -> bytes:
    return json.dumps(run_document(**changes)).encode()


def spec_of(text: str) -> bytes:
    return run_with(spec={"x": "HERE"}).replace(b'"HERE"', text.encode())


def status_with(**changes: Any) -> bytes:
    return json.dumps({"trainerStatus": changes}).encode()


def post_with(**changes: Any) -> bytes:
    return json.dumps({"trainerStatus": {}, "attempt": 1, **changes}).encode()


def points(*steps: Any) -> bytes:
    return post_with(points=list(steps))


def outcome(**changes: Any) -> bytes:
    return json.dumps({"phase": "Training", **changes}).encode()


Case = tuple[str, str, bytes | None, int]
CASES: dict[str, Case] = {
    # Paths and queries
    "a page number that no database counts to": ("GET", f"{BASE}/datasets/d?continue={BIG}", None, 422),
    "the same for adapters": ("GET", f"{BASE}/adapters/a?continue={BIG}", None, 422),
    "a negative page": ("GET", f"{BASE}/datasets/d?continue=-1", None, 422),
    "page 0": ("GET", f"{BASE}/adapters/a?continue=0", None, 422),
    "a page of other digits": ("GET", f"{BASE}/adapters/a?continue=%D9%A1", None, 422),
    "NUL as the name to go on after": ("GET", f"{BASE}/datasets?continue=%00", None, 422),
    "the same for adapters' names": ("GET", f"{BASE}/adapters?continue=%00", None, 422),
    "bytes that are no text": ("GET", f"{BASE}/adapters?continue=%ff%fe", None, 422),
    "half a surrogate pair in a query": ("GET", f"{BASE}/adapters?continue=%ed%a0%80", None, 422),
    "a list's token that is a number": ("GET", f"{BASE}/runs?continue={BIG}", None, 422),
    "a list's token that is no token": ("GET", f"{BASE}/runs?continue=%00", None, 422),
    "a token of deep JSON": ("GET", f"{BASE}/runs?continue={'W1tb' * 120}", None, 422),
    "a token of another list": ("GET", f"{BASE}/runs?continue=WyJ4IiwxLDFd", None, 422),
    "a token of too many bytes": ("GET", f"{BASE}/runs?continue={'A' * 600}", None, 422),
    "a limit of nothing": ("GET", f"{BASE}/runs?limit=0", None, 422),
    "a limit beyond the page": ("GET", f"{BASE}/runs?limit=201", None, 422),
    "a limit that no machine counts to": ("GET", f"{BASE}/runs?limit={BIG}", None, 422),
    "an order that there is not": ("GET", f"{BASE}/runs?sort=spec", None, 422),
    "an order with SQL": ("GET", f"{BASE}/runs?sort=name;drop%20table%20runs", None, 422),
    "NUL in a text to look for": ("GET", f"{BASE}/runs?text=%00", None, 422),
    "NUL in a base model to look for": ("GET", f"{BASE}/runs?baseModel=a%00b", None, 422),
    "a dataset's version beyond all": ("GET", f"{BASE}/runs?dataset=d/{BIG}", None, 422),
    "an experiment that is no name": ("GET", f"{BASE}/runs?experiment=A_B", None, 422),
    "seventeen states": ("GET", f"{BASE}/runs?" + "&".join(["state=Failed"] * 17), None, 422),
    "a state that is no word": ("GET", f"{BASE}/runs?state=%00", None, 422),
    "NUL as a run's uid": ("GET", "/api/v1/progress?runs=%00", None, 422),
    "no uid": ("GET", "/api/v1/progress?runs=", None, 422),
    "no runs at all": ("GET", "/api/v1/progress", None, 422),
    "more uids than a call may name": ("GET", "/api/v1/progress?runs=" + ",".join(["a"] * 1001), None, 422),
    "a place in the list of the unfinished": ("GET", f"/api/v1/unfinished?continue={BIG}", None, 422),
    "series of no run": ("GET", f"{BASE}/series?runs=&metric=loss", None, 422),
    "series of a metric with NUL": ("GET", f"{BASE}/series?runs=a&metric=%00", None, 422),
    "series of too many runs": ("GET", f"{BASE}/series?metric=loss&runs=" + ",".join(["a"] * 21), None, 422),
    "series of three points": ("GET", f"{BASE}/series?runs=a&metric=loss&points=3", None, 422),
    "series of more points than there are": ("GET", f"{BASE}/series?runs=a&metric=loss&points={BIG}", None, 422),
    "a run that nobody has recorded": ("GET", f"{BASE}/runs/nobody", None, 404),
    "a name that is none": ("GET", f"{BASE}/runs/..%2f..%2fetc", None, 404),
    "a namespace that is none": ("GET", "/api/v1/namespaces/A_B/runs", None, 422),
    "a namespace of a forgotten one": ("GET", "/api/v1/namespaces/~1/runs", None, 422),
    "a method that there is not": ("DELETE", RUN, None, 405),
    "a version that is no number": ("GET", f"{BASE}/datasets/d/versions/{BIG}", None, 422),
    # A run's record
    "no document": ("PUT", RUN, b"", 422),
    "no JSON": ("PUT", RUN, b"{", 422),
    "JSON that is no object": ("PUT", RUN, b"[]", 422),
    "bytes that are no UTF-8": ("PUT", RUN, b'{"name": "\xff"}', 422),
    "deep JSON": ("PUT", RUN, DEEP.encode(), 422),
    "a deep spec": ("PUT", RUN, spec_of(DEEP[:5000]), 422),
    "NaN in a spec": ("PUT", RUN, spec_of("NaN"), 422),
    "infinity in a spec": ("PUT", RUN, spec_of("-Infinity"), 422),
    "half a surrogate pair in a spec": ("PUT", RUN, spec_of('"\\ud800"'), 422),
    "half a surrogate pair as a key of a spec": ("PUT", RUN, spec_of('{"\\udfff": 1}'), 422),
    "a number beyond a double": ("PUT", RUN, spec_of("1e400"), 422),
    "NUL in a run's name": ("PUT", RUN, run_with(name="a\0"), 422),
    "a method that is no word": ("PUT", RUN, run_with(method="S F T"), 422),
    "a key that there is not": ("PUT", RUN, run_with(**{"x" * 100_000: 1}), 422),
    "a dataset's version 0": ("PUT", RUN, run_with(datasetName="d", datasetVersion=0), 422),
    "a version of a dataset beyond all": ("PUT", RUN, run_with(datasetName="d", datasetVersion=2**31), 422),
    "a digest that is none": ("PUT", RUN, run_with(datasetName="d", datasetSha256="x"), 422),
    "a dataset that is not there": ("PUT", RUN, run_with(datasetName="d"), 404),
    "a parent that is not there": ("PUT", RUN, run_with(parentAdapterName="p"), 404),
    "a document larger than any": ("PUT", RUN, b" " * (4 * 1024 * 1024 + 1), 413),
    # What a trainer says
    "a time before all": ("POST", f"{RUN}/status", status_with(lastUpdatedTime="0001-01-01T00:00:00+14:00"), 422),
    "a time after all": ("POST", f"{RUN}/status", status_with(lastUpdatedTime="9999-12-31T23:59:59-14:00"), 422),
    "more than all of it": ("POST", f"{RUN}/status", status_with(progressPercentage=101), 422),
    "less time than none": ("POST", f"{RUN}/status", status_with(estimatedRemainingSeconds=-1), 422),
    "a time left beyond all": ("POST", f"{RUN}/status", status_with(estimatedRemainingSeconds=10**30), 422),
    "sixty-five metrics": (
        "POST",
        f"{RUN}/status",
        status_with(metrics=[{"name": f"m{each}", "value": "1"} for each in range(65)]),
        422,
    ),
    "a metric with NUL": ("POST", f"{RUN}/status", status_with(metrics=[{"name": "a\0", "value": "1"}]), 422),
    "an attempt before the first": ("POST", f"{RUN}/status", post_with(attempt=0), 422),
    "an attempt beyond all": ("POST", f"{RUN}/status", post_with(attempt=10**30), 422),
    "a step before the first": ("POST", f"{RUN}/status", points({"step": -1, "values": {"loss": 1}}), 422),
    "a step beyond all": ("POST", f"{RUN}/status", points({"step": 10**30, "values": {"loss": 1}}), 422),
    "a value that is no number": ("POST", f"{RUN}/status", points({"step": 1, "values": {"loss": "x"}}), 422),
    "a value that is infinite": (
        "POST",
        f"{RUN}/status",
        points({"step": 1, "values": {"loss": 7}}).replace(b"7", b"Infinity"),
        422,
    ),
    "more steps than one post may tell": (
        "POST",
        f"{RUN}/status",
        points(*({"step": step, "values": {}} for step in range(1001))),
        422,
    ),
    "more metrics than one run may have": (
        "POST",
        f"{RUN}/status",
        points(
            {"step": 1, "values": {f"a{each}": 1 for each in range(40)}},
            {"step": 2, "values": {f"b{each}": 1 for each in range(40)}},
        ),
        422,
    ),
    "progress of a run that is not there": ("POST", f"{BASE}/runs/nobody/status", status_with(), 404),
    "a result that is deep": ("PUT", f"{RUN}/result", b'{"result": ' + DEEP.encode(), 422),
    "a result with NaN": ("PUT", f"{RUN}/result", b'{"result": {"runUid": NaN}}', 422),
    "a result of another run": ("PUT", f"{RUN}/result", json.dumps({"result": {"runUid": "x" * 10**6}}).encode(), 422),
    "a result that is no object": ("PUT", f"{RUN}/result", b"[1]", 422),
    "a result larger than any": ("PUT", f"{RUN}/result", b" " * (4 * 1024 * 1024 + 1), 413),
    # What the operator says
    "an outcome without a phase": ("PUT", f"{RUN}/status", b"{}", 422),
    "a phase that is no word": ("PUT", f"{RUN}/status", outcome(phase="No Word"), 422),
    "a row beyond all": ("PUT", f"{RUN}/status", outcome(row=10**30), 422),
    "an end after all time": ("PUT", f"{RUN}/status", outcome(completionTime="9999-12-31T23:59:59-14:00"), 422),
    "a loss that is no number": ("PUT", f"{RUN}/status", outcome(evaluationLoss="nan"), 422),
    "an outcome of a run that is not there": ("PUT", f"{BASE}/runs/nobody/status", outcome(), 404),
    "an adapter of no files": (
        "PUT",
        f"{RUN}/adapter",
        json.dumps(adapter_document("uid", result={"runUid": "uid"})).encode(),
        422,
    ),
    "an adapter of deep JSON": ("PUT", f"{RUN}/adapter", DEEP.encode(), 422),
    # Rows
    "no rows": ("POST", f"{BASE}/datasets/d/versions", b"", 422),
    "deep rows": ("POST", f"{BASE}/datasets/d/versions", DEEP.encode() + b"\n", 422),
    "rows with NaN": ("POST", f"{BASE}/datasets/d/versions", b'{"prompt": NaN, "completion": "x"}\n', 422),
    "rows that are no objects": ("POST", f"{BASE}/datasets/d/versions", b"[1]\n", 422),
}


@pytest.fixture
async def web(registry_url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=registry_url, timeout=60) as web:
        yield web


async def everything(web: httpx.AsyncClient, namespace: str) -> list[Any]:
    """All that a namespace shows."""
    base = BASE.format(namespace=namespace)
    return [(await web.get(f"{base}/{path}")).json() for path in ("runs", "datasets", "adapters")]


async def test_each_is_refused_and_changes_nothing(web: httpx.AsyncClient, namespace: str) -> None:
    base = BASE.format(namespace=namespace)
    uids = {case: str(uuid.uuid4()) for case in CASES}
    known = str(uuid.uuid4())
    assert (await web.post(f"{base}/datasets/tickets/versions", content=pairs(2))).status_code == 201
    assert (await web.put(f"{base}/runs/{known}", content=run_with(name="known"))).status_code == 201
    before = await everything(web, namespace)
    assert len(CASES) >= 80
    wrong = []
    for case, (method, path, content, status) in CASES.items():
        uid = uids[case] if path == RUN else known
        answer = await web.request(method, path.format(namespace=namespace, uid=uid), content=content)
        body = answer.json() if answer.headers.get("content-type", "").startswith("application/json") else {}
        error = body.get("error", {})
        if answer.status_code != status or not (error.get("reason") and error.get("message") and error.get("hint")):
            wrong.append((case, answer.status_code, answer.text[:200]))
        elif len(answer.content) > 10_000:
            wrong.append((case, answer.status_code, f"an answer of {len(answer.content)} bytes"))
    assert wrong == []
    assert await everything(web, namespace) == before


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "[::1"},
        {"Host": ""},
    ],
)
async def test_without_tokens_no_web_site_gets_in(
    web: httpx.AsyncClient, namespace: str, headers: dict[str, str]
) -> None:
    path = f"{BASE.format(namespace=namespace)}/datasets/d/versions"
    for method, url, content in (("POST", path, pairs(1)), ("GET", "/api/v1/unfinished", None)):
        answer = await web.request(method, url, content=content, headers={"Content-Type": "text/plain", **headers})
        assert (answer.status_code, answer.json()["error"]["reason"]) == (403, "Forbidden")
    assert (await everything(web, namespace))[1]["items"] == []


async def test_a_page_of_the_registry_itself_gets_in(web: httpx.AsyncClient, registry_url: str) -> None:
    for headers in ({"Origin": registry_url, "Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}):
        assert (await web.get("/api/v1/unfinished", headers=headers)).status_code == 200
