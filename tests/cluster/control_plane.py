"""etcd and the API server, and the waiting for them; with a kubelet beside them they make a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.cluster import host, render
from tests.cluster.base import ClusterError
from tests.cluster.kube_api import KubeApi
from tests.cluster.layout import Layout, Ports
from tests.cluster.supervise import Supervisor

START_SECONDS = 60.0
T = TypeVar("T")


@dataclass
class ControlPlane:
    """The programs of one control plane, from ``bin_dir``; reached at ``address``, an IPv4 address of this machine."""

    layout: Layout
    ports: Ports
    bin_dir: Path
    address: str
    supervisor: Supervisor
    extra_env: Mapping[str, str]
    pass_fds: Sequence[int] = ()

    def start_program(self, argv: Sequence[str]) -> None:
        """Start a program of ``bin_dir`` or of the machine; its name is its first word."""
        name = argv[0]
        local = self.bin_dir / name
        path = f"{self.bin_dir}:{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin"
        env = {"PATH": path, "HOME": str(self.layout.root), **self.extra_env}
        command = [str(local) if local.exists() else name, *argv[1:]]
        self.supervisor.start(name, command, env=env, pass_fds=self.pass_fds)

    def make_credentials(self) -> None:
        """Let kubeadm make the certificates and the kubeconfigs."""
        config = self.layout.config / "kubeadm.yaml"
        config.write_text(render.kubeadm(self.layout, self.ports, self.address))
        kubeadm = self.bin_dir / "kubeadm"
        host.run([kubeadm, "init", "phase", "certs", "all", f"--config={config}"])
        target = f"--kubeconfig-dir={self.layout.root}"
        host.run([kubeadm, "init", "phase", "kubeconfig", "all", f"--config={config}", target])

    def start(self, *, disabled_admission: Sequence[str] = (), flags: Sequence[str] = ()) -> KubeApi:
        """Start etcd and the API server (with more flags), and wait until the latter is ready."""
        self.layout.config.mkdir(parents=True, exist_ok=True)
        self.start_program(render.etcd(self.layout, self.ports))
        self.make_credentials()
        self.start_program(
            render.api_server(
                self.layout, self.ports, address=self.address, disabled_admission=disabled_admission, flags=flags
            )
        )
        api = KubeApi.from_kubeconfig(self.layout.kubeconfig("super-admin"))
        self.wait_until("the API server is ready", api.is_ready)
        return api

    def wait_until(self, what: str, condition: Callable[[], T | None], *, seconds: float = START_SECONDS) -> T:
        """Ask until the answer is true.

        Raises:
            ClusterError: it did not become true in time, or a program died meanwhile.
        """
        try:
            return host.wait_until(what, condition, seconds=seconds, check=self.supervisor.check_alive)
        except TimeoutError as error:
            raise ClusterError(f"{error}; the logs are in {self.layout.logs}") from error
