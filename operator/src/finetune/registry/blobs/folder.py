"""A folder on a local disk or a claim: `<root>/<first two hex digits>/<sha256>`.

A blob is written under a temporary name in its folder, flushed to the disk, and renamed; then the folder is flushed
too. So a power cut leaves the whole blob or none. All of it happens in threads of the store's own: a disk that hangs
holds up those, and nobody else.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO, TypeVar

from .base import BLOCK_BYTES, OPERATION_SECONDS, DigestCheck, StoredBlob, regrouped
from .errors import BlobMissing, StorageFull, StoreUnavailable

THREADS = 8
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
RESERVE_BYTES = 256 * 1024 * 1024
RESERVE_SHARE = 0.05
"""What is left free for the database beside the blobs, which needs room also for deleting: the smaller of the two."""

_BLOB = re.compile(r"[0-9a-f]{64}")
_T = TypeVar("_T")


class FolderStore:
    """Blobs as files below `root`, which is made when missing. `label` says more about the place, like its claim."""

    def __init__(self, root: Path, *, label: str | None = None, seconds: float = OPERATION_SECONDS) -> None:
        self._root = root
        self._seconds = seconds
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="blobs")
        self._promised = 0
        """Bytes that uploads under way have yet to write."""
        self.name = f"{root} ({label})" if label else str(root)

    async def put(self, sha256: str, blocks: AsyncIterator[bytes], *, size: int) -> None:
        """See `BlobStore.put`."""
        self._promised += size
        left = size
        try:
            await self._run(self._check_room, size, self._promised - size)
            writing = await self._run(_Writing, self._path(sha256), DigestCheck(sha256, size))
            done = False
            try:
                async for block in regrouped(blocks):
                    await self._run(writing.write, block)
                    left -= len(block)
                    self._promised -= len(block)
                await self._run(writing.publish)
                done = True
            finally:
                if not done:
                    # Not awaited with the deadline: whoever is cancelled here must not wait for a disk that hangs.
                    self._threads.submit(writing.give_up)
        finally:
            self._promised -= left

    async def read(self, sha256: str, *, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """See `BlobStore.read`."""
        file = await self._run(self._open, sha256, start)
        return self._blocks(file, length)

    async def _blocks(self, file: BinaryIO, length: int | None) -> AsyncIterator[bytes]:
        left = length
        try:
            while left is None or left > 0:
                block = await self._run(file.read, BLOCK_BYTES if left is None else min(left, BLOCK_BYTES))
                if not block:
                    return
                yield block
                left = None if left is None else left - len(block)
        finally:
            file.close()

    async def has(self, sha256: str) -> bool:
        """See `BlobStore.has`."""
        return await self._run(self._path(sha256).is_file)

    async def signed_url(self, sha256: str, *, lasting: timedelta) -> None:
        """None: a folder is not reached over the network."""

    async def delete(self, sha256: str) -> None:
        """See `BlobStore.delete`."""

        def remove() -> None:
            with suppress(FileNotFoundError):
                self._path(sha256).unlink()
                _flush_folder(self._path(sha256).parent)

        await self._run(remove)

    async def list(self) -> AsyncIterator[StoredBlob]:
        """See `BlobStore.list`."""
        for folder in await self._run(lambda: sorted(_folders(self._root))):
            for blob in await self._run(lambda folder=folder: list(_blobs(folder))):
                yield blob

    async def sweep(self, before: datetime) -> int:
        """See `BlobStore.sweep`."""

        def remove() -> int:
            count = 0
            for folder in _folders(self._root):
                for path in folder.glob(".*.tmp"):
                    with suppress(FileNotFoundError):  # an upload that has ended just now
                        if path.stat().st_mtime < before.timestamp():
                            path.unlink()
                            count += 1
            return count

        return await self._run(remove)

    async def close(self) -> None:
        """See `BlobStore.close`."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _path(self, sha256: str) -> Path:
        return self._root / sha256[:2] / sha256

    def _open(self, sha256: str, start: int) -> BinaryIO:
        try:
            file = self._path(sha256).open("rb", buffering=0)
        except FileNotFoundError:
            raise BlobMissing(self.name, sha256) from None
        file.seek(start)
        return file

    def _check_room(self, size: int, promised: int) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        free, reserve = room(self._root)
        if size > free - reserve - promised:
            raise StorageFull(
                self.name,
                f"{size} bytes are needed, {free} are free, of which {reserve} are kept for the database "
                f"and {promised} for uploads under way",
            )

    async def _run(self, work: Callable[..., _T], *arguments: object) -> _T:
        """Do something in a thread of the store; the failures of a disk get their names."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._seconds):
                return await loop.run_in_executor(self._threads, work, *arguments)
        except TimeoutError as error:
            raise StoreUnavailable(self.name, f"no answer within {self._seconds:g} s") from error
        except OSError as error:
            if error.errno in NO_ROOM:
                raise StorageFull(self.name, error.strerror or "no room") from error
            raise StoreUnavailable(self.name, error.strerror or str(error)) from error


class _Writing:
    """A blob on its way to the disk. Who gave it up does not wait for the write that may still be under way."""

    def __init__(self, path: Path, check: DigestCheck) -> None:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            _flush_folder(path.parent.parent)  # else a power cut may take the new folder, with what is in it
        self._path = path
        self._check = check
        self._lock = threading.Lock()
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        self._file = self._temporary.open("xb", buffering=0)

    def write(self, block: bytes) -> None:
        """Check the next block, and write all of it."""
        self._check.feed(block)
        view = memoryview(block)
        with self._lock:
            while view:
                view = view[self._file.write(view) :]

    def publish(self) -> None:
        """Give the blob its name, once it is on the disk."""
        self._check.finish()
        with self._lock:
            os.fsync(self._file.fileno())
            self._file.close()
            self._temporary.replace(self._path)
            _flush_folder(self._path.parent)

    def give_up(self) -> None:
        """Leave nothing behind."""
        with self._lock:
            self._file.close()
            self._temporary.unlink(missing_ok=True)


def room(folder: Path) -> tuple[int, int]:
    """How many bytes are free on the disk of a folder, and how many of them are kept for the database."""
    disk = os.statvfs(folder)
    return disk.f_frsize * disk.f_bavail, min(RESERVE_BYTES, int(disk.f_frsize * disk.f_blocks * RESERVE_SHARE))


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _folders(root: Path) -> Iterator[Path]:
    return (path for path in root.glob("[0-9a-f][0-9a-f]") if path.is_dir())


def _blobs(folder: Path) -> Iterator[StoredBlob]:
    for path in folder.iterdir():
        if _BLOB.fullmatch(path.name):
            with suppress(FileNotFoundError):  # deleted by another replica just now
                status = path.stat()
                yield StoredBlob(path.name, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))
