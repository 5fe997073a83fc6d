"""The chart as Helm renders it.

`python -m tests.support.chart` writes what the cases of tests/unit/chart_cases.yaml make of it: the whole with the
default values, and what each case changes.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.host import cache_dir

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "finetune-operator"
CASES = ROOT / "tests" / "unit" / "chart_cases.yaml"
GOLDEN = ROOT / "tests" / "unit" / "golden" / "chart.yaml"
GOLDEN_CASES = ROOT / "tests" / "unit" / "golden" / "chart_cases.diff"
POLICIES = ("--api-versions", "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy")
RELEASE, SYSTEM = "finetune", "finetune-system"
NAME = "finetune-operator"
DEFAULT = "default"

Document = dict[str, Any]


def find_helm(program: str = "helm") -> str | None:
    """Helm on PATH, else the newest that the local cluster has built; `helm3` is Helm 3."""
    built = sorted(cache_dir().glob(f"go/{program}/*/{program}"), key=os.path.getmtime)
    return (shutil.which(program) if program == "helm" else None) or (str(built[-1]) if built else None)


HELM = find_helm()


def template(*arguments: str, release: str = RELEASE) -> subprocess.CompletedProcess[str]:
    """`helm template` with these arguments."""
    command = [str(HELM), "template", release, str(CHART), "--namespace", SYSTEM, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@lru_cache
def render(*arguments: str) -> tuple[Document, ...]:
    """The objects of the chart with these values."""
    done = template(*arguments)
    assert done.returncode == 0, done.stderr
    return tuple(objects_of(done.stdout))


def objects_of(text: str) -> list[Document]:
    """The objects of a manifest, read in C: the definition of TrainingRun alone takes half a second of Python."""
    return [each for each in yaml.load_all(text, yaml.CSafeLoader) if each]


def cases() -> dict[str, Document]:
    """The values of every case by its name; the first has the defaults."""
    return {DEFAULT: {}, **yaml.safe_load(CASES.read_text(encoding="utf-8"))}


def render_cases(helm: str, wanted: Mapping[str, Document]) -> dict[str, str]:
    """The text of each case, all by one call: each is a dependency of one parent chart, under a name of its own.

    The definition of TrainingRun is left out: it has a test of its own, and is large.
    """
    aliases = {f"case{index}": name for index, name in enumerate(wanted)}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        (folder / "charts").mkdir()
        (folder / "charts" / NAME).symlink_to(CHART)
        needed = [{"name": NAME, "version": _version(), "alias": alias} for alias in aliases]
        parent = {"apiVersion": "v2", "name": "parent", "version": "0.1.0", "dependencies": needed}
        (folder / "Chart.yaml").write_text(yaml.safe_dump(parent))
        common = {"fullnameOverride": NAME, "crds": {"enabled": False}}
        values = {alias: {**common, **wanted[name]} for alias, name in aliases.items()}
        (folder / "values.yaml").write_text(yaml.safe_dump(values))
        command = [helm, "template", RELEASE, str(folder), "--namespace", SYSTEM, *POLICIES]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    made: dict[str, list[str]] = {name: [] for name in wanted}
    for part in re.split(r"^---\n", done.stdout, flags=re.MULTILINE):
        found = re.match(r"# Source: parent/charts/(case[0-9]+)/(\S+)\n", part)
        if found is None:
            assert not part.strip(), part
            continue
        alias = found[1]
        text = re.sub(rf"\b{alias}\b", NAME, part.partition("\n")[2])
        made[aliases[alias]].append(f"---\n# {found[2]}\n{text.rstrip()}\n")
    return {name: "".join(parts) for name, parts in made.items()}


def differences(texts: Mapping[str, str]) -> str:
    """What each case makes otherwise than the default values do."""
    before = texts[DEFAULT].splitlines()
    made = []
    for name, text in texts.items():
        if name != DEFAULT:
            changed = list(difflib.unified_diff(before, text.splitlines(), lineterm="", n=1))[2:]
            assert changed, f"case {name!r} changes nothing"
            made.append("\n".join([f"=== {name}", *(re.sub(r"^@@.*@@$", "@@", line) for line in changed)]))
    return "\n".join(made) + "\n"


def _version() -> str:
    version: str = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    return version


def write() -> None:
    """Write the golden files."""
    texts = render_cases(str(HELM), cases())
    GOLDEN.write_text(texts[DEFAULT], encoding="utf-8")
    GOLDEN_CASES.write_text(differences(texts), encoding="utf-8")


if __name__ == "__main__":
    write()
