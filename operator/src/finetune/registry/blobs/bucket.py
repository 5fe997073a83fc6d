"""A bucket of S3, Google Cloud Storage or Azure: an object `<prefix>/<first two hex digits>/<sha256>` for each blob.

The credentials are the registry's own, from the variables that the clients of these stores share (`AWS_ACCESS_KEY_ID`,
`AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`, ...) or from the pod's workload identity. An object appears when
its last part has come, so that nobody sees half of one; the parts of a cut upload are removed by the bucket's rule for
incomplete uploads.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable
from datetime import datetime, timedelta
from typing import TypeVar

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import AzureStore, GCSStore, ObjectStore, S3Store, from_url

from .base import BLOCK_BYTES, OPERATION_SECONDS, DigestCheck, StoredBlob, regrouped
from .errors import BlobMissing, StorageFull, StoreUnavailable

PART_BYTES = 8 * 1024 * 1024
PARTS_AT_ONCE = 2
"""Two parts of an upload on their way: what one takes of memory is bounded by this."""
RETRIES = 3
RETRY_FOR = timedelta(seconds=20)

SIGNS = (S3Store, GCSStore, AzureStore)
"""Stores that sign addresses."""

_BLOB = re.compile(r"[0-9a-f]{64}")
_FULL = re.compile(r"StorageFull|QuotaExceeded|InsufficientStorage|507 Insufficient", re.IGNORECASE)
_T = TypeVar("_T")


class BucketStore:
    """Blobs as objects below `url`, like `s3://bucket/prefix`."""

    def __init__(self, url: str, *, seconds: float = OPERATION_SECONDS) -> None:
        self.name = url
        self._seconds = seconds
        self._store: ObjectStore = from_url(
            url,
            client_options={
                "allow_http": True,  # which an endpoint must ask for by http://, as one inside the cluster may
                "connect_timeout": timedelta(seconds=5),
                "timeout": timedelta(seconds=seconds),
            },
            retry_config={"max_retries": RETRIES, "retry_timeout": RETRY_FOR},
        )

    async def put(self, sha256: str, blocks: AsyncIterator[bytes], *, size: int) -> None:
        """See `BlobStore.put`."""
        check = DigestCheck(sha256, size)
        waited_for = True

        async def checked() -> AsyncIterator[bytes]:
            async for block in regrouped(blocks):
                if not waited_for:  # the client would read on after its caller was cancelled
                    raise asyncio.CancelledError
                check.feed(block)
                yield block
            check.finish()  # before the object is completed: an exception here lets none appear

        upload = obstore.put_async(
            self._store, _key(sha256), checked(), chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE
        )
        try:
            await self._named(upload)
        finally:
            waited_for = False

    async def read(self, sha256: str, *, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """See `BlobStore.read`."""
        if length == 0:
            return _nothing()
        options: obstore.GetOptions = {}
        if length is not None:
            options["range"] = (start, start + length)
        elif start:  # without one an empty object can be read, too
            options["range"] = {"offset": start}
        try:
            async with asyncio.timeout(self._seconds):
                found = await obstore.get_async(self._store, _key(sha256), options=options)
        except FileNotFoundError:
            raise BlobMissing(self.name, sha256) from None
        except (TimeoutError, BaseError) as error:
            raise self._failure(error) from error
        return self._blocks(found)

    async def _blocks(self, found: obstore.GetResult) -> AsyncIterator[bytes]:
        stream = aiter(found.stream(min_chunk_size=BLOCK_BYTES))
        while True:
            try:
                async with asyncio.timeout(self._seconds):
                    block = await anext(stream, None)
            except (TimeoutError, BaseError) as error:
                raise self._failure(error) from error
            if block is None:
                return
            yield bytes(block)

    async def has(self, sha256: str) -> bool:
        """See `BlobStore.has`."""
        try:
            async with asyncio.timeout(self._seconds):
                await obstore.head_async(self._store, _key(sha256))
        except FileNotFoundError:
            return False
        except (TimeoutError, BaseError) as error:
            raise self._failure(error) from error
        return True

    async def signed_url(self, sha256: str, *, lasting: timedelta) -> str | None:
        """See `BlobStore.signed_url`."""
        if not isinstance(self._store, SIGNS):
            return None
        if not await self.has(sha256):
            raise BlobMissing(self.name, sha256)
        return await self._named(obstore.sign_async(self._store, "GET", _key(sha256), lasting), seconds=self._seconds)

    async def delete(self, sha256: str) -> None:
        """See `BlobStore.delete`."""
        await self._named(obstore.delete_async(self._store, _key(sha256)), seconds=self._seconds, missing=True)

    async def list(self) -> AsyncIterator[StoredBlob]:
        """See `BlobStore.list`."""
        pages = aiter(obstore.list(self._store))
        while True:
            try:
                async with asyncio.timeout(self._seconds):
                    page = await anext(pages, None)
            except (TimeoutError, BaseError) as error:
                raise self._failure(error) from error
            if page is None:
                return
            for item in page:
                name = item["path"].rpartition("/")[2]
                if _BLOB.fullmatch(name):
                    yield StoredBlob(name, item["size"], item["last_modified"])

    async def sweep(self, before: datetime) -> int:  # noqa: ARG002 - see the module
        """Nothing to remove: a cut upload is no object."""
        return 0

    async def close(self) -> None:
        """Nothing to close: the client ends with the object."""

    async def _named(self, call: Awaitable[_T], *, seconds: float | None = None, missing: bool = False) -> _T | None:
        """Wait for a call; the failures of the store get their names."""
        try:
            async with asyncio.timeout(seconds):
                return await call
        except FileNotFoundError as error:
            if missing:
                return None
            raise StoreUnavailable(self.name, "there is no such bucket") from error
        except (TimeoutError, BaseError) as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> StorageFull | StoreUnavailable:
        text = str(error)
        if _FULL.search(text):
            return StorageFull(self.name, "the bucket takes no more bytes")
        if isinstance(error, (PermissionDeniedError, UnauthenticatedError)):
            return StoreUnavailable(self.name, "the bucket refuses the registry's credentials, or what they may do")
        if isinstance(error, TimeoutError):
            return StoreUnavailable(self.name, f"no answer within {self._seconds:g} s")
        # The first line says what happened; what follows are the client's own structures.
        return StoreUnavailable(self.name, " ".join(text.partition("Debug source:")[0].split())[:300])


async def _nothing() -> AsyncIterator[bytes]:
    """No blocks."""
    return
    yield b""


def _key(sha256: str) -> str:
    return f"{sha256[:2]}/{sha256}"
