"""One cluster and one installation for all end-to-end tests; every test has a namespace of its own.

The tests run on three workers, for they mostly wait; each file is on one of them. What takes the operator or the
registry away is in one file (test_survival.py), so that it never happens twice at once; the others must live with it,
except those that hold `registry_needed`.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.base import Cluster
from tests.cluster.choose import cluster as choose_cluster
from tests.support.installation import Images, Installation, build_images
from tests.support.kubectl import Kubectl

REFERENCE_TIMEOUT_SECONDS = 15
KEEP = "FINETUNE_KEEP_CLUSTER"
"""Set this to leave the cluster running after the tests."""
IMAGES = "FINETUNE_E2E_IMAGES"
"""The images' references, handed to the workers."""
REGISTRY_LOCK = Path(tempfile.gettempdir()) / "finetune-e2e-registry.lock"

LONGEST_FIRST = ("test_success", "test_survival", "test_quickstart")
"""Files that take minutes: begun last, one of them would be waited for by all others."""

_was_up = pytest.StashKey[bool]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest first, in the order in which workers take files."""
    order = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Cluster, images and chart, once, before any worker starts."""
    config = session.config
    if hasattr(config, "workerinput") or config.option.collectonly:
        return
    cluster = choose_cluster()
    config.stash[_was_up] = set(cluster.status().values()) == {"running"}
    cluster.up()
    images = build_images(cluster)
    os.environ[IMAGES] = json.dumps(dataclasses.asdict(images))
    made = Installation(kubectl=Kubectl(kubeconfig=cluster.kubeconfig, bin_dir=cluster.bin_dir), images=images)
    made.install(referenceTimeoutSeconds=REFERENCE_TIMEOUT_SECONDS, terminationGraceSeconds=30)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A cluster that was up before the tests stays up."""
    if session.config.stash.get(_was_up, True) or os.environ.get(KEEP):
        return
    choose_cluster().down()


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The local cluster."""
    return choose_cluster()


@pytest.fixture(scope="session")
def installation(cluster: Cluster) -> Installation:
    """The chart, with a short patience for what does not exist."""
    kubectl = Kubectl(kubeconfig=cluster.kubeconfig, bin_dir=cluster.bin_dir)
    return Installation(kubectl=kubectl, images=Images(**json.loads(os.environ[IMAGES])))


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


@pytest.fixture
def registry_needed() -> Iterator[None]:
    """Nobody takes the registry away during this test."""
    with REGISTRY_LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


@pytest.fixture
def registry_to_myself() -> Iterator[None]:
    """This test may take the registry away."""
    with REGISTRY_LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
