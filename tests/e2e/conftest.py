"""One cluster and one installation for all end-to-end tests; every test has a namespace of its own."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

from tests.cluster.base import Cluster
from tests.cluster.choose import cluster as choose_cluster
from tests.support.installation import Installation, build_images
from tests.support.kubectl import Kubectl

REFERENCE_TIMEOUT_SECONDS = 15
KEEP = "FINETUNE_KEEP_CLUSTER"
"""Set this to leave the cluster running after the tests."""


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The local cluster; one that was up before the tests stays up."""
    target = choose_cluster()
    was_up = set(target.status().values()) == {"running"}
    target.up()
    yield target
    if not was_up and not os.environ.get(KEEP):
        target.down()


@pytest.fixture(scope="session")
def installation(cluster: Cluster) -> Installation:
    """The chart, with a short patience for what does not exist."""
    kubectl = Kubectl(kubeconfig=cluster.kubeconfig, bin_dir=cluster.bin_dir)
    made = Installation(kubectl=kubectl, images=build_images(cluster))
    made.install(referenceTimeoutSeconds=REFERENCE_TIMEOUT_SECONDS, terminationGraceSeconds=30)
    return made


@pytest.fixture
def team(installation: Installation) -> Iterator[Kubectl]:
    """kubectl in a namespace of the test's own, deleted afterwards."""
    kubectl = installation.create_namespace(f"e2e-{uuid.uuid4().hex[:8]}")
    yield kubectl
    kubectl("delete", "namespace", kubectl.namespace, "--wait=false")


@pytest.fixture
def tiny(installation: Installation, team: Kubectl) -> Kubectl:
    """A namespace whose claim `base-models` holds a tiny model: real gradients in seconds."""
    installation.provide_base_model(team, tiny=True)
    return team
