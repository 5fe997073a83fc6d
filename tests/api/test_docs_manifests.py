"""The documentation against a real API server: its manifests as a dry run, and what its kubectl commands name."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.api.crd import build_crd
from tests.cluster.api_server import ApiServerOnly
from tests.support import documents
from tests.support.documents import PAGES, ROOT, Command
from tests.support.kubectl import CommandError, Kubectl

CRD = build_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
MINIMAL: dict[str, Any] = {
    "method": "SFT",
    "baseModel": {"volume": {"claimName": "models", "path": "smollm2"}},
    "dataset": {"registry": {"name": "docs"}},
}
NOT_SERVED = (
    "kueue.x-k8s.io",
    "config.kueue.x-k8s.io",
    "argoproj.io",
    "toolkit.fluxcd.io",
    "monitoring.coreos.com",
)
"""Kinds of other projects, whose definitions are not on this server."""
OTHERS_KINDS = frozenset({
    "localqueues", "podmonitor", "servicemonitor", "workloads", "workloadpriorityclasses",
})  # fmt: skip
ANY = re.compile(r"[A-Z]+$|SUBSTITUTED")
"""A word that stands for a name."""
WITH_KINDS = frozenset({"annotate", "delete", "describe", "edit", "get", "label", "patch", "wait"})


def told(kind: str) -> list[Any]:
    """The pages that hold manifests or kubectl commands: the others have nothing to say here."""
    found = {
        "manifests": lambda page: any(documents.manifests(page)) or any(fragments(page)),
        "commands": lambda page: any(commands(page)),
    }[kind]
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES if found(page)]


def commands(page: Path) -> list[Command]:
    return [
        each for each in documents.commands(page) if each.words[:1] == ("kubectl",) and each.words[1:2] != ("finetune",)
    ]


def fragments(page: Path) -> list[tuple[str, dict[str, Any]]]:
    """YAML blocks that show a part of a TrainingRun, as whole ones: what is not shown is that of the smallest run."""
    found = []
    for block in documents.blocks(page):
        document = yaml.safe_load(block.text) if block.language == "yaml" and "\n---" not in block.text else None
        if isinstance(document, dict) and "apiVersion" not in document and {"spec", "metadata"} & document.keys():
            run = {
                "apiVersion": "finetune.dev/v1alpha1",
                "kind": "TrainingRun",
                "metadata": {"name": "shown", **document.get("metadata", {})},
                "spec": {**MINIMAL, **document.get("spec", {})},
            }
            found.append((block.where, run))
    return found


@pytest.mark.parametrize("page", told("manifests"))
def test_a_manifest_is_taken(page: Path, kubectl: Kubectl) -> None:
    shown = [(block.where, document) for block, document in documents.manifests(page)] + fragments(page)
    problems = []
    for where, document in shown:
        if document["apiVersion"].partition("/")[0] in NOT_SERVED:
            continue
        document.get("metadata", {}).pop("namespace", None)
        try:
            kubectl("apply", "--dry-run=server", "--validate=strict", "--filename=-", stdin=json.dumps(document))
        except CommandError as error:
            problems.append(f"{where}: {error.output.strip()}")
    assert not problems, "\n".join(problems)


class Asked:
    """What the real kubectl and the API server say of themselves; each is asked once."""

    def __init__(self, server: ApiServerOnly) -> None:
        self._kubectl = Kubectl(kubeconfig=server.kubeconfig, bin_dir=server.bin_dir)
        self.call = cache(self._call)
        self.kinds = self._kinds()

    def _call(self, *words: str) -> str:
        return self._kubectl(*words)

    def _kinds(self) -> frozenset[str]:
        rows = [line.split() for line in self._call("api-resources", "--no-headers").splitlines()]
        names = {row[0] for row in rows} | {name for row in rows if len(row) == 5 for name in row[1].split(",")}
        return frozenset(names | {row[-1].lower() for row in rows})

    def flags(self, *path: str) -> frozenset[str]:
        text = self.call(*path, "--help") + self.call("options")
        listed = re.findall(r"^\s+(?:(-\w), )?(--[\w-]+)", text, re.MULTILINE)
        return frozenset(flag for pair in listed for flag in pair if flag)

    def path(self, words: tuple[str, ...]) -> tuple[str, ...]:
        """The command that words name, one or two of them. Raises CommandError."""
        _, listed, below = self.call(words[0], "--help").partition("Available Commands:")
        if not listed or len(words) == 1:
            return words[:1]
        if words[1] not in re.findall(r"^  ([a-z-]+) ", below, re.MULTILINE):
            raise CommandError(words[:2], 1, "no such command")
        return words[:2]


@pytest.fixture(scope="session")
def asked(api_server: ApiServerOnly) -> Asked:
    return Asked(api_server)


def problems_of(command: Command, asked: Asked) -> list[str]:
    """What is wrong with a kubectl command: its verb, its flags, the kinds, fields and files that it names."""
    flags = [word.partition("=")[0] for word in command.words if re.match(r"-{1,2}[a-zA-Z]", word)]
    if "--" in command.words:  # what follows is for a program in a pod
        flags = [word.partition("=")[0] for word in command.words[: command.words.index("--")] if word.startswith("-")]
    plain = _plain(command.words[1:])
    if not plain or ANY.match(plain[0]):
        return []
    try:
        path = asked.path(plain)
        known = asked.flags(*path)
    except CommandError:
        return [f"kubectl has no command {' '.join(plain[:2])}"]
    problems = [f"kubectl {' '.join(path)} has no flag {flag}" for flag in flags if flag not in known]
    rest = plain[len(path) :]
    if path[0] in WITH_KINDS and rest:
        problems += [f"no kind {kind}" for kind in _kinds(rest) if kind not in asked.kinds | OTHERS_KINDS]
    if path[0] == "explain" and rest:
        try:
            asked.call("explain", rest[0])
        except CommandError as error:
            problems.append(error.output.strip())
    return problems + _names(command)


def _plain(words: tuple[str, ...]) -> tuple[str, ...]:
    """The words that are no flags and no values of flags: kubectl's short flags, and those in front, have a value."""
    plain, skip = [], False
    for word in words:
        if word == "--":
            break
        if skip:
            skip = False
        elif word in ("-n", "-l", "-o", "-p", "-f", "-c", "--namespace", "--raw", "--type", "--timeout"):
            skip = True
        elif not word.startswith("-"):
            plain.append(word)
    return tuple(plain)


