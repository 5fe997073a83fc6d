"""Sending adapters while a run trains, to a real registry: in order, one after the other, and never in the way."""

from __future__ import annotations

import threading
import uuid
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from finetune.registry.blobs import open_store
from model.registry import RunRegistry
from model.training.output.interim import SCRATCH, Interim, InterimSender, worth_sending
from tests.support.adapters import adapter_files
from tests.support.ports import free_port
from tests.support.registry import run_document, serving
from tests.support.waiting import wait_for

Make = Callable[..., InterimSender]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("interim")
    with serving(f"sqlite:///{folder}/registry.db", store=open_store(f"file://{folder}/blobs")) as served:
        yield served


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def make(tmp_path: Path, said: list[str]) -> Iterator[Make]:
    """Makes senders of a run, and closes them."""
    made: list[InterimSender] = []

    def sender(url: str, uid: str, *, attempt: int = 1, start_step: int = 0) -> InterimSender:
        registry = RunRegistry(url=url, namespace="ml", run_uid=uid)
        made.append(
            InterimSender(
                registry,
                tmp_path,
                attempt=attempt,
                start_step=start_step,
                copy=lambda _model: None,
                warn=said.append,
                rest=0.0,
            )
        )
        return made[-1]

    yield sender
    for each in made:
        each.close()


def write_nothing(_directory: Path) -> None:
    """The adapters of these tests bring their own files."""


def recorded(url: str) -> str:
    uid = str(uuid.uuid4())
    httpx.put(f"{url}/api/v1/namespaces/ml/runs/{uid}", json=run_document()).raise_for_status()
    return uid


def interim(step: int, loss: float, *, until: threading.Event | None = None) -> Interim:
    def write(directory: Path) -> None:
        if until is not None:
            until.wait(20)
        directory.mkdir()
        for name, content in adapter_files(salt=step).items():
            (directory / name).write_bytes(content)

    return Interim(step, {"evaluationLoss": loss, "trainLoss": 1.0, "baseEvaluationLoss": 2.5}, write)


def steps(url: str, uid: str) -> list[int]:
    answer = httpx.get(f"{url}/api/v1/namespaces/ml/runs/{uid}/adapters")
    return [item["step"] for item in answer.json()["items"]]


def test_adapters_are_sent_with_their_losses_and_leave_nothing(url: str, make: Make, tmp_path: Path) -> None:
    uid = recorded(url)
    sender = make(url, uid)
    sender.offer(interim(3, 1.25))
    wait_for(lambda: steps(url, uid) == [3])
    sender.offer(interim(6, 1.5))
    wait_for(lambda: steps(url, uid) == [3, 6])
    best = httpx.get(f"{url}/api/v1/namespaces/ml/adapters/support/runs/{uid}/steps/best").json()
    assert (best["step"], best["evaluationLoss"], best["trainLoss"], best["baseEvaluationLoss"]) == (
        *(3, "1.25"),
        *("1", "2.5"),
    )
    weights = httpx.get(
        f"{url}/api/v1/namespaces/ml/adapters/support/runs/{uid}/steps/3/files/adapter_model.safetensors"
    )
    assert weights.content == adapter_files(salt=3)["adapter_model.safetensors"]
    sender.close()
    assert not (tmp_path / SCRATCH).exists()


def test_evaluations_that_are_faster_than_the_network_wait_for_nothing(url: str, make: Make) -> None:
    uid, slow = recorded(url), threading.Event()
    sender = make(url, uid)
    sender.offer(interim(1, 3.0, until=slow))
    for step, loss in ((2, 2.0), (3, 1.0), (4, 2.5), (5, 1.5)):
        sender.offer(interim(step, loss))
    slow.set()
    wait_for(lambda: steps(url, uid) == [3, 5])


def test_a_resumed_attempt_says_where_it_began(url: str, make: Make) -> None:
    uid = recorded(url)
    for step in (2, 4):
        make(url, uid).offer(interim(step, 2.0 - step))
        wait_for(lambda step=step: steps(url, uid) == [step])
    make(url, uid, attempt=2, start_step=2).offer(interim(3, 1.0))
    wait_for(lambda: steps(url, uid) == [3])


@pytest.mark.parametrize("store", [None, "gone"])
def test_a_registry_that_takes_none_is_left_alone(
    tmp_path: Path, make: Make, said: list[str], store: str | None
) -> None:
    """One that keeps no files is not worth a word; one that does not know the run is."""
    opened = None if store is None else open_store(f"file://{tmp_path}/blobs")
    with serving(f"sqlite:///{tmp_path}/registry.db", store=opened) as url:
        sender = make(url, recorded(url) if store is None else "unknown")
        sender.offer(interim(1, 1.0))
        wait_for(lambda: not sender.wants)
    assert ["takes no adapters" in text for text in said] == ([] if store is None else [True])


def test_copies_do_not_stay_in_memory_once_the_registry_takes_none(url: str, make: Make) -> None:
    sender, slow, waiting = make(url, "unknown"), threading.Event(), interim(2, 0.5)
    sender.offer(interim(1, 1.0, until=slow))
    sender.offer(waiting)
    copy = weakref.ref(waiting)
    del waiting
    assert copy() is not None
    slow.set()
    wait_for(lambda: copy() is None)


def test_what_fails_is_said_and_the_next_one_is_tried(make: Make, said: list[str]) -> None:
    sender = make(f"http://127.0.0.1:{free_port()}", "uid")

    def cannot(_directory: Path) -> None:
        raise OSError(28, "No space left on device")

    sender.offer(Interim(1, {"evaluationLoss": 1.0}, cannot))
    wait_for(lambda: len(said) == 1)
    sender.offer(interim(2, 1.0))
    wait_for(lambda: len(said) == 2)
    assert "step 1 could not be written or sent: OSError(28" in said[0]
    assert "step 2 could not be sent to the registry" in said[1]
    assert sender.wants


@pytest.mark.parametrize(
    ("losses", "expected"),
    [([1.0], [0]), ([2.0, 1.0], [1]), ([1.0, 2.0], [0, 1]), ([1.0, 1.0], [1]), ([3.0, 1.0, 2.0], [1, 2])],
)
def test_the_newest_and_the_best_wait(losses: list[float], expected: list[int]) -> None:
    waiting = [interim(step, loss) for step, loss in enumerate(losses)]
    assert [one.step for one in worth_sending(waiting)] == expected
