"""A cluster in Docker, made by kind."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.cluster import host, tools
from tests.cluster.base import Cluster

NAME = "finetune"
NODE = f"{NAME}-control-plane"
CREATE_SECONDS = 600


class Kind(Cluster):
    """One node; kind brings the default StorageClass and the cluster's DNS."""

    kind = "kind"

    def __init__(self) -> None:
        self._kubeconfig = host.cache_dir() / "kind" / "kubeconfig"

    def up(self) -> None:
        if NAME not in host.run(["kind", "get", "clusters"]).split():
            argv = ["kind", "create", "cluster", f"--name={NAME}", f"--kubeconfig={self._kubeconfig}", "--wait=120s"]
            self._kubeconfig.parent.mkdir(parents=True, exist_ok=True)
            host.run(argv, timeout=CREATE_SECONDS)
        if not self._kubeconfig.is_file():
            self._kubeconfig.parent.mkdir(parents=True, exist_ok=True)
            self._kubeconfig.write_text(host.run(["kind", "get", "kubeconfig", f"--name={NAME}"]))
        amounts = {host.GPU_RESOURCE: str(host.gpu_count())}
        patch = json.dumps({"status": {"capacity": amounts, "allocatable": amounts}})
        kubectl: list[str | Path] = [self.bin_dir / "kubectl", f"--kubeconfig={self._kubeconfig}"]
        host.run([*kubectl, "patch", "node", NODE, "--subresource=status", "--type=merge", f"--patch={patch}"])

    def down(self, *, purge: bool = False) -> None:  # noqa: ARG002 - images are in the node and go with it anyway
        host.run(["kind", "delete", "cluster", f"--name={NAME}"])
        self._kubeconfig.unlink(missing_ok=True)

    def status(self) -> dict[str, str]:
        names = host.run(["kind", "get", "clusters"]).split()
        return {"cluster": "running" if NAME in names else "stopped"}

    @property
    def kubeconfig(self) -> Path:
        return self._kubeconfig

    @property
    def bin_dir(self) -> Path:
        return tools.client_dir()

    def load_image(self, local_name: str) -> str:
        host.run(["kind", "load", "docker-image", f"--name={NAME}", local_name], timeout=CREATE_SECONDS)
        return local_name

    def node_shell(self, argv: Sequence[str], *, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        command = ["docker", "exec", NODE, *argv]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
