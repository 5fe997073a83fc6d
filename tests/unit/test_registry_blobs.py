"""The store of files: whole or not at all, in a folder and in a bucket of an S3 server; full, slow and away."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from finetune.registry.blobs import BlobStore, InvalidStoreURL, open_store
from finetune.registry.blobs.base import BLOCK_BYTES
from finetune.registry.blobs.errors import BlobMissing, StorageFull, StoreUnavailable
from finetune.registry.blobs.folder import FolderStore
from finetune.registry.errors import DigestMismatch
from tests.support.s3 import S3, s3

BUCKET = "adapters"
LARGE = 20 * 1024 * 1024 + 7  # three parts of an upload to a bucket


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    if shutil.which("go") is None:
        pytest.skip("Go is not installed: it builds the S3 server")
    with s3() as running:
        running.create_bucket(BUCKET)
        yield running


def point_to(server: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables by which the registry's Secret names a bucket's server."""
    for name, value in server.store_environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(params=["folder", "bucket"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[BlobStore]:
    if request.param == "folder":
        opened = open_store(f"file://{tmp_path}/blobs")
    else:
        point_to(request.getfixturevalue("server"), monkeypatch)
        opened = open_store(f"s3://{BUCKET}/{tmp_path.name}")
    yield opened
    await opened.close()


async def blocks_of(content: bytes, size: int = 65_536) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


async def put(store: BlobStore, content: bytes) -> str:
    name = hashlib.sha256(content).hexdigest()
    await store.put(name, blocks_of(content), size=len(content))
    return name


async def read(store: BlobStore, name: str, start: int = 0, length: int | None = None) -> bytes:
    return b"".join([block async for block in await store.read(name, start=start, length=length)])


async def names(store: BlobStore) -> dict[str, int]:
    return {blob.sha256: blob.bytes async for blob in store.list()}


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES, LARGE])
async def test_what_was_put_is_read_whole_and_in_parts(store: BlobStore, size: int) -> None:
    content = os.urandom(size)
    name = await put(store, content)
    assert await read(store, name) == content
    assert await read(store, name, length=0) == b""
    if size:
        assert await read(store, name, start=size // 2) == content[size // 2 :]
        assert await read(store, name, start=0, length=1) == content[:1]
    assert await names(store) == {name: size}


async def test_the_same_blob_twice_is_one(store: BlobStore) -> None:
    first, second = await asyncio.gather(put(store, b"same" * 1000), put(store, b"same" * 1000))
    assert first == second
    assert await names(store) == {first: 4000}


@pytest.mark.parametrize(("sent", "announced"), [(b"other", b"bytes"), (b"byte", b"bytes"), (b"bytes!", b"bytes")])
async def test_what_is_not_what_was_announced_leaves_nothing(store: BlobStore, sent: bytes, announced: bytes) -> None:
    name = hashlib.sha256(announced).hexdigest()
    with pytest.raises(DigestMismatch):
        await store.put(name, blocks_of(sent), size=len(announced))
    assert await names(store) == {}


async def test_a_large_blob_of_another_digest_leaves_nothing(store: BlobStore) -> None:
    with pytest.raises(DigestMismatch):
        await store.put("0" * 64, blocks_of(bytes(LARGE)), size=LARGE)
    assert await names(store) == {}


async def test_an_upload_that_breaks_leaves_nothing_and_says_what_broke(store: BlobStore) -> None:
    class GoneError(Exception):
        pass

    async def broken() -> AsyncIterator[bytes]:
        yield bytes(LARGE)
        raise GoneError

    with pytest.raises(GoneError):
        await store.put("0" * 64, broken(), size=LARGE + 1)
    assert await names(store) == {}
    assert await store.sweep(datetime.now(UTC) + timedelta(seconds=1)) == 0


async def test_a_cancelled_upload_leaves_nothing(store: BlobStore) -> None:
    begun = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(BLOCK_BYTES)
            begun.set()
            await asyncio.sleep(0)

    upload = asyncio.create_task(store.put("0" * 64, endless(), size=2**40 if store.name.startswith("s3") else 2**30))
    await begun.wait()
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert await names(store) == {}


async def test_a_deleted_blob_is_gone_and_deleting_it_again_is_no_error(store: BlobStore) -> None:
    name = await put(store, b"bytes")
    await store.delete(name)
    await store.delete(name)
    assert await names(store) == {}
    with pytest.raises(BlobMissing, match=name):
        await store.read(name)


async def test_all_that_a_blob_needs_is_on_the_disk_before_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed, real = [], os.fsync

    def fsync(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").resolve())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    name = await put(FolderStore(tmp_path), b"bytes")
    folder = tmp_path / name[:2]
    assert flushed[0] == tmp_path  # the folder's own name
    assert flushed[1].parent == folder
    assert flushed[2:] == [folder]


async def test_what_a_kill_left_is_swept_once_it_is_old(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    name = await put(store, b"bytes")
    left = tmp_path / name[:2] / f".{name}.1234abcd.tmp"
    left.write_bytes(b"by")
    left.with_name(".gone.tmp").symlink_to("nowhere")  # one that ends while it is looked at has no times any more
    assert await store.sweep(datetime.now(UTC) - timedelta(hours=1)) == 0
    assert await store.sweep(datetime.now(UTC) + timedelta(seconds=1)) == 1
    assert await names(store) == {name: 5}
    assert not left.exists()


async def test_a_full_folder_is_named_and_leaves_room_for_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FolderStore(tmp_path, label="claim registry")
    with pytest.raises(StorageFull, match=r"claim registry.*free"):
        await store.put("0" * 64, blocks_of(b""), size=2**60)
    name = await put(store, b"bytes")
    # The disk that fills while a file is written: RLIMIT_FSIZE and quotas say so in the same call.
    monkeypatch.setattr("finetune.registry.blobs.folder._Writing.write", _no_room)
    with pytest.raises(StorageFull, match="No space left"):
        await put(store, b"more")
    await store.delete(name)
    assert await names(store) == {}


def _no_room(_self: object, _block: bytes) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def test_a_folder_that_hangs_is_away_after_a_while(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "pipe-in-the-way", seconds=0.2)
    name = "ab" + "0" * 62
    (tmp_path / "pipe-in-the-way" / "ab").mkdir(parents=True)
    pipe = tmp_path / "pipe-in-the-way" / "ab" / name
    os.mkfifo(pipe)  # opening it waits for the other end, as a dead server's mount waits for the server
    try:
        with pytest.raises(StoreUnavailable, match=r"no answer within 0\.2 s"):
            await store.read(name)
    finally:
        with pipe.open("wb"):  # lets the thread end
            await store.close()


async def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StoreUnavailable, match=r"Not a directory|File exists"):
        await put(FolderStore(tmp_path / "file"), b"bytes")


async def test_a_bucket_that_does_not_exist_is_named(server: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    point_to(server, monkeypatch)
    with pytest.raises(StoreUnavailable, match=r"s3://nobody.*no such bucket"):
        await put(open_store("s3://nobody"), b"bytes")


async def test_a_bucket_that_refuses_the_credentials_is_named(server: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    point_to(server, monkeypatch)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreUnavailable, match="refuses the registry's credentials") as refused:
        await put(open_store(f"s3://{BUCKET}/x"), b"bytes")
    assert "wrong" not in str(refused.value)


@pytest.mark.usefixtures("server")
async def test_a_bucket_whose_server_is_away_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with s3() as gone:
        point_to(gone, monkeypatch)
        gone.process.kill()
        gone.process.wait()
        with pytest.raises(StoreUnavailable, match="does not answer"):
            await put(open_store(f"s3://{BUCKET}/x"), b"bytes")


@pytest.mark.parametrize(
    "url", ["", "blobs", "/data/blobs", "file://data", "file:///", "ftp://x/y", "s3://", "s3://key:secret@bucket/x"]
)
def test_a_store_that_is_none_is_refused_with_examples(url: str) -> None:
    with pytest.raises(InvalidStoreURL, match=r"write file:///path, s3://bucket/prefix") as refused:
        open_store(url)
    assert "secret" not in str(refused.value)


async def test_a_closed_folder_leaves_no_threads(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    await put(store, b"bytes")
    await store.close()
    for thread in threading.enumerate():
        if thread.name.startswith("blobs"):
            thread.join(timeout=10)
    assert not any(thread.name.startswith("blobs") and thread.is_alive() for thread in threading.enumerate())


async def test_room_that_an_upload_was_promised_is_not_promised_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight uploads that each fit would else leave nothing for the database together."""
    real = os.statvfs(tmp_path)
    room = os.statvfs_result((1, 1, 10**12, 256 * 1024**2 + 150, 256 * 1024**2 + 150, *tuple(real)[5:10]))
    monkeypatch.setattr("finetune.registry.blobs.folder.os.statvfs", lambda _: room)
    store, goes_on = FolderStore(tmp_path / "blobs"), asyncio.Event()
    first, second = b"a" * 100, b"b" * 100
    begun = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        begun.set()
        await goes_on.wait()
        yield first

    upload = asyncio.create_task(store.put(hashlib.sha256(first).hexdigest(), slow(), size=100))
    await begun.wait()
    with pytest.raises(StorageFull, match="and 100 for uploads under way"):
        await put(store, second)
    goes_on.set()
    await upload
    await put(store, second)
    assert len(await names(store)) == 2
    await store.close()
