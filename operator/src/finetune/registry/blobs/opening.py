"""From the administrator's words to a store."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from .base import BlobStore

BUCKETS = frozenset({"s3", "gs", "az", "azure", "abfs", "abfss"})
EXAMPLES = "write file:///path, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"


class InvalidStoreURL(ValueError):  # noqa: N818 - reads as the condition that it is
    """The URL names no supported store."""


def open_store(url: str, *, label: str | None = None) -> BlobStore:
    """The store at `url`; `label` says in messages what it is, for example `claim registry`.

    Raises `InvalidStoreURL`; whether the store answers is seen when it is used.
    """
    check_store_url(url)
    parts = urlsplit(url)
    if parts.scheme == "file":
        from .folder import FolderStore

        return FolderStore(Path(parts.path), label=label)
    from .bucket import BucketStore

    return BucketStore(url)


def store_beside(database: str) -> str:
    """The store of a registry whose database is that file, unless it has another: a folder beside it."""
    return f"file://{Path(database).resolve().parent}/blobs"


def check_store_url(url: str) -> None:
    """Raises `InvalidStoreURL`."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        if parts.netloc or not parts.path.startswith("/") or parts.path == "/":
            raise InvalidStoreURL(f"a store in a folder needs its absolute path, not {url!r}: {EXAMPLES}")
    elif parts.scheme not in BUCKETS:
        raise InvalidStoreURL(f"the store {parts.scheme or url!r} is not supported: {EXAMPLES}")
    elif not parts.netloc or parts.username or parts.password or parts.query:
        raise InvalidStoreURL(
            f"a store in a bucket is the bucket's name and a prefix; credentials come from the environment: {EXAMPLES}"
        )
