"""What goes wrong with a store of files. Each is an answer of the registry as it stands."""

from __future__ import annotations

from finetune.registry.errors import RegistryFault


class StorageFull(RegistryFault):
    """There is no room for what was sent; it is taken once there is."""

    status = 507
    reason = "StorageFull"

    def __init__(self, store: str, detail: str) -> None:
        super().__init__(
            f"the registry's store {store} is full: {detail}",
            hint="enlarge it, or delete versions of datasets or adapters (finetune datasets delete, finetune adapters "
            "delete): that works on a full store, and frees it at once",
        )


class StoreUnavailable(RegistryFault):
    """The store of files does not answer; the same request may succeed later."""

    status = 503
    reason = "StoreUnavailable"

    def __init__(self, store: str, detail: str) -> None:
        super().__init__(
            f"the registry's store {store} does not answer: {detail}",
            hint="try again; an administrator looks whether the claim is mounted, or the bucket is there",
        )


class BlobMissing(StoreUnavailable):
    """The database knows a file that the store has lost: one was restored without the other."""

    reason = "BlobMissing"

    def __init__(self, store: str, sha256: str) -> None:
        RegistryFault.__init__(
            self,
            f"the file with the SHA-256 {sha256} is not in the registry's store {store}",
            hint="restore the store from the backup that belongs to the database's",
        )


class StoreBusy(StoreUnavailable):
    """The same bytes are being removed just now."""

    def __init__(self, store: str, sha256: str) -> None:
        RegistryFault.__init__(
            self,
            f"the file with the SHA-256 {sha256} is just being removed from the registry's store {store}",
            hint="try again in a moment",
        )


class NoStore(RegistryFault):
    """The registry keeps no files."""

    status = 404
    reason = "NoStore"

    def __init__(self) -> None:
        super().__init__(
            "this registry has no store for files: adapters are on their runs' claims only",
            hint="an administrator can give it one with --store=s3://bucket/prefix or --store=file:///path",
        )


class TooLarge(RegistryFault):
    """A file, or all files of a run, are larger than the registry takes."""

    status = 413
    reason = "TooLarge"


class TooManyUploads(RegistryFault):
    """Others are sending files; there is no turn for this one yet."""

    status = 503
    reason = "TooManyUploads"

    def __init__(self, at_once: int) -> None:
        super().__init__(f"{at_once} files are being sent already", hint="try again in a moment")
