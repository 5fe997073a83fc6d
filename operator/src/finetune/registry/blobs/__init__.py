"""Where the bytes of files are kept, named by their SHA-256: a folder, or a bucket of S3 and its like.

A blob store knows neither runs nor adapters. It promises two things: a blob is there whole, or not at all, whatever
is killed in between; and what its name says is what is in it.
"""

from .base import BlobStore, StoredBlob
from .opening import InvalidStoreURL, check_store_url, open_store, store_beside

__all__ = ["BlobStore", "InvalidStoreURL", "StoredBlob", "check_store_url", "open_store", "store_beside"]
