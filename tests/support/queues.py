"""Kueue's queues for tests: one flavor for all, and a ClusterQueue with a LocalQueue for one namespace."""

from __future__ import annotations

from typing import Any

from tests.cluster.kueue import JOBS, NAMED

Document = dict[str, Any]

API = "kueue.x-k8s.io/v1beta2"
FLAVOR = "any"
QUEUE = "gpus"
UNCOUNTED = {"cpu": "1000", "memory": "10Ti"}
"""What runs ask for beside GPUs, and always get."""


def namespace(name: str, jobs: str = NAMED) -> Document:
    """A namespace whose Jobs Kueue is asked about."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {JOBS: jobs}}}


def flavor() -> Document:
    """The only kind of node."""
    return {"apiVersion": API, "kind": "ResourceFlavor", "metadata": {"name": FLAVOR}}


def cluster_queue(name: str, gpus: int = 1) -> Document:
    """A quota for the namespace of the same name; who has a higher priority takes it from the others."""
    quotas = {**UNCOUNTED, "nvidia.com/gpu": gpus}
    resources = [{"name": resource, "nominalQuota": quota} for resource, quota in quotas.items()]
    return {
        "apiVersion": API,
        "kind": "ClusterQueue",
        "metadata": {"name": name},
        "spec": {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}},
            "preemption": {"withinClusterQueue": "LowerPriority"},
            "resourceGroups": [
                {"coveredResources": list(quotas), "flavors": [{"name": FLAVOR, "resources": resources}]}
            ],
        },
    }


def local_queue(namespace: str, name: str = QUEUE) -> Document:
    """What the Jobs of a namespace name."""
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": API, "kind": "LocalQueue", "metadata": metadata, "spec": {"clusterQueue": namespace}}


def priority(name: str, value: int) -> Document:
    """A priority among the Jobs of a queue; Jobs without one have 0."""
    return {"apiVersion": API, "kind": "WorkloadPriorityClass", "metadata": {"name": name}, "value": value}
