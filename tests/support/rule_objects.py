"""TrainingRuns to try the CRD's rules with, and what a case of the table in `rule_cases` is."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

ABSENT = object()
"""In an override: the field is left out."""

Overrides = dict[str, Any]

HUB = {"repository": "HuggingFaceTB/SmolLM2-135M-Instruct"}
VOLUME = {"claimName": "models", "path": "smollm2"}
TEMPLATE = {"configMap": {"name": "templates", "key": "chatml.jinja"}}


def run_object(overrides: Overrides, name: str = "rules") -> dict[str, Any]:
    """A valid TrainingRun with the fields at dotted paths of the spec replaced."""
    spec: dict[str, Any] = {
        "method": "SFT",
        "baseModel": {"volume": dict(VOLUME)},
        "dataset": {"registry": {"name": "docs"}},
    }
    for path, value in overrides.items():
        *parents, last = path.split(".")
        owner = spec
        for parent in parents:
            owner = owner.setdefault(parent, {})
        if value is ABSENT:
            del owner[last]
        else:
            owner[last] = copy.deepcopy(value)
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
    }


@dataclass(frozen=True)
class Case:
    """One rule: objects that keep it and objects that break it."""

    message: str
    accepted: list[Overrides]
    refused: list[Overrides]


def source(kind: str, **fields: Any) -> Overrides:
    """Another source of the dataset than the registry."""
    return {"dataset.registry": ABSENT, f"dataset.{kind}": fields}


CONFIG_MAP = source("configMap", name="docs", key="rows.jsonl")
SQL = source("sql", urlSecretRef={"name": "db", "key": "url"}, query="select * from rows order by id")
ON_A_CLAIM = {"volume": {"claimName": "data", "path": "rows.jsonl"}}
DPO = {"method": "DPO"}
KTO = {"method": "KTO"}
PARENT = {"parentAdapter": {"name": "support"}}


def mix(*entries: Overrides) -> Overrides:
    """Several sources instead of the registry."""
    return {"dataset.registry": ABSENT, "dataset.mix": list(entries)}


def store(**fields: Any) -> Overrides:
    return source("objectStore", **{"uri": "s3://bucket/rows.jsonl", **fields})
