"""Datasets over HTTP, on both databases: immutable versions, streamed in and out, byte for byte."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from finetune.clients.registry import RegistryClient, RegistryNotFound, RegistryRefused, RegistryUnavailable
from tests.support.registry import lines, pairs


@pytest.fixture
async def client(registry_url: str) -> AsyncIterator[RegistryClient]:
    async with RegistryClient(base_url=registry_url) as client:
        yield client


@pytest.fixture
async def web(registry_url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=registry_url, timeout=30) as web:
        yield web


def file_of(content: bytes, folder: Path) -> Path:
    path = folder / hashlib.sha256(content).hexdigest()
    path.write_bytes(content)
    return path


async def rows_of(client: RegistryClient, namespace: str, name: str, version: int | None = None) -> bytes:
    return b"".join([block async for block in client.read_dataset_rows(namespace, name, version)])


async def test_what_is_pushed_comes_back_byte_for_byte(client: RegistryClient, namespace: str, tmp_path: Path) -> None:
    # Several chunks that end in the middle of a line, odd white space, and no newline at the end.
    content = b'  {"prompt":"\\u00e4",  "completion":"\xc3\xa4"}\r\n' + pairs(60_000).rstrip(b"\n")
    version, created = await client.push_dataset(namespace, "tickets", file_of(content, tmp_path))
    assert created
    assert (version.name, version.version, version.rows) == ("tickets", 1, 60_001)
    assert (version.bytes, version.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert version.shape == "prompt-completion"
    assert len(content) > 2 * 1024 * 1024
    assert await rows_of(client, namespace, "tickets") == content


async def test_every_content_is_one_version(client: RegistryClient, namespace: str, tmp_path: Path) -> None:
    first, second = (file_of(pairs(3, tag=tag), tmp_path) for tag in ("a", "b"))
    answers = [await client.push_dataset(namespace, "tickets", path) for path in (first, second, first)]
    assert [(version.version, created) for version, created in answers] == [(1, True), (2, True), (1, False)]
    assert answers[2][0] == answers[0][0]
    assert (await client.get_dataset_version(namespace, "tickets")).version == 2
    assert (await client.get_dataset_version(namespace, "tickets", 1)).sha256 == answers[0][0].sha256
    assert await rows_of(client, namespace, "tickets", 1) == pairs(3, tag="a")
    assert [item.version for item in await client.list_dataset_versions(namespace, "tickets")] == [2, 1]


async def test_uploads_at_once_get_numbers_without_gaps_or_duplicates(
    client: RegistryClient, namespace: str, tmp_path: Path
) -> None:
    # Each content twice: whoever comes second gets the version of the first.
    paths = [file_of(pairs(2, tag=str(index)), tmp_path) for index in range(16)] * 2
    answers = await asyncio.gather(*(client.push_dataset(namespace, "tickets", path) for path in paths))
    assert sorted(version.version for version, created in answers if created) == list(range(1, 17))
    assert {version.sha256: version.version for version, _ in answers[:16]} == {
        version.sha256: version.version for version, _ in answers[16:]
    }


async def test_a_bad_line_is_named_and_nothing_is_stored(
    client: RegistryClient, namespace: str, tmp_path: Path
) -> None:
    # Far more follows the bad line than the buffers between the two sides hold.
    content = pairs(6) + b'{"prompt": \n' + pairs(200_000)
    with pytest.raises(RegistryRefused) as caught:
        await client.push_dataset(namespace, "tickets", file_of(content, tmp_path))
    assert (caught.value.status, caught.value.reason) == (422, "InvalidRows")
    assert caught.value.message.startswith("line 7: not valid JSON")
    assert caught.value.hint
    assert await client.list_datasets(namespace) == []


async def test_a_client_that_sends_all_before_it_reads_gets_the_explanation(registry_url: str, namespace: str) -> None:
    url = httpx.URL(registry_url)

    def post() -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(url.host, url.port, timeout=60)
        path = f"/api/v1/namespaces/{namespace}/datasets/tickets/versions"
        connection.request("POST", path, body=b"oops\n" + pairs(400_000))
        answer = connection.getresponse()
        return answer.status, answer.read()

    status, body = await asyncio.to_thread(post)
    assert status == 422
    assert b"line 1: not valid JSON" in body


async def test_an_empty_file_is_refused_with_a_hint(client: RegistryClient, namespace: str, tmp_path: Path) -> None:
    with pytest.raises(RegistryRefused) as caught:
        await client.push_dataset(namespace, "tickets", file_of(b"", tmp_path))
    assert caught.value.status == 422
    assert "no rows" in caught.value.message
    assert "is the file empty" in caught.value.hint


async def test_an_upload_that_is_cut_stores_nothing(registry_url: str, client: RegistryClient, namespace: str) -> None:
    url = httpx.URL(registry_url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(
        f"POST /api/v1/namespaces/{namespace}/datasets/tickets/versions HTTP/1.1\r\n"
        f"Host: {url.host}\r\nContent-Length: 100000\r\n\r\n".encode()
        + pairs(20)
    )
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    del reader
    # The same content sent whole is the first version: nothing of the cut upload is in the way or counted.
    path = f"/api/v1/namespaces/{namespace}/datasets/tickets/versions"
    async with httpx.AsyncClient(base_url=registry_url) as web:
        answer = await web.post(path, content=pairs(20))
    assert (answer.status_code, answer.json()["version"]) == (201, 1)
    assert len(await client.list_dataset_versions(namespace, "tickets")) == 1


async def test_what_does_not_exist_is_named_with_what_does(
    client: RegistryClient, namespace: str, tmp_path: Path
) -> None:
    with pytest.raises(RegistryNotFound) as caught:
        await client.get_dataset_version(namespace, "tickets")
    assert f"dataset 'tickets' does not exist in namespace '{namespace}'" in caught.value.message
    assert f"finetune datasets push tickets FILE -n {namespace}" in caught.value.hint
    await client.push_dataset(namespace, "tickets", file_of(pairs(1), tmp_path))
    with pytest.raises(RegistryNotFound) as caught:
        await client.get_dataset_version(namespace, "tickets", 7)
    assert caught.value.hint == "its newest version is 1"


async def test_namespaces_do_not_see_each_other(client: RegistryClient, namespace: str, tmp_path: Path) -> None:
    path = file_of(pairs(1), tmp_path)
    await client.push_dataset(namespace, "tickets", path)
    other, created = await client.push_dataset(f"{namespace}-b", "tickets", path)
    assert (other.version, created) == (1, True)
    with pytest.raises(RegistryNotFound):
        await client.get_dataset_version(f"{namespace}-c", "tickets")


async def test_a_list_longer_than_a_page_is_complete(
    client: RegistryClient, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.registry.store.series.PAGE_SIZE", 2)
    for name in ("e", "d", "c", "b", "a"):
        await client.push_dataset(namespace, name, file_of(pairs(1), tmp_path))
    for tag in ("2", "3", "4"):
        await client.push_dataset(namespace, "a", file_of(pairs(1, tag=tag), tmp_path))
    assert [item.name for item in await client.list_datasets(namespace)] == ["a", "b", "c", "d", "e"]
    assert [item.version for item in await client.list_dataset_versions(namespace, "a")] == [4, 3, 2, 1]


@pytest.mark.parametrize("name", ["Tickets", "a_b", "-a", "a-", "a" * 64, "a%20b", "a%2Fb", "%2e%2e"])
async def test_names_are_dns_labels(web: httpx.AsyncClient, namespace: str, name: str) -> None:
    answer = await web.post(f"/api/v1/namespaces/{namespace}/datasets/{name}/versions", content=pairs(1))
    assert answer.status_code in {404, 422}
    assert answer.json()["error"]["reason"] in {"Invalid", "NotFound"}
    good = await web.post(f"/api/v1/namespaces/{namespace}/datasets/a.b-{'c' * 59}/versions", content=pairs(1))
    assert good.status_code == 201


async def test_rows_say_how_long_they_are(web: httpx.AsyncClient, namespace: str) -> None:
    content = lines({"messages": [{"role": "user", "content": "hi"}]})
    path = f"/api/v1/namespaces/{namespace}/datasets/chats/versions"
    created = await web.post(path, content=content)
    assert created.json()["shape"] == "messages"
    rows = await web.get(f"{path}/latest/rows")
    assert rows.headers["content-length"] == str(len(content))
    assert rows.headers["etag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    assert rows.headers["content-type"].startswith("application/jsonl")


async def test_every_failure_is_an_error_document(web: httpx.AsyncClient, namespace: str) -> None:
    base = f"/api/v1/namespaces/{namespace}"
    answers = {
        404: await web.get("/api/v2/nothing"),
        405: await web.delete(f"{base}/datasets"),
        422: await web.get(f"{base}/datasets/tickets/versions/first"),
        413: await web.put(f"{base}/runs/some-uid", content=b" " * (5 * 1024 * 1024)),
    }
    for status, answer in answers.items():
        error = answer.json()["error"]
        assert answer.status_code == status
        assert error["reason"]
        assert error["message"]
        assert error["hint"]


async def test_the_api_describes_itself(web: httpx.AsyncClient) -> None:
    document = (await web.get("/openapi.json")).json()
    prefix = "/api/v1/namespaces/{namespace}"
    calls = {f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item}
    assert calls == {
        f"POST {prefix}/datasets/{{name}}/versions",
        f"GET {prefix}/datasets",
        f"GET {prefix}/datasets/{{name}}",
        f"GET {prefix}/datasets/{{name}}/versions/{{version}}",
        f"DELETE {prefix}/datasets/{{name}}/versions/{{version}}",
        f"GET {prefix}/datasets/{{name}}/versions/{{version}}/rows",
        f"PUT {prefix}/runs/{{uid}}",
        f"GET {prefix}/runs",
        f"GET {prefix}/runs/{{name}}",
        f"GET {prefix}/runs/{{name}}/adapters",
        f"PUT {prefix}/runs/{{uid}}/steps/{{step}}/adapter",
        f"GET {prefix}/series",
        f"GET {prefix}/audit",
        f"PUT {prefix}/runs/{{uid}}/status",
        f"GET {prefix}/runs/{{uid}}/dataset",
        f"GET {prefix}/runs/{{uid}}/dataset/rows",
        f"POST {prefix}/runs/{{uid}}/status",
        f"PUT {prefix}/runs/{{uid}}/result",
        f"GET {prefix}/runs/{{uid}}/result",
        f"PUT {prefix}/runs/{{uid}}/adapter",
        f"GET {prefix}/adapters",
        f"GET {prefix}/adapters/{{name}}",
        f"GET {prefix}/adapters/{{name}}/versions/{{version}}",
        f"PATCH {prefix}/adapters/{{name}}/versions/{{version}}",
        f"DELETE {prefix}/adapters/{{name}}/versions/{{version}}",
        f"GET {prefix}/adapters/{{name}}/versions/{{version}}/files/{{path}}",
        f"GET {prefix}/adapters/{{name}}/versions/{{version}}/archive.tar",
        f"GET {prefix}/adapters/{{name}}/aliases",
        f"PUT {prefix}/adapters/{{name}}/aliases/{{alias}}",
        f"DELETE {prefix}/adapters/{{name}}/aliases/{{alias}}",
        f"GET {prefix}/adapters/{{name}}/runs/{{run}}/steps/{{step}}",
        f"DELETE {prefix}/adapters/{{name}}/runs/{{run}}/steps/{{step}}",
        f"GET {prefix}/adapters/{{name}}/runs/{{run}}/steps/{{step}}/files/{{path}}",
        f"PUT {prefix}/runs/{{uid}}/files",
        f"PUT {prefix}/runs/{{uid}}/blobs/{{sha256}}",
        f"HEAD {prefix}/runs/{{uid}}/blobs/{{sha256}}",
        "GET /api/v1/progress",
        "GET /api/v1/unfinished",
        "GET /healthz",
        "GET /metrics",
        "GET /readyz",
    }


async def test_nobody_listening_is_unavailable() -> None:
    async with RegistryClient(base_url="http://127.0.0.1:9") as client:
        with pytest.raises(RegistryUnavailable, match="is the registry up"):
            await client.list_datasets("ml")
