"""Reasons, their hints, and the page that lists them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from finetune.api import reasons
from finetune.api.crd import build_crd

SCHEMA = build_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
PAGE = Path(__file__).parents[2] / "docs" / "api.md"


def table(heading: str) -> dict[str, str]:
    """The two columns of the table under a heading of docs/api.md."""
    section = PAGE.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    return dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, flags=re.MULTILINE))


def test_the_page_lists_every_failure_with_its_hint() -> None:
    assert table("Why a run failed") == reasons.HINTS


def test_the_page_lists_every_other_reason() -> None:
    assert table("Other reasons") == reasons.OTHER_REASONS


def test_every_constant_is_in_one_of_the_tables() -> None:
    constants = {value for name, value in vars(reasons).items() if name.isupper() and isinstance(value, str)}
    constants -= {reasons.SUCCEEDED, reasons.FAILED}  # phases, whose reasons are others
    assert constants == set(reasons.HINTS) | set(reasons.OTHER_REASONS)
    assert not set(reasons.HINTS) & set(reasons.OTHER_REASONS)


@pytest.mark.parametrize("hint", reasons.HINTS.values(), ids=reasons.HINTS)
def test_a_hint_is_a_sentence_about_fields_that_exist(hint: str) -> None:
    assert hint.endswith(".")
    for path in re.findall(r"spec(?:\.\w+)+", hint):
        node = SCHEMA
        for part in path.split("."):
            assert part in node["properties"], f"{path} in the hint is no field of the API"
            node = node["properties"][part]
