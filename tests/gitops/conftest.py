"""The local cluster with the images, and the real Argo CD beside it: what `make gitops` runs."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.cluster.argocd import ArgoCD
from tests.cluster.choose import cluster as choose_cluster
from tests.support.installation import Installation, build_images
from tests.support.kubectl import Kubectl

KEEP = "FINETUNE_KEEP_CLUSTER"
"""Set this to leave the cluster running after the tests."""


@pytest.fixture(scope="session")
def installation() -> Iterator[Installation]:
    """A cluster with the images, on which nothing is installed yet."""
    cluster = choose_cluster()
    was_up = set(cluster.status().values()) == {"running"}
    cluster.up()
    images = build_images(cluster)
    yield Installation(kubectl=Kubectl(kubeconfig=cluster.kubeconfig, bin_dir=cluster.bin_dir), images=images)
    if not was_up and not os.environ.get(KEEP):
        cluster.down()


@pytest.fixture(scope="session")
def argo(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArgoCD]:
    """Argo CD over a repository that holds nothing yet."""
    kubectl = installation.kubectl
    with ArgoCD(
        kubeconfig=kubectl.kubeconfig, bin_dir=kubectl.bin_dir, folder=tmp_path_factory.mktemp("argocd")
    ) as made:
        yield made
