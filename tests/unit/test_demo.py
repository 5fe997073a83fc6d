"""What the demo says of a run that does not go well."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from examples import demo, demo_dpo
from examples.dataset import make_dataset
from examples.demo import first_step_time, progress_line
from finetune.api.trainingrun import TrainingRun
from tests.support import objects as o


def pod(code: int, message: Any) -> dict[str, Any]:
    return o.pod("p1", "Failed" if code else "Succeeded", trainer=o.ended(code, message))


def test_the_first_steps_time_is_read_from_a_success_only() -> None:
    assert first_step_time(pod(0, o.RESULT)) == datetime(2026, 11, 24, 6, 0, 20, tzinfo=UTC)
    assert first_step_time(pod(137, "Traceback: killed")) is None
    assert first_step_time({}) is None


def test_the_pairs_prefer_whole_answers_and_are_about_other_functions(tmp_path: Path) -> None:
    train, held_out, pairs = (tmp_path / name for name in ("train", "held-out", "pairs"))
    make_dataset.main([f"--train={train}", f"--held-out={held_out}", f"--preferences={pairs}"])
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    assert len(rows) == len({row["prompt"] for row in rows}) == 240
    others = [json.loads(line)["prompt"] for path in (train, held_out) for line in path.read_text().splitlines()]
    assert not {row["prompt"] for row in rows} & set(others)
    for row in rows:
        assert set(row) == {"prompt", "chosen", "rejected"}
        assert row["chosen"].startswith(row["rejected"])
        assert 3 <= len(row["rejected"].split()) < len(row["chosen"].split())
        assert row["rejected"][-1] not in ".,;:!?"


def test_the_preference_run_goes_on_from_the_demos_adapter() -> None:
    run = TrainingRun.from_object(demo_dpo.manifest("demo-dpo-1"))
    first = TrainingRun.from_object(demo.manifest("demo-1"))
    assert run.spec.parent_adapter is not None
    assert run.spec.parent_adapter.name == first.adapter_name != run.adapter_name
    assert run.spec.base_model == first.spec.base_model
    assert run.spec.lora.to_dict() == {}


def test_the_progress_line_says_what_a_run_waits_for() -> None:
    waiting = {"type": "Reconciling", "status": "True", "message": "no node fits"}
    assert progress_line({"status": {"phase": "Pending", "conditions": [waiting]}}) == "Pending no node fits"
    assert progress_line({}) == "applied"
