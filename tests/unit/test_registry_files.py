"""The bytes of adapters over HTTP: announced, sent, held, pulled, deleted; on both databases."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from finetune.registry.blobs import open_store
from tests.support.adapters import adapter_files, announce, make_version, registered, safetensors, send
from tests.support.registry import new_uid, run_document, serving

NOW = timedelta(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def served(
    backend: str, request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A registry with a store, and its database."""
    if backend == "sqlite":
        database = f"sqlite:///{tmp_path_factory.mktemp('files')}/registry.db"
    else:
        database = request.getfixturevalue("postgresql_server").new_database(schema=True)
    with serving(database, store=open_store(f"file://{folder}", label="claim registry")) as url:
        yield url


@pytest.fixture
def http(served: str, namespace: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{served}/api/v1/namespaces/{namespace}", timeout=30) as client:
        yield client


def refusal(answer: httpx.Response) -> tuple[int, str, str]:
    error = answer.json()["error"]
    assert error["hint"]
    return answer.status_code, error["reason"], error["message"]


def test_an_adapter_is_ready_once_the_store_has_all_of_it(http: httpx.Client, uid: str) -> None:
    files = adapter_files(salt=1)
    digests = sorted(hashlib.sha256(content).hexdigest() for content in files.values())
    http.put(f"runs/{uid}", json=run_document())
    assert announce(http, uid, files).json() == {"missing": digests, "stored": False}
    version = http.put(f"runs/{uid}/adapter", json=registered(uid, files)).json()
    assert (version["state"], version["stored"]) == ("Registered", False)
    for content in files.values():
        digest = hashlib.sha256(content).hexdigest()
        assert http.head(f"runs/{uid}/blobs/{digest}").status_code == 404
        assert send(http, uid, content).status_code == 201
        assert http.head(f"runs/{uid}/blobs/{digest}").status_code == 200
        assert send(http, uid, content).status_code == 200
    version = http.get("adapters/support/versions/latest").json()
    assert (version["state"], version["stored"]) == ("Ready", True)
    assert announce(http, uid, files).json() == {"missing": [], "stored": True}


def test_files_that_come_before_the_registration_make_it_ready_at_once(http: httpx.Client, uid: str) -> None:
    version = make_version(http, uid, adapter_files(salt=2))
    assert (version["state"], version["stored"]) == ("Ready", True)


def test_what_a_run_of_the_namespace_has_sent_is_not_sent_again_and_what_others_sent_is(
    http: httpx.Client, served: str
) -> None:
    files = adapter_files(salt=3)
    make_version(http, new_uid(), files)
    changed = {**files, "README.md": b"# another card\n"}
    uid = new_uid()
    http.put(f"runs/{uid}", json=run_document())
    assert announce(http, uid, changed).json()["missing"] == [hashlib.sha256(changed["README.md"]).hexdigest()]
    # Who only knows the digest of another namespace's file gets nothing by it.
    with httpx.Client(base_url=f"{served}/api/v1/namespaces/{new_uid()}") as stranger:
        stranger.put(f"runs/{new_uid()}", json=run_document())
        other = new_uid()
        stranger.put(f"runs/{other}", json=run_document())
        assert len(announce(stranger, other, files).json()["missing"]) == len(files)


def test_wrong_bytes_leave_nothing(http: httpx.Client, uid: str, folder: Path) -> None:
    files = adapter_files(salt=4)
    http.put(f"runs/{uid}", json=run_document())
    announce(http, uid, files)
    before = sorted(folder.rglob("*"))
    config = files["adapter_config.json"]
    digest = hashlib.sha256(config).hexdigest()
    answer = send(http, uid, b"x" * len(config), digest=digest)
    assert refusal(answer)[:2] == (422, "DigestMismatch")
    assert refusal(send(http, uid, config + b" ", digest=digest))[:2] == (422, "DigestMismatch")
    assert http.head(f"runs/{uid}/blobs/{digest}").status_code == 404
    assert [path for path in sorted(folder.rglob("*")) if path.is_file()] == [path for path in before if path.is_file()]


def test_only_announced_files_are_taken(http: httpx.Client, uid: str) -> None:
    http.put(f"runs/{uid}", json=run_document())
    assert refusal(send(http, uid, b"surprise"))[:2] == (404, "NotFound")
    assert refusal(announce(http, new_uid(), adapter_files()))[:2] == (404, "NotFound")


def test_a_body_of_unknown_length_is_refused(http: httpx.Client, uid: str) -> None:
    files = adapter_files(salt=5)
    http.put(f"runs/{uid}", json=run_document())
    announce(http, uid, files)
    config = files["adapter_config.json"]
    answer = http.put(f"runs/{uid}/blobs/{hashlib.sha256(config).hexdigest()}", content=iter([config]))
    assert refusal(answer)[:2] == (411, "LengthRequired")


@pytest.mark.parametrize(
    "path",
    [
        "training_args.bin",
        "adapter_model.bin",
        "model.pt",
        "code.py",
        "sub/adapter_config.json",
        "x.safetensors.sh",
    ],
)
def test_files_that_a_loader_would_execute_are_not_kept(http: httpx.Client, uid: str, path: str) -> None:
    http.put(f"runs/{uid}", json=run_document())
    answer = announce(http, uid, {**adapter_files(), path: b"pickle"})
    assert refusal(answer)[:2] == (422, "Invalid")


def broken_headers() -> Iterator[tuple[str, bytes]]:
    whole = safetensors({"a": 4})
    yield "empty", b""
    yield "shorter than its length", whole[:7]
    yield "a header longer than the file", (2**40).to_bytes(8, "little") + whole[8:]
    yield "no JSON", (3).to_bytes(8, "little") + b"{a}"
    yield "no object", (2).to_bytes(8, "little") + b"[]"
    yield "one byte more", whole + b"\0"
    yield "one byte less", whole[:-1]
    yield "a pickle", b"\x80\x05cos\nsystem\n(S'true'\ntR."
    for entry in (
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,15]}}',
        b'{"a":{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}}',
        b'{"a":{"dtype":"X","shape":[4],"data_offsets":[0,16]}}',
        b'{"a":{"dtype":"F32","shape":[true,4],"data_offsets":[0,16]}}',
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}',
        b'{"a":7}',
    ):
        yield entry.decode(), len(entry).to_bytes(8, "little") + entry + bytes(16)


