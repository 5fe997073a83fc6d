"""Several processes that train one run: who they are, and what they tell one another.

Each process has a whole model. A step's examples are dealt like cards, and the processes add up their gradients before
the step is made. Transformers and accelerate know nothing of it: they would average instead of adding up, repeat rows
that do not divide, and each would save for itself.

A process alone takes part in nothing: every function here then returns its own share.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from model import exits, gpus
from model.exits import FailureError
from model.training.config import TrainSettings
from model.training.processes import hang, interruption

RENDEZVOUS = "FINETUNE_RENDEZVOUS"
"""Environment variable of our own launcher: the file by which its processes find one another."""
PARENT = "FINETUNE_PARENT"
"""Environment variable of our own launcher: its process id."""
TIMEOUT = timedelta(hours=1)
"""How long to wait for a peer that is alive; one that ended is noticed at once."""
_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class World:
    """The place of a process among those that train together."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes what is written once: checkpoints, progress, the adapter."""
        return self.rank == 0


_world = World()


def world() -> World:
    """Return this process's place; it is alone unless `enter` found others."""
    return _world


def planned(settings: TrainSettings) -> int:
    """Return how many processes are to train: one for each GPU, or as many as were asked for on the CPU."""
    if settings.pretended_gpus and not Path("/dev/nvidiactl").exists():
        return 1
    return settings.gpus if settings.gpus > 0 else settings.processes


def first() -> bool:
    """Whether this process, started by whichever launcher, is the first one or alone."""
    return int(os.environ.get("RANK", _world.rank)) == 0


def is_launched() -> bool:
    """Whether a launcher started this process, ours or torchrun."""
    return "WORLD_SIZE" in os.environ or _world.size > 1


def enter(gpus: int) -> None:
    """Take the place that the launcher gave to this process; to be called before torch is imported.

    Raises
    ------
    FailureError
        When a launcher started another number of processes than there are GPUs to train on.
    """
    global _world  # noqa: PLW0603 - a process has one place for its whole life
    size, local_rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    if gpus > 0 and size > 1 and gpus != size:
        raise FailureError(
            exits.INVALID_CONFIGURATION,
            "InvalidSpec",
            f"{size} processes were started for --gpus={gpus}: start one for each GPU",
        )
    if PARENT in os.environ:
        _end_with(int(os.environ[PARENT]))
    if gpus > 0 and size > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible_gpus(local_rank + 1)[local_rank]
    elif gpus > 0:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    else:
        # Libraries would load onto a GPU that they see, and save its random numbers.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    _world = World(int(os.environ.get("RANK", "0")), size)
    # From here on the libraries are to think that they are alone.
    for name in _LAUNCHER:
        os.environ.pop(name, None)


def visible_gpus(count: int) -> list[str]:
    """Return the names of that many GPUs, those that this process may see.

    Raises
    ------
    FailureError
        When it may see fewer.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(index) for index in range(count)] if given is None else [name for name in given.split(",") if name]
    if len(names) < count:
        raise FailureError(
            exits.GPU_UNAVAILABLE,
            "GPUUnavailable",
            f"{count} GPUs were requested, and CUDA_VISIBLE_DEVICES={given} shows {len(names)}: lower resources.gpus "
            "(--gpus), or show more",
        )
    return names[:count]


def _end_with(parent: int) -> None:
    """End this process when its launcher ends, however that happens."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(exits.LOST_PEERS)


def connect(*, cuda: bool) -> None:
    """Meet the other processes; returns when all are there."""
    if _world.size == 1:
        return
    import torch

    rendezvous = os.environ.get(RENDEZVOUS)
    with _peers():
        torch.distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            init_method="env://" if rendezvous is None else f"file://{rendezvous}",
            rank=_world.rank,
            world_size=_world.size,
            timeout=TIMEOUT,
        )
    wait()


def wait() -> None:
    """Wait until all processes are here."""
    gather(None)


def gather(value: Any) -> list[Any]:
    """Return what each process gives, in their order; each of them gets the same."""
    if _world.size == 1:
        return [value]
    import torch

    values: list[Any] = [None] * _world.size
    with _peers():
        torch.distributed.all_gather_object(values, value)
    return values


def same(facts: Mapping[str, Any]) -> None:
    """Make sure that all processes go by the same facts, before they add up what does not belong together.

    Raises
    ------
    FailureError
        In all of them, when one differs from the first one; it says in what.
    """
    first, *others = gather(dict(facts))
    differing = [
        f"{name} is {first[name]} in process 0 and {other.get(name)} in process {rank}"
        for rank, other in enumerate(others, start=1)
        for name in first
        if other.get(name) != first[name]
    ]
    if differing:
        raise FailureError(
            exits.CRASH,
            "InternalError",
            f"the processes do not train the same run, so all of them end before a step is made: {'; '.join(differing)}"
            "; a volume that shows them different files is the usual cause: start the run again",
        )


def totals(*counts: int) -> list[int]:
    """Return the sums over all processes."""
    return [sum(shares) for shares in zip(*gather(counts), strict=True)]


def total_sums(sums: Mapping[str, float]) -> dict[str, float]:
    """Return the sums by name over all processes, of which some may have none."""
    found: dict[str, float] = {}
    for share in gather(dict(sums)):
        found = {**found, **{name: found.get(name, 0.0) + value for name, value in share.items()}}
    return found


def interrupted() -> bool:
    """Whether SIGTERM has been received, by whichever process: all of them get the same answer."""
    if any(gather(interruption.requested())):
        interruption.request()
        return True
    return False


def add_gradients(parameters: Sequence[Any]) -> None:
    """Put the sum over all processes into each parameter's gradient; no gradient counts as zero."""
    if _world.size == 1:
        return
    import torch

    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    with _peers():
        torch.distributed.all_reduce(flat)
    for parameter, part in zip(parameters, flat.split([g.numel() for g in gradients]), strict=True):
        parameter.grad = part.view_as(parameter).clone()


def share(parameters: Sequence[Any]) -> None:
    """Give all processes the first one's weights."""
    if _world.size == 1:
        return
    import torch

    with _peers():
        for parameter in parameters:
            torch.distributed.broadcast(parameter.data, src=0)


@contextlib.contextmanager
def _peers() -> Iterator[None]:
    """Tell the end of a peer from an error of our own."""
    try:
        with hang.waiting():
            yield
    except RuntimeError as error:
        if gpus.out_of_memory(error):
            raise
        raise exits.gpu_failure(error) or lost_peers(error) from error


def lost_peers(error: BaseException) -> FailureError:
    """Return the failure of a process whose peers are gone, as an error has shown."""
    return FailureError(
        exits.LOST_PEERS, "InternalError", f"process {_world.rank} of {_world.size} lost the others: {error}"
    )
