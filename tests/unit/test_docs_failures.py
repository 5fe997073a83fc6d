"""Tables of the documentation whose last column is "test": the tests are there, and no row is without one."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(ROOT.glob("docs/*.md"))
WITH_TESTS = ("failures.md", "security.md")
NAMED = re.compile(r"`(tests/[^`\s*]+\.py[^`\s]*)`")
WHY_NOT = re.compile(r"not tested: .{10,}")


def rows_with_a_test_column(page: Path) -> dict[str, str]:
    """The cell with the tests, by the first cell of its row, of every table whose last column is "test"."""
    found: dict[str, str] = {}
    tested = False
    before: list[str] = []
    for line in page.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if cells and not before:
            tested = cells[-1] == "test"
        elif cells and tested and set(line) - set("|- "):
            found[cells[0]] = cells[-1]
        before = cells
    return found


@cache
def functions(path: Path) -> frozenset[str]:
    """The test functions of a file."""
    nodes = ast.parse(path.read_text()).body
    return frozenset(node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_is_named_exists(page: Path) -> None:
    missing = []
    for name in NAMED.findall(page.read_text()):
        file, _, function = name.partition("::")
        if not (ROOT / file).is_file() or (function and function not in functions(ROOT / file)):
            missing.append(name)
    assert not missing


@pytest.mark.parametrize("name", WITH_TESTS)
def test_every_row_names_a_test(name: str) -> None:
    rows = rows_with_a_test_column(ROOT / "docs" / name)
    assert rows
    assert [what for what, tests in rows.items() if not NAMED.search(tests) and not WHY_NOT.match(tests)] == []
