"""What the registry is told of a run's progress."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

import pytest

from model.registry import RegistryRefusedError, RegistryUnavailableError
from model.training.output.progress import MAX_KEPT_STEPS, Numbers, ProgressLog, RunStatus, StatusPoster


class Told(StatusPoster):
    """A poster that keeps what it is offered."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, str]] = []
        self.documents: list[dict[str, Any]] = []
        self.points: list[dict[int, Numbers]] = []

    def offer(self, document: dict[str, Any], points: Mapping[int, Numbers] | None = None) -> None:
        """Keep the metrics by name, and all numbers."""
        self.metrics.append({one["name"]: one["value"] for one in document["trainerStatus"]["metrics"]})
        self.documents.append(document)
        self.points.append(dict(points or {}))


def test_the_newest_whole_checkpoint_is_told_with_each_step_and_at_once() -> None:
    told = Told()
    status = RunStatus(told)
    status.saved(400)  # by an earlier attempt, before any step of this one
    assert not told.metrics
    status.step_made(401, 1000, {"loss": 1.5})
    status.saved(401)
    status.step_made(402, 1000, {"loss": 1.25})
    assert [(one["step"], one["checkpointStep"]) for one in told.metrics] == [
        ("401", "400"), ("401", "401"), ("402", "401"),
    ]  # fmt: skip
    assert told.metrics[-1] == {"loss": "1.25", "checkpointStep": "401", "step": "402", "totalSteps": "1000"}


def test_without_a_registry_nobody_is_told() -> None:
    status = RunStatus(None)
    status.step_made(1, 2, {"loss": 1.0})
    status.saved(1)


def test_every_number_is_told_with_the_attempt_that_measured_it() -> None:
    told = Told()
    status = RunStatus(told, attempt=3)
    status.started(400)
    status.step_made(401, 1000, {"epoch": 0.4, "loss": 1.5, "gradientNorm": float("inf")})
    status.evaluated(1.25)
    status.saved(401)
    assert told.points == [{401: {"loss": 1.5, "gradientNorm": None}}, {401: {"evaluationLoss": 1.25}}, {}]
    assert {(each["attempt"], each["startStep"]) for each in told.documents} == {(3, 400)}


class Registry:
    """Takes posts, and answers as it is told to."""

    def __init__(self) -> None:
        self.posts: list[dict[str, Any]] = []
        self.errors: list[Exception] = []
        self.called = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self, document: dict[str, Any]) -> None:
        self.called.release()
        assert self.go_on.wait(30)
        if self.errors:
            raise self.errors.pop(0)
        self.posts.append(document)

    @property
    def steps(self) -> list[int]:
        """The steps of all posts that were taken."""
        return [point["step"] for post in self.posts for point in post.get("points", [])]


def offer(poster: StatusPoster, *steps: int) -> None:
    for step in steps:
        poster.offer({"trainerStatus": {}, "newest": step}, {step: {"loss": step / 2}})


def test_no_step_is_lost_between_two_posts() -> None:
    registry = Registry()
    registry.go_on.clear()
    poster = StatusPoster(registry, interval=3600)
    offer(poster, 1)
    assert registry.called.acquire(timeout=30)
    offer(poster, *range(2, 2501))
    poster.offer({"trainerStatus": {}, "newest": 2500}, {2500: {"evaluationLoss": 0.5}})
    registry.go_on.set()
    poster.close()
    assert registry.steps == list(range(1, 2501))
    assert [len(post["points"]) for post in registry.posts] == [1, 1000, 1000, 499]
    assert registry.posts[-1]["points"][-1]["values"] == {"loss": 1250.0, "evaluationLoss": 0.5}
    assert registry.posts[-1]["newest"] == 2500


def test_a_registry_that_comes_back_gets_all_steps_once(capsys: pytest.CaptureFixture[str]) -> None:
    registry = Registry()
    registry.errors = [RegistryUnavailableError("away")] * 3
    poster = StatusPoster(registry, interval=0.01)
    offer(poster, 1)
    for _ in range(3):
        assert registry.called.acquire(timeout=30)
    offer(poster, 2, 3)
    poster.close()
    assert sorted(registry.steps) == [1, 2, 3]
    assert capsys.readouterr().err.count("cannot post the progress: away") == 3


def test_a_refused_post_is_not_made_again(capsys: pytest.CaptureFixture[str]) -> None:
    registry = Registry()
    registry.errors = [RegistryRefusedError(409, "attempt 1 is over")]
    poster = StatusPoster(registry, interval=0.01)
    offer(poster, 1)
    assert registry.called.acquire(timeout=30)
    poster.close()
    assert registry.steps == []
    assert "the registry refuses the progress: attempt 1 is over" in capsys.readouterr().err


def test_what_waits_for_a_registry_is_bounded() -> None:
    registry = Registry()
    registry.go_on.clear()
    poster = StatusPoster(registry, interval=3600)
    offer(poster, 1)
    assert registry.called.acquire(timeout=30)
    offer(poster, *range(2, MAX_KEPT_STEPS + 1000))
    assert len(poster._points) == MAX_KEPT_STEPS
    assert min(poster._points) == 1000, "the oldest go first"
    registry.go_on.set()
    poster.close()


def test_each_start_in_a_run_directory_is_an_attempt_of_its_own(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as output:
        logs: Callable[[TextIO], ProgressLog] = lambda file: ProgressLog(file, tmp_path / "metrics.jsonl")  # noqa: E731
        for attempt in (1, 2, 3):
            log = logs(output)
            assert log.attempt == attempt
            log.emit("start", totalSteps=5)
            log.emit("train", step=attempt)
            log.rewind(0, evaluated=False)
    told = [json.loads(line)["event"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert told == ["start"] * 3
