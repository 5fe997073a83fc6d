"""Why a process of this package ends: exit codes, failure reasons and the one exception that carries both.

The Job's pod failure policy decides by exit code whether another attempt makes sense, so each failure
that a second attempt cannot cure has a code of its own.
"""

from __future__ import annotations

import errno
from typing import Final

from model import disks, gpus

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
HUNG: Final = 11
"""The trainer stood still, and was ended so that the next attempt goes on from the checkpoint."""
INTERRUPTED: Final = 75
"""SIGTERM was received and nothing is lost: the next attempt goes on from the last step boundary."""
LOST_PEERS: Final = 76
"""One of several processes lost the others, and is not to blame."""
TERMINATED: Final = 143
"""SIGTERM was received and nothing could be saved."""


_FULL_TEXTS = (
    "No space left on device",
    "Disk quota exceeded",
    "PytorchStreamWriter failed writing file",
    ". unexpected pos ",  # torch.save, when less was written than it thinks
)


_GPU_ADVICE = (
    "check this machine's driver and device (nvidia-smi, dmesg); in a cluster the run's status names the node, and the "
    "pod's runtime class must bring the GPU into the container"
)


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


def storage_failure(error: BaseException) -> FailureError | None:
    """Translate an error of the storage; None for any other.

    The libraries that write weights wrap the operating system's error, or keep nothing of it but its text.
    """
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        name = getattr(error, "filename", None)
        return FailureError(
            ACCESS_DENIED,
            "AccessDenied",
            f"{error.strerror}{f' ({name})' if name else ''}: it must be readable and writable for the user that runs "
            "this",
        )
    link: BaseException | None = error
    while link is not None:
        code = link.errno if isinstance(link, OSError) else None
        if code in (errno.ENOSPC, errno.EDQUOT) or any(text in str(link) for text in _FULL_TEXTS):
            name = getattr(link, "filename2", None) or getattr(link, "filename", None)
            quota = code == errno.EDQUOT or "quota" in str(link)
            return FailureError(STORAGE_FULL, "StorageFull", disks.full(name and str(name), quota=quota))
        link = link.__cause__ or link.__context__
    return None


def gpu_failure(error: BaseException) -> FailureError | None:
    """Translate an error of a GPU or of its driver; None for any other.

    Either its memory does not suffice, or it is broken, which another machine may not be.
    """
    if gpus.out_of_memory(error):
        return FailureError(
            GPU_OUT_OF_MEMORY,
            "GPUOutOfMemory",
            f"a GPU's memory does not suffice: {str(error).splitlines()[0]}; lower training.maxLength (--max-length) "
            "or training.microBatchSize (--micro-batch-size), set quantization (--quantization) to NF4, or use a "
            "larger GPU",
        )
    said = gpus.broken(error)
    if said is None:
        return None
    return FailureError(GPU_UNAVAILABLE, "GPUUnavailable", f"a GPU of this machine failed: {said}; {_GPU_ADVICE}")


def no_usable_gpu(wanted: int, said: str) -> FailureError:
    """Return the failure of a machine that has none of the GPUs that were asked for.

    Parameters
    ----------
    wanted
        How many were asked for.
    said
        Why torch finds none.
    """
    return FailureError(
        GPU_UNAVAILABLE,
        "GPUUnavailable",
        f"{wanted} GPUs were requested and none is usable: {said} ({gpus.driver()}); {_GPU_ADVICE}; or leave "
        "--gpus out (resources.gpus: 0) to train on the CPU",
    )
