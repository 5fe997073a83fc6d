"""Writes argocd-cm.yaml: the scripts of resource_customizations, as an Argo CD that does not ship them reads them.

python -m deploy.argocd.render
"""

from __future__ import annotations

from pathlib import Path

import yaml

FOLDER = Path(__file__).parent
KIND = FOLDER / "resource_customizations" / "finetune.dev" / "TrainingRun"
CONFIG_MAP = FOLDER / "argocd-cm.yaml"
ACTIONS = ("suspend", "resume", "retry")

HEAD = """\
# What Argo CD has to know of TrainingRuns. Merge it into its own ConfigMap, nothing of which is lost:
#   kubectl patch configmap argocd-cm -n argocd --type=merge --patch-file=deploy/argocd/argocd-cm.yaml
# Written by `make argocd` from resource_customizations/.
"""


class _Block(str):
    """Text that is written as it stands, line by line."""

    __slots__ = ()


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(_Block, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|"))


def _dump(document: object) -> str:
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=1000)


def config_map() -> str:
    """The ConfigMap's patch as YAML."""
    definitions = [
        {"name": name, "action.lua": _Block((KIND / "actions" / name / "action.lua").read_text())} for name in ACTIONS
    ]
    actions = {
        "discovery.lua": _Block((KIND / "actions" / "discovery.lua").read_text()),
        "definitions": definitions,
    }
    data = {
        "resource.customizations.health.finetune.dev_TrainingRun": _Block((KIND / "health.lua").read_text()),
        "resource.customizations.actions.finetune.dev_TrainingRun": _Block(_dump(actions)),
    }
    # Argo CD passes over a ConfigMap without this label; a patch must not take it away.
    metadata = {"name": "argocd-cm", "labels": {"app.kubernetes.io/part-of": "argocd"}}
    return HEAD + _dump({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})


if __name__ == "__main__":
    CONFIG_MAP.write_text(config_map())
