"""Programs of Debian's packages: those of this machine, or unpacked into the cache, with nothing installed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from images import shell


def find(package: str, program: str) -> Path | None:
    """A program on PATH, else in the cache."""
    on_path = shutil.which(program)
    if on_path is not None:
        return Path(on_path)
    cached = _cached(package) / program
    return cached if cached.exists() else None


def fetch(package: str, programs: Sequence[str]) -> None:
    """Unpack a package into the cache, unless its programs are there. Raises shell.CommandError."""
    if all(find(package, program) for program in programs):
        return
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise shell.CommandError(f"no {programs[0]} on PATH and no apt-get: install {package} to run its tests")
    target = _cached(package)
    with shell.lock(package), tempfile.TemporaryDirectory(dir=target.parent) as name:
        if target.exists():
            return
        folder = Path(name)
        try:
            shell.run(["apt-get", "download", "-q", package], cwd=folder)
        except shell.CommandError:  # no lists yet, or old ones
            shell.run(["apt-get", "update", "-q"], timeout=600)
            shell.run(["apt-get", "download", "-q", package], cwd=folder)
        (archive,) = folder.glob("*.deb")
        shell.run(["dpkg-deb", "--extract", archive, folder / "x"])
        (folder / "x" / "usr" / "bin").rename(target)


def _cached(package: str) -> Path:
    return shell.cache_dir() / package
