"""Files that one process at a time has locked: a run's directory, its rows, its tokens.

Locks are `flock`'s, which the kernel takes back from a process that ends. A network volume may have none at all, or
keep those of a node that is gone.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model import exits
from model.exits import FailureError

WAIT_SECONDS = 300.0
"""How long to wait for another process: one on a lost node may still run for a while."""
HELD = (errno.EAGAIN, errno.EACCES)
"""How a volume says that somebody else holds a lock: SMB says the latter."""
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""How a volume says that it has no locks."""


def take(path: Path, *, seconds: float = 0.0) -> int | None:
    """Lock a file, which is made for that and left behind; on a volume that has no locks everybody may go on.

    It is opened for writing, which network file systems ask for.

    Parameters
    ----------
    path
        The file; its directory exists.
    seconds
        How long to wait for another process.

    Returns
    -------
    int | None
        The descriptor that holds the lock until it is closed; None when another process has held it all the time.

    Raises
    ------
    FailureError
        When the volume cannot say whether it is locked.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    end = time.monotonic() + seconds
    try:
        while not _is_taken(descriptor, path):
            if time.monotonic() >= end:
                os.close(descriptor)
                return None
            time.sleep(min(1.0, seconds))
    except FailureError:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def alone(path: Path, waiting: str) -> Iterator[None]:
    """Hold a lock file; wait while another process does, and say so.

    Raises
    ------
    FailureError
        When the other one does not let it go in time.
    """
    descriptor = take(path)
    if descriptor is None:
        print(waiting, file=sys.stderr, flush=True)
        descriptor = take(path, seconds=WAIT_SECONDS)
    if descriptor is None:
        raise held(path, WAIT_SECONDS)
    try:
        yield
    finally:
        os.close(descriptor)


def held(path: Path, seconds: float) -> FailureError:
    """Return the failure of having waited so long for a lock in a run's directory."""
    return _locked(
        f"another process has held {path} for {seconds:.0f} s since this one came: an earlier pod of the run that was "
        "given up, perhaps on a lost node, or a command of yours still runs: end it. If none does, the volume keeps "
        "the lock of one that is gone: remove the file"
    )


def _is_taken(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            return False
        if error.errno not in NO_LOCKS:
            raise _locked(
                f"{path} cannot be locked ({error.strerror}): the volume's server does not answer for its locks; look "
                "at the server, or mount the volume without locks (nolock)"
            ) from error
    return True


def _locked(text: str) -> FailureError:
    return FailureError(exits.CRASH, "DirectoryLocked", text)
