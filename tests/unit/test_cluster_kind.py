"""The kind cluster in each state in which a machine may leave it; programs answer as docker and kind do."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from images import engine, shell
from tests.cluster import kind, tools
from tests.cluster.base import ClusterError

FOUND = """#!/bin/sh
echo "$(basename "$0") $*" >> "$STAND_INS/calls"
"""
DOCKER = """
case "$1 $2" in
  "inspect --format={{.State.Status}}") cat "$STAND_INS/state" 2>/dev/null || exit 1 ;;
  "start finetune-control-plane") printf running > "$STAND_INS/state" ;;
  "info --format={{.CgroupVersion}}") cat "$STAND_INS/cgroups" ;;
  "info --format={{.DockerRootDir}}") echo "$STAND_INS/elsewhere" ;;
  "exec finetune-control-plane") test -e "$STAND_INS/loaded" ;;
  "version --format={{.Server.Version}}"|"version --format={{.Client.Version}}") cat "$STAND_INS/version" ;;
  "buildx version") test -e "$STAND_INS/buildx" ;;
esac
"""
KIND = """
case "$1" in
  create) printf running > "$STAND_INS/state"; test ! -e "$STAND_INS/fails" ;;
  delete) rm -f "$STAND_INS/state" "$STAND_INS/broken" ;;
  load) echo "in $TMPDIR" >> "$STAND_INS/calls" ;;
esac
"""
KUBECTL = """
case "$2" in
  wait) test ! -e "$STAND_INS/broken" ;;
esac
"""


class StandIns:
    """Programs on PATH that note how they were called, and a folder that says how they answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, script in {"docker": DOCKER, "kind": KIND, "kubectl": KUBECTL, "helm": ""}.items():
            path = folder / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(FOUND + script)
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        self.says(cgroups="2", version="28.0.1")

    def says(self, **files: str) -> None:
        for name, text in files.items():
            (self.folder / name).write_text(text)

    def calls(self, *words: str) -> list[str]:
        lines = (self.folder / "calls").read_text().splitlines()
        return [line for line in lines if all(word in line for word in words)]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIns:
    made = StandIns(tmp_path)
    monkeypatch.setenv("STAND_INS", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kind, "READY_SECONDS", 0.2)
    return made


def test_without_a_node_a_cluster_is_made(programs: StandIns) -> None:
    cluster = kind.Kind()
    assert cluster.status() == {"cluster": "stopped"}
    cluster.up()
    assert cluster.status() == {"cluster": "running"}
    assert len(programs.calls("kind create")) == 1
    assert programs.calls("kubectl", "patch node finetune-control-plane", "--subresource=status")


def test_a_node_that_runs_is_kept_and_its_kubeconfig_written_anew(programs: StandIns) -> None:
    programs.says(state="running")
    kind.Kind().up()
    assert not programs.calls("kind create")
    assert programs.calls("kind export kubeconfig")


def test_a_node_that_stopped_is_started(programs: StandIns) -> None:
    programs.says(state="exited")
    assert kind.Kind().status() == {"cluster": "exited"}
    kind.Kind().up()
    assert programs.calls("docker start finetune-control-plane")
    assert not programs.calls("kind create")


def test_a_half_made_cluster_is_made_anew(programs: StandIns) -> None:
    programs.says(state="running", broken="")
    kind.Kind().up()
    assert programs.calls("kind delete cluster")
    assert programs.calls("kind create")


def test_a_creation_that_fails_leaves_nothing(programs: StandIns) -> None:
    programs.says(fails="")
    with pytest.raises(ClusterError):
        kind.Kind().up()
    assert kind.Kind().status() == {"cluster": "stopped"}


def test_an_image_that_the_node_has_is_not_loaded_again(programs: StandIns) -> None:
    cluster = kind.Kind()
    assert cluster.load_image("finetune-trainer:1") == "finetune-trainer:1"
    assert len(programs.calls("kind load")) == 1
    assert programs.calls("crictl inspecti --quiet docker.io/library/finetune-trainer:1")
    programs.says(loaded="")
    cluster.load_image("finetune-trainer:1")
    assert len(programs.calls("kind load")) == 1


def test_an_images_archive_is_not_written_to_tmp(programs: StandIns) -> None:
    kind.Kind().load_image("finetune-trainer:1")
    assert programs.calls(f"in {programs.folder / 'cache' / 'kind' / 'tmp'}")


@pytest.mark.parametrize(
    ("chosen", "cgroups", "image"),
    [("", "2", ""), ("", "1", "kindest/node:v1.34.0"), ("mine:1", "1", "mine:1"), ("mine:1", "2", "mine:1")],
)
def test_the_nodes_image(
    programs: StandIns, monkeypatch: pytest.MonkeyPatch, chosen: str, cgroups: str, image: str
) -> None:
    programs.says(cgroups=cgroups)
    monkeypatch.setenv(kind.NODE_IMAGE, chosen)
    kind.Kind().up()
    assert [f"--image={image}" in line for line in programs.calls("kind create")] == [bool(image)]


def test_too_little_disk_is_said_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kind, "DISK_BYTES", 2**62)
    with pytest.raises(ClusterError, match=r"GB free, and images and node need some .*docker system prune"):
        kind.check_disk(str(tmp_path))
    kind.check_disk(str(tmp_path / "in Docker Desktop's own machine"))


class TestClients:
    def test_what_is_on_path_is_taken(self, programs: StandIns) -> None:
        folder = tools.client_dir()
        assert (folder / "kubectl").resolve() == programs.folder / "bin" / "kubectl"
        assert (folder / "helm").resolve() == programs.folder / "bin" / "helm"

    def test_what_is_missing_is_named(self, programs: StandIns, monkeypatch: pytest.MonkeyPatch) -> None:
        (programs.folder / "bin" / "helm").unlink()
        monkeypatch.setenv("PATH", str(programs.folder / "bin"))
        with pytest.raises(ClusterError, match=r"helm is not on PATH: install it, or Go"):
            tools.client_dir()


class TestBuildKit:
    @pytest.mark.parametrize("version", ["20.10.24", "28.0.1"])
    def test_docker_that_can_build(self, programs: StandIns, version: str) -> None:
        programs.says(version=version, **({} if version.startswith("20") else {"buildx": ""}))
        assert engine.detect().name == "docker"

    def test_without_its_plugin_the_package_is_named(self, programs: StandIns) -> None:
        programs.says(version="29.1.0")
        with pytest.raises(shell.CommandError, match=r"Docker 29\.1\.0 .* buildx, which is missing.*docker-buildx"):
            engine.detect()
