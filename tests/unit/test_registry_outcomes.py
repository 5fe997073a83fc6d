"""What became of runs: told in any order and as often as one likes, listed, found, and true in the end."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from finetune.api.registry import DATASET_CHANGED, DELETED, OutcomeRequest
from finetune.clients.registry import RegistryClient, RegistryNotFound
from finetune.registry.database import Database, parse_url
from finetune.registry.errors import Conflict, NotFound
from finetune.registry.store.namespaces import NamespaceStore
from tests.support.registry import adapter_document, pairs, run_document, serving, sha256


@pytest.fixture
async def client(registry_url: str) -> AsyncIterator[RegistryClient]:
    async with RegistryClient(base_url=registry_url, timeout=60) as client:
        yield client


@pytest.fixture
async def http(registry_url: str, namespace: str) -> AsyncIterator[httpx.AsyncClient]:
    base = f"{registry_url}/api/v1/namespaces/{namespace}/"
    async with httpx.AsyncClient(base_url=base, timeout=60) as http:
        yield http


async def record(http: httpx.AsyncClient, name: str = "run-1", **changes: Any) -> str:
    uid = str(uuid.uuid4())
    answer = await http.put(f"runs/{uid}", json=run_document(name=name, **changes))
    assert answer.status_code == 201, answer.text
    return uid


def said(phase: str, version: int = 0, **more: Any) -> OutcomeRequest:
    ended = phase in ("Succeeded", "Failed", DELETED)
    return OutcomeRequest.model_validate({"phase": phase, "version": version, "ended": ended, **more})


TRAINING, RESTING = said("Training", 12), said("Suspended", 15)
FAILED = said("Failed", 20, reason="DatasetInvalid", message="row 7: empty", hint="Correct it.", row=7, gpuSeconds=9)
SUCCEEDED, GONE = said("Succeeded", 21, evaluationLoss="1.25"), said(DELETED)


@pytest.mark.parametrize(
    ("words", "phase"),
    [
        ([TRAINING, RESTING, TRAINING], "Suspended"),  # an old word that comes late
        ([TRAINING, TRAINING], "Training"),
        ([RESTING, said("Training", 16)], "Training"),
        ([TRAINING, said("Pending", 0)], "Pending"),  # of an object whose version is not known
        ([FAILED, TRAINING, said("Training", 99)], "Failed"),
        ([FAILED, GONE], "Failed"),
        ([TRAINING, GONE, TRAINING], DELETED),
        ([TRAINING, GONE, said("Training", 13)], "Training"),  # it lives, so it was not deleted
        ([TRAINING, GONE, SUCCEEDED], "Succeeded"),
        ([FAILED, said("Succeeded", 2)], "Succeeded"),  # a cluster that was restored to an earlier state
        ([said("Training", 30), said("Failed", 2)], "Failed"),
    ],
)
async def test_the_newest_word_counts_and_an_end_is_an_end(
    client: RegistryClient, http: httpx.AsyncClient, namespace: str, words: list[OutcomeRequest], phase: str
) -> None:
    uid = await record(http)
    assert (await client.get_run(namespace, uid)).outcome is None
    for word in words:
        answer = await client.put_outcome(namespace, uid, word)
    run = await client.get_run(namespace, uid)
    assert run.outcome == answer
    assert run.outcome.phase == phase
    unfinished = {each.uid: each.phase for each in await client.list_unfinished()}
    assert unfinished.get(uid) == (None if run.outcome.ended else phase)


async def test_an_end_that_is_told_again_is_recorded_once(
    client: RegistryClient, http: httpx.AsyncClient, namespace: str
) -> None:
    """Of some runs it is told twice, and of any when the operator starts anew."""
    uid = await record(http)
    for word in (TRAINING, FAILED, FAILED, FAILED.model_copy(update={"version": 22}), SUCCEEDED):
        await client.put_outcome(namespace, uid, word)
    ends = (await http.get("audit", params={"action": "EndRun"})).json()["items"]
    assert [each["details"]["phase"] for each in ends] == ["Succeeded", "Failed"]


async def test_all_that_is_said_of_a_failure_is_kept_also_when_the_object_goes(
    client: RegistryClient, http: httpx.AsyncClient, namespace: str
) -> None:
    uid = await record(http)
    times = {"startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T01:00:00Z"}
    whole = said("Failed", 7, reason="OutOfMemory", message="a\0b", attempts=3, resumedFromStep=40, **times)
    await client.put_outcome(namespace, uid, whole)
    await client.put_outcome(namespace, uid, GONE)
    known = (await client.get_run(namespace, "run-1")).outcome
    assert known is not None
    assert known == type(known).model_validate({**whole.model_dump(exclude={"version"}), "message": "a\ufffdb"})
    other = await record(http, "run-2")
    await client.put_outcome(namespace, other, said("Training", 7, attempts=3, gpuSeconds=70))
    gone = await client.put_outcome(namespace, other, said(DELETED, reason="ObjectDeleted", message="it was Training"))
    assert (gone.phase, gone.reason, gone.ended) == (DELETED, "ObjectDeleted", True)
    kept = (await client.get_run(namespace, other)).outcome
    assert kept is not None
    assert (kept.attempts, kept.gpu_seconds) == (3, 70), "what was known before it was deleted"


async def test_of_a_run_that_is_not_recorded_nothing_is_said(client: RegistryClient, namespace: str, uid: str) -> None:
    with pytest.raises(RegistryNotFound):
        await client.put_outcome(namespace, uid, TRAINING)


async def test_after_the_end_its_trainer_has_nothing_to_say(
    client: RegistryClient, http: httpx.AsyncClient, namespace: str
) -> None:
    uid = await record(http)
    document = {"result": {"runUid": uid}}
    assert (await http.put(f"runs/{uid}/result", json=document)).status_code == 204
    await client.put_outcome(namespace, uid, FAILED)
    for method, path, body in (
        ("POST", "status", {"trainerStatus": {"progressPercentage": 1}}),
        ("PUT", "result", {**document, "changed": True}),
    ):
        answer = await http.request(method, f"runs/{uid}/{path}", json=body)
        assert (answer.status_code, answer.json()["error"]["reason"]) == (409, "RunEnded")
    assert (await http.put(f"runs/{uid}/result", json=document)).status_code == 204, "the same again changes nothing"


async def test_a_first_result_after_the_registration_is_refused(http: httpx.AsyncClient) -> None:
    uid = await record(http)
    assert (await http.put(f"runs/{uid}/adapter", json=adapter_document(uid))).status_code == 201
    answer = await http.put(f"runs/{uid}/result", json={"result": {"runUid": uid}, "adapter": "another"})
    assert (answer.status_code, answer.json()["error"]["reason"]) == (409, "Conflict")


async def test_a_dataset_is_pinned_by_its_content(http: httpx.AsyncClient, uid: str) -> None:
    assert (await http.post("datasets/tickets/versions", content=pairs(2))).status_code == 201
    digest = sha256(pairs(2).decode())
    wrong = run_document(datasetName="tickets", datasetVersion=1, datasetSha256="0" * 64)
    answer = await http.put(f"runs/{uid}", json=wrong)
    assert (answer.status_code, answer.json()["error"]["reason"]) == (409, DATASET_CHANGED)
    assert digest in answer.json()["error"]["message"]
    assert (await http.get(f"runs/{uid}")).status_code == 404
    right = {**wrong, "datasetSha256": digest}
    made = await http.put(f"runs/{uid}", json=right)
    assert (made.status_code, made.json()["datasetSha256"]) == (201, digest)
    assert (await http.put(f"runs/{uid}", json=right)).status_code == 200
    assert (await http.put(f"runs/{uid}", json=wrong)).status_code == 409


async def listed(http: httpx.AsyncClient, **query: Any) -> list[str]:
    """The names of all runs that fit, over as many pages as it takes."""
    names: list[str] = []
    while True:
        page = (await http.get("runs", params=query)).json()
        names += [run["name"] for run in page["items"]]
        if page.get("continue") is None:
            return names
        query["continue"] = page["continue"]


@pytest.fixture
async def many(http: httpx.AsyncClient, client: RegistryClient, namespace: str) -> None:
    """Five runs, oldest first."""
    await http.post("datasets/tickets/versions", content=pairs(2))
    await http.post("datasets/tickets/versions", content=pairs(3))
    hub = {"baseModel": {"hub": {"repository": "org/m-1b"}}}
    volume = {"baseModel": {"volume": {"claimName": "models", "path": "m_2"}}}
    specs: list[dict[str, Any]] = [
        {"name": "a-1", "spec": hub, "datasetName": "tickets", "datasetVersion": 1},
        {"name": "b-2", "spec": hub, "datasetName": "tickets"},
        {"name": "c-3", "spec": volume, "experiment": "other"},
        {"name": "d-4", "spec": {}},
        {"name": "a-1", "spec": {"baseModel": "nonsense"}},
    ]
    uids = [await record(http, **each) for each in specs]
    words = [
        said("Succeeded", evaluationLoss="1.5", completionTime="2026-01-02T00:00:00Z"),
        said("Succeeded", evaluationLoss="1.0", completionTime="2026-01-01T00:00:00Z"),
        said("Failed", reason="Diverged", message="loss is 100% NaN_", completionTime="2026-01-03T00:00:00Z"),
        said("Training"),
    ]
    for uid, word in zip(uids, words, strict=False):
        await client.put_outcome(namespace, uid, word)


NEWEST = ["a-1", "d-4", "c-3", "b-2", "a-1"]
LISTS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, NEWEST),
    ({"sort": "created"}, NEWEST[::-1]),
    ({"sort": "name"}, ["a-1", "a-1", "b-2", "c-3", "d-4"]),
    ({"sort": "-name"}, ["d-4", "c-3", "b-2", "a-1", "a-1"]),
    ({"sort": "evaluationLoss"}, ["b-2", "a-1", "a-1", "d-4", "c-3"]),
    ({"sort": "-evaluationLoss"}, ["a-1", "b-2", "a-1", "d-4", "c-3"]),
    ({"sort": "-finished"}, ["c-3", "a-1", "b-2", "a-1", "d-4"]),
    ({"state": "Succeeded"}, ["b-2", "a-1"]),
    ({"state": ["Training", "Failed"]}, ["d-4", "c-3"]),
    ({"state": "Unknown"}, ["a-1"]),
    ({"experiment": "other"}, ["c-3"]),
    ({"dataset": "tickets"}, ["b-2", "a-1"]),
    ({"dataset": "tickets/2"}, ["b-2"]),
    ({"baseModel": "org/m-1b"}, ["b-2", "a-1"]),
    ({"baseModel": "m_2"}, ["c-3"]),
    ({"name": "a-1"}, ["a-1", "a-1"]),
    ({"text": "ORG/M"}, ["b-2", "a-1"]),
    ({"text": "diverged"}, ["c-3"]),
    ({"text": "100%"}, ["c-3"]),
    ({"text": "m_"}, ["c-3"]),
    ({"text": "%"}, ["c-3"]),
    ({"state": "Succeeded", "name": "b-2"}, ["b-2"]),
    ({"state": "Failed", "name": "b-2"}, []),
]


@pytest.mark.usefixtures("many")
async def test_lists_are_filtered_sorted_and_complete_over_pages(http: httpx.AsyncClient) -> None:
    for query, names in LISTS:
        for limit in (200, 2, 1):
            assert await listed(http, limit=limit, **query) == names, (query, limit)


@pytest.mark.usefixtures("many")
async def test_a_page_belongs_to_its_list(http: httpx.AsyncClient) -> None:
    token = (await http.get("runs", params={"limit": 1, "sort": "name"})).json()["continue"]
    for query in ({"sort": "-name"}, {"sort": "name", "state": "Failed"}, {}):
        answer = await http.get("runs", params={"continue": token, **query})
        assert answer.status_code == 422
        assert "is not from this list" in answer.json()["error"]["message"]


@pytest.mark.usefixtures("many")
async def test_a_name_means_the_newest_run_of_that_name(http: httpx.AsyncClient) -> None:
    run = (await http.get("runs/a-1")).json()
    assert "outcome" not in run or run["outcome"] is None
    assert (await http.get(f"runs/{run['uid']}")).json() == run


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(parse_url(database_url))
    yield database
    await database.close()


async def test_a_namespace_is_kept_apart_forgotten_or_given_back(database_url: str, database: Database) -> None:
    store = NamespaceStore(database)
    with serving(database_url) as url:
        async with httpx.AsyncClient(base_url=f"{url}/api/v1/namespaces/ml/", timeout=60) as http:
            await http.post("datasets/tickets/versions", content=pairs(2))
            uid = await record(http, datasetName="tickets")
            await http.put(f"runs/{uid}/adapter", json=adapter_document(uid))
            await record(http, "child", parentAdapterName="support")
            for _ in range(2):
                await store.meet("ml", "first", actor="somebody")
            assert len((await http.get("runs")).json()["items"]) == 2, "the first uid takes what was there"
            await NamespaceStore(database).meet("ml", "second", actor="somebody")
            for kind in ("runs", "datasets", "adapters"):
                assert (await http.get(kind)).json()["items"] == []
            assert await RegistryClient(base_url=url).list_unfinished() == []
            key = next(each.key for each in await store.listed() if each.uid == "first")

            assert (await http.post("datasets/tickets/versions", content=pairs(5))).json()["version"] == 1
            with pytest.raises(Conflict, match="has datasets of its own by now"):
                await store.adopt(key, actor="admin")
            counts = await store.forget("ml", actor="admin")
            assert counts["dataset_versions"] == 1
            assert (await http.get("datasets")).json()["items"] == []

            assert await store.adopt(key, actor="admin") == "ml"
            found = (await http.get("runs")).json()["items"]
            assert [(run["name"], run["outcome"]["phase"]) for run in found] == [("child", DELETED), ("run-1", DELETED)]
            assert found[1]["adapter"]["name"] == "support"

            counts = await store.forget("ml", actor="admin")
            assert (counts["runs"], counts["adapter_versions"], counts["run_parents"]) == (2, 1, 1)
            for kind in ("runs", "datasets", "adapters"):
                assert (await http.get(kind)).json()["items"] == []
            with pytest.raises(NotFound, match="nothing is known"):
                await store.forget("ml", actor="admin")
