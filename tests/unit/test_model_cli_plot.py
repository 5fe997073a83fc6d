"""The loss curve as text, and what a terminal shows of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.exits import FailureError
from model.training.commands import plan
from model.training.output import plot, terminal


def write(path: Path, *events: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def step(number: int, loss: float | None) -> dict[str, object]:
    return {"event": "train", "step": number, "loss": loss}


def test_the_losses_of_a_run(tmp_path: Path) -> None:
    metrics = write(
        tmp_path / "metrics.jsonl",
        {"event": "start", "totalSteps": 2},
        step(1, 3.0),
        {"event": "evaluation", "step": 1, "loss": 2.5},
        step(2, 2.0),
        step(3, None),
        {"event": "evaluation", "step": 2, "loss": 1.5, "baseLoss": 3.5, "final": True},
    )
    with metrics.open("a") as file:
        file.write('{"event": "train", "st')  # a crash
    losses = plot.read_losses(metrics)
    assert losses == plot.Losses([(1, 3.0), (2, 2.0)], [(1, 2.5), (2, 1.5)], 3.5)


def test_a_run_without_steps_is_told(tmp_path: Path) -> None:
    with pytest.raises(FailureError, match="cannot be read"):
        plot.read_losses(tmp_path / "metrics.jsonl")
    with pytest.raises(FailureError, match="no training step"):
        plot.read_losses(write(tmp_path / "metrics.jsonl", {"event": "start"}))


def test_the_curve_falls_when_the_loss_does() -> None:
    losses = plot.Losses([(n, 10.0 - n) for n in range(1, 10)], [(9, 1.0)])
    lines = plot.draw(losses, width=40, height=6).splitlines()
    body = lines[:6]
    assert {len(line) for line in body} == {40}
    columns = [[index for index, line in enumerate(body) if line[c] not in "⠀ "] for c in range(10, 40)]
    tops = [rows[0] for rows in columns if rows]
    assert len(tops) == 30
    assert tops == sorted(tops)
    assert (tops[0], tops[-1]) == (0, 5)
    assert body[5].endswith("o")
    assert (body[0].split()[0], body[5].split()[0]) == ("9", "1")


@pytest.mark.parametrize("points", [[(1, 2.0)], [(1, 2.0), (2, 2.0)], [(n, 1 / n) for n in range(1, 5000)]])
def test_any_run_can_be_drawn(points: plot.Points) -> None:
    lines = plot.draw(plot.Losses(points, []), width=60).splitlines()
    assert max(map(len, lines)) <= 60


def test_means_run_over_the_points_before() -> None:
    assert plot.smooth([(1, 4.0), (2, 2.0), (3, 0.0)], 2) == [(1, 4.0), (2, 3.0), (3, 1.0)]


@pytest.mark.parametrize(
    ("seconds", "said"), [(3.4, "3 s"), (61, "1 min 01 s"), (3600, "1 h 00 min"), (200_000, "2 d 7 h")]
)
def test_time_in_words(seconds: float, said: str) -> None:
    assert terminal.duration(seconds) == said


def test_sizes_in_words() -> None:
    assert [terminal.size(n) for n in (12, 2048, 5 << 20, 3 << 30)] == ["12 B", "2.0 KiB", "5.0 MiB", "3.0 GiB"]


def test_a_measurement_replaces_what_was_guessed() -> None:
    guessed = {
        "libraries": 10,
        "weights": 20,
        "adapter": 1,
        "gradients and optimizer": 3,
        "activations": 60,
        "logits": 20,
    }
    on_cpu = plan.calibrate(guessed, {"gpu": None, "librariesBytes": 14, "peakBytes": 238})
    assert sum(on_cpu.values()) == 238
    assert (on_cpu["libraries"], on_cpu["weights"], on_cpu["activations"], on_cpu["logits"]) == (14, 20, 150, 50)
    on_gpu = plan.calibrate(guessed, {"gpu": {"contextBytes": 5, "peakBytes": 104}, "librariesBytes": 14})
    assert (sum(on_gpu.values()), on_gpu["libraries"], on_gpu["activations"]) == (109, 5, 60)


def test_the_container_s_limit_counts(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:    4 kB\n")
    assert plan.available_bytes(tmp_path, meminfo) == 4096
    (tmp_path / "memory.max").write_text("max\n")
    assert plan.available_bytes(tmp_path, meminfo) == 4096
    (tmp_path / "memory.max").write_text("100\n")
    assert plan.available_bytes(tmp_path, meminfo) == 100
    assert plan.available_bytes(tmp_path / "none", tmp_path / "none") is None
