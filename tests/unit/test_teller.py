"""What the registry is to be told of runs: each change once, the newest word of each, and never more than fits."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from kubernetes.aio import client

from finetune.api.registry import OutcomeRequest, RunOutcome
from finetune.api.status import TrainingRunStatus
from finetune.api.trainingrun import ObjectMeta
from finetune.clients.kubernetes import KubernetesClient
from finetune.clients.registry import RegistryClient, RegistryUnavailable
from finetune.controller.core.outcome import deleted_outcome, outcome_of
from finetune.controller.teller import MAX_PENDING, MAX_TOLD, Teller
from tests.support.registry import run_document, serving

FINISHED = {
    "type": "Finished",
    "status": "True",
    "reason": "Failed",
    "message": "",
    "lastTransitionTime": "2026-01-01T12:00:00Z",
}
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def run(uid: str = "u1", version: str = "7") -> ObjectMeta:
    return ObjectMeta(name="support", namespace="ml", uid=uid, resource_version=version)


def status(phase: str, **more: Any) -> TrainingRunStatus:
    return TrainingRunStatus.model_validate({"phase": phase, **more})


def nowhere() -> KubernetesClient:
    return KubernetesClient(configuration=client.Configuration(host="http://127.0.0.1:9"))


@pytest.fixture
async def registry(tmp_path: Any) -> AsyncIterator[RegistryClient]:
    with serving(f"sqlite:///{tmp_path}/registry.db") as url:
        async with RegistryClient(base_url=url) as registry:
            await registry.put_run("ml", "u1", **run_document())
            yield registry


async def test_each_change_is_told_once(registry: RegistryClient) -> None:
    teller = Teller(kubernetes=nowhere(), registry=registry, period_seconds=3600)
    for version, phase in (("7", "Pending"), ("8", "Pending"), ("9", "Training")):
        teller.note(run(version=version), status(phase))
    await teller.tell()
    known = (await registry.get_run("ml", "u1")).outcome
    assert known is not None
    assert known.phase == "Training"
    teller.note(run(version="12"), status("Training"))
    assert not teller._pending, "only the version is another one"
    teller.note(run(version="13"), status("Suspended"))
    assert len(teller._pending) == 1


@pytest.mark.parametrize("begun", [False, True])
async def test_what_waits_is_told_when_the_operator_ends(registry: RegistryClient, begun: bool) -> None:
    """It would be asked for again minutes after the next start."""
    teller = Teller(kubernetes=nowhere(), registry=registry, period_seconds=3600)
    telling = asyncio.create_task(teller.run())
    await asyncio.sleep(0)
    teller.note(run(version="9"), status("Failed", conditions=[FINISHED]))
    if begun:
        await asyncio.sleep(0)
    telling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await telling
    known = (await registry.get_run("ml", "u1")).outcome
    assert known is not None
    assert (known.phase, known.ended) == ("Failed", True)


async def test_a_registry_that_is_away_does_not_hold_up_the_end() -> None:
    async with RegistryClient(base_url="http://127.0.0.1:9") as away:
        teller = Teller(kubernetes=nowhere(), registry=away)
        teller.note(run(), status("Training"))
        telling = asyncio.create_task(teller.run())
        await asyncio.sleep(0)
        telling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await telling


@pytest.fixture
def api_server() -> Iterator[str]:
    """Knows one run, with a status that another version of the operator has written."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            metadata = {"name": "support", "namespace": "ml", "uid": "u1", "resourceVersion": "7"}
            status = {"phase": 7, "attempts": "many"}
            kind = {"apiVersion": "finetune.dev/v1alpha1", "kind": "TrainingRun"}
            body = json.dumps({**kind, "metadata": metadata, "status": status}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()


async def test_a_status_that_cannot_be_read_does_not_end_the_telling(registry: RegistryClient, api_server: str) -> None:
    """It would end the operator, and again at its next start."""
    kubernetes = KubernetesClient(configuration=client.Configuration(host=api_server))
    await registry.put_run("ml", "u2", **run_document(name="gone"))
    teller = Teller(kubernetes=kubernetes, registry=registry, period_seconds=0)
    await teller.tell()
    await kubernetes.close()
    told = {run.uid: run.outcome for run in await registry.list_runs("ml")}
    assert told["u1"] is None
    assert told["u2"] is not None
    assert told["u2"].phase == "Deleted", "another run's uid stands under its name"


async def test_what_the_registry_fails_at_does_not_hold_up_the_others(registry: RegistryClient) -> None:
    """A database that refuses one run's values for its own reasons answers 5xx to that run for ever."""

    class Poisoned(RegistryClient):
        async def put_outcome(self, namespace: str, uid: str, outcome: OutcomeRequest) -> RunOutcome:
            if uid == "poison":
                raise RegistryUnavailable("500")
            return await registry.put_outcome(namespace, uid, outcome)

    teller = Teller(kubernetes=nowhere(), registry=Poisoned(base_url="http://127.0.0.1:9"), period_seconds=3600)
    teller.note(run("poison"), status("Training"))
    teller.note(run(), status("Training"))
    for _ in range(2):
        with pytest.raises(RegistryUnavailable):
            await teller.tell()
    known = (await registry.get_run("ml", "u1")).outcome
    assert known is not None
    assert known.phase == "Training"
    assert list(teller._pending) == ["poison"]


async def test_what_cannot_be_told_is_kept_in_bounds() -> None:
    registry = RegistryClient(base_url="http://127.0.0.1:9")
    teller = Teller(kubernetes=nowhere(), registry=registry)
    for number in range(MAX_PENDING + 500):
        teller.note(run(f"u{number}"), status("Training"))
        teller.note(run(f"u{number}"), status("Suspended"))
    assert len(teller._pending) == MAX_PENDING
    assert next(iter(teller._pending)) == "u500", "the oldest are found again by asking the registry"
    assert {word.outcome.phase for word in teller._pending.values()} == {"Suspended"}
    with pytest.raises(RegistryUnavailable):
        await teller.tell()
    assert len(teller._pending) == MAX_PENDING
    for number in range(MAX_PENDING * 2):
        teller.gone(f"u{number}")
    assert len(teller._gone) == MAX_PENDING
    assert MAX_TOLD > MAX_PENDING
    await registry.close()


def test_an_outcome_is_what_a_status_says() -> None:
    assert outcome_of(run(), TrainingRunStatus()) is None
    failure = {"reason": "DatasetInvalid", "message": "row 7", "hint": "mend it", "row": 7, "exitCode": 3}
    finished = {"type": "Finished", "status": "True", "reason": "DatasetInvalid", "message": "row 7"}
    conditions = [{**finished, "lastTransitionTime": "2026-01-01T12:00:00Z", "observedGeneration": 1}]
    failed = status(
        "Failed",
        conditions=conditions,
        failure=failure,
        gpuSeconds=12,
        attempts=2,
        completionTime="2026-01-01T12:00:00Z",
    )
    said = outcome_of(run(version="abc"), failed)
    assert said is not None
    assert (said.phase, said.reason, said.message, said.hint, said.row) == (
        "Failed",
        "DatasetInvalid",
        "row 7",
        "mend it",
        7,
    )
    assert (said.ended, said.version, said.gpu_seconds, said.completion_time) == (True, 0, 12, NOON)
    waiting = {"reason": "QuotaExceeded", "object": "Job/x", "message": "no quota", "since": "2026-01-01T12:00:00Z"}
    waits = outcome_of(run(), status("Pending", waiting=waiting))
    assert waits is not None
    assert (waits.reason, waits.message, waits.hint, waits.ended, waits.version) == (
        "QuotaExceeded",
        "no quota",
        None,
        False,
        7,
    )
    gone = deleted_outcome(None, NOON)
    assert (gone.phase, gone.ended, gone.completion_time) == ("Deleted", True, NOON)
