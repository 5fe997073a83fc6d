"""What metrics.jsonl says after a run has been resumed."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from model.training.output.metrics import drop_half_line, forget_after
from model.training.output.progress import ProgressLog

LINES = [
    {"event": "start"},
    {"event": "train", "step": 1},
    {"event": "train", "step": 2},
    {"event": "evaluation", "step": 2},
    {"event": "checkpoint", "step": 2},
    {"event": "outOfMemory", "step": 3},
    {"event": "train", "step": 3},
    {"event": "evaluation", "step": 3, "final": True},
    {"event": "warning", "message": "x"},
    {"event": "interrupted", "step": 3},
    {"event": "error"},
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return path


def kept(path: Path) -> list[int]:
    return [LINES.index(json.loads(line)) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("step", "evaluated", "expected"),
    [
        (3, True, [0, 1, 2, 3, 4, 5, 6, 9, 10]),
        (2, True, [0, 1, 2, 3, 4, 9, 10]),
        (2, False, [0, 1, 2, 4, 9, 10]),
        (0, True, [0, 9, 10]),
    ],
)
def test_what_will_be_told_again_is_taken_out(path: Path, step: int, evaluated: bool, expected: list[int]) -> None:
    forget_after(path, step, evaluated=evaluated)
    assert kept(path) == expected
    assert [file.name for file in path.parent.iterdir()] == ["metrics.jsonl"]


def test_a_damaged_line_goes(path: Path) -> None:
    damaged = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*damaged[:2], b"\0\0\0\n", *damaged[2:]]))
    forget_after(path, 3, evaluated=True)
    assert kept(path) == [0, 1, 2, 3, 4, 5, 6, 9, 10]


@pytest.mark.parametrize("half", ["", "x", '{"event": "tr'])
def test_a_line_that_was_not_finished_goes(path: Path, half: str) -> None:
    with path.open("a") as file:
        file.write(half)
    drop_half_line(path)
    assert kept(path) == list(range(len(LINES)))


def test_a_half_line_alone_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"event')
    drop_half_line(path)
    assert path.read_text() == ""
    drop_half_line(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_log_goes_on_after_it_was_taken_back(path: Path) -> None:
    with path.open("a") as file:
        file.write("half")
    log = ProgressLog(io.StringIO(), path)
    log.emit("start")
    log.rewind(1, evaluated=True)
    log.emit("train", step=2)
    told = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["event"], line.get("step")) for line in told] == [
        ("start", None), ("train", 1), ("interrupted", 3), ("error", None), ("start", None), ("train", 2),
    ]  # fmt: skip
