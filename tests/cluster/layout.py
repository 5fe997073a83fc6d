"""Where one cluster keeps its files, and which addresses it uses."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.cluster.base import ClusterError

SERVICE_CIDR = "10.96.0.0/16"
POD_CIDR = "10.244.0.0/24"
NODE_ADDRESS = "10.244.0.1"
"""The bridge's own address: the node keeps it whatever happens to the machine's network."""
BRIDGE = "finetune0"
NETWORK = "finetune"
CGROUP = "finetune"
LOOPBACK = "127.0.0.1"

# Outside of Linux' default range for outgoing connections, so that none of those takes a port between choice and use.
FREE_PORTS = range(20000, 30000)


@dataclass(frozen=True)
class Ports:
    """TCP ports; the defaults are Kubernetes' own, the registry's is the one that kind's documentation uses."""

    api: int = 6443
    etcd: int = 2379
    etcd_peer: int = 2380
    controller_manager: int = 10257
    scheduler: int = 10259
    kubelet: int = 10250
    kubelet_health: int = 10248
    proxy_health: int = 10256
    proxy_metrics: int = 10249
    dns_ready: int = 8181
    registry: int = 5001

    @classmethod
    def free(cls) -> Ports:
        """Ports that nobody uses at the moment, for an API server beside others."""
        found: list[int] = []
        for port in random.sample(FREE_PORTS, len(FREE_PORTS)):
            if len(found) == len(cls.__dataclass_fields__):
                break
            if not is_taken(LOOPBACK, port):
                found.append(port)
        return cls(*found)

    def check_free(self) -> None:
        """Raise a ClusterError that names every port that something else listens on."""
        taken = {name: port for name, port in asdict(self).items() if is_taken(LOOPBACK, port)}
        if taken:
            raise ClusterError(
                "the local Kubernetes needs ports that something else listens on: "
                + ", ".join(f"{port} ({name})" for name, port in taken.items())
                + "; find out who with `ss -ltnp` and stop it, or use another cluster (CLUSTER=existing)"
            )


def is_taken(address: str, port: int) -> bool:
    """Whether a program listens on a TCP port, at this address or at all of them."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a closed connection's remains are no obstacle
        try:
            probe.bind((address, port))
        except OSError:
            return True
    return False


@dataclass(frozen=True)
class Layout:
    """The files of one cluster, all under ``root`` (absolute)."""

    root: Path

    def __post_init__(self) -> None:
        # A Unix socket's path has at most 107 bytes, and containerd makes a second one beside its own.
        if len(f"{self.containerd_socket}.ttrpc") > 107:
            raise ClusterError(f"{self.root} is too long a path for a socket: set FINETUNE_CACHE to a shorter one")

    @property
    def pki(self) -> Path:
        """Certificates and keys."""
        return self.root / "pki"

    @property
    def logs(self) -> Path:
        """One file for each program."""
        return self.root / "logs"

    @property
    def records(self) -> Path:
        """One file for each running program."""
        return self.root / "processes"

    @property
    def etcd(self) -> Path:
        """Etcd's data."""
        return self.root / "etcd"

    @property
    def config(self) -> Path:
        """The programs' configuration files."""
        return self.root / "config"

    @property
    def cni(self) -> Path:
        """The pod network's configuration."""
        return self.root / "cni"

    @property
    def kubelet(self) -> Path:
        """The kubelet's root: volumes of pods are mounted under it."""
        return self.root / "kubelet"

    @property
    def pod_logs(self) -> Path:
        """The containers' output."""
        return self.root / "pod-logs"

    @property
    def volumes(self) -> Path:
        """Folders of the persistent volumes."""
        return self.root / "volumes"

    @property
    def containerd_run(self) -> Path:
        """Containerd's state: mounts of running containers are under it."""
        return self.root / "containerd"

    @property
    def containerd_socket(self) -> Path:
        """Where containerd listens."""
        return self.containerd_run / "containerd.sock"

    @property
    def containerd_images(self) -> Path:
        """Containerd's store; kept when the cluster is stopped."""
        return self.root / "images" / "containerd"

    @property
    def registry(self) -> Path:
        """The image registry's store; kept when the cluster is stopped."""
        return self.root / "images" / "registry"

    @property
    def saved_sysctls(self) -> Path:
        """What the kernel's settings were before."""
        return self.root / "sysctls.json"

    def kubeconfig(self, user: str) -> Path:
        """The kubeconfig that kubeadm writes for one user, e.g. ``admin``."""
        return self.root / f"{user}.conf"

    def throwaway(self) -> Iterable[Path]:
        """Everything that does not outlive the cluster."""
        kept = {self.containerd_images.parent, self.root / "lock"}
        return [path for path in self.root.iterdir() if path not in kept] if self.root.is_dir() else []
