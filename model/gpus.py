"""What is wrong with a machine's GPUs, in the words of their driver. Nothing here imports torch by itself."""

from __future__ import annotations

import re
from pathlib import Path

_BROKEN = (
    "no CUDA-capable device is detected",
    "CUDA-capable device(s) is/are busy or unavailable",
    "CUDA driver version is insufficient",
    "unsupported display driver / cuda driver combination",
    "system not yet initialized",
    "CUDA unknown error",
    "ECC error",
    "hardware stack error",
    "fallen off the bus",
    "GPU is lost",
    "Driver/library version mismatch",
    "driver shutting down",
)
"""Errors that another node may not have; those that a program brings about, as an illegal address, are none of them."""
_NO_MEMORY = re.compile(
    r"""
    out\ of\ memory            # CUDA's, HIP's and the driver's words; NCCL, Triton and bitsandbytes repeat them
    | (CUBLAS|CUSOLVER|CUSPARSE|CUDNN|CUFFT|HIPBLAS|ROCBLAS)\w*_ALLOC(ATION)?_FAILED
    | CUBLAS_STATUS_NOT_INITIALIZED   # its workspace found no room
    | CUDNN_STATUS_(INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED|NOT_INITIALIZED)
    | cudaErrorMemoryAllocation | hipErrorOutOfMemory
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""How CUDA, its libraries and those that call them say that memory does not suffice."""
_VERSION = re.compile(r"Kernel Module(?: for \S+)?\s+(\S+)")


def broken(error: BaseException) -> str | None:
    """Return the driver's words when an error says that a GPU or its driver is broken; None for any other error."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, RuntimeError):
            text = str(link)
            if any(words.lower() in text.lower() for words in _BROKEN):
                return text.splitlines()[0]
        link = link.__cause__ or link.__context__
    return None


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU's memory does not suffice: torch's own, or that of a library below it."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, RuntimeError) and (
            type(link).__name__ == "OutOfMemoryError" or _NO_MEMORY.search(str(link)) is not None
        ):
            return True
        link = link.__cause__
    return False


def driver(proc: Path = Path("/proc"), dev: Path = Path("/dev")) -> str:
    """Return what this machine shows of a driver and of devices, in words."""
    try:
        text = (proc / "driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        loaded = "no NVIDIA driver is loaded"
    else:
        found = _VERSION.search(text)
        loaded = f"the NVIDIA driver {found[1] if found else 'of an unknown version'} is loaded"
    devices = sorted(path.name for path in dev.glob("nvidia[0-9]*")) if dev.is_dir() else []
    return f"{loaded}, and {dev} has {', '.join(devices) or 'no nvidia0'}"


def torch_says() -> str:
    """Return why torch finds no GPU, in its own words."""
    import torch

    try:
        torch.cuda.init()
        return f"it sees {torch.cuda.device_count()} GPUs"
    except (RuntimeError, AssertionError) as error:  # a build without CUDA asserts
        return str(error).splitlines()[0].rstrip(".")
