"""What docs/quickstart.md says about an adapter once it was fetched, typed on one that a trainer has made."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support import documents
from tests.training.harness import Run

PAGE = documents.ROOT / "docs" / "quickstart.md"


def test_plain_peft_loads_the_folder_and_answers_as_the_page_says(
    base_model: Path, tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    """The base model is on this machine, under the name that the adapter gives as its base."""
    run = Run(tmp_path, base_model, max_steps=4, learning_rate="5e-2", base_model_name=base_model).export(rows)
    assert run.train() == 0
    shutil.copytree(run.directory / "adapter", tmp_path / "support")
    (snippet,) = [block.text for block in documents.blocks(PAGE) if block.language == "python"]
    told = snippet + '\nprint("bases", type(model).__name__, model.peft_config["default"].r)\n'
    done = subprocess.run(
        [sys.executable, "-c", told], cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "bases PeftModelForCausalLM 8"
    assert "How do I reset my password?" in done.stdout
    config = json.loads((tmp_path / "support" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base_model)
