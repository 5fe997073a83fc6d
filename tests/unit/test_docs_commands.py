"""Every command of the documentation is one that its program takes: parsed by its own parser, and not run.

What kubectl and the API server have to say is in tests/api/test_docs_manifests.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from finetune.api.crd import build_crd
from finetune.controller.core.settings import Settings
from tests.support import documents
from tests.support.documents import PAGES, ROOT
from tests.support.parsers import check, check_call, known_flags

OTHERS_FLAGS = frozenset({
    "--cascade", "--dry-run", "--flag", "--help", "--max-lora-rank", "--previous", "--recursive", "--require-hashes",
    "--reset-then-reuse-values", "--reuse-values", "--take-ownership", "--wait",
})  # fmt: skip
"""Flags in sentences that are kubectl's, Helm's, pip's or vLLM's, or stand for any."""
FILES = frozenset({"db", "json", "jsonl", "py", "txt", "yaml"})
"""Endings by which the name of a file is told from a dotted path."""
OTHERS_FIELDS = {"spec.active": "Kueue's Workload", "spec.stopPolicy": "Kueue's queues"}

CRD = build_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_program_takes_its_arguments(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in documents.named_files(page).items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    problems = [
        f"{command.where}: {' '.join(command.words)}: {problem}"
        for command in documents.commands(page)
        for problem in check(command)
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_flags_in_sentences_and_listings_exist(page: Path) -> None:
    told = [(where, code) for where, code in documents.inline(page) if code.startswith("--")]
    told += [(block.where, block.text) for block in documents.blocks(page) if block.language == "text"]
    wrong = [
        f"{where}: {flag}"
        for where, code in told
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9]", code)
        if flag not in known_flags() | OTHERS_FLAGS
    ]
    assert not wrong, "\n".join(wrong)


@cache
def field_paths() -> frozenset[str]:
    """The dotted path of every field of a TrainingRun."""

    def below(schema: dict[str, Any], path: str) -> Iterator[str]:
        for name, field in {**schema.get("properties", {}), **schema.get("items", {}).get("properties", {})}.items():
            yield f"{path}.{name}"
            yield from below(field, f"{path}.{name}")

    return frozenset(below(CRD, ""))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_fields_and_chart_values_in_sentences_exist(page: Path) -> None:
    schema, values = documents.chart_values()
    wrong = []
    for where, code in documents.inline(page):
        path = re.match(r"[A-Za-z]+(?:\[\])?(?:\.[A-Za-z]+(?:\[\])?)+(?=$|[:=, ])", code)
        if path is None:
            continue
        name = path[0].replace("[]", "")
        if name.rpartition(".")[2] in FILES:
            continue
        if name.startswith(("spec.", "status.")):
            found = documents.has_path(CRD, name) or name in OTHERS_FIELDS
        elif name.split(".")[0] in values:
            found = documents.has_path(schema, name) or any(known.endswith(f".{name}") for known in field_paths())
        else:
            continue
        if not found:
            wrong.append(f"{where}: {name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_environment_variables_exist(page: Path) -> None:
    fields = {f"FINETUNE_{name.upper()}" for name in Settings.model_fields}
    told = set(re.findall(r"\bFINETUNE_[A-Z_]+[A-Z]\b", page.read_text()))
    assert sorted(name for name in told - fields if name not in _sources()) == []


@cache
def _sources() -> str:
    folders = ("operator/src", "model", "images", "tests/cluster", "tests/support", "examples")
    return "\n".join(path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_registry_has_the_calls(page: Path) -> None:
    told = [(where, code) for where, code in documents.inline(page) if re.match(r"[A-Z]{3,6} /?[\w{]+", code)]
    told += [
        (block.where, re.sub(r"\s+#.*", "", line))
        for block in documents.blocks(page)
        if block.language == "http"
        for line in block.text.splitlines()
    ]
    told = [(where, code) for where, code in told if code.split()[0] in ("GET", "PUT", "POST", "PATCH", "DELETE")]
    wrong = [f"{where}: {code}: {problem}" for where, code in told if (problem := check_call(code))]
    assert not wrong, "\n".join(wrong)


WRONG = {
    "finetune datasets push": "required",
    "finetune adapters pul support": "invalid choice",
    "finetune datasets list --nmespace ml": "unrecognized arguments",
    "python -m model.training.cli train --base-modle=x": "no such flag",
    "python -m model.data.export --method=RLHF --run-directory=x --source=volume --path=x": "method",
    "python -m no.such.module": "no.such.module",
    "helm upgrade x charts/finetune-operator --set trainer.pod.lables.a=b": "lables",
    "helm upgrade x charts/finetune-operator --set watch.namespaces=yes": "array",
    "make demoo": "no target demoo",
    "make demo NO_SUCH=1": "NO_SUCH",
    "sudo true && kubeclt get pods": "kubeclt",
    "export A=$(finetune registry serv)": "invalid choice",
}
WRONG_CALLS = {
    "GET /api/v1/namespaces/ml/rums": "no such call",
    "DELETE runs/{uid}/dataset": "no such call",
    "GET series?run=a": "no parameter run",
}


@pytest.mark.parametrize(("line", "said"), WRONG.items())
def test_what_is_wrong_is_found(line: str, said: str) -> None:
    problems = [problem for command in documents.parse(line, "here") for problem in check(command)]
    assert any(said in problem for problem in problems), problems


@pytest.mark.parametrize(("call", "said"), WRONG_CALLS.items())
def test_a_wrong_call_is_found(call: str, said: str) -> None:
    assert check_call(call) == said
