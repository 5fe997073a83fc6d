"""Bills of materials: what is in an image, as SPDX 2.3 in JSON.

    python -m tools.sbom operator out/operator.spdx.json     from the image, which is built where it has to be

An image is asked itself (`tools/inventory.py` runs in it). Where there is no image, the lock that it is made from says
which Python packages it gets.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from spdx_tools.common.spdx_licensing import spdx_licensing
from spdx_tools.spdx.model.actor import Actor, ActorType
from spdx_tools.spdx.model.document import CreationInfo, Document
from spdx_tools.spdx.model.package import (
    ExternalPackageRef,
    ExternalPackageRefCategory,
    Package,
    PackagePurpose,
)
from spdx_tools.spdx.model.relationship import Relationship, RelationshipType
from spdx_tools.spdx.model.spdx_no_assertion import SpdxNoAssertion
from spdx_tools.spdx.writer.write_anything import write_file

from images import build, run, shell
from images.engine import detect
from tools.inventory import Installed

PROJECT = "finetune-operator"
PLATFORM = {"sys_platform": "linux", "platform_machine": "x86_64", "python_full_version": "3.13.0", "extra": ""}
"""What a lock is read for: the images' Python on the machine that most have."""


def document(name: str, version: str, packages: Iterable[Installed], *, created: datetime = build.EPOCH) -> Document:
    """The bill of materials of one image. The same packages give the same document, also its identity."""
    packages = list(packages)
    identity = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([name, version, packages]))
    info = CreationInfo(
        spdx_version="SPDX-2.3",
        spdx_id="SPDXRef-DOCUMENT",
        name=f"{name}-{version}",
        document_namespace=f"urn:uuid:{identity}",
        creators=[Actor(ActorType.TOOL, f"{PROJECT}-release")],
        created=created,
    )
    image = Package(
        spdx_id="SPDXRef-Image",
        name=name,
        version=version,
        download_location=SpdxNoAssertion(),
        files_analyzed=False,
        license_declared=spdx_licensing.parse("Apache-2.0"),
        primary_package_purpose=PackagePurpose.CONTAINER,
    )
    parts = [_package(number, package) for number, package in enumerate(packages, start=1)]
    relationships = [Relationship("SPDXRef-DOCUMENT", RelationshipType.DESCRIBES, image.spdx_id)]
    relationships += [Relationship(image.spdx_id, RelationshipType.CONTAINS, part.spdx_id) for part in parts]
    return Document(info, packages=[image, *parts], relationships=relationships)


def _package(number: int, package: Installed) -> Package:
    kind, name, version = package["kind"], package["name"], package["version"]
    locator = f"pkg:pypi/{canonicalize_name(name)}@{version}" if kind == "pypi" else f"pkg:deb/debian/{name}@{version}"
    return Package(
        spdx_id=f"SPDXRef-Package-{number}",
        name=name,
        version=version,
        download_location=SpdxNoAssertion(),
        files_analyzed=False,
        license_declared=_license(package.get("license", "")),
        external_references=[ExternalPackageRef(ExternalPackageRefCategory.PACKAGE_MANAGER, "purl", locator)],
    )


def _license(text: str) -> object:
    """A licence that SPDX knows, or that nothing is said: packages write all kinds of things into that field."""
    unknown = bool(spdx_licensing.validate(text).errors) if text else True
    return SpdxNoAssertion() if unknown else spdx_licensing.parse(text)


def of_image(name: str) -> list[Installed]:
    """What is installed in one of the project's images.

    Raises
    ------
    CommandError: it cannot be built, or not be run.
    """
    engine = detect()
    tag = build.build_known(name, engine=engine).tag
    with tempfile.TemporaryDirectory(prefix="finetune-sbom-") as scratch:
        argv = ["python3", f"{run.SOURCE}/tools/inventory.py", f"{run.SCRATCH}/installed.json"]
        if run.run_in_image(tag, argv, environment={}, scratch=Path(scratch), engine=engine) != 0:
            raise shell.CommandError(f"the packages of {tag} could not be listed: see the output above")
        listed: list[Installed] = json.loads((Path(scratch) / "installed.json").read_text())
    return listed


def of_lock(lock: Path) -> list[Installed]:
    """The Python packages that an image gets from a lock, on Linux."""
    found = []
    for line in lock.read_text(encoding="utf-8").splitlines():
        try:
            pinned = Requirement(line.removesuffix("\\").strip())
        except InvalidRequirement:  # hashes and comments
            continue
        if pinned.marker is None or pinned.marker.evaluate(dict(PLATFORM)):
            (specifier,) = pinned.specifier
            found.append({"kind": "pypi", "name": pinned.name, "version": specifier.version, "license": ""})
    return found


def write(bill: Document, target: Path) -> None:
    """Write a bill of materials, after it was held against the specification."""
    write_file(bill, str(target), validate=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m tools.sbom", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("image", choices=build.RECIPES)
    parser.add_argument("file", type=Path, help="where to; its name ends with .spdx.json")
    options = parser.parse_args(arguments)
    recipe = build.RECIPES[options.image]
    try:
        bill = document(recipe.name, build.version(), of_image(options.image))
    except shell.CommandError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    write(bill, options.file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
