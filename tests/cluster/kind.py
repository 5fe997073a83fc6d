"""A cluster in Docker, made by kind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.cluster import host, tools
from tests.cluster.base import Cluster, ClusterError

NAME = "finetune"
NODE = f"{NAME}-control-plane"
CREATE_SECONDS = 600
READY_SECONDS = 120
NODE_IMAGE = "FINETUNE_KIND_NODE_IMAGE"
"""The node's image; default: the one that this release of kind is made for."""
NEWEST_FOR_CGROUPS_1 = "kindest/node:v1.34.0"
"""Later kubelets refuse to start on version 1 of cgroups."""
DISK_BYTES = 25 * 10**9
"""What Docker's images, their copies in the node and the archives between them need at the peak."""


class Kind(Cluster):
    """One node; kind brings the default StorageClass and the cluster's DNS."""

    kind = "kind"

    def __init__(self) -> None:
        self._folder = host.cache_dir() / "kind"
        self._kubeconfig = self._folder / "kubeconfig"

    def up(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        state = self._node_state()
        if state and not self._revived(state):
            print(f"the kind cluster {NAME} is half-made or broken: making it anew", file=sys.stderr, flush=True)
            self.down()
            state = ""
        if not state:
            self._create()
        amounts = {host.GPU_RESOURCE: str(host.gpu_count())}
        patch = json.dumps({"status": {"capacity": amounts, "allocatable": amounts}})
        self._kubectl("patch", "node", NODE, "--subresource=status", "--type=merge", f"--patch={patch}")

    def down(self, *, purge: bool = False) -> None:  # noqa: ARG002 - images are in the node and go with it anyway
        host.run(["kind", "delete", "cluster", f"--name={NAME}"])
        self._kubeconfig.unlink(missing_ok=True)

    def status(self) -> dict[str, str]:
        return {"cluster": self._node_state() or "stopped"}

    @property
    def kubeconfig(self) -> Path:
        return self._kubeconfig

    @property
    def bin_dir(self) -> Path:
        return tools.client_dir()

    def load_image(self, local_name: str) -> str:
        # A tag is a digest of all that made the image, so what has its name is it. kind itself compares the digests of
        # configurations, which Docker's containerd store does not have, and would load gigabytes at every run.
        if self.node_shell(["crictl", "inspecti", "--quiet", f"docker.io/library/{local_name}"]).returncode != 0:
            scratch = self._folder / "tmp"  # of the size of the image; /tmp may be memory
            scratch.mkdir(parents=True, exist_ok=True)
            argv = ["kind", "load", "docker-image", f"--name={NAME}", local_name]
            host.run(argv, timeout=CREATE_SECONDS, env={"TMPDIR": str(scratch)})
        return local_name

    def node_shell(self, argv: Sequence[str], *, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        command = ["docker", "exec", NODE, *argv]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)

    def _create(self) -> None:
        check_disk(_docker_says("{{.DockerRootDir}}"))
        argv = ["kind", "create", "cluster", f"--name={NAME}", f"--kubeconfig={self._kubeconfig}", "--wait=120s"]
        image = node_image(os.environ.get(NODE_IMAGE, ""), cgroups=_docker_says("{{.CgroupVersion}}"))
        try:
            host.run([*argv, f"--image={image}"] if image else argv, timeout=CREATE_SECONDS)
        except BaseException:
            self.down()  # what is half-made would be taken for a cluster the next time
            raise

    def _node_state(self) -> str:
        """Docker's word for the node's container (running, exited, ...); empty where there is none."""
        try:
            return host.run(["docker", "inspect", "--format={{.State.Status}}", NODE]).strip()
        except ClusterError:
            return ""

    def _revived(self, state: str) -> bool:
        """Whether the node serves, after it was started where it had stopped."""
        if state != "running":
            host.run(["docker", "start", NODE])
        try:
            # Anew each time: the port may have changed. kind makes the file readable for its owner alone.
            host.run(["kind", "export", "kubeconfig", f"--name={NAME}", f"--kubeconfig={self._kubeconfig}"])
            host.wait_until("the node is ready", self._is_ready, seconds=READY_SECONDS)
        except (ClusterError, TimeoutError):
            return False
        return True

    def _is_ready(self) -> bool:
        try:
            self._kubectl("wait", "--for=condition=Ready", f"node/{NODE}", "--timeout=1s")
        except ClusterError:
            return False
        return True

    def _kubectl(self, *arguments: str) -> str:
        return host.run([self.bin_dir / "kubectl", f"--kubeconfig={self._kubeconfig}", *arguments])


def node_image(chosen: str, *, cgroups: str) -> str:
    """The node's image; empty: kind's own choice.

    Parameters
    ----------
    chosen: what the environment says, if anything.
    cgroups: the version of Docker's cgroups.
    """
    return chosen or (NEWEST_FOR_CGROUPS_1 if cgroups == "1" else "")


def check_disk(folder: str) -> None:
    """Raise ClusterError where Docker's folder has too little room; it is not on this machine with Docker Desktop."""
    if not folder or not Path(folder).is_dir():
        return
    free = shutil.disk_usage(folder).free
    if free < DISK_BYTES:
        raise ClusterError(
            f"{folder} has {free / 1e9:.0f} GB free, and images and node need some {DISK_BYTES / 1e9:.0f} GB there: "
            "free some (docker system prune), or use CLUSTER=processes, which needs less"
        )


def _docker_says(what: str) -> str:
    return host.run(["docker", "info", f"--format={what}"]).strip()
