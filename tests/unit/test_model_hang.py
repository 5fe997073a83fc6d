"""When a trainer counts as one that stands still, and how such a one ends, whatever its main thread is stuck in."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model import exits
from model.training.processes import hang
from model.training.processes.hang import MOVED_BYTES, Life, Limits, Moved, Stillness, describe


@pytest.mark.parametrize(
    ("median", "waiting", "stopping", "expected"),
    [
        (None, False, False, 3600),  # libraries, weights, a compiler
        (0.01, False, False, 600),
        (30.0, False, False, 600),
        (31.0, False, False, 620),
        (3600.0, False, False, 72_000),
        (1.0, True, False, 630),  # the one that is waited for is found first
        (None, True, False, 3630),
        (1.0, False, True, 60),
        (25.0, False, True, 75),
        (None, False, True, 60),
        (1.0, True, True, 90),
    ],
)
def test_how_long_there_may_be_no_sign_of_life(
    median: float | None, waiting: bool, stopping: bool, expected: float
) -> None:
    assert Limits().seconds(median, waiting=waiting, stopping=stopping) == expected


@pytest.mark.parametrize(
    ("life", "expected"),
    [
        (Life(), "no step for 612 s after the start"),
        (Life(step=840, median=1.42), "no step for 612 s after step 840 (median step 1.4 s)"),
        (Life(step=840), "no step for 612 s after step 840"),
        (Life(step=3, median=0.012), "no step for 612 s after step 3 (median step 12 ms)"),
        (Life(step=3, place="in an evaluation"), "no progress for 612 s in an evaluation after step 3"),
        (Life(who="process 1 of 2", step=3), "process 1 of 2: no step for 612 s after step 3"),
        (
            Life(who="process 0 of 2", step=3, waits=True),
            "process 0 of 2 waits for another one: no step for 612 s after step 3",
        ),
    ],
)
def test_what_it_says(life: Life, expected: str) -> None:
    assert describe(life, 612.3) == f"{expected}; the log has the stacks of all threads"


def test_the_median_is_that_of_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hang, "_life", Life())
    for step, seconds in enumerate([9.0, 1.0, 2.0], start=1):
        hang.step_made(step, seconds)
    assert (hang._life.median, hang._life.step) == (2.0, 3)


def test_a_machine_that_sleeps_is_not_blamed() -> None:
    times = iter([0.0, 5.0, 9_000.0, 9_005.0, 9_010.0])
    still = Stillness(5.0, lambda: next(times))
    seen = []
    for moving in (False, False, False, True):
        still.look(moving=moving)
        seen.append(still.seconds)
    assert seen == [5.0, 15.0, 20.0, 0.0]


def test_bytes_that_arrive_are_a_sign_of_life(tmp_path: Path) -> None:
    """Those of another process that downloads into the same cache, and those that this one writes."""
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    moved = Moved(lambda: tmp_path)
    moved.further()
    assert not any(moved.further() for _ in range(50))
    download = blobs / "abc.incomplete"
    with download.open("wb") as file:
        file.truncate(MOVED_BYTES)
    assert moved.further()
    assert not moved.further()
    download.rename(blobs / "abc")
    assert moved.further()
    with (tmp_path / "checkpoint").open("wb") as file:
        file.write(bytes(MOVED_BYTES))
    assert moved.further()
    assert not moved.further()


STUCK = """
import ctypes, signal, sys, threading, time
from model.training.processes import hang, interruption
hang.LIMITS = hang.Limits(**{limits})
interruption.install()
interruption.defer(saved_step={saved})
told = open("told", "w")
with hang.watch(lambda event, **fields: print(event, fields, file=told, flush=True)):
    {life}
    print("ready", flush=True)
    {stuck}
"""
QUICK = {"first": 0.4, "least": 0.4, "factor": 0.0, "waiting": 0.1, "look": 0.05}
FOREVER = "threading.Event().wait()"
WITH_THE_LOCK = "ctypes.PyDLL(None).sleep(100)"
"""A library that does not come back, and keeps Python's lock."""


def run(
    tmp_path: Path, stuck: str = FOREVER, *, life: str = "pass", saved: int = 0, **limits: float
) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"TERMINATION_LOG": str(tmp_path / "words"), "PYTHONPATH": path}
    code = STUCK.format(limits=QUICK | limits, life=life, stuck=stuck, saved=saved)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def words(tmp_path: Path) -> dict[str, dict[str, Any]]:
    document: dict[str, dict[str, Any]] = json.loads((tmp_path / "words").read_text())
    return document


def test_a_process_that_stands_still_shows_its_stacks_and_ends(tmp_path: Path) -> None:
    with run(tmp_path, life="hang.step_made(7, 0.001)") as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == exits.HUNG
    failure = words(tmp_path)["failure"]
    assert failure["reason"] == "Hung"
    assert re.match(r"no step for \d s after step 7 \(median step 1 ms\)", failure["message"])
    assert "threading.py" in errors
    assert '"<string>", line' in errors
    assert f"Hung: {failure['message']}" in errors
    assert "'exitCode': 11" in (tmp_path / "told").read_text()


def test_a_progress_log_on_the_disk_that_hangs_keeps_nobody(tmp_path: Path) -> None:
    """What takes the last line never returns."""
    life = "hang.TELL_SECONDS = 0.1; told = type('Stuck', (), {'write': lambda *_: threading.Event().wait()})()"
    with run(tmp_path, life=life) as process:
        process.communicate(timeout=60)
    assert process.returncode == exits.HUNG


def test_a_library_that_keeps_pythons_lock_is_ended_as_well(tmp_path: Path) -> None:
    with run(tmp_path, WITH_THE_LOCK, unresponsive=0.1) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Timeout (" in errors
    assert '"<string>", line' in errors
    assert not (tmp_path / "words").exists()


@pytest.mark.parametrize(
    "work",
    [
        "hang.alive()",
        "hang.step_made(1, 0.1)",
        "open('checkpoint', 'wb').write(bytes(2 * hang.MOVED_BYTES))",
        "interruption.request(); hang.alive()",
    ],
)
def test_a_slow_process_is_left_alone(tmp_path: Path, work: str) -> None:
    """Twice as long as there may be no sign of life."""
    stuck = f"for _ in range(20): time.sleep(0.1); {work}"
    with run(tmp_path, stuck, first=1.0, least=1.0, stopping=1.0, stopping_factor=0.0) as process:
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize(("saved", "code"), [(7, exits.INTERRUPTED), (6, exits.HUNG)])
def test_sigterm_ends_a_process_that_stands_still_sooner(tmp_path: Path, saved: int, code: int) -> None:
    """As interrupted where nothing is lost."""
    life = "hang.step_made(7, 0.001)"
    with run(tmp_path, life=life, saved=saved, least=1000.0, stopping=0.3, stopping_factor=0.0) as process:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == code
    if code == exits.INTERRUPTED:
        assert words(tmp_path) == {"interrupted": {"step": 7}}


def test_a_process_that_has_said_its_result_is_finished(tmp_path: Path) -> None:
    with run(tmp_path, life="interruption.finish()") as process:
        process.communicate(timeout=60)
    assert process.returncode == exits.OK
    assert not (tmp_path / "words").exists()


def test_who_waits_for_another_one_is_found_later(tmp_path: Path) -> None:
    with run(tmp_path, life="hang._life.waits = True", waiting=1000.0, unresponsive=1000.0) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=1.5)
        process.kill()
        process.communicate()
