"""The file metrics.jsonl: one line per event, and never two that tell of the same step."""

from __future__ import annotations

import json
import os
from pathlib import Path

OF_A_STEP = frozenset({"train", "evaluation", "checkpoint", "outOfMemory", "warning"})
"""Events that a resumed run tells again when it makes the step again; the others tell of the attempts."""


def forget_after(path: Path, step: int) -> None:
    """Take out what was told of later steps than `step`, and of the run's end; the file is replaced whole."""
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if _is_kept(line, step)]
    if kept == lines:
        return
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def drop_half_line(path: Path) -> None:
    """Take out the last line when a process did not live to write its end."""
    if path.is_file():
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)


def _is_kept(line: bytes, step: int) -> bool:
    event = json.loads(line)
    if event["event"] not in OF_A_STEP:
        return True
    return "step" in event and event["step"] <= step and not event.get("final")
