"""`make vendor`: fetch the browser's libraries at the versions below with npm, compare them, and copy what is used.

    python -m deploy.pages.vendor

A newer version: change `VERSIONS` and run it; the digests of what was copied go to vendor.json beside the files, and a
test compares both. The files are those of the packages, unchanged.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "operator/src/finetune/registry/pages/static/vendor"
TESTS = ROOT / "tests/browser/vendor"


@dataclass(frozen=True, kw_only=True)
class Library:
    """A package of npm, and which of its files are copied to a folder of its name."""

    name: str
    version: str
    license: str
    target: Path
    files: tuple[str, ...]


VERSIONS = (
    Library(name="htmx.org", version="4.0.1", license="0BSD", target=PAGES, files=("dist/htmx.min.js", "LICENSE")),
    Library(
        name="uplot",
        version="1.6.32",
        license="MIT",
        target=PAGES,
        files=("dist/uPlot.iife.min.js", "dist/uPlot.min.css", "LICENSE"),
    ),
    Library(
        name="axe-core",
        version="4.14.1",
        license="MPL-2.0",
        target=TESTS,
        files=("axe.min.js", "LICENSE", "LICENSE-3RD-PARTY.txt"),
    ),
)


def main() -> None:
    """Fetch and copy all of them."""
    with tempfile.TemporaryDirectory(prefix="finetune-vendor-") as scratch:
        for library in VERSIONS:
            archive = fetch(library, Path(scratch))
            copy(library, archive)
            print(f"{library.name} {library.version}")  # noqa: T201 - the command's answer
    for target in (PAGES, TESTS):
        described = [describe(library) for library in VERSIONS if library.target == target]
        (target / "vendor.json").write_text(json.dumps(described, indent=2) + "\n")


def fetch(library: Library, folder: Path) -> Path:
    """The package's archive, whose digest is the one that the registry gives. Raises `SystemExit`."""
    wanted = f"{library.name}@{library.version}"
    said = _npm("view", wanted, "dist.integrity", cwd=folder).strip()
    archive = folder / _npm("pack", "--silent", wanted, cwd=folder).strip()
    found = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != said:
        raise SystemExit(f"{wanted}: the archive's digest is {found}, and {said} is announced")
    return archive


def copy(library: Library, archive: Path) -> None:
    """Copy the files that are used to the library's folder."""
    folder = library.target / library.name
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as package:
        for path in library.files:
            member = package.extractfile(f"package/{path}")
            assert member is not None, f"{library.name} has no file {path}"
            (folder / Path(path).name).write_bytes(member.read())


def describe(library: Library) -> dict[str, Any]:
    """What vendor.json says of a library that was copied."""
    folder = library.target / library.name
    names = sorted(Path(path).name for path in library.files)
    return {
        "name": library.name,
        "version": library.version,
        "license": library.license,
        "files": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names},
    }


def _npm(*arguments: str, cwd: Path) -> str:
    return subprocess.run(("npm", *arguments), cwd=cwd, check=True, capture_output=True, text=True).stdout  # noqa: S603, S607


if __name__ == "__main__":
    main()
