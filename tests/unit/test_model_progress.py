"""What the registry is told of a run's progress."""

from __future__ import annotations

from typing import Any

from model.training.output.progress import RunStatus, StatusPoster


class Told(StatusPoster):
    """A poster that keeps what it is offered."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, str]] = []

    def offer(self, document: dict[str, Any]) -> None:
        """Keep the metrics by name."""
        self.metrics.append({one["name"]: one["value"] for one in document["trainerStatus"]["metrics"]})


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
