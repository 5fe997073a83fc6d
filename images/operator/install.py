"""Installs the copied package inside the operator's image: its version for importlib.metadata, and its command.

Runs in the image's last build step. A wheel would need the training code as well, because one project builds both.
"""

from __future__ import annotations

import compileall
import py_compile
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
SCRIPT = """#!/opt/venv/bin/python
import sys
from {module} import {function}
sys.exit({function}())
"""


def main() -> None:
    """Write the distribution's metadata and its console scripts, and compile the code."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    metadata = HERE / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    for name, target in project["scripts"].items():
        module, function = target.split(":")
        script = Path("/opt/venv/bin") / name
        script.write_text(SCRIPT.format(module=module, function=function))
        script.chmod(0o755)
    compiled = compileall.compile_dir(
        HERE / "finetune", quiet=1, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    if not compiled:
        raise SystemExit("a module of the package does not compile")


if __name__ == "__main__":
    main()
