"""What a blob store does, and what the stores share: blocks of one size, and the check of a digest on the way."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from finetune.registry.errors import DigestMismatch

BLOCK_BYTES = 1024 * 1024
"""How much is read and written at once: large enough that a thread's turn costs nothing beside it."""
OPERATION_SECONDS = 30.0
"""How long one block, or one question, may take a store before it counts as away."""


@dataclass(frozen=True)
class StoredBlob:
    """One blob that a store has: its name, its size, and when it came."""

    sha256: str
    bytes: int
    time: datetime


class BlobStore(Protocol):
    """Blobs by their SHA-256 (hex). Every method raises `StoreUnavailable` when the store does not answer."""

    @property
    def name(self) -> str:
        """What the store is called in messages: its claim or its bucket."""
        ...

    async def put(self, sha256: str, blocks: AsyncIterator[bytes], *, size: int) -> None:
        """Store a blob; one of that name is replaced by the same bytes.

        Raises `DigestMismatch` when the blocks are not `size` bytes of that digest, `StorageFull` when there is no
        room, and what `blocks` raises. Then nothing is there that was not there before.
        """
        ...

    async def read(self, sha256: str, *, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from `start` on, in blocks. Raises `BlobMissing` before the first one."""
        ...

    async def has(self, sha256: str) -> bool:
        """Whether a blob is there."""
        ...

    async def signed_url(self, sha256: str, *, lasting: timedelta) -> str | None:
        """Where everybody can read a blob for that long; None where the store knows no such thing.

        Raises `BlobMissing`.
        """
        ...

    async def delete(self, sha256: str) -> None:
        """Remove a blob; one that is not there is no error."""
        ...

    def list(self) -> AsyncIterator[StoredBlob]:
        """All blobs, in no order."""
        ...

    async def sweep(self, before: datetime) -> int:
        """Remove what cut uploads have left behind since before that time; returns how many there were."""
        ...

    async def close(self) -> None:
        """Close connections and threads."""
        ...


async def regrouped(blocks: AsyncIterator[bytes], size: int = BLOCK_BYTES) -> AsyncIterator[bytes]:
    """The same bytes in blocks of `size`; the last one is shorter."""
    waiting = bytearray()
    async for block in blocks:
        waiting += block
        while len(waiting) >= size:
            yield bytes(waiting[:size])
            del waiting[:size]
    if waiting:
        yield bytes(waiting)


class DigestCheck:
    """Sees the blocks of a blob pass, and refuses what is not what was announced. Raises `DigestMismatch`."""

    def __init__(self, sha256: str, size: int) -> None:
        self._expected = sha256
        self._size = size
        self._digest = hashlib.sha256()
        self._seen = 0

    def feed(self, block: bytes) -> None:
        """Take the next block; one too many is refused at once."""
        self._seen += len(block)
        if self._seen > self._size:
            raise self._wrong_size("more")
        self._digest.update(block)

    def finish(self) -> None:
        """Compare size and digest once all blocks were seen."""
        if self._seen < self._size:
            raise self._wrong_size(str(self._seen))
        found = self._digest.hexdigest()
        if found != self._expected:
            raise DigestMismatch(
                f"the bytes have the SHA-256 {found}, and {self._expected} was announced",
                hint="has the file changed while it was sent? compute its digest again and send it once more",
            )

    def _wrong_size(self, found: str) -> DigestMismatch:
        return DigestMismatch(
            f"{self._size} bytes were announced for {self._expected}, and {found} came",
            hint="was the connection cut, or has the file changed while it was sent? send it once more",
        )
