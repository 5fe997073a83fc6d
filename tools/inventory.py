"""Lists what is installed: Python's packages and Debian's. Standard library only: it runs in the images.

python tools/inventory.py FILE    writes the list as JSON
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

DPKG = Path("/var/lib/dpkg/status")

Installed = dict[str, str]
"""`kind` (`pypi` or `deb`), `name`, `version`, and `license` as the package says it, where it does."""


def installed(paths: list[str] | None = None, dpkg: Path = DPKG) -> list[Installed]:
    """All packages, sorted.

    Args:
        paths: folders with Python packages; those of this Python by default.
        dpkg: Debian's list; there need not be one.
    """
    python = importlib.metadata.distributions(path=paths) if paths else importlib.metadata.distributions()
    found = {(each["kind"], each["name"].lower(), each["version"]): each for each in map(_of_python, python)}
    if dpkg.is_file():
        found |= {(each["kind"], each["name"], each["version"]): each for each in _of_debian(dpkg.read_text())}
    return [found[key] for key in sorted(found)]


def _of_python(package: importlib.metadata.Distribution) -> Installed:
    metadata = package.metadata
    said = [metadata[name] for name in ("License-Expression", "License") if name in metadata]
    license_ = next(iter(said), "")
    return {
        "kind": "pypi",
        "name": re.sub(r"[-_.]+", "-", metadata["Name"]),
        "version": package.version,
        "license": license_ if "\n" not in license_ else "",
    }


def _of_debian(status: str) -> Iterator[Installed]:
    for block in status.split("\n\n"):
        fields = dict(re.findall(r"^([\w-]+): (.*)$", block, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            yield {"kind": "deb", "name": fields["Package"], "version": fields["Version"], "license": ""}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(installed(), indent=1))
