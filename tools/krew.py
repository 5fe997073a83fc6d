"""Krew's manifest of the kubectl plugin, and the archive that it names.

    python -m tools.krew 0.2.0 https://downloads.example.com/v0.2.0 dist

writes dist/kubectl-finetune.tar.gz, to be put at that address, and dist/krew.yaml, for an index of Krew's. A release
has both: `make release VERSION=0.2.0 ADDRESS=https://downloads.example.com/v0.2.0`.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import sys
import tarfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
PROGRAM = "kubectl-finetune"
ARCHIVE = f"{PROGRAM}.tar.gz"
SYSTEMS = ("darwin", "linux")


def archive(version: str, *, root: Path = ROOT) -> bytes:
    """The archive of one version, from the files of a checkout; the same files give the same bytes."""
    script = (root / "deploy" / "krew" / PROGRAM).read_text().replace("__VERSION__", version)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as file:
        for name, content, mode in ((PROGRAM, script, 0o755), ("LICENSE", (root / "LICENSE").read_text(), 0o644)):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content.encode()), mode
            file.addfile(member, io.BytesIO(content.encode()))
    return gzip.compress(packed.getvalue(), mtime=0)


def manifest(version: str, address: str, packed: bytes) -> dict[str, Any]:
    """The manifest of one version, whose archive is below an address."""
    platform = {
        "selector": {"matchExpressions": [{"key": "os", "operator": "In", "values": list(SYSTEMS)}]},
        "uri": f"{address.rstrip('/')}/{ARCHIVE}",
        "sha256": hashlib.sha256(packed).hexdigest(),
        "files": [{"from": name, "to": "."} for name in (PROGRAM, "LICENSE")],
        "bin": PROGRAM,
    }
    return {
        "apiVersion": "krew.googlecontainertools.github.com/v1alpha2",
        "kind": "Plugin",
        "metadata": {"name": "finetune"},
        "spec": {
            "version": f"v{version}",
            "shortDescription": "Fine-tune language models on Kubernetes",
            "description": "Makes, watches, compares and repeats TrainingRuns, pushes datasets, and fetches adapters.\n"
            "The operator has to be installed in the cluster; `kubectl finetune doctor` says what is missing.\n",
            "caveats": "Needs Python 3.11, by uv, pipx or pip.\n",
            "platforms": [platform],
        },
    }


def write(version: str, address: str | None, folder: Path, *, root: Path = ROOT) -> None:
    """Write the archive into a folder, and the manifest where the archive's address is known."""
    packed = archive(version, root=root)
    (folder / ARCHIVE).write_bytes(packed)
    if address:
        text = yaml.safe_dump(manifest(version, address, packed), sort_keys=False)
        (folder / "krew.yaml").write_text(text)


def main(arguments: list[str]) -> int:
    """Write archive and manifest into a folder."""
    if len(arguments) != 3:
        print("usage: python -m tools.krew VERSION ADDRESS FOLDER", file=sys.stderr)
        return 2
    version, address, folder = arguments
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    write(version, address, target)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
