"""A real one-node Kubernetes out of plain processes, for a Linux machine with root and without a container engine.

Everything is below one folder (``FINETUNE_CACHE``/cluster). Objects, volumes and containers do not outlive the cluster;
images do, until it is stopped with ``purge``.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from images import engine as images
from images import shell
from images.shell import CommandError
from tests.cluster import go_build, host, machine, node, supervise
from tests.cluster.base import Cluster, ClusterError
from tests.cluster.control_plane import ControlPlane
from tests.cluster.kube_api import KubeApi
from tests.cluster.layout import LOOPBACK, NODE_ADDRESS, Layout, Ports
from tests.cluster.registry import Registry
from tests.cluster.supervise import Supervisor


class Processes(Cluster):
    """See the module."""

    kind = "processes"

    def __init__(self, root: Path | None = None) -> None:
        self._layout = Layout(root or host.cache_dir() / "cluster")
        self._ports = Ports()
        self._supervisor = Supervisor(records=self._layout.records, logs=self._layout.logs)

    @property
    def _marker(self) -> Path:
        """Exists when the last start was finished."""
        return self._layout.root / "started"

    @property
    def kubeconfig(self) -> Path:
        return self._layout.kubeconfig("admin")

    @property
    def bin_dir(self) -> Path:
        return go_build.build(go_build.ALL)

    def status(self) -> dict[str, str]:
        states = {
            name: "running" if identity.is_alive() else "ended"
            for name, identity in self._supervisor.recorded().items()
        }
        return states or {"cluster": "stopped"}

    def up(self) -> None:
        if os.getuid() != 0 or sys.platform != "linux":
            raise ClusterError("a Kubernetes of plain processes needs root on Linux: become root, or use CLUSTER=kind")
        with self._lock():
            if self._is_up():
                return
            host.install(node.PACKAGES)
            plane = ControlPlane(
                layout=self._layout,
                ports=self._ports,
                bin_dir=self.bin_dir,
                address=NODE_ADDRESS,
                supervisor=self._supervisor,
                extra_env={},
            )
            self._clean()
            self._ports.check_free()
            try:
                node.start(plane, gpus=host.gpu_count())
                self._marker.touch()
            except BaseException:
                self._stop()  # the logs stay, and with them the reason
                raise

    def down(self, *, purge: bool = False) -> None:
        if not self._layout.root.exists():
            return
        with self._lock():
            self._clean()
            if purge:
                shutil.rmtree(self._layout.root)

    def load_image(self, local_name: str) -> str:
        reference = f"localhost:{self._ports.registry}/{local_name}"
        name, _, tag = local_name.partition(":")
        try:
            engine = images.detect()
            image = engine.image_id(local_name)
            if not image:
                raise ClusterError(
                    f"there is no image {local_name} in {engine.name}: build it with `python -m images.build`"
                )
            registry = Registry(
                url=f"http://{LOOPBACK}:{self._ports.registry}",
                configuration=self._layout.config / "registry.yaml",
                store=self._layout.registry,
            )
            with shell.lock("registry"):  # removing blobs would take those of a push that goes on
                if registry.image_id(name, tag) != image:
                    registry.discard_uploads(name)
                    engine.push(local_name, reference)
                    registry.keep_only(name, tag)
        except CommandError as error:
            raise ClusterError(str(error)) from error
        self._pull(reference, image)
        return reference

    def _pull(self, reference: str, image: str) -> None:
        """Let the node fetch an image before a pod waits for it, and forget the older ones of its name."""
        known = dict(line.split() for line in self._node_images("list").splitlines())
        if known.get(reference) != image:
            self._node_images("pull", reference)
        name = reference.rpartition(":")[0]
        for other in known:
            if other.rpartition(":")[0] == name and other != reference:
                self._node_images("remove", other)

    def _node_images(self, *arguments: str) -> str:
        endpoint = f"unix://{self._layout.containerd_socket}"
        return host.run([self.bin_dir / "node-images", endpoint, *arguments], timeout=1800)

    def node_shell(self, argv: Sequence[str], *, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(list(argv), capture_output=True, text=True, timeout=timeout, check=False)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Let one program at a time start or stop this cluster."""
        self._layout.root.mkdir(parents=True, exist_ok=True)
        with (self._layout.root / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _is_up(self) -> bool:
        """Whether the last start was finished, every program of it still runs, and the API server answers."""
        recorded = self._supervisor.recorded()
        if not recorded or not self._marker.exists():
            return False
        if not all(identity.is_alive() for identity in recorded.values()):
            return False
        return KubeApi.from_kubeconfig(self._layout.kubeconfig("super-admin")).is_ready()

    def _stop(self) -> None:
        """End every process of this cluster, recorded or not, and take its network and mounts back."""
        self._supervisor.stop_all()
        machine.kill_cgroup()
        supervise.stop(supervise.find(programs=node.PROGRAMS, argument_prefix=f"{self._layout.root}/"))
        machine.tear_down(self._layout)

    def _clean(self) -> None:
        """Stop what runs, whatever state it is in, and remove everything but the images."""
        self._stop()
        self._forget_containers()
        for path in self._layout.throwaway():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _forget_containers(self) -> None:
        """Remove the containers that containerd's store still lists, and with them their writable layers.

        Its Kubernetes part is off meanwhile: it would take them for its own and hold on to them.
        """
        if not self._layout.containerd_images.exists():
            return
        node.start_containerd(self._layout, self._supervisor, with_kubernetes=False)
        try:
            host.wait_until("containerd answers", lambda: node.containerd_answers(self._layout))
            known = node.ctr(self._layout, "containers", "list", "--quiet").split()
            if known:
                node.ctr(self._layout, "containers", "remove", *known)
        finally:
            self._supervisor.stop_all()
