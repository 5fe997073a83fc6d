"""Runs and adapters over HTTP, on both databases: idempotent by the run's uid, right under concurrency."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from finetune.api.registry import PARENT_ADAPTER_CHANGED, PARENT_ADAPTER_NOT_FOUND, BaseModelReference
from finetune.clients.registry import (
    AdapterVersion,
    RegistryClient,
    RegistryNotFound,
    RegistryRefused,
    Run,
)
from tests.support.registry import adapter_document, pairs, run_document, sha256


@pytest.fixture
async def client(registry_url: str) -> AsyncIterator[RegistryClient]:
    async with RegistryClient(base_url=registry_url, timeout=60) as client:
        yield client


@pytest.fixture
async def http(registry_url: str, namespace: str) -> AsyncIterator[httpx.AsyncClient]:
    base = f"{registry_url}/api/v1/namespaces/{namespace}/"
    async with httpx.AsyncClient(base_url=base, timeout=60) as http:
        yield http


async def put_run(client: RegistryClient, namespace: str, uid: str, **changes: Any) -> Run:
    arguments: dict[str, Any] = {"name": "run-1", "experiment": "support", "method": "SFT", "spec": {"a": [1]}}
    return await client.put_run(namespace, uid, **{**arguments, **changes})


async def put_adapter(client: RegistryClient, namespace: str, uid: str, *, name: str = "support") -> AdapterVersion:
    document = adapter_document(uid, name=name)
    return await client.put_adapter(
        namespace,
        uid,
        adapter_name=name,
        claim_name=document["claimName"],
        base_model=BaseModelReference(name=document["baseModel"]["name"], revision="abc"),
        dataset=document["dataset"],
        result=document["result"],
    )


async def push(client: RegistryClient, namespace: str, folder: Path, *, tag: str = "") -> None:
    path = folder / f"rows{tag}.jsonl"
    path.write_bytes(pairs(3, tag=tag))
    await client.push_dataset(namespace, "tickets", path)


async def test_the_newest_dataset_version_is_pinned_once(
    client: RegistryClient, http: httpx.AsyncClient, namespace: str, uid: str, tmp_path: Path
) -> None:
    await push(client, namespace, tmp_path)
    first = await put_run(client, namespace, uid, dataset_name="tickets")
    assert (first.dataset_name, first.dataset_version) == ("tickets", 1)
    await push(client, namespace, tmp_path, tag="new")
    again = await put_run(client, namespace, uid, dataset_name="tickets")
    assert again == first
    assert (await http.get(f"runs/{uid}/dataset")).json()["version"] == 1
    assert (await http.get(f"runs/{uid}/dataset/rows")).content == pairs(3)


async def test_a_run_waits_for_its_dataset(client: RegistryClient, namespace: str, uid: str, tmp_path: Path) -> None:
    with pytest.raises(RegistryNotFound, match="dataset 'tickets' does not exist"):
        await put_run(client, namespace, uid, dataset_name="tickets")
    with pytest.raises(RegistryNotFound, match="is not known"):
        await client.get_run(namespace, uid)
    await push(client, namespace, tmp_path)
    with pytest.raises(RegistryNotFound, match="has no version 2"):
        await put_run(client, namespace, uid, dataset_name="tickets", dataset_version=2)
    assert (await put_run(client, namespace, uid, dataset_name="tickets")).dataset_version == 1


async def test_the_newest_parent_is_pinned_once_and_becomes_the_lineage(
    client: RegistryClient, namespace: str, uid: str
) -> None:
    first, second, other = (str(uuid.uuid4()) for _ in range(3))
    for parent in (first, second):
        await put_run(client, namespace, parent, name=f"run-{parent[:8]}")
    made = await put_adapter(client, namespace, first, name="support")
    child = await put_run(client, namespace, uid, method="DPO", parent_adapter_name="support")
    await put_adapter(client, namespace, second, name="support")
    assert child.parent_adapter is not None
    assert (child.parent_adapter.name, child.parent_adapter.version) == ("support", 1)
    assert (child.parent_adapter.uri, child.parent_adapter.sha256) == (made.uri, made.sha256)
    assert child.parent_adapter.base_model == made.base_model
    assert await put_run(client, namespace, uid, method="DPO", parent_adapter_name="support") == child
    registered = await put_adapter(client, namespace, uid, name="support-dpo")
    assert registered.parent is not None
    assert (registered.parent.name, registered.parent.version) == ("support", 1)
    assert registered.parent.sha256 == made.sha256
    assert made.parent is None
    later = await put_run(client, namespace, other, parent_adapter_name="support", parent_adapter_version=2)
    assert later.parent_adapter is not None
    assert later.parent_adapter.version == 2
    assert [run.parent_adapter for run in await client.list_runs(namespace) if run.uid == uid] == [child.parent_adapter]


async def test_a_parent_that_does_not_exist_is_told_from_a_missing_dataset(
    client: RegistryClient, namespace: str, uid: str
) -> None:
    with pytest.raises(RegistryNotFound, match="adapter 'support' does not exist") as caught:
        await put_run(client, namespace, uid, parent_adapter_name="support")
    assert caught.value.reason == PARENT_ADAPTER_NOT_FOUND
    parent = str(uuid.uuid4())
    await put_run(client, namespace, parent)
    await put_adapter(client, namespace, parent, name="support")
    with pytest.raises(RegistryNotFound, match="has no version 2") as caught:
        await put_run(client, namespace, uid, parent_adapter_name="support", parent_adapter_version=2)
    assert (caught.value.reason, caught.value.hint) == (PARENT_ADAPTER_NOT_FOUND, "its newest version is 1")
    with pytest.raises(RegistryNotFound):
        await put_run(client, f"{namespace}-b", uid, parent_adapter_name="support")
    await put_run(client, namespace, uid, parent_adapter_name="support")
    for changes in ({}, {"parent_adapter_name": "other"}):
        with pytest.raises(RegistryRefused, match="is recorded with parent adapter 'support'"):
            await put_run(client, namespace, uid, **changes)


async def test_another_adapter_under_the_number_of_a_runs_parent_is_refused(
    client: RegistryClient, namespace: str, uid: str
) -> None:
    """As after a registry lost its database: neither a new run nor a known one gets a wrong lineage."""
    parent = str(uuid.uuid4())
    await put_run(client, namespace, parent)
    made = await put_adapter(client, namespace, parent, name="support")
    known = {"parent_adapter_name": "support", "parent_adapter_version": 1, "parent_adapter_sha256": sha256("lost")}
    with pytest.raises(RegistryRefused, match=f"was {sha256('lost')}, and now is {made.sha256}") as caught:
        await put_run(client, namespace, uid, **known)
    assert (caught.value.status, caught.value.reason) == (409, PARENT_ADAPTER_CHANGED)
    with pytest.raises(RegistryNotFound, match="is not known"):
        await client.get_run(namespace, uid)
    run = await put_run(client, namespace, uid, **{**known, "parent_adapter_sha256": made.sha256})
    assert run.parent_adapter is not None
    assert run.parent_adapter.sha256 == made.sha256
    with pytest.raises(RegistryRefused) as caught:
        await put_run(client, namespace, uid, **known)
    assert caught.value.reason == PARENT_ADAPTER_CHANGED


async def test_what_preference_training_measures_is_kept(
    client: RegistryClient, http: httpx.AsyncClient, namespace: str, uid: str
) -> None:
    await put_run(client, namespace, uid, method="DPO")
    document = adapter_document(uid)
    document["result"] |= {"rewardAccuracy": "0.91", "rewardMargin": "-1.3", "bestStep": 40}
    document["dataset"] |= {"duplicates": 2}
    assert (await http.put(f"runs/{uid}/adapter", json=document)).status_code == 201
    adapter = await client.get_adapter_version(namespace, "support")
    assert (adapter.reward_accuracy, adapter.reward_margin, adapter.best_step) == ("0.91", "-1.3", 40)
    assert adapter.dataset.duplicates == 2


async def test_a_run_is_recorded_once_and_its_first_spec_stays(
    client: RegistryClient, http: httpx.AsyncClient, namespace: str, uid: str
) -> None:
    assert (await http.put(f"runs/{uid}", json=run_document())).status_code == 201
    resumed = run_document(spec={"method": "SFT", "suspend": False})
    assert (await http.put(f"runs/{uid}", json=resumed)).status_code == 200
    run = await client.get_run(namespace, uid)
    assert (run.name, run.experiment, run.method, run.spec) == ("run-1", "support", "SFT", {"method": "SFT"})
    assert [item.uid for item in await client.list_runs(namespace)] == [uid]


@pytest.mark.parametrize("changes", [{"name": "run-2"}, {"experiment": "other"}, {"method": "DPO"}])
async def test_a_uid_is_one_run_for_ever(
    client: RegistryClient, namespace: str, uid: str, changes: dict[str, str]
) -> None:
    await put_run(client, namespace, uid)
    with pytest.raises(RegistryRefused) as caught:
        await put_run(client, namespace, uid, **changes)
    assert (caught.value.status, caught.value.reason) == (409, "Conflict")
    assert next(iter(changes.values())) in caught.value.message


async def test_a_run_of_another_namespace_is_not_there(client: RegistryClient, namespace: str, uid: str) -> None:
    await put_run(client, namespace, uid)
    with pytest.raises(RegistryRefused) as caught:
        await put_run(client, f"{namespace}-b", uid)
    assert caught.value.status == 409
    with pytest.raises(RegistryNotFound):
        await client.get_run(f"{namespace}-b", uid)


async def test_a_run_recorded_by_many_at_once_is_one_run(client: RegistryClient, namespace: str, uid: str) -> None:
    runs = await asyncio.gather(*(put_run(client, namespace, uid) for _ in range(32)))
    assert len({run.created_time for run in runs}) == 1
    assert len(await client.list_runs(namespace)) == 1


async def test_an_adapter_has_everything_that_is_known_about_it(
    client: RegistryClient, namespace: str, uid: str, tmp_path: Path
) -> None:
    await push(client, namespace, tmp_path)
    await put_run(client, namespace, uid, dataset_name="tickets")
    adapter = await put_adapter(client, namespace, uid)
    assert uuid.UUID(adapter.id)
    assert (adapter.name, adapter.version) == ("support", 1)
    assert adapter.uri == f"pvc://adapters/support/{uid}/adapter"
    assert (adapter.final_loss, adapter.evaluation_loss, adapter.base_evaluation_loss) == ("1.8342", "1.9011", "2.7700")
    assert [file.path for file in adapter.files] == ["adapter_config.json", "adapter_model.safetensors"]
    assert adapter.sha256 == sha256("".join(f"{file.sha256}  {file.path}\n" for file in adapter.files))
    assert adapter.bytes == sum(file.bytes for file in adapter.files)
    assert (adapter.run_uid, adapter.run_name, adapter.experiment, adapter.method) == (uid, "run-1", "support", "SFT")
    assert adapter.base_model == BaseModelReference(name="HuggingFaceTB/SmolLM2-135M-Instruct", revision="abc")
    assert (adapter.dataset_name, adapter.dataset.sha256, adapter.dataset.rows) == ("tickets", sha256("rows"), 400)
    assert adapter.stored is None  # who registers is told that this registry keeps no files, so that nobody sends them
    kept = adapter.model_copy(update={"stored": False})
    assert await client.get_adapter_version(namespace, "support") == kept
    assert await client.get_adapter_version(namespace, "support", 1) == kept
    assert await client.list_adapters(namespace) == [kept]
    assert (await client.get_run(namespace, uid)).adapter == kept


async def test_registered_once_however_often_it_is_asked(
    client: RegistryClient, http: httpx.AsyncClient, namespace: str, uid: str
) -> None:
    await put_run(client, namespace, uid)
    first = await http.put(f"runs/{uid}/adapter", json=adapter_document(uid))
    again = await http.put(f"runs/{uid}/adapter", json=adapter_document(uid))
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert len(await client.list_adapter_versions(namespace, "support")) == 1


async def test_one_run_registered_by_64_at_once_is_one_version(
    client: RegistryClient, namespace: str, uid: str
) -> None:
    await put_run(client, namespace, uid)
    answers = await asyncio.gather(*(put_adapter(client, namespace, uid) for _ in range(64)))
    assert len({(answer.id, answer.version) for answer in answers}) == 1
    assert [item.version for item in await client.list_adapter_versions(namespace, "support")] == [1]


async def test_many_runs_of_one_adapter_at_once_get_numbers_without_gaps_or_duplicates(
    client: RegistryClient, namespace: str
) -> None:
    uids = [str(uuid.uuid4()) for _ in range(24)]
    await asyncio.gather(*(put_run(client, namespace, uid, name=f"run-{uid[:8]}") for uid in uids))
    # Each twice, so that new numbers and repeated questions mix.
    answers = await asyncio.gather(*(put_adapter(client, namespace, uid) for uid in uids * 2))
    assert sorted(answer.version for answer in answers[:24]) == list(range(1, 25))
    assert [answer.id for answer in answers[:24]] == [answer.id for answer in answers[24:]]


async def test_a_uid_under_two_names_at_once_is_one_adapter(client: RegistryClient, namespace: str, uid: str) -> None:
    await put_run(client, namespace, uid)
    calls = (put_adapter(client, namespace, uid, name=f"name-{index % 2}") for index in range(16))
    answers = await asyncio.gather(*calls, return_exceptions=True)
    registered = [answer for answer in answers if isinstance(answer, AdapterVersion)]
    refused = [answer for answer in answers if isinstance(answer, RegistryRefused)]
    assert (len(registered), len(refused)) == (8, 8)
    assert len({answer.name for answer in registered}) == 1
    assert {answer.status for answer in refused} == {409}
    assert len(await client.list_adapters(namespace)) == 1


def with_adapter(uid: str, **changes: Any) -> dict[str, Any]:
    document = adapter_document(uid)
    document["result"]["adapter"].update(changes)
    return document


BAD_ADAPTERS = {
    "digest": (lambda uid: with_adapter(uid, sha256="0" * 64), "DigestMismatch", "its files give"),
    "bytes": (lambda uid: with_adapter(uid, bytes=7), "DigestMismatch", "has 7 bytes, but its files have"),
    "no files": (lambda uid: with_adapter(uid, files=[]), "Invalid", "files"),
    "absolute path": (
        lambda uid: with_adapter(uid, files=[{"path": "/etc/passwd", "bytes": 1, "sha256": "0" * 64}]),
        "Invalid",
        "path",
    ),
    "path upwards": (
        lambda uid: with_adapter(uid, files=[{"path": "a/../../b", "bytes": 1, "sha256": "0" * 64}]),
        "Invalid",
        "path",
    ),
    "another run": (lambda uid: adapter_document(uid[::-1]), "Invalid", "belongs to run"),
    "misspelt key": (lambda uid: adapter_document(uid, adaptername="x"), "Invalid", "adaptername"),
    "loss is no number": (
        lambda uid: {**adapter_document(uid), "result": {**adapter_document(uid)["result"], "finalLoss": "nan"}},
        "Invalid",
        "finalLoss",
    ),
}


@pytest.mark.parametrize("case", BAD_ADAPTERS)
async def test_an_adapter_that_contradicts_itself_is_refused(
    client: RegistryClient, http: httpx.AsyncClient, namespace: str, uid: str, case: str
) -> None:
    build, reason, message = BAD_ADAPTERS[case]
    await put_run(client, namespace, uid)
    answer = await http.put(f"runs/{uid}/adapter", json=build(uid))
    error = answer.json()["error"]
    assert (answer.status_code, error["reason"]) == (422, reason)
    assert message in error["message"]
    assert error["hint"]
    assert await client.list_adapters(namespace) == []


async def test_another_adapter_of_the_same_run_is_refused(
    client: RegistryClient, http: httpx.AsyncClient, namespace: str, uid: str
) -> None:
    await put_run(client, namespace, uid)
    await put_adapter(client, namespace, uid)
    for changes in ({"claimName": "elsewhere"}, {"adapterName": "elsewhere"}):
        answer = await http.put(f"runs/{uid}/adapter", json=adapter_document(uid, **changes))
        assert answer.status_code == 409


async def test_an_adapter_needs_a_recorded_run(client: RegistryClient, namespace: str, uid: str) -> None:
    with pytest.raises(RegistryNotFound, match="is not known"):
        await put_adapter(client, namespace, uid)


def result_document(uid: str, *, note: str = "") -> bytes:
    # Spaces and the order of the keys must survive: it is kept as it is.
    return json.dumps({"schemaVersion": 1, "result": {"runUid": uid, "steps": 3}, "note": note}, indent=3).encode()


async def test_a_result_is_kept_as_it_is(
    client: RegistryClient, http: httpx.AsyncClient, namespace: str, uid: str
) -> None:
    await put_run(client, namespace, uid)
    with pytest.raises(RegistryNotFound, match="no result yet"):
        await client.get_result(namespace, uid)
    for note in ("first attempt", "second attempt \u00e4"):
        assert (await http.put(f"runs/{uid}/result", content=result_document(uid, note=note))).status_code == 204
    assert (await http.get(f"runs/{uid}/result")).content == result_document(uid, note="second attempt \u00e4")
    assert (await client.get_result(namespace, uid))["result"] == {"runUid": uid, "steps": 3}


async def test_a_result_does_not_change_once_the_adapter_is_registered(
    client: RegistryClient, http: httpx.AsyncClient, namespace: str, uid: str
) -> None:
    await put_run(client, namespace, uid)
    await http.put(f"runs/{uid}/result", content=result_document(uid))
    await put_adapter(client, namespace, uid)
    assert (await http.put(f"runs/{uid}/result", content=result_document(uid))).status_code == 204
    changed = await http.put(f"runs/{uid}/result", content=result_document(uid, note="changed"))
    assert changed.status_code == 409


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"result": {"runUid": "another"}}'])
async def test_a_result_must_be_this_runs(
    client: RegistryClient, http: httpx.AsyncClient, namespace: str, uid: str, content: bytes
) -> None:
    await put_run(client, namespace, uid)
    answer = await http.put(f"runs/{uid}/result", content=content)
    assert answer.status_code == 422
    assert answer.json()["error"]["hint"]


def status_document(*, loss: str, step: int, **more: Any) -> dict[str, Any]:
    return {
        "trainerStatus": {
            "progressPercentage": 12,
            "estimatedRemainingSeconds": 130,
            "metrics": [{"name": "loss", "value": loss}, {"name": "step", "value": str(step)}],
            "lastUpdatedTime": "2099-01-01T00:00:00Z",
        },
        **more,
    }


async def test_the_newest_progress_of_many_runs_comes_in_one_call_by_the_registrys_clock(
    client: RegistryClient, http: httpx.AsyncClient, namespace: str
) -> None:
    uids = [str(uuid.uuid4()) for _ in range(3)]
    for uid in uids:
        await put_run(client, namespace, uid)
    before = datetime.now(UTC) - timedelta(seconds=1)
    for uid, loss, step in ((uids[0], "3.0", 1), (uids[0], "2.0", 2), (uids[1], "nan", 9)):
        answer = await http.post(f"runs/{uid}/status", json=status_document(loss=loss, step=step))
        assert (answer.status_code, answer.json()) == (200, {"step": step})
    progress = await client.latest_progress([*uids, *(str(uuid.uuid4()) for _ in range(250))])
    assert set(progress) == set(uids[:2])
    assert (progress[uids[0]].value("loss"), progress[uids[0]].value("step")) == ("2.0", "2")
    assert progress[uids[1]].value("loss") == "nan"
    time = progress[uids[1]].last_updated_time
    assert time is not None
    assert before < time < datetime.now(UTC) + timedelta(seconds=1), "a clock that is ahead freezes nothing"
    run = await client.get_run(namespace, uids[0])
    assert run.trainer_status == progress[uids[0]]


@pytest.mark.parametrize(
    "metric",
    [{"name": "a\0", "value": "1"}, {"name": "", "value": "1"}, {"name": "loss", "value": "1" * 65}, {"name": "a"}],
)
async def test_progress_that_no_database_can_store_is_refused(
    client: RegistryClient, http: httpx.AsyncClient, namespace: str, uid: str, metric: dict[str, str]
) -> None:
    await put_run(client, namespace, uid)
    answer = await http.post(f"runs/{uid}/status", json={"trainerStatus": {"metrics": [metric]}})
    assert (answer.status_code, answer.json()["error"]["reason"]) == (422, "Invalid")


async def test_progress_without_numbers_is_progress(
    client: RegistryClient, http: httpx.AsyncClient, namespace: str, uid: str
) -> None:
    await put_run(client, namespace, uid)
    answer = await http.post(f"runs/{uid}/status", json={"trainerStatus": {"progressPercentage": 1}})
    assert answer.status_code == 200
    assert (await client.latest_progress([uid]))[uid].progress_percentage == 1


async def test_progress_of_an_unknown_run_is_refused(http: httpx.AsyncClient, uid: str) -> None:
    answer = await http.post(f"runs/{uid}/status", json=status_document(loss="1", step=1))
    assert answer.status_code == 404


async def test_a_list_longer_than_a_page_is_complete(
    client: RegistryClient, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.registry.store.series.PAGE_SIZE", 2)
    uids = [str(uuid.uuid4()) for _ in range(5)]
    for index, uid in enumerate(uids):
        await put_run(client, namespace, uid, name=f"run-{index}")
        await put_adapter(client, namespace, uid, name="one" if index < 3 else f"other-{index}")
    assert [run.uid for run in await client.list_runs(namespace)] == uids[::-1]
    assert [item.name for item in await client.list_adapters(namespace)] == ["one", "other-3", "other-4"]
    assert [item.version for item in await client.list_adapter_versions(namespace, "one")] == [3, 2, 1]


async def test_a_page_that_is_not_a_page_is_refused(http: httpx.AsyncClient) -> None:
    answer = await http.get("runs", params={"continue": "x"})
    assert answer.status_code == 422
    assert "continue='x'" in answer.json()["error"]["message"]
