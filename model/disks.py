"""Which disk is full, and how full it is: what somebody needs to know who is to make room."""

from __future__ import annotations

import os
from pathlib import Path

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where every Linux has it
_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")

_output: list[Path] = []


def writes_to(directory: Path) -> None:
    """Remember where this process writes: the libraries' errors mostly keep the name of no file."""
    _output[:] = [directory]


def full(name: str | None, *, quota: bool = False) -> str:
    """Return what to say of a disk that has no space left.

    Parameters
    ----------
    name
        The file that could not be written; None when the error does not say.
    quota
        Whether a quota is used up, in place of the disk.
    """
    path = Path(name) if name else next(iter(_output), None)
    said = "the disk quota is used up" if quota else "no space left"
    if path is None or (mount := mount_point(path)) is None:
        where = f" for {name}" if name else ""
        return f"{said} on the output volume{where}: make room there, or use a larger claim"
    writing = f" (for {name})" if name else ""
    room = free_space(mount)
    left = f", with {room} now" if room and not quota else ""
    return f"{said} on the volume at {mount}{writing}{left}: {_advice(mount)}"


def mount_point(path: Path) -> Path | None:
    """Return where the file system is mounted that holds a path, or would hold it; None when nobody can tell."""
    try:
        path = path.absolute()
        while not path.exists():
            path = path.parent
        path = path.resolve()
        while not path.is_mount():
            path = path.parent
    except OSError:
        return None
    return path


def free_space(path: Path) -> str:
    """Return how much of a file system is free for this user, in words; empty when nobody can tell."""
    try:
        found = os.statvfs(path)
    except OSError:
        return ""
    room = f"{amount(found.f_bavail * found.f_frsize)} of {amount(found.f_blocks * found.f_frsize)} free"
    return room if found.f_favail or not found.f_files else f"{room} and none of {found.f_files} files"


def amount(size: int) -> str:
    """Return a number of bytes as people write it."""
    value, unit = float(size), 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{size} bytes" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"


def _advice(mount: Path) -> str:
    if mount == _SHARED_MEMORY:
        return "raise resources.sharedMemory (without Kubernetes, the container's --shm-size)"
    return "make room there, or use a larger claim (without Kubernetes, a larger disk)"
