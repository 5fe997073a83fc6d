"""How many examples go through the model at once: what fits, known before the first step.

On a CPU the kernel ends a process that takes too much, and nothing can be tried: the amount is estimated from the
model's shape and held against the container's limit. On a GPU too much is an exception, so the longest rows are really
sent through the model, more and more of them or fewer and fewer, until they fit with a margin.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from model import exits, gpus
from model.exits import FailureError
from model.training.loop.footprint import HEAP, LIBRARY_BYTES, OPTIMIZER_BYTES, Passes

MARGIN = 0.1
"""Share of the memory that stays free: estimates err, and later batches leave other gaps."""
GPU_GROWTH = 4
"""How far beyond the usual micro-batch the search on a GPU goes; more rows at once are hardly faster."""


def resident_bytes() -> int:
    """Return the memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def container_limit(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the bytes that the container may take, by version 2 or 1 of control groups; None without a limit."""
    for path in (root / "memory.max", root / "memory/memory.limit_in_bytes"):
        try:
            text = path.read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():  # version 2 says max where there is none, version 1 a number beyond all memories
            return int(text)
    return None


def free_bytes(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Return the memory that the machine can still give; None where it does not say."""
    lines = meminfo.read_text(encoding="ascii").splitlines() if meminfo.is_file() else []
    amounts = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return min(amounts, default=None)


@dataclass(frozen=True)
class HostMemory:
    """What one of the processes may hold, and what it will; all in bytes."""

    limit: int
    """The most that the process may hold."""
    fixed: int
    """What it holds whatever the batch: libraries, weights, adapter, optimizer."""
    passes: Passes
    """What examples add while they go through the model."""
    row_tokens: int
    """Positions of the longest example."""

    def peak(self, rows: int) -> int:
        """Return the estimate of the most that is held with so many of the longest examples at once."""
        return self.fixed + round(HEAP * self.passes.total(rows * self.row_tokens))

    def rows(self, most: int) -> int:
        """Return how many examples fit with a margin, `most` at most and 1 at least."""
        room = self.limit * (1 - MARGIN)
        return next((rows for rows in range(most, 1, -1) if self.peak(rows) <= room), 1)

    def warning(self) -> str | None:
        """Return what to say when not even one example fits by this estimate; None when one does."""
        if self.peak(1) <= self.limit * (1 - MARGIN):
            return None
        return (
            f"one example of the greatest length takes about {_mib(self.peak(1))} with the model, and "
            f"{_mib(self.limit)} may be used: the kernel may end this process; give it more memory, lower maxLength "
            "(--max-length), or use --precision=BFloat16 or --gradient-checkpointing=Enabled"
        )


def host_memory(model: Any, passes: Passes, *, row_tokens: int, processes: int) -> HostMemory | None:
    """Estimate what a process that holds this model needs on a CPU; None where no limit is known.

    Parameters
    ----------
    model
        The base model with the adapter that is trained.
    passes
        What examples take on their way through it and back.
    row_tokens
        Positions of the longest example.
    processes
        How many such processes share the container.
    """
    resident, free, limit = resident_bytes(), free_bytes(), container_limit()
    shares = [] if limit is None else [limit // processes]
    shares += [] if free is None else [resident + free // processes]
    if not shares:
        return None
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    # Weights that are mapped from their file count only once they have been read.
    held = max(resident, LIBRARY_BYTES + weights)
    return HostMemory(min(shares), held + OPTIMIZER_BYTES * trained, passes, row_tokens)


class Device(Protocol):
    """A GPU's memory as the search sees it; amounts are bytes."""

    def total(self) -> int:
        """Return what this process may hold there."""

    def peak(self) -> int:
        """Return the most that it held there since `empty`."""

    def empty(self) -> None:
        """Give back what is held for later, and count the peak anew."""

    def seconds(self, work: Callable[[], None]) -> float:
        """Do some work there and return how long it took."""


class CudaDevice:
    """The current CUDA device."""

    def total(self) -> int:
        """Return what is free, and what this process holds already."""
        import torch

        free, _ = torch.cuda.mem_get_info()
        return int(free) + torch.cuda.memory_reserved()

    def peak(self) -> int:
        """Return the most that PyTorch has held since `empty`, in use or for later."""
        import torch

        return torch.cuda.max_memory_reserved()

    def empty(self) -> None:
        """Give unused blocks back to the driver, and count the peak anew."""
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def seconds(self, work: Callable[[], None]) -> float:
        """Do some work there, wait until it is done, and return how long it took."""
        import torch

        torch.cuda.synchronize()
        began = time.monotonic()
        work()
        torch.cuda.synchronize()
        return time.monotonic() - began


def find_rows(
    attempt: Callable[[int], None], device: Device, *, start: int, most: int, reserve: int, tightly: bool = True
) -> int:
    """Return how many examples fit a GPU: doubled or halved from `start`, `most` at most; 0 when not even one does.

    Parameters
    ----------
    attempt
        Sends so many of the longest examples through the model and back, and leaves nothing of it behind; raises what
        `gpus.out_of_memory` knows when they do not fit.
    device
        The GPU's memory.
    start
        Where to begin.
    most
        Where to end.
    reserve
        Bytes that will be needed beside that later on, by the optimizer.
    tightly
        Whether one example may fit without the margin, for want of anything better.
    """

    def fits(rows: int) -> bool:
        return _used(attempt, device, rows) + reserve <= device.total() * (1 - MARGIN)

    rows = min(start, most)
    if fits(rows):
        while rows < most and fits(min(2 * rows, most)):
            rows = min(2 * rows, most)
        return rows
    while rows > 1:
        rows //= 2
        if fits(rows):
            return rows
    # One that fits without the margin may do: later a step is redone in halves, and only one that cannot be is fatal.
    return 1 if tightly and _used(attempt, device, 1) < math.inf else 0


def too_large(max_length: int) -> FailureError:
    """Return the failure of a run of which not even one example fits the GPU."""
    return FailureError(
        exits.GPU_OUT_OF_MEMORY,
        "GPUOutOfMemory",
        f"one example of up to {max_length} tokens does not fit the GPU's memory: lower maxLength (--max-length), turn "
        "gradientCheckpointing (--gradient-checkpointing) on, or use a larger GPU",
    )


def _used(attempt: Callable[[int], None], device: Device, rows: int) -> float:
    """Return the peak of an attempt in bytes, infinite when the memory ran out."""
    device.empty()
    try:
        attempt(rows)
    except RuntimeError as error:
        if not gpus.out_of_memory(error):
            raise
        failed = True
    else:
        failed = False
    # Only now is the exception gone, and with it the traceback that kept the activations alive.
    peak = math.inf if failed else device.peak()
    device.empty()
    return peak


def _mib(amount: int) -> str:
    return f"{amount / (1 << 20):,.0f} MiB"
