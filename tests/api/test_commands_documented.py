"""docs/commands.md shows what the commands print: each of its commands is run on a real API server and a real registry.

`FINETUNE_WRITE_DOCS=1 pytest tests/api/test_commands_documented.py` writes the page anew.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.api_server import ApiServerOnly
from tests.cluster.kube_api import KubeApi
from tests.support.kubectl import Kubectl
from tests.support.people import Installed, Person, a_person, installed, record
from tests.support.registry import pairs
from tests.support.world import manifest

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"
SYSTEM = "finetune-documented"
BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)
MODEL = {"hub": {"repository": "meta-llama/Llama-3.1-8B"}}


@pytest.fixture(scope="module")
def registry(api_server: ApiServerOnly, api: KubeApi, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    folder = tmp_path_factory.mktemp("documented")
    with installed(api, api_server.kubeconfig, folder, namespace=SYSTEM) as made:
        yield made


@pytest.fixture
def person(api_server: ApiServerOnly, kubectl: Kubectl, registry: Installed, tmp_path: Path) -> Person:
    made = a_person(registry, api_server.kubeconfig, kubectl.namespace, tmp_path)
    made.environment["FINETUNE_REGISTRY_SERVICE"] = f"{SYSTEM}/finetune-operator-registry"
    return made


def prepare(kubectl: Kubectl, registry: Installed, folder: Path) -> None:
    """Three runs, one of each kind, two versions of an adapter, and files of rows."""
    losses = {"finalLoss": "1.3102", "evaluationLoss": "1.3983", "baseEvaluationLoss": "2.0514"}
    result = {**losses, "steps": 3900, "tokens": 9}
    adapter = {"id": "2", "name": "support", "version": 2, "uri": "pvc://a/b", "sha256": "c" * 64, "bytes": 3}
    progress = {"step": 1240, "totalSteps": 3900, "percent": 32, "loss": "1.3812", "remainingSeconds": 7800}
    statuses: dict[str, dict[str, Any]] = {
        "support-12": {
            "phase": "Failed",
            "attempts": 1,
            "failure": {
                "reason": "DatasetInvalid",
                "message": "train.jsonl row 7: the completion is empty",
                "hint": "Correct the row that the message names, or set spec.dataset.invalidRows: Drop.",
                "row": 7,
            },
        },
        "support-13": {"phase": "Succeeded", "attempts": 1, "result": {**result, "adapter": adapter}},
        "support-14": {"phase": "Training", "attempts": 2, "resumedFromStep": 1200, "progress": progress},
    }
    for name, status in statuses.items():
        more = {"experiment": "support", "adapter": {"name": "support"}}
        kubectl.apply(manifest(name, baseModel=MODEL, **more))
        change = {"status": {"observedGeneration": 1, **status}}
        kubectl.patch("trainingruns", name, change, subresource="status")
    for name in ("support-10", "support-11"):
        record(registry, kubectl.namespace, name)
    (folder / "train.jsonl").write_bytes(pairs(400))
    (folder / "more.jsonl").write_bytes(pairs(398) + pairs(3, tag="new "))


def settled(text: str, namespace: str) -> str:
    """What a command has said, with everything that differs from day to day as the page has it."""
    text = text.replace(namespace, "ml").replace(SYSTEM, "finetune-system")
    for pattern, shown in (
        (r"https?://[\d.]+:\d+", "https://kubernetes.example.com:6443"),
        (r"Kubernetes v[\w.+-]+", "Kubernetes v1.34.4"),
        (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", "2026-11-28 09:00:00Z"),
        (r"\b\d+[sm] ago", "9s ago"),
        (r"(?m)\b\d+[sm]$", "9s"),
        (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "0f0f0f0f-0f0f-0f0f-0f0f-0f0f0f0f0f0f"),
        (r"\b[0-9a-f]{64}\b", "80cb53d3" * 8),
        (r"(?<!-)\b[0-9a-f]{12}\b", "80cb53d380cb"),
        (r"finetune-operator \d+\.\d+\.\d+", "finetune-operator 0.1.0"),
        (r"(?m)^(\+|!) (GPUs|storage): .*\n(    do: .*\n)?", ""),  # of the nodes, which others make and remove
    ):
        text = re.sub(pattern, shown, text)
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def test_the_page_shows_what_the_commands_print(
    person: Person, kubectl: Kubectl, registry: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(kubectl, registry, tmp_path)

    def again(block: re.Match[str]) -> str:
        told = ""
        for line in block[1].splitlines():
            if line.startswith("$ finetune "):
                said = person(*shlex.split(line)[2:])
                told += f"{line}\n{settled(said.err + said.out, kubectl.namespace)}"
        return f"```console\n{told}```"

    text = PAGE.read_text()
    printed = BLOCK.sub(again, text)
    if os.environ.get("FINETUNE_WRITE_DOCS"):
        PAGE.write_text(printed)
        return
    assert printed == text
