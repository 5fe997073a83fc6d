"""Writes docs/reference.md and docs/reasons.md from the models of the API: every field, every reason with its remedy.

python -m tools.reference
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from finetune.api import reasons
from finetune.api.crd import build_crd

DOCS = Path(__file__).resolve().parents[1] / "docs"
WRITTEN = "<!-- Written by `make reference` from operator/src/finetune/api. Do not edit. -->\n"

Schema = dict[str, Any]
Field = tuple[str, Schema, bool]


def pages() -> dict[str, str]:
    """The generated pages: file name in docs, and text."""
    return {"reference.md": reference(), "reasons.md": failure_reasons()}


def reference() -> str:
    """Every field of a TrainingRun, as Markdown."""
    schema = build_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    lines = [
        "# TrainingRun reference",
        "",
        WRITTEN,
        "Every field, its type, its limits and its default, as the CustomResourceDefinition has them. What no field",
        "says alone is in [api.md](api.md). On a cluster: `kubectl explain trainingrun.spec --recursive`.",
        "",
    ]
    for top in ("spec", "status"):
        lines += [f"## {top}", "", *_section(schema[top], _fields(schema[top]))]
        for name, field in schema[top]["properties"].items():
            nested = _properties(field)
            if nested:
                lines += [f"### {top}.{name}", "", _text(field.get("description", "")), ""]
                lines += _section(field, _below(field))
    return "\n".join(lines).rstrip() + "\n"


def failure_reasons() -> str:
    """Every reason of a failure with what to change, and every other reason, as Markdown."""
    lines = [
        "# Failure reasons",
        "",
        WRITTEN,
        "A failed run has one of these in `status.failure.reason`, and the text below it in `status.failure.hint`; the",
        "message says what and where. What leads to which: [failures.md](failures.md).",
        "",
        "## Failures",
        "",
    ]
    for reason in sorted(reasons.HINTS):
        lines += [f"### {reason}", "", _text(reasons.HINTS[reason]), ""]
    lines += [
        "## Other reasons",
        "",
        "Conditions, and `status.waiting` while a run waits, have these and those above.",
        "",
        "| reason | says |",
        "|---|---|",
    ]
    lines += [f"| `{reason}` | {_text(reasons.OTHER_REASONS[reason])} |" for reason in sorted(reasons.OTHER_REASONS)]
    return "\n".join(lines) + "\n"


def _section(schema: Schema, fields: Iterable[Field]) -> Iterator[str]:
    """A table of fields, and below it the rules that hold for all of them."""
    yield "| field | type | default | |"
    yield "|---|---|---|---|"
    for path, field, required in fields:
        name = f"`{path}`" + (" (required)" if required else "")
        yield f"| {name} | {_type(field)} | {_default(field)} | {_text(field.get('description', ''))} |"
    yield ""
    rules = [_text(rule["message"]) for rule in schema.get("x-kubernetes-validations", []) if "message" in rule]
    if rules:
        yield from ("Refused when this does not hold:", "", *[f"- {rule}" for rule in dict.fromkeys(rules)], "")


def _fields(schema: Schema, prefix: str = "") -> Iterator[Field]:
    """The fields of an object, or of the objects in a list: path, schema, and whether it must be there."""
    required = {*schema.get("required", []), *schema.get("items", {}).get("required", [])}
    for name, field in _properties(schema).items():
        is_list = field.get("type") == "array" and _properties(field)
        yield f"{prefix}{name}" + ("[]" if is_list else ""), field, name in required


def _below(schema: Schema, prefix: str = "") -> Iterator[Field]:
    """All fields below an object or a list of objects, each before its own."""
    for path, field, required in _fields(schema, prefix):
        yield path, field, required
        yield from _below(field, f"{path}.")


def _properties(schema: Schema) -> Schema:
    """The fields of an object, or of the objects in a list."""
    found: Schema = schema.get("properties") or schema.get("items", {}).get("properties") or {}
    return found


def _type(schema: Schema) -> str:
    """The type in a word, with the values or the limits that it has."""
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        items = schema.get("items", {})
        return "list of " + ("objects" if items.get("properties") else f"{_type(items)}")
    if "additionalProperties" in schema:
        return "mapping"
    word = schema.get("type") or ("integer or string" if schema.get("x-kubernetes-int-or-string") else "number")
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is None and high is None:
        return str(word)
    above = "above" if schema.get("exclusiveMinimum") else "from"
    bounds = [f"{above} {low:g}"] if low is not None else []
    bounds += [f"to {high:,}"] if high is not None and high < 2**31 - 1 else []
    return " ".join([str(word), *bounds])


def _default(schema: Schema) -> str:
    """The value that the cluster fills in; nothing where there is none, or where it is an empty object."""
    value = schema.get("default")
    if value is None or value == {}:
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _text(text: str) -> str:
    """A description on one line of a table, in which nothing is taken for markup."""
    return " ".join(text.split()).replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")


if __name__ == "__main__":
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")
