"""What docs/security.md says of the spec and of the trainer's code, and that it speaks of every threat."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune.api.crd import build_crd

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
SPEC: dict[str, Any] = build_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]


def fields(schema: dict[str, Any], path: str = "spec") -> Iterator[tuple[str, str]]:
    """The path and the name of every field below an object or a list."""
    properties = {**schema.get("properties", {}), **schema.get("items", {}).get("properties", {})}
    for name, field in properties.items():
        yield f"{path}.{name}", name
        yield from fields(field, f"{path}.{name}")


FIELDS = list(fields(SPEC))


def test_no_field_of_a_run_names_a_namespace() -> None:
    assert len(FIELDS) > 100
    assert [path for path, name in FIELDS if "namespace" in name.lower()] == []


@pytest.mark.parametrize(
    "word", ["env", "envFrom", "template", "podTemplate", "command", "args", "volumes", "securityContext", "hostPath"]
)
def test_no_field_of_a_run_sets_variables_or_pod_templates(word: str) -> None:
    assert [path for path, name in FIELDS if name.lower() == word.lower()] == []


def test_code_of_models_is_never_trusted() -> None:
    says_so = re.compile(r"trust_remote_code\s*[=:]\s*True")
    code = [*ROOT.glob("model/**/*.py"), *ROOT.glob("operator/src/**/*.py")]
    assert [path for path in code if says_so.search(path.read_text())] == []
    assert [path for path, name in FIELDS if "trust" in name.lower()] == []


def test_every_threat_has_a_row() -> None:
    assert re.findall(r"^\| (T\d+) ", PAGE, re.MULTILINE) == [f"T{number}" for number in range(1, 20)]
