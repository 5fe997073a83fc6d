"""Which cluster the tests and the demo use on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.base import Cluster, ClusterError
from tests.cluster.host import cache_dir

KINDS = ("existing", "kind", "processes")


@dataclass(frozen=True)
class Facts:
    """What a machine offers.

    Attributes:
        chosen: the value of CLUSTER, empty where unset.
        kubeconfig: the value of KUBECONFIG; empty where unset, or where it names a cluster that was started by us.
        docker_answers: a Docker engine is running.
        has_kind: the program ``kind`` is on PATH.
        is_linux: the system is Linux.
        is_root: this process may do everything.
    """

    chosen: str
    kubeconfig: str
    docker_answers: bool
    has_kind: bool
    is_linux: bool
    is_root: bool


def gather(environment: Mapping[str, str]) -> Facts:
    """Look at this machine."""
    return Facts(
        chosen=environment.get("CLUSTER", ""),
        kubeconfig="" if is_own(environment.get("KUBECONFIG", "")) else environment["KUBECONFIG"],
        docker_answers=_docker_answers(),
        has_kind=shutil.which("kind") is not None,
        is_linux=sys.platform == "linux",
        is_root=os.getuid() == 0,
    )


def is_own(kubeconfig: str) -> bool:
    """Whether KUBECONFIG says nothing (it is empty), or names one of our own clusters, as it does after `up`."""
    return not kubeconfig or cache_dir() in Path(kubeconfig).resolve().parents


def choose(facts: Facts) -> str:
    """The kind of cluster to use: CLUSTER where it is set, else the first that works here.

    Raises:
        ClusterError: CLUSTER is no kind of cluster, or nothing works here; with what to do.
    """
    if facts.chosen:
        if facts.chosen not in KINDS:
            raise ClusterError(f"CLUSTER={facts.chosen!r} is not one of {', '.join(KINDS)}")
        return facts.chosen
    if facts.kubeconfig:
        return "existing"
    if facts.docker_answers and facts.has_kind:
        return "kind"
    if facts.is_linux and facts.is_root:
        return "processes"
    raise ClusterError(
        "no Kubernetes can be used or started here: KUBECONFIG is not set; "
        f"kind cannot be used ({_why_not_kind(facts)}); "
        f"plain processes cannot be used ({'this is not root' if facts.is_linux else 'this is not Linux'}). "
        "Set KUBECONFIG to a cluster that may be changed, start Docker and install kind, or run this as root on Linux"
    )


def cluster(environment: Mapping[str, str] | None = None) -> Cluster:
    """The cluster of this machine; not started yet."""
    variables = os.environ if environment is None else environment
    # The module of the other drivers is not read: each has needs of its own.
    match choose(gather(variables)):
        case "existing":
            from tests.cluster.existing import Existing

            return Existing(
                kubeconfig=variables.get("KUBECONFIG", ""), registry=variables.get("FINETUNE_IMAGE_REGISTRY", "")
            )
        case "kind":
            from tests.cluster.kind import Kind

            return Kind()
        case _:
            from tests.cluster.processes import Processes

            return Processes()


def _docker_answers() -> bool:
    if shutil.which("docker") is None:
        return False
    argv = ["docker", "version", "--format={{.Server.Version}}"]
    try:
        return subprocess.run(argv, capture_output=True, timeout=10, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _why_not_kind(facts: Facts) -> str:
    if not facts.docker_answers:
        return "no Docker engine answers" if facts.has_kind else "no Docker engine answers, and kind is not installed"
    return "kind is not installed"
