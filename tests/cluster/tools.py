"""kubectl and helm for clusters that do not bring them."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.cluster import go_build, host
from tests.cluster.base import ClusterError

CLIENTS = {"kubectl": go_build.KUBE, "helm": go_build.HELM}


def client_dir() -> Path:
    """A folder with ``kubectl`` and ``helm``: this machine's own, and what it lacks built from its sources.

    Raises:
        ClusterError: one is missing, and so is Go.
    """
    folder = host.cache_dir() / "clients"
    folder.mkdir(parents=True, exist_ok=True)
    for name in CLIENTS:
        path, link = _find(name, folder), folder / name
        if not link.is_symlink() or str(link.readlink()) != path:
            link.unlink(missing_ok=True)
            link.symlink_to(path)
    return folder


def _find(name: str, ours: Path) -> str:
    path = shutil.which(name)
    if path and Path(path).parent != ours:
        return path
    if shutil.which("go") is None:
        raise ClusterError(f"{name} is not on PATH: install it, or Go 1.26 or newer to have it built once")
    return str(go_build.build((CLIENTS[name],)) / name)
