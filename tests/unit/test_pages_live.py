"""Live pages: what viewers are told, how many there may be, and that a server which stops does not wait for them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from finetune.registry.database import Database, parse_url
from finetune.registry.pages import live
from finetune.registry.pages.live import Hub, TooManyViewers, Viewer, message
from tests.support.pages import outcome, post_points, spec
from tests.support.ports import free_port
from tests.support.registry import run_document, serving

UID = "00000000-0000-4000-8000-000000000001"


def events(answer: httpx.Response) -> Iterator[tuple[str, Any]]:
    """The events of a stream; comments and times are left out."""
    name = ""
    for line in answer.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def record(url: str) -> httpx.Client:
    api = httpx.Client(base_url=f"{url}/api/v1/namespaces/ml/")
    assert api.put(f"runs/{UID}", json=run_document(spec=spec())).status_code == 201
    return api


def test_viewers_get_what_is_newer_than_their_page(tmp_path: Path) -> None:
    with serving(f"sqlite:///{tmp_path}/registry.db") as url:
        api = record(url)
        outcome(api, UID, "Training")
        post_points(api, UID, 1, 10)
        address = f"{url}/ui/ml/runs/{UID}/events?phase=Training&step=8"
        with httpx.stream("GET", address, timeout=60) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["x-accel-buffering"] == "no"
            stream = events(answer)
            name, told = next(stream)
            assert (name, [step for step, _, _ in told["points"]["loss"]]) == ("run", [8, 9, 10])
            post_points(api, UID, 11, 12)
            assert [step for step, _, _ in next(stream)[1]["points"]["loss"]] == [10, 11, 12]
            evaluated = {"attempt": 1, "points": [{"step": 12, "values": {"evaluationLoss": 1.5}}]}  # by then it is old
            api.post(f"runs/{UID}/status", json={"trainerStatus": {"metrics": []}, **evaluated}).raise_for_status()
            assert [point[::2] for point in next(stream)[1]["points"]["evaluationLoss"]] == [[12, 1.5]]
            post_points(api, UID, 13, 1012)
            assert next(stream)[0] == "reload"  # no event has so many points, and a part of them would leave a gap
            post_points(api, UID, 6, 6, attempt=2, start=5)  # points are taken back: the page reads them again
            assert next(stream)[0] == "reload"
            with httpx.stream("GET", address, timeout=60) as another:
                assert next(events(another))[0] == "reload"
            outcome(api, UID, "Failed", ended=True, version=2)
            assert next(stream)[1]["ended"] is True


def test_the_list_says_that_it_has_changed(tmp_path: Path) -> None:
    with serving(f"sqlite:///{tmp_path}/registry.db") as url:
        api = record(url)
        stop = threading.Event()

        def change() -> None:  # the hub's first look only learns what there is
            version = 1
            while not stop.wait(live.TICK_SECONDS / 2):
                version += 1
                outcome(api, UID, "Training", version=version)

        changing = threading.Thread(target=change)
        changing.start()
        try:
            with httpx.stream("GET", f"{url}/ui/ml/events", timeout=60) as answer:
                assert next(events(answer)) == ("list", {"wait": 100})
        finally:
            stop.set()
            changing.join()


async def test_there_are_only_so_many_viewers_and_each_has_a_bounded_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "MOST_VIEWERS", 2)
    database = Database(parse_url(f"sqlite:///{tmp_path}/registry.db"))
    hub = Hub(database, is_stopping=lambda: True)
    first, _ = hub.join(("ml", "a")), hub.join(("ml", "b"))
    with pytest.raises(TooManyViewers):
        hub.join(("ml", "c"))
    hub.leave(("ml", "a"), first)
    assert hub.viewers == 1
    hub.join(("ml", "c"))
    await database.close()

    assert (live.pause(1), live.pause(200)) == (100, 20_000)  # ten pages a second, however many look
    slow = Viewer()
    for number in range(100):
        slow.give(message("run", {"number": number}))
        assert len(slow.events) <= 8
    assert slow.events[0] == message("reload", {})


def test_a_registry_that_stops_ends_its_streams(tmp_path: Path) -> None:
    port = free_port()
    command = (sys.executable, "-m", "finetune.cli.main", "registry", "serve", "--port", str(port))
    environment = {**os.environ, "FINETUNE_DATABASE_URL": f"sqlite:///{tmp_path}/registry.db"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while not _is_ready(url):
            assert time.monotonic() < deadline, "the registry did not start"
            time.sleep(0.05)
        record(url)
        with httpx.stream("GET", f"{url}/ui/ml/runs/{UID}/events", timeout=60) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("retry:")
            process.send_signal(signal.SIGTERM)
            list(lines)  # a stream that is cut instead of ended raises here
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False
