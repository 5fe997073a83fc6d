"""A release: all of its files under one version, the same from the same commit, each with its checksum."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.version import Version

from images.shell import CommandError
from tests.support.chart import SYSTEM, objects_of
from tests.unit.test_chart_render import needs_helm
from tools import inventory, release, sbom

VERSION = "7.8.9"
ADDRESS = "https://downloads.example.com/v7.8.9"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release") / "dist"
    release.release(VERSION, folder, packages=release.of_lock, address=ADDRESS)
    return folder


@needs_helm
def test_a_release_has_all_of_its_files_and_their_checksums(dist: Path) -> None:
    listed = [line.split() for line in (dist / "SHA256SUMS").read_text().splitlines()]
    sums = {name: digest for digest, name in listed}
    assert sums.keys() == {
        "CHANGES.md",
        f"finetune-operator-{VERSION}.tgz",
        "finetune-operator.spdx.json",
        "finetune-trainer.spdx.json",
        "finetune.dev_trainingruns.yaml",
        f"finetune_operator-{VERSION}-py3-none-any.whl",
        "install.yaml",
        "krew.yaml",
        "kubectl-finetune.tar.gz",
    }
    assert sums == {name: hashlib.sha256((dist / name).read_bytes()).hexdigest() for name in sums}


@needs_helm
def test_the_same_commit_gives_the_same_files(dist: Path, tmp_path: Path) -> None:
    release.release(VERSION, tmp_path / "dist", packages=release.of_lock, address=ADDRESS)
    assert (tmp_path / "dist" / "SHA256SUMS").read_text() == (dist / "SHA256SUMS").read_text()


@needs_helm
def test_everything_has_the_version(dist: Path) -> None:
    with tarfile.open(dist / f"finetune-operator-{VERSION}.tgz") as chart:
        described = chart.extractfile("finetune-operator/Chart.yaml")
        assert described is not None
        document = yaml.safe_load(described.read())
    assert (document["version"], document["appVersion"]) == (VERSION, VERSION)
    with zipfile.ZipFile(dist / f"finetune_operator-{VERSION}-py3-none-any.whl") as wheel:
        metadata = wheel.read(f"finetune_operator-{VERSION}.dist-info/METADATA").decode()
        assert {"finetune/cli/main.py", "model/training/cli.py"} <= set(wheel.namelist())
    assert f"\nVersion: {VERSION}\n" in metadata
    objects = objects_of((dist / "install.yaml").read_text())
    assert (objects[0]["kind"], objects[0]["metadata"]["name"]) == ("Namespace", SYSTEM)
    assert {"CustomResourceDefinition", "Deployment", "Service"} <= {each["kind"] for each in objects}
    deployments = [each["spec"]["template"]["spec"] for each in objects if each["kind"] == "Deployment"]
    images = {container["image"] for pod in deployments for container in pod["containers"]}
    assert images == {f"finetune-operator:{VERSION}"}
    plugin = yaml.safe_load((dist / "krew.yaml").read_text())["spec"]
    (platform,) = plugin["platforms"]
    packed = hashlib.sha256((dist / "kubectl-finetune.tar.gz").read_bytes()).hexdigest()
    assert (plugin["version"], platform["sha256"]) == (f"v{VERSION}", packed)
    assert platform["uri"] == f"{ADDRESS}/kubectl-finetune.tar.gz"
    for name in ("operator", "trainer"):
        bill = json.loads((dist / f"finetune-{name}.spdx.json").read_text())
        assert bill["packages"][0]["versionInfo"] == VERSION


@needs_helm
def test_the_plain_manifests_are_the_repositorys(dist: Path) -> None:
    """With the policies, and without the pod of `helm test`."""

    def names(file: Path) -> set[tuple[str, str]]:
        return {(each["kind"], each["metadata"]["name"]) for each in objects_of(file.read_text())}

    definition = ("CustomResourceDefinition", "trainingruns.finetune.dev")
    assert names(dist / "install.yaml") == names(ROOT / "deploy" / "install.yaml") | {definition}


@pytest.mark.parametrize("version", ["", "v1.0.0", "1.0", "1.0.0 ", "01.0.0"])
def test_what_is_no_version_is_refused(version: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert release.main([version]) == 1
    assert "make release VERSION=0.2.0" in capsys.readouterr().err


CHANGELOG = "# Changelog\n\n## Unreleased\n\n- new\n\n## 1.2.0 (2026-11-01)\n\n- old\n- older\n"


@pytest.mark.parametrize(("version", "said"), [("1.2.0", "- old\n- older"), ("1.3.0", "- new")])
def test_the_changes_are_those_of_the_version(version: str, said: str) -> None:
    assert release.changes(CHANGELOG, version) == f"# {version}\n\n{said}\n"


def test_a_version_that_changes_nothing_is_refused() -> None:
    with pytest.raises(CommandError, match="Unreleased"):
        release.changes("# Changelog\n\n## Unreleased\n\n## 1.0.0\n\n- first\n", "1.1.0")


def test_an_archive_is_settled_whoever_packed_it() -> None:
    def packed(names: list[str], moment: int) -> bytes:
        target = io.BytesIO()
        with tarfile.open(fileobj=target, mode="w:gz") as archive:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size, member.mtime, member.uid = len(name), moment, moment
                archive.addfile(member, io.BytesIO(name.encode()))
        return target.getvalue()

    settled = release.settled(packed(["b", "a"], 5), 99)
    assert settled == release.settled(packed(["a", "b"], 6), 99)
    with tarfile.open(fileobj=io.BytesIO(settled)) as archive:
        assert [(each.name, each.mtime, each.uid) for each in archive] == [("a", 99, 0), ("b", 99, 0)]


STATUS = """\
Package: libc6
Status: install ok installed
Version: 2.41-12

Package: gone
Status: deinstall ok config-files
Version: 1
"""


def test_what_is_installed_is_listed(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text(STATUS)
    listed = inventory.installed(dpkg=status)
    assert {"kind": "deb", "name": "libc6", "version": "2.41-12", "license": ""} in listed
    assert "gone" not in [each["name"] for each in listed]
    kopf = next(each for each in listed if each["name"] == "kopf")
    assert (kopf["kind"], kopf["version"]) == ("pypi", importlib.metadata.version("kopf"))


def test_a_bill_of_materials_is_valid_and_has_every_package(tmp_path: Path) -> None:
    packages = inventory.installed()
    sbom.write(
        sbom.document("finetune-operator", VERSION, packages), tmp_path / "a.spdx.json"
    )  # raises if it is invalid
    bill: dict[str, Any] = json.loads((tmp_path / "a.spdx.json").read_text())
    assert bill["spdxVersion"] == "SPDX-2.3"
    purls = [reference["referenceLocator"] for each in bill["packages"][1:] for reference in each["externalRefs"]]
    assert f"pkg:pypi/kopf@{importlib.metadata.version('kopf')}" in purls
    assert len(purls) == len(set(purls)) == len(packages)
    image = bill["packages"][0]["SPDXID"]
    contained = [each for each in bill["relationships"] if each["spdxElementId"] == image]
    assert len(contained) == len(packages)


def test_a_lock_is_read_for_the_images_platform() -> None:
    operator = {each["name"]: each["version"] for each in release.of_lock("operator")}
    assert Version(operator["kopf"]) >= Version("1.45.2")
    assert {"aiohttp", "sqlalchemy", "obstore"} <= operator.keys()
    assert "torch" not in operator
    assert {"torch", "transformers", "trl", "peft"} <= {each["name"] for each in release.of_lock("trainer")}
