"""Locks in a run's directory: who waits says for what, and nobody waits for ever."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from model import exits, locks
from model.exits import FailureError


def answer(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the volume answer each call for a lock with an error."""

    def refuse(_descriptor: int, _operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_a_lock_is_held_until_it_is_closed(tmp_path: Path) -> None:
    first = locks.take(tmp_path / "lock")
    assert first is not None
    assert locks.take(tmp_path / "lock") is None
    os.close(first)
    with locks.alone(tmp_path / "lock", "waiting"):
        assert locks.take(tmp_path / "lock") is None
    last = locks.take(tmp_path / "lock")
    assert last is not None
    os.close(last)


def test_who_waits_for_a_lock_says_so_and_gives_up_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.1)
    held = locks.take(tmp_path / "lock")
    assert held is not None
    with (
        pytest.raises(FailureError, match=r"has held .*/lock for 0 s .* remove the file") as caught,
        locks.alone(tmp_path / "lock", "waiting for another export"),
    ):
        pass
    os.close(held)
    assert capsys.readouterr().err == "waiting for another export\n"
    assert (caught.value.code, caught.value.reason) == (exits.CRASH, "DirectoryLocked")


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EACCES])  # the latter is what SMB says
def test_a_lock_that_another_one_has_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    answer(monkeypatch, number)
    assert locks.take(tmp_path / "lock") is None


@pytest.mark.parametrize("number", locks.NO_LOCKS)
def test_on_a_volume_without_locks_everybody_may_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    answer(monkeypatch, number)
    with locks.alone(tmp_path / "lock", "waiting"), locks.alone(tmp_path / "lock", "waiting"):
        pass


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_volume_whose_locks_do_not_answer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    answer(monkeypatch, number)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(FailureError, match=rf"lock cannot be locked \({os.strerror(number)}\): the volume's") as caught:
        locks.take(tmp_path / "lock")
    assert (caught.value.code, caught.value.reason) == (exits.CRASH, "DirectoryLocked")
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
