"""Runs in a queue: the real Kueue beside a cluster of processes, and real pods that it takes the GPU from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.base import Cluster
from tests.cluster.kueue import JOBS, NAMED, Kueue
from tests.e2e import runs
from tests.support import queues
from tests.support.installation import Installation
from tests.support.kubectl import Kubectl

LONG = {"batchSize": 4, "maxLength": 128, "maxSteps": 400, "checkpointSteps": 1000}


@pytest.fixture(scope="module")
def kueue(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kueue]:
    """Kueue, gone at the end with all that it has registered."""
    if cluster.kind != "processes":
        pytest.skip("the API server of this cluster does not reach a process of this machine")
    folder = tmp_path_factory.mktemp("kueue")
    with Kueue(kubeconfig=cluster.kubeconfig, bin_dir=cluster.bin_dir, folder=folder) as made:
        Kubectl(kubeconfig=cluster.kubeconfig, bin_dir=cluster.bin_dir).apply(
            queues.flavor(), queues.priority("urgent", 100)
        )
        yield made


@pytest.fixture
def one_gpu(kueue: Kueue, tiny: Kubectl) -> Kubectl:
    """The namespace with the tiny model, and a queue with a quota of one of the node's GPUs."""
    assert kueue.running
    tiny("label", "namespace", tiny.namespace, f"{JOBS}={NAMED}")
    tiny.apply(queues.cluster_queue(tiny.namespace), queues.local_queue(tiny.namespace))
    return tiny


@pytest.mark.usefixtures("registry_needed")
def test_an_urgent_run_takes_the_gpu_and_the_other_goes_on_from_its_checkpoint(
    installation: Installation, one_gpu: Kubectl, tmp_path: Path
) -> None:
    runs.push(installation, one_gpu, tmp_path)
    queue = {"queueName": queues.QUEUE}
    one_gpu.apply(runs.manifest("patient", training=LONG, scheduling=queue, retries=0))
    runs.first_steps(one_gpu, name="patient")
    one_gpu.apply(runs.manifest("urgent", scheduling={**queue, "workloadPriorityClassName": "urgent"}))
    waiting = runs.in_phase(one_gpu, "Queued", name="patient")["status"]["waiting"]
    assert waiting["reason"] == "Queued"
    runs.succeeded(one_gpu, "urgent")
    done = runs.succeeded(one_gpu, "patient")["status"]
    assert [attempt["exitCode"] for attempt in done["attemptHistory"]] == [75, 0]
    assert done["resumedFromStep"] > 0
