"""The CustomResourceDefinition that is made from the models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.api.crd import build_crd, crd_text, main
from finetune.api.fields import INT_OR_STRING, RULES, UNTYPED

ROOT = Path(__file__).parents[2]
CHECKED_IN = ROOT / "crds" / "finetune.dev_trainingruns.yaml"
IN_CHART = ROOT / "charts" / "finetune-operator" / "files" / "finetune.dev_trainingruns.yaml"
VERSION = build_crd()["spec"]["versions"][0]
SCHEMA = VERSION["schema"]["openAPIV3Schema"]


def nodes(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema at or below the node, with the path of its field."""
    yield path, node
    for name, each in node.get("properties", {}).items():
        yield from nodes(each, f"{path}.{name}")
    for kind in ("items", "additionalProperties"):
        if kind in node:
            yield from nodes(node[kind], f"{path}[{kind}]")


DECIMAL = {
    UNTYPED,
    "maxLength",
    "pattern",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "maxItems",
    "maxProperties",
    "not",
}
"""Keywords that leave numbers within bounds and their text as the only values of an untyped field."""
SPEC = list(nodes(SCHEMA["properties"]["spec"], "spec"))
STATUS = list(nodes(SCHEMA["properties"]["status"], "status"))


@pytest.mark.parametrize("path", [CHECKED_IN, IN_CHART], ids=["crds", "chart"])
def test_the_files_are_in_step_with_the_models(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == crd_text(), f"run `make crds`: {path} is out of date"


def test_it_writes_the_files_that_it_is_given(tmp_path: Path) -> None:
    paths = [str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")]
    assert main(paths) == 0
    assert [yaml.load(Path(path).read_text(), yaml.CSafeLoader) for path in paths] == [build_crd()] * 2


def test_the_schema_is_structural() -> None:
    """Every node has one type; nothing is left of what JSON schema can say and a CRD cannot."""
    known = {
        "type",
        "format",
        "description",
        "enum",
        "default",
        "required",
        "properties",
        "items",
        "additionalProperties",
    }
    known |= {"minimum", "maximum", "minLength", "maxLength", "pattern", "minItems", "maxItems", "maxProperties", RULES}
    known |= {"x-kubernetes-list-type", "x-kubernetes-list-map-keys", INT_OR_STRING}
    for path, node in SPEC + STATUS:
        assert set(node) <= known | (DECIMAL | {"exclusiveMaximum"} if UNTYPED in node else set()), path
        assert [key for key in ("type", UNTYPED, INT_OR_STRING) if key in node] == [kind_of(node)], path


def kind_of(node: dict[str, Any]) -> str:
    """The keyword that says which values a field may have: exactly one does."""
    return next((key for key in (UNTYPED, INT_OR_STRING) if key in node), "type")


@pytest.mark.parametrize(("path", "node"), SPEC, ids=[path for path, _ in SPEC])
def test_whatever_a_person_writes_is_bounded(path: str, node: dict[str, Any]) -> None:
    bounds: dict[str, list[set[str]]] = {
        "string": [{"maxLength"}, {"enum"}],
        "integer": [{"minimum", "maximum"}],
        "array": [{"maxItems"}],
        "object": [{"properties"}, {"maxProperties"}],
        "boolean": [set()],
    }
    if kind_of(node) == "type":
        assert any(needed <= set(node) for needed in bounds[node["type"]]), path
        assert node["type"] != "number"
    else:
        assert (DECIMAL if UNTYPED in node else {"maxLength", RULES}) <= set(node) | {"exclusiveMinimum"}, path


@pytest.mark.parametrize(("path", "node"), STATUS, ids=[path for path, _ in STATUS])
def test_whatever_grows_in_the_status_is_bounded(path: str, node: dict[str, Any]) -> None:
    if node["type"] == "string":
        assert set(node) & {"maxLength", "enum"} or node.get("format") == "date-time", path
    if node["type"] == "array":
        assert "maxItems" in node, path
    assert node["type"] != "number", path


def test_every_field_has_a_description() -> None:
    fields = [(path, node) for path, node in SPEC + STATUS if not path.endswith("]")]
    assert [path for path, node in fields if not node.get("description", "").endswith((".", "?"))] == []


def test_what_is_missing_is_said_by_rules() -> None:
    spec = SCHEMA["properties"]["spec"]
    assert "required" not in spec
    assert "required" not in SCHEMA


def test_no_reference_leads_to_another_namespace() -> None:
    assert [path for path, _ in SPEC if "namespace" in path.lower()] == []


def test_only_status_and_its_generation_have_the_defaults_that_show_before_the_first_write() -> None:
    status = SCHEMA["properties"]["status"]
    assert status["default"] == {}
    assert status["properties"]["observedGeneration"]["default"] == -1
    assert VERSION["subresources"] == {"status": {}}


def test_a_condition_is_found_by_its_type() -> None:
    listed = SCHEMA["properties"]["status"]["properties"]["conditions"]
    assert listed["x-kubernetes-list-type"] == "map"
    assert listed["x-kubernetes-list-map-keys"] == ["type"]


def test_no_word_is_a_boolean_in_yaml() -> None:
    """A person who writes `packing: On` without quotes means a word, and YAML reads a boolean."""
    booleans = {"on", "off", "yes", "no", "y", "n", "true", "false"}
    for path, node in SPEC:
        assert not booleans & {word.lower() for word in node.get("enum", ())}, path


def test_nothing_is_an_alias_of_something_else() -> None:
    assert not any(isinstance(token, yaml.AnchorToken | yaml.AliasToken) for token in yaml.scan(crd_text()))


def test_it_is_small_enough_for_client_side_apply() -> None:
    """kubectl keeps it in an annotation of its own, as JSON, which has 256 KiB."""
    assert len(crd_text()) < 150_000
