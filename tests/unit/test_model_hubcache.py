"""The cache that the runs of a claim share, when the pod that downloads is killed, and where there are no locks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from model import hubcache
from tests.support.hub import Hub, hub

COUNT = 3000
READ = "from model.data.sources import HubSource; print(sum(1 for _ in HubSource('o/d').records()))"
WITHOUT_LOCKS = """
import errno, fcntl, os, socket
def flock(*_):
    raise OSError(errno.ENOSYS, "Function not implemented")
fcntl.flock = flock
socket.gethostname = lambda: f"pod-{os.getpid()}"  # as on another node: a foreign process cannot be looked up
"""
"""A process as on a file system that has no flock, in a pod of its own."""


@pytest.fixture
def server() -> Iterator[Hub]:
    with hub() as made:
        rows = "".join(json.dumps({"prompt": "x" * 1000}) + "\n" for _ in range(COUNT))
        made.repository("o/d", {"train.jsonl": rows.encode()})
        yield made
        for event in made.held.values():
            event.set()


def eventually(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("before", ["", WITHOUT_LOCKS], ids=["locks", "no locks"])
def test_a_killed_download_is_waited_for_by_nobody(server: Hub, tmp_path: Path, before: str) -> None:
    def start() -> subprocess.Popen[str]:
        environment = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path), "PATH": ""}
        return subprocess.Popen(
            [sys.executable, "-c", before + READ], env=environment, stdout=subprocess.PIPE, text=True
        )

    released = server.held["train.jsonl"] = threading.Event()
    first = start()
    try:
        eventually(lambda: list(tmp_path.glob("hub/*/blobs/*.incomplete")))
        second = start()
        eventually(lambda: server.heads["train.jsonl"] == 2)
        first.kill()
        released.set()
        assert second.communicate(timeout=60)[0] == f"{COUNT}\n"
    finally:
        first.kill()
        first.communicate()
    assert server.downloads["train.jsonl"] == 2


def test_what_nobody_downloads_any_more_is_removed(tmp_path: Path) -> None:
    blobs = tmp_path / "models--o--m" / "blobs"
    blobs.mkdir(parents=True)
    abandoned, growing, whole = (blobs / name for name in ("a.11112222.incomplete", "b.33334444.incomplete", "c"))
    for path in (abandoned, growing, whole):
        path.write_bytes(b"x")
    hour = time.time() - hubcache.ABANDONED_SECONDS
    for path, moment in ((abandoned, hour - 60), (growing, hour + 60), (whole, hour - 60)):
        os.utime(path, (moment, moment))
    hubcache.prepare(tmp_path)
    assert sorted(blobs.iterdir()) == [growing, whole]


def test_what_cannot_be_removed_keeps_nothing_else(tmp_path: Path) -> None:
    """As when another process removes a file between the listing and the removal, or a network disk loses it."""
    blobs = tmp_path / "models--o--m" / "blobs"
    blobs.mkdir(parents=True)
    long_ago = time.time() - 2 * hubcache.ABANDONED_SECONDS
    for name in ("a", "c", "e"):
        path = blobs / f"{name}.incomplete"
        path.write_bytes(b"x")
        os.utime(path, (long_ago, long_ago))
    (blobs / "b.incomplete").symlink_to(blobs / "gone")  # listed and not there
    (blobs / "d.incomplete").mkdir()  # there, and no file
    os.utime(blobs / "d.incomplete", (long_ago, long_ago))
    hubcache.prepare(tmp_path)
    assert sorted(path.name for path in blobs.iterdir()) == ["b.incomplete", "d.incomplete"]


def test_a_cache_that_cannot_be_made_is_left_to_the_client(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    hubcache.prepare(tmp_path / "file" / "hub")
