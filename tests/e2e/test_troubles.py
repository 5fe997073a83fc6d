"""A cluster's troubles in the middle of a training: none of them costs it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from tests.cluster.base import Cluster
from tests.cluster.layout import NODE_ADDRESS
from tests.e2e import runs
from tests.e2e.conftest import REFERENCE_TIMEOUT_SECONDS
from tests.support.kubectl import Kubectl
from tests.support.s3 import S3, s3

LONG = {"batchSize": 4, "maxLength": 128, "maxSteps": 400, "checkpointSteps": 20}


@pytest.fixture
def store(cluster: Cluster) -> Iterator[S3]:
    """An object store that the cluster's pods reach."""
    if cluster.kind != "processes":
        pytest.skip("only the pods of the cluster of processes reach this machine's own addresses")
    with s3(NODE_ADDRESS) as server:
        yield server


def kept(team: Kubectl, name: str = "run") -> int:
    """The newest checkpoint that the trainers of a run have written."""
    return max((line["step"] for line in runs.trainer_log(team, name) if line.get("event") == "checkpoint"), default=0)


def waiting(team: Kubectl, reason: str, name: str = "run") -> runs.Document:
    """Wait until the run says that it waits for this."""

    def look() -> runs.Document | None:
        found = team.json("get", "trainingrun", name)["status"].get("waiting") or {}
        return found if found.get("reason") == reason else None

    return dict(team.wait_for(f"{name} waits: {reason}", look, seconds=60))


def age(since: str) -> float:
    """Seconds since an API time, by this machine's clock, which is the cluster's."""
    return (datetime.now(UTC) - datetime.fromisoformat(since)).total_seconds()


@pytest.mark.long
def test_a_secret_that_vanished_is_waited_for_and_costs_no_training(cluster: Cluster, tiny: Kubectl, store: S3) -> None:
    """The rows are on the claim, but a pod does not start without the Secret that its export refers to."""
    store.create_bucket("rows")
    store.put("rows", "train.jsonl", runs.lines(runs.rows(64)).encode())
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "store"}, "stringData": store.environment}
    credentials = {"credentialsSecretRef": {"name": "store"}}
    dataset = {"objectStore": {"uri": "s3://rows/train.jsonl", "endpoint": store.endpoint, **credentials}}
    tiny.apply(secret, runs.manifest(training=LONG, dataset=dataset))
    tiny.wait_for("a checkpoint", lambda: kept(tiny), seconds=runs.FINISH_SECONDS)
    tiny("delete", "secret", "store")
    uid = tiny.json("get", "trainingrun", "run")["metadata"]["uid"]
    runs.kill_process(cluster, tiny, f"cli train.*{uid}")

    found = waiting(tiny, "AccessDenied")
    assert found["object"] == "Secret/store"
    assert 'Secret "store" not found' in found["message"]
    tiny.wait_for(
        "a wait longer than the time after which a run fails that has not trained",
        lambda: age(found["since"]) > REFERENCE_TIMEOUT_SECONDS + 5,
        seconds=60,
    )
    assert waiting(tiny, "AccessDenied")["since"] == found["since"]
    tiny.apply(secret)
    done = runs.succeeded(tiny)
    assert done["status"]["resumedFromStep"] >= 20
    assert "waiting" not in done["status"]


@pytest.mark.long
def test_an_evicted_pod_costs_no_attempt(tiny: Kubectl) -> None:
    """As a drain does it; without a retry to spend the run must end well all the same."""
    dataset = runs.config_map(tiny, runs.lines(runs.rows(64)))
    tiny.apply(runs.manifest(training=LONG, dataset=dataset, retries=0))
    tiny.wait_for("a checkpoint", lambda: kept(tiny), seconds=runs.FINISH_SECONDS)
    [pod] = runs.pods(tiny)
    name = pod["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": tiny.namespace}}
    path = f"/api/v1/namespaces/{tiny.namespace}/pods/{name}/eviction"
    tiny("create", f"--raw={path}", "--filename=-", stdin=json.dumps(eviction))
    done = runs.succeeded(tiny)
    assert [attempt["reason"] for attempt in done["status"]["attemptHistory"]] == ["Interrupted", "Completed"]
    assert done["status"]["resumedFromStep"] >= 20


@pytest.mark.long
def test_a_failed_run_is_gone_on_from_by_another(cluster: Cluster, tiny: Kubectl) -> None:
    dataset = runs.config_map(tiny, runs.lines(runs.rows(64)))
    tiny.apply(runs.manifest("first", training=LONG, dataset=dataset, retries=0))
    tiny.wait_for("a checkpoint", lambda: kept(tiny, "first"), seconds=runs.FINISH_SECONDS)
    uid = tiny.json("get", "trainingrun", "first")["metadata"]["uid"]
    runs.kill_process(cluster, tiny, f"cli train.*{uid}")
    failed = runs.finish(tiny, "first")
    assert failed["status"]["phase"] == "Failed"

    tiny.apply(runs.manifest("second", training=LONG, dataset=dataset, resumeFrom={"run": "first"}))
    other = {**LONG, "learningRate": "1e-3"}
    tiny.apply(runs.manifest("third", training=other, dataset=dataset, resumeFrom={"run": "first"}))
    done = runs.succeeded(tiny, "second")
    assert done["status"]["resumedFromStep"] >= 20
    assert done["status"]["resumedFrom"]["uid"] == uid
    refused = runs.finish(tiny, "third")["status"]["failure"]
    assert refused["reason"] == "InvalidSpec"
    assert "learningRate" in refused["message"]
