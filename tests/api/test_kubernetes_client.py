"""The operator's own client against a real API server: what it believes, and what it may not touch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.aio import client, config

from finetune.clients.kubernetes import (
    AlreadyExistsError,
    ConflictError,
    KubernetesClient,
    KubernetesError,
    NotFoundError,
    NotServedError,
)
from tests.cluster.api_server import ApiServerOnly
from tests.support.kubectl import Kubectl
from tests.support.world import manifest

Document = dict[str, Any]


@pytest.fixture
async def kubernetes(api_server: ApiServerOnly) -> AsyncIterator[KubernetesClient]:
    configuration = client.Configuration()
    await config.load_kube_config(config_file=str(api_server.kubeconfig), client_configuration=configuration)
    made = KubernetesClient(configuration=configuration)
    yield made
    await made.close()


def pod(name: str) -> Document:
    head = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}}
    return {**head, "spec": {"containers": [{"name": "c", "image": "i"}], "terminationGracePeriodSeconds": 0}}


def job(name: str, *, suspend: bool = False) -> Document:
    head = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}}
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}
    return {**head, "spec": {"suspend": suspend, "template": template}}


async def test_gone_is_only_what_the_api_server_names(kubernetes: KubernetesClient, kubectl: Kubectl) -> None:
    with pytest.raises(NotFoundError):
        await kubernetes.get_run(kubectl.namespace, "nothing")
    with pytest.raises(NotFoundError):
        await kubernetes.patch_job(kubectl.namespace, "nothing", {"spec": {"suspend": True}})
    assert await kubernetes.get_job(kubectl.namespace, "nothing") is None
    assert await kubernetes.get_claim(kubectl.namespace, "nothing") is None
    with pytest.raises(NotServedError, match='namespaces "no-such" not found') as caught:
        await kubernetes.create_job("no-such", job("a"))
    assert caught.value.details["kind"] == "namespaces"
    assert await kubernetes.answers()


async def test_taken_names_and_invalid_objects_come_with_the_servers_words(
    kubernetes: KubernetesClient, kubectl: Kubectl
) -> None:
    made = await kubernetes.create_job(kubectl.namespace, job("a"))
    assert made["metadata"]["managedFields"][0]["manager"] == "finetune-operator"
    with pytest.raises(AlreadyExistsError):
        await kubernetes.create_job(kubectl.namespace, job("a"))
    wrong = job("b")
    wrong["spec"]["template"]["spec"]["restartPolicy"] = "Always"
    with pytest.raises(KubernetesError) as caught:
        await kubernetes.create_job(kubectl.namespace, wrong)
    assert (caught.value.status, caught.value.reason) == (422, "Invalid")
    assert caught.value.message.startswith('Job.batch "b" is invalid: spec.template.spec.restartPolicy')
    assert caught.value.causes[0].field == "spec.template.spec.restartPolicy"


async def test_annotations_go_only_to_the_run_that_is_meant(kubernetes: KubernetesClient, kubectl: Kubectl) -> None:
    kubectl.apply(manifest("a"))
    run = await kubernetes.get_run(kubectl.namespace, "a")
    uid, version = run["metadata"]["uid"], run["metadata"]["resourceVersion"]
    marked = await kubernetes.annotate_run(kubectl.namespace, "a", {"finetune.dev/finished": "{}"}, uid=uid)
    assert marked["metadata"]["annotations"]["finetune.dev/finished"] == "{}"
    with pytest.raises(ConflictError):
        await kubernetes.annotate_run(kubectl.namespace, "a", {"x/y": "z"}, uid=uid, resource_version=version)
    with pytest.raises(ConflictError):
        await kubernetes.annotate_run(kubectl.namespace, "a", {"x/y": "z"}, uid="00000000-0000-0000-0000-000000000000")
    kubectl("delete", "trainingrun", "a")
    with pytest.raises(NotFoundError):
        await kubernetes.annotate_run(kubectl.namespace, "a", {"x/y": "z"}, uid=uid)
    with pytest.raises(NotFoundError):
        await kubernetes.replace_run_status(marked)
    kubectl.apply(manifest("a"))
    with pytest.raises(ConflictError):
        await kubernetes.replace_run_status(marked)


async def test_only_the_object_of_that_uid_is_deleted(kubernetes: KubernetesClient, kubectl: Kubectl) -> None:
    made = await kubernetes.create_job(kubectl.namespace, job("a"))
    kubectl.apply(pod("p"))
    await kubernetes.delete_job(kubectl.namespace, "a", "another-uid")
    await kubernetes.delete_pod(kubectl.namespace, "p", "another-uid")
    assert await kubernetes.get_job(kubectl.namespace, "a") is not None
    [kept] = await kubernetes.list_pods(kubectl.namespace, "")
    await kubernetes.delete_pod(kubectl.namespace, "p", kept["metadata"]["uid"])
    await kubernetes.delete_job(kubectl.namespace, "a", made["metadata"]["uid"])
    await kubernetes.delete_job(kubectl.namespace, "a", made["metadata"]["uid"])
    assert await kubernetes.list_pods(kubectl.namespace, "") == []
    assert await kubernetes.get_job(kubectl.namespace, "a") is None


async def test_a_suspended_jobs_start_can_be_cleared(kubernetes: KubernetesClient, kubectl: Kubectl) -> None:
    await kubernetes.create_job(kubectl.namespace, job("a", suspend=True))
    start = {"status": {"startTime": "2026-01-01T00:00:00Z"}}
    started = await kubernetes.patch_job_status(kubectl.namespace, "a", start)
    assert started["status"]["startTime"] == "2026-01-01T00:00:00Z"
    cleared = await kubernetes.patch_job_status(kubectl.namespace, "a", {"status": {"startTime": None}})
    assert "startTime" not in cleared["status"]


async def test_lists_come_in_pages(
    kubernetes: KubernetesClient, kubectl: Kubectl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.clients.kubernetes.PAGE_SIZE", 2)
    kubectl.apply(*(manifest(f"r{number}") for number in range(5)))
    sizes = [len(page) async for page in kubernetes.list_unfinished_runs(kubectl.namespace)]
    assert sizes == [2, 2, 1]


async def test_without_kueue_nobody_waits_in_a_queue(kubernetes: KubernetesClient, kubectl: Kubectl) -> None:
    assert await kubernetes.list_workloads(kubectl.namespace, "any") == []


async def test_a_token_without_rights_still_gets_answers(kubectl: Kubectl, tmp_path: Path) -> None:
    kubectl("create", "serviceaccount", "nobody")
    token = kubectl("create", "token", "nobody").strip()
    document = yaml.safe_load(kubectl.kubeconfig.read_text())
    document["users"] = [{"name": user["name"], "user": {"token": token}} for user in document["users"]]
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(document))
    configuration = client.Configuration()
    await config.load_kube_config(config_file=str(path), client_configuration=configuration)
    kubernetes = KubernetesClient(configuration=configuration)
    try:
        assert await kubernetes.answers()
        with pytest.raises(KubernetesError) as caught:
            await asyncio.wait_for(kubernetes.list_pods(kubectl.namespace, ""), 10)
        assert caught.value.status == 403
        assert caught.value.message.startswith("pods is forbidden")
    finally:
        await kubernetes.close()
