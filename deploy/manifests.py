"""Makes what is written from the chart: `deploy/install.yaml`, for who has no Helm, and the chart's README.

`python -m deploy.manifests` (or `make manifests`) writes both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.support.chart import CHART, NAME, POLICIES, SYSTEM, template

ROOT = Path(__file__).parents[1]
INSTALL = ROOT / "deploy" / "install.yaml"
README = CHART / "README.md"
HEAD = f"""\
# Written by `make manifests` from charts/finetune-operator with its default values. Do not edit.
# Replace the images finetune-operator and finetune-trainer by yours, then, from the repository's root:
#   kubectl apply --server-side -f crds -f deploy/install.yaml
apiVersion: v1
kind: Namespace
metadata:
  name: {SYSTEM}
  labels:
    pod-security.kubernetes.io/enforce: restricted
"""
README_HEAD = """\
# finetune-operator

<!-- Written by `make manifests` from Chart.yaml, values.yaml and values.schema.json. Do not edit. -->

{description}

![Version: {version}](https://img.shields.io/badge/Version-{version}-informational?style=flat-square)
![Type: {type}](https://img.shields.io/badge/Type-{type}-informational?style=flat-square)
![AppVersion: {appVersion}](https://img.shields.io/badge/AppVersion-{appVersion}-informational?style=flat-square)

## Requirements

Kubernetes: `{kubeVersion}`; Helm 3 or 4.

## Values

| Key | Type | Default | Description |
|-----|------|---------|-------------|
"""


def install_manifest() -> str:
    """The objects of the chart with the default values, and their namespace; TrainingRun's definition is in crds/."""
    done = template("--no-hooks", "--set", "crds.enabled=false", *POLICIES, release=NAME)
    if done.returncode:
        raise RuntimeError(done.stderr)
    text = done.stdout.replace("app.kubernetes.io/managed-by: Helm", "app.kubernetes.io/managed-by: kubectl")
    return HEAD + text


def readme() -> str:
    """The chart's values as a table, in the order in which they stand."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    rows = (f"| {key} | {kind} | {default} | {text} |" for key, kind, default, text in _rows(schema, values, ""))
    return README_HEAD.format_map(chart) + "\n".join(rows) + "\n"


def _rows(schema: dict[str, Any], values: dict[str, Any], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    for name, value in values.items():
        described, key = schema["properties"][name], f"{prefix}{name}"
        if described.get("additionalProperties") is False and isinstance(value, dict):
            yield from _rows(described, value, f"{key}.")
        else:
            kind = described["type"]
            kinds = kind if isinstance(kind, str) else " or ".join(kind)
            text = described["description"].replace("|", "\\|")
            yield key, kinds, f"`{json.dumps(value)}`".replace("|", "\\|"), text


def write() -> None:
    """Write both files."""
    INSTALL.write_text(install_manifest(), encoding="utf-8")
    README.write_text(readme(), encoding="utf-8")


if __name__ == "__main__":
    write()
