"""Processes that are started, remembered and ended: exactly those, and no other that looks alike."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cluster.base import ClusterError
from tests.cluster.supervise import Identity, Supervisor, find, stop

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    supervisor = Supervisor(records=tmp_path / "records", logs=tmp_path / "logs")
    yield supervisor
    supervisor.stop_all()


def test_another_program_finds_and_ends_what_was_started(supervisor: Supervisor) -> None:
    supervisor.start("sleeper", SLEEP, env={})
    other = Supervisor(records=supervisor.records, logs=supervisor.logs)
    assert other.is_alive("sleeper")
    other.stop_all()
    assert not supervisor.is_alive("sleeper")
    assert other.recorded() == {}


def test_a_process_with_a_used_again_number_is_left_alone() -> None:
    with subprocess.Popen(SLEEP) as stranger:
        identity = Identity.of(stranger.pid)
        assert identity is not None
        stop([replace(identity, start_ticks=identity.start_ticks - 1)], seconds=0.1)
        stop([replace(identity, boot_id="before the last boot")], seconds=0.1)
        assert stranger.poll() is None
        stop([identity])
        assert stranger.wait(timeout=5) != 0


def test_one_that_ignores_sigterm_is_killed() -> None:
    program = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-S", "-c", program], stdout=subprocess.PIPE) as deaf:
        assert deaf.stdout is not None
        deaf.stdout.readline()
        identity = Identity.of(deaf.pid)
        assert identity is not None
        stop([identity], seconds=0.05)
        assert deaf.wait(timeout=5) == -9


def test_a_dead_process_is_reported_with_its_last_words(supervisor: Supervisor) -> None:
    supervisor.start(
        "broken", [sys.executable, "-S", "-c", "import time; time.sleep(0.2); raise SystemExit('no luck')"], env={}
    )
    supervisor.children["broken"].wait(timeout=5)
    with pytest.raises(ClusterError, match=r"broken ended(.|\n)*no luck"):
        supervisor.check_alive()


def test_processes_are_found_by_name_and_path() -> None:
    command = ["sh", "-c", "echo ready; read line", "/state/one/config"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as mine:
        assert mine.stdout is not None
        mine.stdout.readline()  # the kernel shows a program's arguments a moment after it has started it
        found = find(programs=frozenset({"sh"}), argument_prefix="/state/one/")
        assert [identity.pid for identity in found] == [mine.pid]
        assert find(programs=frozenset({"sh"}), argument_prefix="/state/two/") == []
        assert find(programs=frozenset({"containerd"}), argument_prefix="/state/one/") == []


def test_a_zombie_counts_as_gone() -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert Identity.of(pid) is None
    os.waitpid(pid, 0)
