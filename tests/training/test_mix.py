"""A run on several sources: their rows are learned together, and each is told by its source to the end."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from model.data import export
from tests.training.conftest import make_rows
from tests.training.harness import Run


def mixed(run: Run, *sources: tuple[list[dict[str, Any]], dict[str, Any]]) -> Run:
    """Export the sources for the run, each of rows and settings."""
    entries = []
    for index, (rows, settings) in enumerate(sources):
        path = run.path / f"{index}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        entries.append({"source": "volume", "path": str(path), **settings})
    flags = [f"--run-directory={run.directory}", "--evaluation-percent=20"]
    with contextlib.chdir(run.path):
        assert export.main([*flags, *(f"--mix={json.dumps(entry)}" for entry in entries)]) == 0
    return run


def test_a_run_keeps_which_sources_its_rows_came_from(base_model: Path, tmp_path: Path) -> None:
    rows = make_rows(30)
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]
    chats = [{"messages": [{**turns[0], "content": f"What {number}?"}, turns[1]]} for number in range(8)]
    run = mixed(Run(tmp_path, base_model, max_steps=3), (rows, {"weight": 2, "name": "facts"}), (chats, {"weight": 1}))
    assert run.train() == 0
    said = run.said()["dataset"]
    assert [(source["name"], source["found"]) for source in said["sources"]] == [("facts", 30), ("1.jsonl", 8)]
    assert [source["rows"] + source["evaluationRows"] for source in said["sources"]] == [16, 8]
    assert said["rows"] + said["evaluationRows"] == 24
    recorded = json.loads((run.directory / "training_config.json").read_text())
    assert recorded["dataset"]["sources"] == said["sources"]


def test_what_the_trainer_refuses_is_named_by_its_source(base_model: Path, tmp_path: Path) -> None:
    long = [{"prompt": "a", "completion": "so " * 300}, *({"prompt": f"b{n}", "completion": "c"} for n in range(5))]
    run = Run(tmp_path, base_model, max_steps=1, too_long="Fail", max_length=128)
    assert mixed(run, (make_rows(10), {}), (long, {"name": "tickets"})).train() == 3
    failure = run.said()["failure"]
    assert "mix[1] (tickets) row 1" in failure["message"]
    assert failure["row"] == 1
