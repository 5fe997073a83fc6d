"""A cluster that somebody else runs; nothing of it is started, stopped or entered."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from images import engine as images
from images.shell import CommandError
from tests.cluster import host, tools
from tests.cluster.base import Cluster, ClusterError, Unsupported


class Existing(Cluster):
    """The current context of a kubeconfig.

    Args:
        kubeconfig: the value of KUBECONFIG; the first of several files is used.
        registry: where its nodes pull images from and this machine may push to, e.g. ``registry.example/team``.
    """

    kind = "existing"

    def __init__(self, *, kubeconfig: str, registry: str) -> None:
        first = kubeconfig.split(os.pathsep, maxsplit=1)[0]
        self._kubeconfig = Path(first).expanduser() if first else Path.home() / ".kube" / "config"
        self._registry = registry

    def up(self) -> None:
        if not self._kubeconfig.is_file():
            raise ClusterError(f"{self._kubeconfig} does not exist: set KUBECONFIG to a cluster's file, or unset it")
        host.run([self.bin_dir / "kubectl", "version", f"--kubeconfig={self._kubeconfig}"], timeout=30)

    def down(self, *, purge: bool = False) -> None:
        """Leave it running: it is not ours."""

    def status(self) -> dict[str, str]:
        try:
            self.up()
        except ClusterError as error:
            return {"cluster": str(error)}
        return {"cluster": "running"}

    @property
    def kubeconfig(self) -> Path:
        return self._kubeconfig

    @property
    def bin_dir(self) -> Path:
        return tools.client_dir()

    def load_image(self, local_name: str) -> str:
        if not self._registry:
            raise ClusterError(
                f"this cluster's nodes cannot see the local image {local_name}: set FINETUNE_IMAGE_REGISTRY to a "
                "registry (with its path) that they pull from and that you are logged in to"
            )
        reference = f"{self._registry.rstrip('/')}/{local_name}"
        try:
            images.detect().push(local_name, reference)
        except CommandError as error:
            raise ClusterError(str(error)) from error
        return reference

    def node_shell(self, argv: Sequence[str], *, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        raise Unsupported(
            f"{argv[0]} (with {timeout:g} s) cannot be run on the nodes of an existing cluster: "
            "use CLUSTER=kind or CLUSTER=processes"
        )
