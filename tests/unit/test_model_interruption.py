"""What a process makes of SIGTERM and Ctrl-C, whatever its main thread is busy with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

STUCK = """
import signal, sys, time
from model.training.processes import interruption
interruption.WATCH_SECONDS = 0.05
interruption.install()
interruption.note_saved(7)
{before}
# A library that does not come back to the interpreter: no handler of Python's runs in this thread.
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGTERM}})
print("ready", flush=True)
{busy}
"""


def start(tmp_path: Path, before: str = "", busy: str = "time.sleep(60)") -> subprocess.Popen[str]:
    environment = os.environ | {"TERMINATION_LOG": str(tmp_path / "log")}
    code = STUCK.format(before=before, busy=busy)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_main_thread_that_sees_no_signal_is_not_waited_for(tmp_path: Path) -> None:
    with start(tmp_path) as process:
        process.terminate()
        assert process.wait(timeout=20) == 75
    assert json.loads((tmp_path / "log").read_text()) == {"interrupted": {"step": 7}}


def test_the_training_loop_learns_of_a_signal_that_the_main_thread_does_not_see(tmp_path: Path) -> None:
    busy = """
while not interruption.requested():
    time.sleep(0.01)
interruption.note_saved(8)
interruption.stop_at_once()
"""
    with start(tmp_path, "interruption.defer(saved_step=7)", busy) as process:
        process.terminate()
        assert process.wait(timeout=20) == 75
    assert json.loads((tmp_path / "log").read_text()) == {"interrupted": {"step": 8}}


def test_a_finished_process_stays_finished(tmp_path: Path) -> None:
    with start(tmp_path, "interruption.finish()") as process:
        process.terminate()
        assert process.wait(timeout=20) == 0
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(("times", "code"), [(1, 75), (2, -signal.SIGINT)])
def test_the_first_ctrl_c_is_like_sigterm_and_the_second_ends_at_once(tmp_path: Path, times: int, code: int) -> None:
    busy = """
while not interruption.requested():
    time.sleep(0.01)
print("asked", flush=True)
sys.stdin.readline()
interruption.stop_at_once()
"""
    environment = os.environ | {"TERMINATION_LOG": str(tmp_path / "log")}
    text = STUCK.format(before="interruption.defer(saved_step=0)", busy=busy)
    command = [sys.executable, "-c", text]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "asked\n"
        if times == 2:
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == code
            return
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(timeout=20) == code


@pytest.mark.parametrize("ago", [None, 5.0, 15.0])
def test_a_step_is_overdue_ten_seconds_after_the_signal(monkeypatch: pytest.MonkeyPatch, ago: float | None) -> None:
    import time

    from model.training.processes import interruption

    received = None if ago is None else time.monotonic() - ago
    monkeypatch.setattr(interruption, "_phase", interruption._Phase(received_at=received))
    assert interruption.requested() is (ago is not None)
    assert interruption.overdue() is (ago == 15.0)
