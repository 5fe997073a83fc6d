"""The file metrics.jsonl: one line per event, and never two that tell of the same step."""

from __future__ import annotations

import json
import os
from pathlib import Path

OF_A_STEP = frozenset({"train", "evaluation", "checkpoint", "outOfMemory", "warning"})
"""Events that a resumed run tells again when it makes the step again; the others tell of the attempts."""


def forget_after(path: Path, step: int, *, evaluated: bool) -> None:
    """Take out what will be told again; the file is replaced whole.

    Parameters
    ----------
    path
        The file.
    step
        The step that the run goes on from: what was told of later ones goes, and what was told of the run's end.
    evaluated
        Whether an evaluation of this very step is done; else that goes, too.
    """
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if _is_kept(line, step, evaluated)]
    if kept != lines:
        _replace(path, kept)


def carry_over(source: Path, path: Path, step: int) -> None:
    """Put what another run has told of its steps up to `step` in front of what this run has told of its attempts.

    A file that is not there, or cannot be read, is nothing to carry over: it decides nothing.
    """
    try:
        told = source.read_bytes().splitlines(keepends=True)
    except OSError:
        return
    theirs = [line for line in told if line.endswith(b"\n") and _is_kept(line, step, True) and _is_of_a_step(line)]
    ours = [line for line in path.read_bytes().splitlines(keepends=True) if not _is_of_a_step(line)]
    _replace(path, [*theirs, *ours])


def _replace(path: Path, lines: list[bytes]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def count_starts(path: Path) -> int:
    """Return how often a trainer has started in this file's run directory, as the file tells.

    What is no regular file tells of none: a device may have no end.
    """
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        return sum(line.startswith(b'{"event": "start"') for line in file)


def drop_half_line(path: Path) -> None:
    """Take out the last line when a process did not live to write its end."""
    if path.is_file():
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)


def _is_kept(line: bytes, step: int, evaluated: bool) -> bool:
    try:
        event = json.loads(line)
    except ValueError:
        return False  # a crash of the machine has left it; one line less must not end the run
    if event["event"] not in OF_A_STEP:
        return True
    if "step" not in event or event["step"] > step or event.get("final"):
        return False
    return evaluated or event["event"] != "evaluation" or event["step"] < step


def _is_of_a_step(line: bytes) -> bool:
    try:
        return json.loads(line)["event"] in OF_A_STEP
    except (ValueError, KeyError, TypeError):
        return False
