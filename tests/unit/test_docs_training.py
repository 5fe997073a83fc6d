"""The walk through a step in docs/training.md names functions that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SECTION = (REPOSITORY / "docs/training.md").read_text(encoding="utf-8").split("### One step, function by function\n")[1]
NAMED = sorted(set(re.findall(r"`([\w/]+\.py):(\w+)`", SECTION.split("\n## ")[0])))


def test_the_walk_names_functions() -> None:
    assert len(NAMED) > 20


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_each_function_of_the_walk_is_where_it_says(path: str, name: str) -> None:
    source = (REPOSITORY / "model/training" / path).read_text(encoding="utf-8")
    assert re.search(rf"^\s*(def|class) {name}\b", source, re.MULTILINE)
