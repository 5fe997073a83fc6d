"""Installs the copied package inside the operator's image: its version for importlib.metadata, and its command.

Runs in the image's last build step, and imports every module once: an image that lacks a package is not made. A wheel
would need the training code as well, because one project builds both.
"""

from __future__ import annotations

import compileall
import importlib
import pkgutil
import py_compile
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
MIGRATIONS = "finetune.registry.migrations."
"""Modules that only alembic can run."""
SCRIPT = """#!/opt/venv/bin/python
import sys
from {module} import {function}
sys.exit({function}())
"""


def main() -> None:
    """Write the distribution's metadata and its console scripts, compile the code, and import it."""
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
    for module in pkgutil.walk_packages([str(HERE / "finetune")], prefix="finetune."):
        if not module.name.startswith(MIGRATIONS):
            importlib.import_module(module.name)


if __name__ == "__main__":
    main()
