"""The workflows: actions pinned by commit, as few rights as they need, and commands that there are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import documents
from tests.support.parsers import CHECKS, check

WORKFLOWS = sorted((documents.ROOT / ".github" / "workflows").glob("*.yml"))
UNPINNED: dict[str, str] = {}
"""Actions without a commit, and why."""
RUNNERS_OWN = frozenset({"gh"})
"""Programs that GitHub's runners have, beside those of the documentation."""


def steps(workflow: Path) -> Iterator[dict[str, Any]]:
    for job in yaml.safe_load(workflow.read_text())["jobs"].values():
        yield from job["steps"]


def test_there_are_workflows() -> None:
    assert {each.stem for each in WORKFLOWS} >= {"test", "release"}


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_every_action_is_pinned_by_its_commit_and_says_which_version_that_is(workflow: Path) -> None:
    used = re.findall(r"uses: (.+)", workflow.read_text())
    assert used
    pinned = re.compile(r"[\w./-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+$")
    assert [each for each in used if not pinned.match(each) and each not in UNPINNED] == []


def test_one_action_has_one_commit() -> None:
    used = {use for workflow in WORKFLOWS for use in re.findall(r"uses: (.+)", workflow.read_text())}
    names = [use.partition("@")[0] for use in used]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_only_read_unless_a_job_says_so_and_ends_in_time(workflow: Path) -> None:
    document = yaml.safe_load(workflow.read_text())
    assert document["permissions"] == {"contents": "read"}
    assert all(job["timeout-minutes"] <= 180 for job in document["jobs"].values())
    checkouts = [step for step in steps(workflow) if step.get("uses", "").startswith("actions/checkout@")]
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_its_commands_exist(workflow: Path) -> None:
    problems = []
    for line in "\n".join(step["run"] for step in steps(workflow) if "run" in step).splitlines():
        for told in documents.parse(line, workflow.name):
            first = next((index for index, word in enumerate(told.words) if word in CHECKS), 0)  # behind sudo and env
            command = replace(told, words=told.words[first:])
            if command.words[0] not in RUNNERS_OWN:
                problems += [f"{line}: {problem}" for problem in check(command)]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_what_somebody_else_can_name_is_no_part_of_a_script(workflow: Path) -> None:
    """A branch or a title may hold shell words: such values reach scripts by the environment alone."""
    assert [step["run"] for step in steps(workflow) if "${{" in step.get("run", "")] == []
