"""Make the CustomResourceDefinition from the models.

    python -m finetune.api.crd                    print it
    python -m finetune.api.crd FILE [FILE ...]    write it to each file

The schema is structural: every reference is resolved, and an optional field may be absent but is never null.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from . import API_VERSION, GROUP, KIND, PLURAL, VERSION
from .fields import INT_OR_STRING, RULES, UNTYPED, ApiModel
from .rules import MODEL_RULES
from .status import TrainingRunStatus
from .trainingrun import TrainingRun, TrainingRunSpec

HEADER = "# Made by `python -m finetune.api.crd` from the models in operator/src/finetune/api. Do not edit.\n"

REQUIRED_BY_RULE: frozenset[type[ApiModel]] = frozenset({TrainingRunSpec})
"""Models whose required fields a CEL rule asks for, with a sentence that says what to add."""

KEPT = (
    "type", "format", "description", "enum", "default", "minimum", "maximum", "minLength", "maxLength",
    "pattern", "exclusiveMinimum", "exclusiveMaximum", "minItems", "maxItems", "maxProperties", "not", INT_OR_STRING,
    UNTYPED, RULES,
)  # fmt: skip
"""Schema keywords that are taken over as they are, in the order in which they are written."""

INT32_MAX = 2**31 - 1

SELECTABLE_FIELDS = (".status.phase", ".spec.method", ".spec.experiment", ".spec.output.claimName")
"""What `kubectl get trun --field-selector` can select by, on Kubernetes 1.31 and later."""

PRINTER_COLUMNS: tuple[dict[str, Any], ...] = (
    {"name": "Status", "type": "string", "jsonPath": ".status.phase"},
    {"name": "Method", "type": "string", "jsonPath": ".spec.method"},
    {"name": "Model", "type": "string",
     "jsonPath": ".spec.baseModel['hub','volume']['repository','path','claimName']"},
    {"name": "Progress%", "type": "integer", "jsonPath": ".status.progress.percent"},
    {"name": "Loss", "type": "string", "jsonPath": ".status['result','progress']['evaluationLoss','finalLoss','loss']",
     "description": "On the held-out rows, once the run has succeeded; before, and without such rows, in training"},
    {"name": "Vs-base", "type": "string", "jsonPath": ".status.result.lossChange",
     "description": "The loss on the held-out rows against the base model's"},
    {"name": "Adapter", "type": "string", "jsonPath": ".status.result.adapter['reference','name']"},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    {"name": "Message", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Finished")].message',
     "description": "What the run waits for, why it failed, or what it made; nothing while all goes well"},
    {"name": "Reason", "type": "string", "jsonPath": ".status['waiting','failure'].reason", "priority": 1},
    {"name": "Queue", "type": "string", "jsonPath": ".spec.scheduling.queueName", "priority": 1},
    {"name": "Version", "type": "integer", "jsonPath": ".status.result.adapter.version", "priority": 1},
    {
        "name": "Dataset",
        "type": "string",
        "jsonPath": ".spec.dataset['registry','sql','hub','objectStore','volume','configMap']"
        "['name','repository','uri','claimName']",
        "priority": 1,
    },
    {"name": "Parent", "type": "string", "jsonPath": ".spec.parentAdapter.name", "priority": 1},
    {"name": "GPUs", "type": "integer", "jsonPath": ".spec.resources.gpus", "priority": 1},
    {"name": "Attempts", "type": "integer", "jsonPath": ".status.attempts", "priority": 1},
    {"name": "Duration", "type": "integer", "jsonPath": ".status.durationSeconds", "priority": 1,
     "description": "Seconds"},
)  # fmt: skip
"""What `kubectl get` shows. Of a union the server prints the first value that is there. The message is the last column
of those that are always shown: it may be long."""


def structural_schema(model: type[ApiModel]) -> dict[str, Any]:
    """The structural OpenAPI v3 schema of a model, its rules included."""
    document = model.model_json_schema(by_alias=True, mode="validation")
    definitions = document.pop("$defs", {})
    return _Converter(definitions, {each.__name__: each for each in _models_below(model)}).of_model(model, document)


class _Converter:
    """Turns the JSON schema that pydantic writes into a structural one."""

    def __init__(self, definitions: Mapping[str, Any], models: Mapping[str, type[ApiModel]]) -> None:
        self._definitions = definitions
        self._models = models

    def of_model(self, model: type[ApiModel], node: Mapping[str, Any]) -> dict[str, Any]:
        properties = {}
        for name, field in model.model_fields.items():
            alias = field.alias or name
            converted = self.of(node["properties"][alias])
            if isinstance(field.default, ApiModel):
                converted.pop("default")  # with the absent fields written out as null
                if _has_defaults(converted, field.default):
                    converted["default"] = field.default.model_dump(mode="json", by_alias=True, exclude_unset=True)
            properties[alias] = converted
        schema: dict[str, Any] = {"type": "object"}
        if model.__doc__:
            schema["description"] = _one_line(model.__doc__)
        if node.get("required") and model not in REQUIRED_BY_RULE:
            schema["required"] = node["required"]
        if model in MODEL_RULES:
            schema[RULES] = [dict(each) for each in MODEL_RULES[model]]
        schema["properties"] = properties
        return schema

    def of(self, node: Mapping[str, Any]) -> dict[str, Any]:
        """One schema node, with what the field says laid over what its type says."""
        base: dict[str, Any] = {}
        if "anyOf" in node:
            (only,) = [each for each in node["anyOf"] if each != {"type": "null"}]
            base = self.of(only)
        elif "$ref" in node:
            name = node["$ref"].rpartition("/")[2]
            base = self.of_model(self._models[name], self._definitions[name])
        elif "const" in node:
            base = {"type": "string", "enum": [node["const"]]}
        own = {key: node[key] for key in KEPT if key in node and not (key == "default" and node[key] in (None, []))}
        if "description" in own:
            own["description"] = _one_line(own["description"])
        schema = {**base, **own}
        if UNTYPED in schema or INT_OR_STRING in schema:
            for keyword in ("type", "minLength"):
                schema.pop(keyword, None)
        if schema.get("type") == "integer":
            schema["format"] = "int32" if schema.get("maximum", INT32_MAX + 1) <= INT32_MAX else "int64"
        if "items" in node:
            schema["items"] = self.of(node["items"])
            if "type" in schema["items"].get("required", ()):
                schema |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
        if isinstance(node.get("additionalProperties"), dict):
            schema["additionalProperties"] = self.of(node["additionalProperties"])
        return schema


def _models_below(model: type[ApiModel]) -> Iterator[type[ApiModel]]:
    """The model and every model that its fields mention."""
    yield model
    for field in model.model_fields.values():
        for mentioned in _mentioned(field.annotation):
            yield from _models_below(mentioned)


def _mentioned(annotation: object) -> Iterator[type[ApiModel]]:
    if isinstance(annotation, type) and issubclass(annotation, ApiModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _mentioned(argument)


def _has_defaults(schema: Mapping[str, Any], value: ApiModel) -> bool:
    """Whether leaving the object out would lose a default: one inside it, or its own value."""
    return bool(value.model_fields_set) or any("default" in each for each in schema["properties"].values())


def _one_line(text: str) -> str:
    return " ".join(text.split())


def build_crd() -> dict[str, Any]:
    """The CustomResourceDefinition of TrainingRun."""
    spec, status = structural_schema(TrainingRunSpec), structural_schema(TrainingRunStatus)
    for schema, field in ((spec, "spec"), (status, "status")):
        schema["description"] = _one_line(TrainingRun.model_fields[field].description or "")
    status["default"] = {}
    schema = {
        "type": "object",
        "description": _one_line(TrainingRun.__doc__ or ""),
        RULES: [dict(each) for each in MODEL_RULES[TrainingRun]],
        "properties": {
            "apiVersion": {"type": "string", "description": f"Always {API_VERSION}."},
            "kind": {"type": "string", "description": f"Always {KIND}."},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status,
        },
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["trun"],
                "categories": ["finetune"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [dict(each) for each in PRINTER_COLUMNS],
                    "selectableFields": [{"jsonPath": path} for path in SELECTABLE_FIELDS],
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


class _PlainDumper(yaml.SafeDumper):
    """Writes what occurs twice twice: anchors are hard to compare, and some linters refuse them."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - of none
        return True


def crd_text() -> str:
    """The CustomResourceDefinition as the YAML text that is checked in."""
    return HEADER + yaml.dump(build_crd(), Dumper=_PlainDumper, sort_keys=False, width=110, allow_unicode=True)


def main(paths: list[str]) -> int:
    """Print the CRD, or write it to each of the paths."""
    text = crd_text()
    if not paths:
        sys.stdout.write(text)
    for path in paths:
        Path(path).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
