"""Downloads that the registry sends to its store: by signed addresses of a bucket, and by people's client."""

from __future__ import annotations

import hashlib
import shutil
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from finetune.clients.people import AdapterDamaged, PeopleClient
from finetune.registry.blobs import open_store
from finetune.registry.blobs.errors import StoreUnavailable
from finetune.registry.blobs.folder import FolderStore
from finetune.registry.store.files import FileLimits
from tests.support.adapters import adapter_files, make_version
from tests.support.registry import serving
from tests.support.s3 import S3, s3

FILES = adapter_files(numbers=100_000)
WEIGHTS = "adapter_model.safetensors"
FILE = f"adapters/support/versions/1/files/{WEIGHTS}"
PRESIGNED = FileLimits(presigned=True)


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    if shutil.which("go") is None:
        pytest.skip("Go is not installed: it builds the S3 server")
    with s3() as running:
        yield running


@contextmanager
def registry(folder: Path, **settings: Any) -> Iterator[httpx.Client]:
    """A registry with one version of `support`."""
    with (
        serving(f"sqlite:///{folder}/registry.db", **settings) as url,
        httpx.Client(base_url=f"{url}/api/v1/namespaces/ml", timeout=30) as http,
    ):
        make_version(http, str(uuid.uuid4()), FILES)
        yield http


def test_a_bucket_s_file_is_read_from_the_bucket(server: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.store_environment.items():
        monkeypatch.setenv(name, value)
    server.create_bucket("signed")
    content, tag = FILES[WEIGHTS], f'"{hashlib.sha256(FILES[WEIGHTS]).hexdigest()}"'
    with registry(tmp_path, store=open_store("s3://signed/files"), limits=PRESIGNED) as http:
        sent = http.get(FILE)
        assert (sent.status_code, sent.headers["cache-control"]) == (307, "no-store")
        address = sent.headers["location"]
        assert address.startswith(f"{server.endpoint}/signed/files/")
        assert httpx.get(address).content == content
        part = httpx.get(address, headers={"Range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, content[10:20])
        assert httpx.get(address.replace("X-Amz-Expires=300", "X-Amz-Expires=900")).status_code == 403
        here = http.get(FILE, params={"redirect": "false"}, headers={"Range": "bytes=10-19"})
        assert (here.status_code, here.content, here.headers["etag"]) == (206, content[10:20], tag)
        assert http.head(FILE).status_code == 200
        assert http.get(FILE, headers={"If-None-Match": tag}).status_code == 304
        assert http.get("adapters/support/versions/1/archive.tar").status_code == 200
        assert http.get(FILE.replace("versions/1", "versions/2")).status_code == 404


@pytest.mark.parametrize("limits", [FileLimits(), PRESIGNED])
def test_a_folder_s_file_is_read_from_the_registry(tmp_path: Path, limits: FileLimits) -> None:
    with registry(tmp_path, store=open_store(f"file://{tmp_path}/blobs"), limits=limits) as http:
        assert http.get(FILE).content == FILES[WEIGHTS]


class Elsewhere(FolderStore):
    """A folder that another server gives out, too."""

    origin = ""

    async def signed_url(self, sha256: str, *, lasting: timedelta) -> str:
        assert lasting == timedelta(minutes=5)
        return f"{self.origin}/{sha256[:2]}/{sha256}?signature=a%2Bb"


@pytest.fixture
def store(tmp_path: Path) -> Elsewhere:
    return Elsewhere(tmp_path / "blobs")


@pytest.fixture
def heard(store: Elsewhere, tmp_path: Path) -> Iterator[list[dict[str, str]]]:
    """The headers that the other server gets, and the path as `:path`."""
    heard: list[dict[str, str]] = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append({":path": self.path, **{name.lower(): value for name, value in self.headers.items()}})
            super().do_GET()

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path / "blobs"))

        def log_message(self, *_arguments: Any) -> None:
            """Nothing: the headers are noted."""

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    store.origin = f"http://127.0.0.1:{listening.server_address[1]}"
    yield heard
    listening.shutdown()
    listening.server_close()


def client(http: httpx.Client) -> PeopleClient:
    return PeopleClient(base_url=str(http.base_url).partition("/api/")[0], token=lambda: "secret")


async def test_the_other_server_gets_no_token_and_the_digests_are_checked(
    store: Elsewhere, heard: list[dict[str, str]], tmp_path: Path
) -> None:
    with registry(tmp_path, store=store, limits=PRESIGNED) as http:
        async with client(http) as people:
            await people.pull("ml", "support", "1", tmp_path / "pulled")
            assert {path.name: path.read_bytes() for path in (tmp_path / "pulled").iterdir()} == FILES
            assert len(heard) == len(FILES)
            for headers in heard:
                assert headers[":path"].endswith("?signature=a%2Bb")
                assert "secret" not in str(headers)
                assert not headers.keys() & {"authorization", "x-finetune-token", "cookie"}
            digest = hashlib.sha256(FILES[WEIGHTS]).hexdigest()
            (tmp_path / "blobs" / digest[:2] / digest).write_bytes(FILES[WEIGHTS][:-1] + b"!")
            with pytest.raises(AdapterDamaged, match=f"{WEIGHTS} is damaged"):
                await people.pull("ml", "support", "1", tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("origin", ["http://127.0.0.1:1", "http://nowhere.invalid", "gopher://x", "not an address"])
async def test_a_store_that_cannot_be_reached_is_read_through_the_registry(
    store: Elsewhere, tmp_path: Path, origin: str
) -> None:
    store.origin = origin
    with registry(tmp_path, store=store, limits=PRESIGNED) as http:
        async with client(http) as people:
            await people.pull("ml", "support", "1", tmp_path / "pulled")
    assert {path.name: path.read_bytes() for path in (tmp_path / "pulled").iterdir()} == FILES


class Unsigned(FolderStore):
    """A store that gives its bytes, to an account that may not sign."""

    async def signed_url(self, sha256: str, *, lasting: timedelta) -> None:
        raise StoreUnavailable(self.name, f"signBlob is denied: {sha256} for {lasting}")


def test_where_nothing_can_be_signed_the_registry_gives_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with registry(tmp_path, store=Unsigned(tmp_path / "blobs"), limits=PRESIGNED) as http:
        assert http.get(FILE).content == FILES[WEIGHTS]
        assert "may the registry's account sign?" in caplog.text
        digest = hashlib.sha256(FILES[WEIGHTS]).hexdigest()
        (tmp_path / "blobs" / digest[:2] / digest).unlink()
        assert http.get(FILE).status_code == 503