@pytest.mark.parametrize(("what", "content"), list(broken_headers()))
def test_a_file_that_is_no_whole_safetensors_is_refused(
    http: httpx.Client, uid: str, what: str, content: bytes
) -> None:
    http.put(f"runs/{uid}", json=run_document())
    announce(http, uid, {"adapter_model.safetensors": content})
    status, reason, message = refusal(send(http, uid, content))
    assert (status, reason) == (422, "Invalid"), what
    assert "adapter_model.safetensors" in message


def test_a_file_is_read_whole_in_parts_and_not_twice(http: httpx.Client, uid: str) -> None:
    files = adapter_files(salt=6, numbers=600_000)
    make_version(http, uid, files)
    content = files["adapter_model.safetensors"]
    url = "adapters/support/versions/1/files/adapter_model.safetensors"
    whole = http.get(url)
    tag = f'"{hashlib.sha256(content).hexdigest()}"'
    assert (whole.status_code, whole.content, whole.headers["etag"]) == (200, content, tag)
    assert whole.headers["x-content-type-options"] == "nosniff"
    assert http.get(url, headers={"If-None-Match": tag}).status_code == 304
    head = http.head(url)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(content)))
    size = len(content)
    for asked, start, end in (
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        (f"bytes={size - 5}-", size - 5, size),
        ("bytes=-7", size - 7, size),
        (f"bytes=5-{10**17}", 5, size),
        (f"bytes=-{10**17}", 0, size),
    ):
        part = http.get(url, headers={"Range": asked})
        assert (part.status_code, part.content) == (206, content[start:end]), asked
        assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
    assert http.get(url, headers={"Range": f"bytes={size}-"}).status_code == 416
    for ignored in ("bytes=5-2", "bytes=-", "lines=0-1", "bytes=0-1,4-5"):
        assert http.get(url, headers={"Range": ignored}).status_code == 200, ignored
    changed = http.get(url, headers={"Range": "bytes=0-0", "If-Range": '"another"'})
    assert (changed.status_code, len(changed.content)) == (200, size)
    assert refusal(http.get("adapters/support/versions/1/files/nothing.json"))[:2] == (404, "NotFound")
    assert http.get("adapters/support/versions/1/files/..%2f..%2fetc/passwd").status_code in {404, 422}


def test_the_archive_has_the_files_and_is_the_same_every_time(http: httpx.Client, uid: str) -> None:
    files = adapter_files(salt=7)
    make_version(http, uid, files)
    answer = http.get("adapters/support/versions/latest/archive.tar")
    assert (answer.status_code, answer.headers["content-length"]) == (200, str(len(answer.content)))
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        found = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
        assert all((member.mtime, member.uid, member.mode) == (0, 0, 0o644) for member in archive)
    assert found == {f"support-v1/{path}": content for path, content in files.items()}
    assert http.get("adapters/support/versions/1/archive.tar").content == answer.content


def test_a_file_that_the_store_has_lost_is_an_error_and_no_half_of_an_archive(
    http: httpx.Client, uid: str, folder: Path
) -> None:
    files = {**adapter_files(salt=10), "added_tokens.json": b""}
    make_version(http, uid, files)
    assert http.get("adapters/support/versions/1/archive.tar").status_code == 200
    digest = hashlib.sha256(files["adapter_model.safetensors"]).hexdigest()
    next(folder.rglob(digest)).unlink()
    assert refusal(http.get("adapters/support/versions/1/archive.tar"))[:2] == (503, "BlobMissing")
    lost = "adapters/support/versions/1/files/adapter_model.safetensors"
    assert (http.get(lost).status_code, http.head(lost).status_code) == (503, 503)
    assert http.head("adapters/support/versions/1/files/added_tokens.json").status_code == 200


def test_an_adapter_whose_files_nobody_sent_says_where_they_are(http: httpx.Client, uid: str) -> None:
    http.put(f"runs/{uid}", json=run_document())
    http.put(f"runs/{uid}/adapter", json=registered(uid, adapter_files()))
    status, reason, message = refusal(http.get("adapters/support/versions/1/archive.tar"))
    assert (status, reason) == (409, "Conflict")
    assert "pvc://adapters/support/" in message


def test_other_files_than_the_registered_ones_are_refused(http: httpx.Client, uid: str) -> None:
    make_version(http, uid, adapter_files(salt=8))
    assert refusal(announce(http, uid, adapter_files(salt=9)))[:2] == (409, "Conflict")


def test_a_registry_without_a_store_says_so(registry_url: str, namespace: str, uid: str) -> None:
    with httpx.Client(base_url=f"{registry_url}/api/v1/namespaces/{namespace}") as http:
        http.put(f"runs/{uid}", json=run_document())
        assert refusal(announce(http, uid, adapter_files()))[:2] == (404, "NoStore")
