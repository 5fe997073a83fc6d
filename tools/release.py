"""Fills dist/ with what a release is made of. The same commit and version give the same files.

    make release VERSION=0.2.0
    make release VERSION=0.2.0 ADDRESS=https://downloads.example.com/v0.2.0      with a manifest for Krew
    python -m tools.release 0.2.0 --without-images      bills of materials from the locks; no image is built

What is committed is released, under that version: the version in the working tree's pyproject.toml and Chart.yaml does
not matter, and what is not committed is left out.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from images import build, shell
from images.shell import REPOSITORY, CommandError
from tests.support.chart import find_helm
from tools import krew, sbom
from tools.inventory import Installed

CHART = "charts/finetune-operator"
CRD = "crds/finetune.dev_trainingruns.yaml"
INSTALL_HEAD = """\
# Replace the images finetune-operator and finetune-trainer by yours, then: kubectl apply --server-side -f install.yaml
"""
SEMVER = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?")
LOCKS = {"operator": "locks/operator.txt", "trainer": "locks/training.txt"}


def release(
    version: str,
    dist: Path,
    *,
    packages: Callable[[str], list[Installed]] = sbom.of_image,
    address: str | None = None,
) -> list[Path]:
    """Fill an empty folder with the release's files.

    Args:
        version: as Semantic Versioning has it, without a `v`.
        dist: the folder; it is made anew.
        packages: what is installed in an image, by its name.
        address: where the files will be downloaded; without it there is no manifest for Krew.

    Returns:
        The files, sorted by name; the last is SHA256SUMS.

    Raises:
        CommandError: the version is none, Helm is missing, this is no clone, or a step failed.
    """
    if not SEMVER.fullmatch(version):
        raise CommandError(f'"{version}" is no version: give one such as 0.2.0, as in make release VERSION=0.2.0')
    shutil.rmtree(dist, ignore_errors=True)
    dist.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="finetune-release-") as scratch:
        tree = Path(scratch)
        moment = _committed(tree)
        _set_version(tree, version)
        _wheel(tree, dist, moment)
        _chart(tree, dist, version, moment)
        shutil.copyfile(tree / CRD, dist / Path(CRD).name)
        (dist / "install.yaml").write_text(_install(tree), encoding="utf-8")
        (dist / "CHANGES.md").write_text(changes((tree / "CHANGELOG.md").read_text(), version), encoding="utf-8")
        krew.write(version, address, dist, root=tree)
        for name, recipe in build.RECIPES.items():
            bill = sbom.document(recipe.name, version, packages(name), created=moment)
            sbom.write(bill, dist / f"{recipe.name}.spdx.json")
    files = sorted(dist.iterdir())
    sums = dist / "SHA256SUMS"
    sums.write_text("".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files))
    return [*files, sums]


def _committed(target: Path) -> datetime:
    """Lay out what is committed, and return when that was."""
    archive = target.parent / f"{target.name}.tar"
    try:
        shell.run(["git", "archive", "--format=tar", f"--output={archive}", "HEAD"], cwd=REPOSITORY)
        seconds = int(shell.run(["git", "log", "-1", "--format=%ct"], cwd=REPOSITORY))
        with tarfile.open(archive) as packed:
            packed.extractall(target, filter="data")
    finally:
        archive.unlink(missing_ok=True)
    return datetime.fromtimestamp(seconds, UTC)


def _set_version(tree: Path, version: str) -> None:
    for name, pattern in (
        ("pyproject.toml", r'^version = ".*"$'),
        (f"{CHART}/Chart.yaml", r"^(version|appVersion): .*$"),
    ):
        path = tree / name
        text, count = re.subn(
            pattern, lambda found: _versioned(found[0], version), path.read_text(), flags=re.MULTILINE
        )
        if not count:
            raise CommandError(f"{name} has no line with a version")
        path.write_text(text)


def _versioned(line: str, version: str) -> str:
    name, separator, _ = re.split(r"(: | = )", line, maxsplit=1)
    return f'{name}{separator}"{version}"'


def _wheel(tree: Path, dist: Path, moment: datetime) -> None:
    argv = [sys.executable, "-m", "hatchling", "build", "--target=wheel", f"--directory={dist}"]
    shell.run(argv, cwd=tree, env={"SOURCE_DATE_EPOCH": str(int(moment.timestamp()))})


def _chart(tree: Path, dist: Path, version: str, moment: datetime) -> None:
    shell.run([_helm(), "package", tree / CHART, f"--destination={dist}"])
    package = dist / f"finetune-operator-{version}.tgz"
    package.write_bytes(settled(package.read_bytes(), int(moment.timestamp())))


def settled(archive: bytes, seconds: int) -> bytes:
    """A .tgz with the same files, in the order of their names, all of one time and of nobody's."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(archive)) as old, tarfile.open(fileobj=packed, mode="w") as new:
        for member in sorted(old.getmembers(), key=lambda each: each.name):
            plain = tarfile.TarInfo(member.name)
            plain.size, plain.mode, plain.type, plain.mtime = member.size, member.mode, member.type, seconds
            new.addfile(plain, old.extractfile(member))
    return gzip.compress(packed.getvalue(), mtime=seconds)


def _install(tree: Path) -> str:
    """The plain manifests as the repository has them, for this version, and the definition with them."""
    shell.run([sys.executable, "-m", "deploy.manifests"], cwd=tree)
    text = (tree / "deploy" / "install.yaml").read_text(encoding="utf-8")
    objects = text[text.index("apiVersion:") :]
    return f"{INSTALL_HEAD}{objects}---\n{(tree / CRD).read_text(encoding='utf-8')}"


def _helm() -> str:
    found = find_helm()
    if found is None:
        raise CommandError("Helm is needed to package the chart: put it on PATH, or run `make programs`")
    return found


def changes(changelog: str, version: str) -> str:
    """What the changelog says of a version; of what is unreleased where it does not name the version yet.

    Raises
    ------
    CommandError: it says nothing.
    """
    sections = dict(re.findall(r"^## (\S+)[^\n]*\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL))
    text = (sections.get(version) or sections.get("Unreleased") or "").strip()
    if not text:
        raise CommandError(f"CHANGELOG.md has nothing under {version} or Unreleased: say there what is new")
    return f"# {version}\n\n{text}\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m tools.release", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("version", nargs="?", default="", help="such as 0.2.0")
    parser.add_argument("--dist", type=Path, default=REPOSITORY / "dist", help="the folder to fill (default: dist)")
    parser.add_argument("--address", help="where the files will be downloaded; with it there is a manifest for Krew")
    parser.add_argument("--without-images", action="store_true", help="read the locks instead of the images")
    options = parser.parse_args(arguments)
    try:
        packages = of_lock if options.without_images else sbom.of_image
        files = release(options.version, options.dist, packages=packages, address=options.address)
    except CommandError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for file in files:
        print(f"{os.path.relpath(file)}  {file.stat().st_size:,} bytes")
    return 0


def of_lock(name: str) -> list[Installed]:
    """What an image gets from its lock."""
    return sbom.of_lock(REPOSITORY / LOCKS[name])


if __name__ == "__main__":
    sys.exit(main())
