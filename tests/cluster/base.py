"""The one interface that tests and the demo know of a Kubernetes cluster, whatever runs it."""

from __future__ import annotations

import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path


class ClusterError(Exception):
    """A cluster cannot be used; the message says what is wrong, where, and what to do."""


class Unsupported(ClusterError):  # noqa: N818 - it is raised for a question, not for a fault
    """This kind of cluster cannot do what was asked."""


class Cluster(ABC):
    """One Kubernetes cluster with a default StorageClass and some (pretended or real) ``nvidia.com/gpu``."""

    kind: str
    """The word that ``CLUSTER`` chooses this driver by."""

    @abstractmethod
    def up(self) -> None:
        """Start the cluster and wait until pods can run; does nothing, in under a second, where it already does.

        Raises:
            ClusterError: something that it needs is missing, or a part did not start.
        """

    @abstractmethod
    def down(self, *, purge: bool = False) -> None:
        """Stop the cluster and throw its objects away.

        Args:
            purge: throw away the images that were loaded into it as well.
        """

    @abstractmethod
    def status(self) -> dict[str, str]:
        """State of each part by its name; every value is ``running`` when the cluster is up."""

    @property
    @abstractmethod
    def kubeconfig(self) -> Path:
        """The file that gives an administrator access."""

    @property
    @abstractmethod
    def bin_dir(self) -> Path:
        """A folder with ``kubectl`` and ``helm``, to be put on PATH."""

    @abstractmethod
    def load_image(self, local_name: str) -> str:
        """Make an image of the local image builder available to the cluster's nodes.

        Args:
            local_name: ``name:tag`` as the builder knows it.

        Returns:
            The reference that a pod uses, good with imagePullPolicy IfNotPresent.
        """

    @abstractmethod
    def node_shell(self, argv: Sequence[str], *, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command as root on the node, with its output captured; the exit code is not checked.

        Raises:
            Unsupported: this cluster's nodes cannot be reached.
        """
