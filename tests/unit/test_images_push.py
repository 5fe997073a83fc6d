"""Images in a registry of one's own, with a program that answers as docker does."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import yaml

from images import push
from images.shell import REPOSITORY

DOCKER = """#!/bin/sh
echo "$*" >> "$CALLS"
case "$1 $2" in
  "version --format={{.Server.Version}}"|"version --format={{.Client.Version}}") echo 20.10.0 ;;
  "image inspect") case "$3" in *Size*) echo 7 ;; *) echo sha256:0 ;; esac ;;
  "push --quiet") test "$REFUSES" = "" ;;
esac
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "bin" / "docker"
    program.parent.mkdir()
    program.write_text(DOCKER)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    noted = tmp_path / "calls"
    for name, value in {"CALLS": str(noted), "REFUSES": "", "FINETUNE_CACHE": str(tmp_path), "BASE_IMAGE": ""}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return noted


def test_both_images_get_the_charts_version(calls: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chart = yaml.safe_load((REPOSITORY / "charts" / "finetune-operator" / "Chart.yaml").read_text())
    assert push.main(["images.example.com/ml/"]) == 0
    pushed = [line.split()[-1] for line in calls.read_text().splitlines() if line.startswith("push ")]
    names = ("finetune-operator", "finetune-trainer")
    assert pushed == [f"images.example.com/ml/{name}:{chart['appVersion']}" for name in names]
    assert capsys.readouterr().out.split()[::2] == ["--set"] * 4


@pytest.mark.usefixtures("calls")
def test_a_registry_that_refuses_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REFUSES", "yes")
    assert push.main(["images.example.com/ml"]) == 1
    assert "docker push --quiet images.example.com/ml/finetune-operator" in capsys.readouterr().err
