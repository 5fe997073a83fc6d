"""What the demo says of a run that does not go well."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from examples.demo import first_step_time, progress_line
from tests.support import objects as o


def pod(code: int, message: Any) -> dict[str, Any]:
    return o.pod("p1", "Failed" if code else "Succeeded", trainer=o.ended(code, message))


def test_the_first_steps_time_is_read_from_a_success_only() -> None:
    assert first_step_time(pod(0, o.RESULT)) == datetime(2026, 11, 24, 6, 0, 20, tzinfo=UTC)
    assert first_step_time(pod(137, "Traceback: killed")) is None
    assert first_step_time({}) is None


def test_the_progress_line_says_what_a_run_waits_for() -> None:
    waiting = {"type": "Reconciling", "status": "True", "message": "no node fits"}
    assert progress_line({"status": {"phase": "Pending", "conditions": [waiting]}}) == "Pending no node fits"
    assert progress_line({}) == "applied"
