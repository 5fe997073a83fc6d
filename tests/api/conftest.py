"""A real API server, without a node, for every test in this folder."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.cluster.api_server import MUTATING_POLICIES, ApiServerOnly
from tests.cluster.kube_api import KubeApi
from tests.support.kubectl import Kubectl
from tests.support.managed import Managed, a_managed_world
from tests.support.served import serve_training_runs
from tests.support.world import World, a_world


@pytest.fixture(scope="session")
def api_server() -> Iterator[ApiServerOnly]:
    """etcd and an API server with the CRD of TrainingRun."""
    with ApiServerOnly() as server:
        serve_training_runs(server)
        yield server


@pytest.fixture(scope="session")
def managed_server() -> Iterator[ApiServerOnly]:
    """As `api_server`, with the real controllers of Jobs, garbage, namespaces and quotas; a second one beside it.

    The tests that write a Job's status themselves need a server on which nobody else does.
    """
    with ApiServerOnly(MUTATING_POLICIES) as server:
        serve_training_runs(server)
        server.start_controllers()
        yield server


@pytest.fixture(scope="session")
def api(api_server: ApiServerOnly) -> KubeApi:
    """Calls to the API server in milliseconds, for tables of many objects."""
    return KubeApi.from_kubeconfig(api_server.kubeconfig)


@pytest.fixture(scope="session")
def everywhere(api_server: ApiServerOnly) -> Kubectl:
    """kubectl and its proxy, for all tests."""
    return Kubectl(kubeconfig=api_server.kubeconfig, bin_dir=api_server.bin_dir)


@pytest.fixture
def kubectl(everywhere: Kubectl) -> Kubectl:
    """kubectl in a namespace of the test's own."""
    return everywhere.create_namespace(f"t-{uuid.uuid4().hex[:8]}")


@pytest.fixture
async def world(kubectl: Kubectl, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """Registry and operator as processes, in that namespace. The parameter: whether as the images start them."""
    async with a_world(kubectl, tmp_path, fresh=getattr(request, "param", False)) as made:
        yield made


@pytest.fixture(scope="session")
def managed_everywhere(managed_server: ApiServerOnly) -> Kubectl:
    """kubectl and its proxy on the server with controllers, for all tests."""
    return Kubectl(kubeconfig=managed_server.kubeconfig, bin_dir=managed_server.bin_dir)


@pytest.fixture
def managed_kubectl(managed_everywhere: Kubectl) -> Iterator[Kubectl]:
    """kubectl in a namespace of the test's own, on the server with controllers."""
    kubectl = managed_everywhere.create_namespace(f"t-{uuid.uuid4().hex[:8]}")
    yield kubectl
    # Its Jobs would go on making pods, and its runs would be listed by every other operator.
    kubectl.delete_namespace()


@pytest.fixture
async def managed(managed_kubectl: Kubectl, tmp_path: Path) -> AsyncIterator[Managed]:
    """Registry, operator and a stand-in for the kubelet in that namespace."""
    async with a_managed_world(managed_kubectl, tmp_path) as made:
        yield made
