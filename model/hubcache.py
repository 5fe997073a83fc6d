"""The hub's cache, which the runs of a claim share: safe for pods that are killed while they download.

The hub's client downloads a file under a lock, to a name of its own, and renames it when it is complete. So a lock
that fails costs a second download, and a lock that stays costs the run: where the file system has no flock, the
client's lock is a file that says who holds it, and that of a pod that was killed is waited for without end.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from pathlib import Path

from model import locks

ABANDONED_SECONDS = 3600.0
"""A download that has not grown for so long is nobody's: one that gets no byte is given up within seconds."""


def prepare(cache: Path) -> None:
    """Remove what killed processes have left half downloaded; without locks in the file system, do without them.

    To be called before the first download of a process. What cannot be removed is left, and a cache that cannot be
    written to: then nothing is downloaded, or the client says why not.

    Parameters
    ----------
    cache
        The client's folder of repositories (`HF_HUB_CACHE`).
    """
    _remove_abandoned(cache)
    if not _has_locks(cache):
        from huggingface_hub import file_download

        file_download.WeakFileLock = _no_lock


def _remove_abandoned(cache: Path) -> None:
    before = time.time() - ABANDONED_SECONDS
    with contextlib.suppress(OSError):  # a folder that cannot be listed
        for path in cache.glob("*/blobs/*.incomplete"):
            with contextlib.suppress(OSError):  # another process was faster, or the file is not ours to remove
                if path.stat().st_mtime < before:
                    path.unlink()


def _has_locks(cache: Path) -> bool:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in locks.NO_LOCKS
    return True


def _no_lock(_path: str | os.PathLike[str], *, timeout: float | None = None) -> contextlib.nullcontext[None]:
    """Return what stands for the client's lock: everybody may download."""
    del timeout
    return contextlib.nullcontext()
