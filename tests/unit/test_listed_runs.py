"""What is made of runs that an API server lists or gives."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest
from kubernetes.aio import client

from finetune.api.trainingrun import TrainingRun
from finetune.clients.kubernetes import KubernetesClient
from finetune.clients.registry import RegistryClient
from finetune.controller.core.settings import Settings
from finetune.controller.gather import Gatherer
from finetune.controller.handlers import Operator
from finetune.controller.known import KnownRuns
from finetune.controller.workqueue import Key, Line
from tests.support.world import manifest

Document = dict[str, Any]

RUNS = "/apis/finetune.dev/v1alpha1/namespaces/ml/trainingruns"
SETTINGS = Settings(registry_url="http://127.0.0.1:1", trainer_image="trainer:1", watch_namespaces=("ml",))

GONE = {"name": "gone", "group": "finetune.dev", "kind": "trainingruns"}
NOT_FOUND = {"kind": "Status", "code": 404, "reason": "NotFound", "message": "not found", "details": GONE}


def run(name: str, phase: str = "", claim: str = "own") -> Document:
    made = manifest(name, dataset={"volume": {"claimName": claim, "path": "rows"}})
    made["metadata"] |= {"namespace": "ml", "uid": f"uid-{name}", "resourceVersion": "7", "generation": 1}
    made["metadata"]["creationTimestamp"] = "2026-01-01T12:00:00Z"
    return {**made, "status": {"phase": phase}} if phase else made


class Given:
    """An API server that knows these runs; it selects none of them by their output."""

    def __init__(self) -> None:
        self.runs: list[Document] = []

    def answer(self, path: str) -> Document | None:
        asked = urlsplit(path)
        if asked.path == RUNS:
            items = [] if "output" in asked.query else self.runs
            return {"apiVersion": "finetune.dev/v1alpha1", "kind": "TrainingRunList", "metadata": {}, "items": items}
        return next((each for each in self.runs if asked.path == f"{RUNS}/{each['metadata']['name']}"), None)


@pytest.fixture
def given() -> Given:
    return Given()


@pytest.fixture
async def kubernetes(given: Given) -> AsyncIterator[KubernetesClient]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = given.answer(self.path)
            body = json.dumps(NOT_FOUND if found is None else found).encode()
            self.send_response(404 if found is None else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        address = f"http://127.0.0.1:{http.server_address[1]}"
        kubernetes = KubernetesClient(configuration=client.Configuration(host=address))
        yield kubernetes
        await kubernetes.close()
        http.shutdown()


async def test_a_run_that_a_list_finds_first_is_as_new_as_one_that_a_watch_tells_of(
    given: Given, kubernetes: KubernetesClient
) -> None:
    """After a start, or where the list was faster: it would wait behind everything else."""
    given.runs = [run("goes-on", "Training"), run("new")]
    async with RegistryClient(base_url="http://127.0.0.1:1") as registry:
        operator = Operator(settings=SETTINGS, kubernetes=kubernetes, registry=registry)
        await operator._resync("ml")
    due = operator._queue._due
    assert [due.take({}), due.take({})] == [(Key("ml", "new"), Line.BIRTH), (Key("ml", "goes-on"), Line.ROUTINE)]


async def test_a_run_of_which_nothing_is_known_any_more_is_read_before_a_claim_is_called_unused(
    given: Given, kubernetes: KubernetesClient
) -> None:
    failed = TrainingRun.from_object(run("failed", "Failed", claim="shared"))
    given.runs = [run("reader", "Pending", claim="shared"), run("other", "Pending", claim="shared-2")]
    known = KnownRuns()
    for each in (*given.runs, run("gone", "Pending", claim="shared")):
        known.run_seen(each)
        known.doubt(Key("ml", each["metadata"]["name"]))
    gatherer = Gatherer(kubernetes=kubernetes, known=known, settings=SETTINGS)
    assert await gatherer.runs_naming(failed, "shared") == ("reader",)
