"""Runs a command in an image with this repository mounted read-only: no second copy of torch.

    python -m images.run trainer -- python -m pytest tests/training

The command runs in /src (this repository), finds ``model`` there and not in the image, and may write to the folder
that TMPDIR names. pytest comes along from the environment that runs this program. Variables called FINETUNE_TEST_* are
passed on. The exit code is the command's.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from images import build, host_access, shell
from images.engine import Engine, Mount, detect

SOURCE = "/src"
TOOLS = "/test-tools"
SCRATCH = "/scratch"
PASSED_ON = "FINETUNE_TEST_"
TOOL_PACKAGES = ("execnet", "iniconfig", "pluggy", "pytest", "pytest-asyncio", "pytest-xdist")
"""Pure Python, and not in the image: what they need besides each other is there already."""


def run_in_image(
    tag: str,
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    scratch: Path | None = None,
    engine: Engine | None = None,
) -> int:
    """Run a command in a container of an image, with the repository at /src.

    Args:
        tag: ``name:tag`` of a local image with Python.
        argv: the command.
        environment: its FINETUNE_TEST_* variables are passed on.
        scratch: a folder that the command may write to, at /scratch; a temporary one by default.
        engine: what to run it with; found out by default.

    Returns:
        The command's exit code.

    Raises:
        CommandError: the container could not be made.
    """
    engine = engine or detect()
    with tempfile.TemporaryDirectory(prefix="finetune-run-") as temporary:
        writable = scratch or Path(temporary) / "scratch"
        writable.mkdir(parents=True, exist_ok=True)
        tools = Path(temporary) / "tools"
        copy_tools(tools)
        mounts = [
            Mount(shell.REPOSITORY, SOURCE),
            Mount(tools, TOOLS),
            Mount(writable, SCRATCH, writable=True),
        ]
        return engine.run(tag, argv, mounts=mounts, env=container_environment(environment), folder=SOURCE)


def container_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of the command: where it finds its modules and may write, and the tests' own settings."""
    own = {
        "PYTHONPATH": f"{SOURCE}:{TOOLS}",
        "HOME": SCRATCH,
        "TMPDIR": SCRATCH,
        "PYTEST_ADDOPTS": "-p no:cacheprovider",  # the repository is read-only
    }
    return own | {name: value for name, value in environment.items() if name.startswith(PASSED_ON)}


def copy_tools(target: Path, *, packages: Sequence[str] = TOOL_PACKAGES) -> None:
    """Copy packages of this environment to a folder for PYTHONPATH.

    Raises:
        CommandError: one is not installed here, or is not pure Python.
    """
    for package in packages:
        try:
            files = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError as error:
            raise shell.CommandError(f"{package} is not installed in {sys.prefix}: install locks/dev.txt") from error
        for file in files:
            if file.parts[0] == ".." or "__pycache__" in file.parts:
                continue  # console scripts; compiled for this Python, which need not be the image's
            if file.suffix == ".so":
                raise shell.CommandError(
                    f"{package} has compiled parts ({file}), which the image's Python may not load"
                )
            copy = target / file
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.locate(), copy)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m images.run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("image", help=f"{', '.join(build.RECIPES)} (built where needed), or name:tag")
    parser.add_argument("--scratch", type=Path, help="the folder to mount at /scratch; a temporary one by default")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="after --: the command")
    options = parser.parse_args(arguments)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("give a command after --")
    environment = host_access.current()
    try:
        engine = detect()
        known = options.image in build.RECIPES
        tag = build.build_known(options.image, engine=engine).tag if known else options.image
        return run_in_image(tag, command, environment=environment, scratch=options.scratch, engine=engine)
    except shell.CommandError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
