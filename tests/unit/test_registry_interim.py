"""Adapters of runs that still train: sent after each evaluation, the newest and the best kept; on both databases."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from finetune.cli.main import main
from finetune.registry.blobs import open_store
from finetune.registry.database import Database, parse_url
from finetune.registry.schema import blobs as blobs_table
from finetune.registry.schema import interim_adapters
from finetune.registry.store.common import now
from finetune.registry.store.files import FileLimits, FileStore
from tests.support.adapters import adapter_files, announce, listing, make_version, registered, send
from tests.support.registry import run_document, serving

SIZE = sum(map(len, adapter_files().values()))
NOW = timedelta(0)


@pytest.fixture
def blobs(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
def http(database_url: str, blobs: Path) -> Iterator[httpx.Client]:
    """A registry whose namespaces may have a little more than three small adapters."""
    limits = FileLimits(namespace_bytes=3 * SIZE + 100)
    with (
        serving(database_url, store=open_store(f"file://{blobs}"), limits=limits) as url,
        httpx.Client(base_url=f"{url}/api/v1/namespaces/ml", timeout=30) as client,
    ):
        yield client


@pytest.fixture
def uid(http: httpx.Client) -> str:
    """A run that trains adapter `support`."""
    return make_run(http)


def make_run(http: httpx.Client, name: str = "run-1") -> str:
    uid = str(uuid.uuid4())
    assert http.put(f"runs/{uid}", json=run_document(name=name)).status_code == 201
    return uid


def announce_step(http: httpx.Client, uid: str, step: int, content: dict[str, bytes], **said: Any) -> httpx.Response:
    document = {"evaluationLoss": "1.5", "files": listing(content), **said}
    return http.put(f"runs/{uid}/steps/{step}/adapter", json=document)


def send_step(http: httpx.Client, uid: str, step: int, *, salt: int | None = None, **said: Any) -> dict[str, bytes]:
    files = adapter_files(salt=step if salt is None else salt)
    answer = announce_step(http, uid, step, files, **said)
    assert answer.status_code == 200, answer.text
    for content in files.values():
        if hashlib.sha256(content).hexdigest() in answer.json()["missing"]:
            assert send(http, uid, content).status_code in {200, 201}
    return files


def kept(http: httpx.Client, run: str = "run-1") -> list[tuple[int, bool, bool]]:
    """Step, whether it is the newest, whether it is the best."""
    items = http.get(f"runs/{run}/adapters").json()["items"]
    return [(item["step"], item["newest"], item["best"]) for item in items]


def weights_in(blobs: Path) -> set[str]:
    """The digests of the blobs that are no card."""
    card = hashlib.sha256(adapter_files()["README.md"]).hexdigest()
    return {path.name for path in blobs.rglob("*") if path.is_file()} - {card}


def digests(*files: dict[str, bytes]) -> set[str]:
    """What `weights_in` gives for these adapters."""
    return {hashlib.sha256(each[name]).hexdigest() for each in files for name in each if name != "README.md"}


def end(http: httpx.Client, uid: str, phase: str) -> None:
    http.put(f"runs/{uid}/status", json={"phase": phase, "ended": True, "version": 9}).raise_for_status()


def refusal(answer: httpx.Response) -> tuple[int, str]:
    error = answer.json()["error"]
    assert error["hint"]
    return answer.status_code, error["reason"]


def test_the_newest_and_the_best_are_kept_with_their_losses_and_can_be_pulled(
    http: httpx.Client, uid: str, blobs: Path
) -> None:
    sent = {}
    for step, loss, expected in (
        (10, "2.0", [(10, True, True)]),
        (20, "1.5", [(20, True, True)]),
        (30, "1.7", [(20, False, True), (30, True, False)]),
        (40, "1.6", [(20, False, True), (40, True, False)]),
        (50, "1.50", [(50, True, True)]),  # of equal ones the newest
    ):
        sent[step] = send_step(http, uid, step, evaluationLoss=loss, trainLoss="1.25", baseEvaluationLoss="2.77")
        assert kept(http) == expected, step
        assert weights_in(blobs) == digests(*(sent[one] for one, _, _ in expected))
    send_step(http, uid, 60, evaluationLoss="1.9")
    for step, number in (("50", 50), ("best", 50), ("latest", 60)):
        found = http.get(f"adapters/support/runs/run-1/steps/{step}").json()
        assert (found["name"], found["runUid"], found["step"]) == ("support", uid, number)
    best = http.get(f"adapters/support/runs/{uid}/steps/best").json()
    assert (best["evaluationLoss"], best["trainLoss"], best["baseEvaluationLoss"]) == ("1.50", "1.25", "2.77")
    assert best["files"] == listing(sent[50])
    for file in best["files"]:
        got = http.get(f"adapters/support/runs/run-1/steps/50/files/{file['path']}", headers={"Range": "bytes=1-3"})
        assert (got.status_code, got.content) == (206, sent[50][file["path"]][1:4])


def test_it_is_not_there_before_all_of_it_is(http: httpx.Client, uid: str) -> None:
    files = adapter_files(salt=7)
    assert sorted(announce_step(http, uid, 7, files).json()["missing"]) == sorted(
        hashlib.sha256(content).hexdigest() for content in files.values()
    )
    assert kept(http) == []
    assert refusal(http.get("adapters/support/runs/run-1/steps/7")) == (404, "NotFound")
    send_step(http, uid, 8)  # what had not come whole is not waited for
    assert refusal(send(http, uid, files["adapter_model.safetensors"])) == (404, "NotFound")
    assert kept(http) == [(8, True, True)]
    assert announce_step(http, uid, 8, adapter_files(salt=8)).json() == {"missing": [], "stored": True}
    assert kept(http) == [(8, True, True)]


def test_a_later_attempt_takes_the_place_of_what_is_made_again(http: httpx.Client, uid: str, blobs: Path) -> None:
    for step, loss in ((10, "1.0"), (20, "2.0")):
        send_step(http, uid, step, attempt=1, evaluationLoss=loss)
    assert kept(http) == [(10, False, True), (20, True, False)]
    again = send_step(http, uid, 15, attempt=2, startStep=10, evaluationLoss="1.8")
    assert kept(http) == [(10, False, True), (15, True, False)]
    assert refusal(announce_step(http, uid, 30, again, attempt=1)) == (409, "AttemptOver")
    anew = send_step(http, uid, 10, salt=99, attempt=3, evaluationLoss="1.1")  # from its first step on
    assert kept(http) == [(10, True, True)]
    assert weights_in(blobs) == digests(anew)
    told = {"trainerStatus": {}, "attempt": 4, "startStep": 10}
    http.post(f"runs/{uid}/status", json=told).raise_for_status()
    assert refusal(announce_step(http, uid, 30, again, attempt=3)) == (409, "AttemptOver")


def test_the_finished_adapter_takes_their_place(http: httpx.Client, uid: str) -> None:
    best = send_step(http, uid, 10, evaluationLoss="1.0")
    send_step(http, uid, 20, evaluationLoss="2.0")
    # Early stopping: the finished adapter is the best one, whose bytes are not sent again; and the quota has no room
    # for another one beside these.
    assert announce(http, uid, best).json()["missing"] == []
    finished = {**adapter_files(salt=3), "README.md": b"# finished\n"}
    assert len(announce(http, uid, finished).json()["missing"]) == 3
    for content in finished.values():
        assert send(http, uid, content).status_code == 201
    assert kept(http) == [(10, False, True), (20, True, False)]
    http.put(f"runs/{uid}/adapter", json=registered(uid, finished)).raise_for_status()
    assert kept(http) == []
    assert http.get("adapters/support/versions/1").json()["stored"]
    assert refusal(announce_step(http, uid, 30, best)) == (409, "RunEnded")


async def test_those_of_a_failed_run_stay_for_a_while(
    http: httpx.Client, uid: str, database_url: str, blobs: Path
) -> None:
    files = send_step(http, uid, 10)
    other = make_run(http, "run-2")
    trains = send_step(http, other, 10, salt=4)
    end(http, uid, "Failed")
    assert refusal(announce_step(http, uid, 20, adapter_files(salt=5))) == (409, "RunEnded")
    database = Database(parse_url(database_url))
    try:
        for after, expected in ((timedelta(days=1), digests(files, trains)), (NOW, digests(trains))):
            store = FileStore(database, open_store(f"file://{blobs}"), FileLimits(interim_after=after))
            would = await store.collect_garbage(dry_run=True, older_than=NOW)
            done = await store.collect_garbage(dry_run=False, older_than=NOW)
            assert would.blobs == done.blobs
            assert weights_in(blobs) == expected
    finally:
        await database.close()
    assert kept(http) == []
    assert kept(http, "run-2") == [(10, True, True)]


def test_the_command_leaves_them_unless_it_is_told_how_old_they_may_become(
    http: httpx.Client, uid: str, database_url: str, blobs: Path
) -> None:
    """How long the registry that serves keeps them the command does not know."""
    files = send_step(http, uid, 10)
    end(http, uid, "Failed")

    async def aged() -> None:
        database, before = Database(parse_url(database_url)), now() - timedelta(days=40)
        await database.write(lambda c: c.execute(update(interim_adapters).values(created_time=before)))
        await database.write(lambda c: c.execute(update(blobs_table).values(touched_time=before)))
        await database.close()

    asyncio.run(aged())
    collect = ("registry", "gc", f"--database-url={database_url}", f"--store=file://{blobs}")
    for flags, left in (
        ((), digests(files)),
        (("--keep-interim-days=41",), digests(files)),
        (("--keep-interim-days=39",), set()),
    ):
        assert main([*collect, *flags]) == 0
        assert weights_in(blobs) == left
    for wrong in ("-1", "100001", "x"):
        with pytest.raises(SystemExit):
            main([*collect, f"--keep-interim-days={wrong}"])


def test_one_is_deleted_by_people(http: httpx.Client, uid: str, blobs: Path) -> None:
    files = send_step(http, uid, 10, evaluationLoss="1.0")
    newest = send_step(http, uid, 20)
    assert http.delete("adapters/support/runs/run-1/steps/best").json()["step"] == 10
    assert kept(http) == [(20, True, True)]
    assert weights_in(blobs) == digests(newest)
    assert refusal(http.delete("adapters/support/runs/run-1/steps/10")) == (404, "NotFound")
    assert set(files) == set(newest)
    subjects = [item["subject"] for item in http.get("audit", params={"action": "DeleteAdapter"}).json()["items"]]
    assert subjects == ["support@run-1/10"]


def test_what_is_refused(http: httpx.Client, uid: str) -> None:
    files = adapter_files()
    steps = f"runs/{uid}/steps"
    for step, said, expected in (
        (0, {}, (422, "Invalid")),
        (-1, {}, (422, "Invalid")),
        (2**60, {}, (422, "Invalid")),
        (1, {"evaluationLoss": "NaN"}, (422, "Invalid")),
        (1, {"evaluationLoss": None}, (422, "Invalid")),
        (1, {"attempt": 0}, (422, "Invalid")),
        (1, {"more": 1}, (422, "Invalid")),
        (1, {"files": []}, (422, "Invalid")),
        (1, {"files": listing({"steps/1/adapter_config.json": b"{}"})}, (422, "Invalid")),
        (1, {"files": listing({"code.py": b"1"})}, (422, "Invalid")),
        (1, {"files": listing(files) * 2}, (422, "Invalid")),
        (1, {"files": listing(adapter_files(numbers=10_000))}, (507, "QuotaExceeded")),
    ):
        assert refusal(announce_step(http, uid, step, files, **said)) == expected, (step, said)
    assert refusal(http.put(f"{steps}/1/adapter", content=b"{")) == (422, "Invalid")
    assert refusal(announce_step(http, str(uuid.uuid4()), 1, files)) == (404, "NotFound")
    send_step(http, uid, 3)
    for path, word in (
        ("adapters/support/runs/run-1/steps/4", "kept are those of the steps 3"),
        ("adapters/other/runs/run-1/steps/3", "write support@run-1/3"),
        ("adapters/support/runs/run-1/steps/3/files/nothing", "it has: README.md"),
        ("adapters/support/runs/nobody/steps/3", "PUT runs/nobody"),
    ):
        answer = http.get(path)
        assert refusal(answer) == (404, "NotFound")
        assert word in answer.json()["error"]["hint"]


def test_a_name_stands_for_the_newest_run_of_it(http: httpx.Client, uid: str) -> None:
    send_step(http, uid, 3)
    later = make_run(http)
    assert kept(http) == []
    assert kept(http, uid) == [(3, True, True)]
    send_step(http, later, 5)
    assert kept(http) == [(5, True, True)]


def test_bytes_that_a_version_has_stay_when_it_goes(http: httpx.Client, uid: str, blobs: Path) -> None:
    files = adapter_files(salt=1)
    make_version(http, str(uuid.uuid4()), files)
    send_step(http, uid, 1)  # the same
    send_step(http, uid, 2, evaluationLoss="1.0")
    assert digests(files) <= weights_in(blobs)
    assert http.get("adapters/support/versions/1/files/adapter_model.safetensors").status_code == 200
