"""docs/quickstart.md, typed from top to bottom on a cluster.

What cannot be typed here is told in `ELSEWHERE`; the base model comes from a claim: the cluster may have no internet.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support import documents
from tests.support.installation import NAMESPACE, Installation
from tests.support.kubectl import Kubectl

PAGE = documents.ROOT / "docs" / "quickstart.md"
HUB_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
TINY = "claim://base-models/tiny"
ELSEWHERE = {
    "helm": "the installation is the chart's, with the images that were built for these tests",
    "pip": "the command is installed beside the tests",
    "vllm": "needs a GPU",
}
COMMAND_SECONDS = 600


class Terminal:
    """A shell of somebody whose kubeconfig is the administrator's, in the team's namespace."""

    def __init__(self, team: Kubectl, home: Path) -> None:
        document = yaml.safe_load(team.kubeconfig.read_text())
        for each in document["contexts"]:
            each["context"]["namespace"] = team.namespace
        (home / "kubeconfig").write_text(yaml.safe_dump(document))
        path = os.pathsep.join([str(Path(sys.executable).parent), team.environment["PATH"]])
        self._environment = {**os.environ, "PATH": path, "HOME": str(home), "KUBECONFIG": str(home / "kubeconfig")}
        self._folder = home

    def __call__(self, line: str) -> str:
        """Type a line; what it prints. It must end well."""
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def typed() -> list[str]:
    """The page's commands, in its order."""
    text = "\n".join(block.text for block in documents.blocks(PAGE) if block.language in documents.SHELL)
    return [line for line in text.splitlines() if line.partition(" ")[0] not in ELSEWHERE]


@pytest.mark.usefixtures("registry_needed")
def test_the_first_ten_minutes(installation: Installation, tiny: Kubectl, tmp_path: Path) -> None:
    (rows,) = [block.text for block in documents.blocks(PAGE) if block.language == "json"]
    (tmp_path / "train.jsonl").write_text(rows)
    for _, document in documents.manifests(PAGE):
        assert document["metadata"]["namespace"] == NAMESPACE
        installation.kubectl.apply(document)
    terminal = Terminal(tiny, tmp_path)
    said = {line: terminal(line.replace(HUB_MODEL, TINY)) for line in typed()}

    done = next(text for line, text in said.items() if line.startswith("finetune run support-1 ") and "--watch" in line)
    assert re.search(r"^support-1  Succeeded", done, re.MULTILINE)
    assert "fetch it:  finetune adapters pull support@1" in done
    manifest = yaml.safe_load(next(text for line, text in said.items() if line.endswith("--dry-run=client")))
    made = tiny.json("get", "trainingrun", "support-1")["spec"]
    assert manifest["spec"]["training"].items() <= made["training"].items()
    assert json.loads((tmp_path / "support" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert "training.learningRate" in next(text for line, text in said.items() if line.startswith("finetune compare"))
    assert [each["version"] for each in json.loads(terminal("finetune adapters list support -o json"))] == [2, 1]
    assert "version 2" in terminal("finetune adapters alias support production")