def _kinds(rest: tuple[str, ...]) -> list[str]:
    """The kinds of `trun/a`, `trun a b`, `pods,jobs`."""
    if "/" in rest[0]:
        return [word.partition("/")[0] for word in rest if "/" in word]
    return [kind.split(".")[0] for kind in rest[0].split(",") if not ANY.match(kind)]


def _names(command: Command) -> list[str]:
    """Fields and files that do not exist."""
    line = " ".join(command.words)
    fields: list[str] = []
    if re.search(r" (trun|trainingruns?)\b", line):
        fields += re.findall(r"\{\.((?:spec|status)[\w.]*)", line)
        fields += _paths(json.loads(command.words[command.words.index("-p") + 1])) if "-p" in command.words else []
    problems = [f"a TrainingRun has no field {field}" for field in fields if not documents.has_path(CRD, field)]
    files = re.findall(r"(?:--patch-file=|-f |--filename=)([\w./-]+/[\w./-]+)", line)
    return problems + [f"there is no file {file}" for file in files if not (ROOT / file).exists()]


def _paths(patch: dict[str, Any], above: str = "") -> list[str]:
    found = []
    for name, value in patch.items():
        found += _paths(value, f"{above}{name}.") if isinstance(value, dict) else [f"{above}{name}"]
    return found


@pytest.mark.parametrize("page", told("commands"))
def test_kubectl_takes_its_arguments(page: Path, asked: Asked) -> None:
    problems = [
        f"{command.where}: {' '.join(command.words)}: {problem}"
        for command in commands(page)
        for problem in problems_of(command, asked)
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("kubectl gte trun", "no command gte trun"),
        ("kubectl get trun -n ml --al-namespaces", "no flag --al-namespaces"),
        ("kubectl get trainingrnus", "no kind trainingrnus"),
        ("kubectl get trun support -o jsonpath='{.status.failur}'", "no field status.failur"),
        ("""kubectl patch trun a --type=merge -p '{"spec":{"suspended":true}}'""", "no field spec.suspended"),
        ("kubectl explain trainingrun.spec.trainnig", "trainnig"),
        ("kubectl apply -f examples/no-such.yaml", "no file examples/no-such.yaml"),
        ("kubectl create tokn x", "no command create tokn"),
    ],
)
def test_what_is_wrong_is_found(line: str, said: str, asked: Asked) -> None:
    (command,) = documents.parse(line, "here")
    assert any(said in problem for problem in problems_of(command, asked)), problems_of(command, asked)
