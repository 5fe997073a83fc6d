"""Why a process of this package ends: exit codes, failure reasons and the one exception that carries both.

The Job's pod failure policy decides by exit code whether another attempt makes sense, so each failure
that a second attempt cannot cure has a code of its own.
"""

from __future__ import annotations

import errno
from typing import Final

OK: Final = 0
CRASH: Final = 1
INVALID_CONFIGURATION: Final = 2
DATASET_INVALID: Final = 3
UNAVAILABLE: Final = 4
ACCESS_DENIED: Final = 5
DIVERGED: Final = 6
STORAGE_FULL: Final = 7
GPU_OUT_OF_MEMORY: Final = 8
GPU_UNAVAILABLE: Final = 9
DOES_NOT_EXIST: Final = 10
INTERRUPTED: Final = 75
"""SIGTERM was received and nothing is lost: the next attempt goes on from the last step boundary."""
TERMINATED: Final = 143
"""SIGTERM was received and nothing could be saved."""


class FailureError(Exception):
    """A failure that a person can act on.

    Parameters
    ----------
    code
        Exit code of the process, one of this module's constants.
    reason
        CamelCase word for `failure.reason` of the run's status.
    message
        What is wrong, where, and what to do about it, in one sentence or two.
    row
        1-based row of the dataset's source, when one row is to blame.
    """

    def __init__(self, code: int, reason: str, message: str, *, row: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.row = row


def storage_failure(error: OSError) -> FailureError | None:
    """Translate an operating system error that a second attempt cannot cure; None for any other."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FailureError(
            STORAGE_FULL, "StorageFull", f"no space left on the output volume{where}: use a larger claim"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return FailureError(
            ACCESS_DENIED,
            "AccessDenied",
            f"{error.strerror}{where}: the volume must be readable and writable for the pod's user",
        )
    return None
