"""kubectl and helm for clusters that do not bring them."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.cluster import go_build, host

CLIENTS = ("kubectl", "helm")


def client_dir() -> Path:
    """A folder with ``kubectl`` and ``helm``: this machine's own where it has both, else built from their sources."""
    found = {name: shutil.which(name) for name in CLIENTS}
    if not all(found.values()):
        return go_build.build(go_build.CLIENTS)
    folder = host.cache_dir() / "clients"
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in found.items():
        link = folder / name
        if path and Path(path).parent != folder and (not link.is_symlink() or str(link.readlink()) != path):
            link.unlink(missing_ok=True)
            link.symlink_to(path)
    return folder
