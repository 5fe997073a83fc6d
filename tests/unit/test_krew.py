"""The plugin as Krew installs it."""

from __future__ import annotations

import hashlib
import subprocess
import tarfile
from pathlib import Path

import pytest
import yaml

from tools import krew


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """The plugin, unpacked from the archive that the manifest names."""
    assert krew.main(["0.2.0", "https://downloads.example.com/v0.2.0/", str(tmp_path)]) == 0
    found = yaml.safe_load((tmp_path / "krew.yaml").read_text())
    (platform,) = found["spec"]["platforms"]
    packed = tmp_path / Path(platform["uri"]).name
    assert platform["uri"] == "https://downloads.example.com/v0.2.0/kubectl-finetune.tar.gz"
    assert hashlib.sha256(packed.read_bytes()).hexdigest() == platform["sha256"]
    assert found["spec"]["version"] == "v0.2.0"
    with tarfile.open(packed) as archive:
        assert {each["from"] for each in platform["files"]} == set(archive.getnames())
        archive.extractall(tmp_path / "plugin", filter="data")
    return tmp_path / "plugin" / str(platform["bin"])


@pytest.mark.parametrize(
    ("program", "given"),
    [
        ("finetune", "list -n ml"),
        ("uvx", "--quiet --from finetune-operator==0.2.0 finetune list -n ml"),
        ("pipx", "run --quiet --spec finetune-operator==0.2.0 finetune list -n ml"),
    ],
)
def test_it_runs_the_command_that_is_there_or_fetches_it(
    plugin: Path, tmp_path: Path, program: str, given: str
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / program).write_text('#!/bin/sh\necho "$@"\n')
    (folder / program).chmod(0o755)
    assert run(plugin, folder).stdout == f"{given}\n"


def test_without_python_it_says_what_to_install(plugin: Path, tmp_path: Path) -> None:
    done = run(plugin, tmp_path)
    assert done.returncode == 2
    assert "pip install finetune-operator==0.2.0" in done.stderr


def run(plugin: Path, path: Path) -> subprocess.CompletedProcess[str]:
    argv = ["/bin/sh", str(plugin), "list", "-n", "ml"]
    return subprocess.run(argv, env={"PATH": str(path)}, capture_output=True, text=True, check=False)
