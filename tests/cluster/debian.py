"""The Debian packages that the node is made of."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.cluster import host
from tests.cluster.base import ClusterError

PROGRAMS = {
    "containerd": "containerd",
    "runc": "runc",
    "docker-registry": "docker-registry",
    "nft": "nftables",
    "ip": "iproute2",
    "conntrack": "conntrack",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
}
"""What must be there, by the package that brings it."""


def missing() -> list[str]:
    """Packages whose programs are not on this machine."""
    return sorted(
        {
            package
            for program, package in PROGRAMS.items()
            if not (Path(program).exists() if program.startswith("/") else shutil.which(program))
        }
    )


def install(packages: list[str]) -> None:
    """Install packages with apt-get.

    Raises:
        ClusterError: this is no Debian, or apt-get failed.
    """
    if not packages:
        return
    if shutil.which("apt-get") is None:
        raise ClusterError(
            f"missing {', '.join(packages)} (Debian's names), and there is no apt-get to install them: "
            "install what this system calls them, or use CLUSTER=kind or CLUSTER=existing"
        )
    print(f"installing {' '.join(packages)} ...", flush=True)
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    host.run(["apt-get", "update", "-q"], env=environment)
    host.run(["apt-get", "install", "-y", "-q", "--no-install-recommends", *packages], env=environment, timeout=1800)
