"""Builds the project's images, each only when something that it is made of has changed.

    python -m images.build operator trainer      builds, and prints name:tag of each
    python -m images.build --list

An image's tag is a digest of its base and of every file that it is made of, so a tag never means two things, and a
node that has an image never needs to ask for a newer one.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from images import host_access, shell
from images.base import rootfs
from images.engine import BuildRequest, Engine, detect
from images.shell import REPOSITORY

PUBLIC_BASE = "python:3.13-slim"
IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc", ".*_cache")
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
"""The time of all files in an image, so that the same inputs make the same layers."""


@dataclass(frozen=True)
class Recipe:
    """What an image is made of.

    Attributes:
        name: the image's name.
        dockerfile: path in the repository.
        inputs: paths in the repository, files or folders; nothing else can be copied into the image.
        description: what it is for, in a sentence.
        stage: the Dockerfile's stage to stop after; the last one by default.
    """

    name: str
    dockerfile: str
    inputs: tuple[str, ...]
    description: str = ""
    stage: str = ""


RECIPES = {
    "operator": Recipe(
        "finetune-operator",
        "Dockerfile",
        ("images/operator", "locks/operator.txt", "operator/src/finetune", "pyproject.toml"),
        "The operator of TrainingRuns and the registry of datasets, runs and adapters",
    ),
    "trainer": Recipe(
        "finetune-trainer",
        "images/trainer/Dockerfile",
        ("locks/training.txt", "model"),
        "What runs in a TrainingRun's pods: the export of its dataset and the trainer",
    ),
}
LIBRARIES = Recipe(
    "finetune-trainer-libraries", "images/trainer/Dockerfile", ("locks/training.txt",), stage="libraries"
)
"""The trainer's image without the project's code: what is made from it need not be made again when that changes."""


@dataclass(frozen=True)
class Built:
    """An image and what making it took.

    Attributes:
        tag: ``name:tag``.
        bytes: size of its files.
        seconds: how long it took; near 0 where it was there.
    """

    tag: str
    bytes: int
    seconds: float


def build_known(name: str, *, engine: Engine | None = None) -> Built:
    """Build one of the project's own images, ``operator`` or ``trainer``, on the base image of this machine."""
    return build_recipe(RECIPES[name], engine=engine)


def build_recipe(recipe: Recipe, *, engine: Engine | None = None) -> Built:
    """Build an image of this repository on the base image of this machine."""
    engine = engine or detect()
    return build(
        recipe.name,
        REPOSITORY / recipe.dockerfile,
        REPOSITORY,
        base_image(engine),
        inputs=recipe.inputs,
        stage=recipe.stage,
        labels=labels(recipe) if recipe.description else {},
        engine=engine,
    )


def version() -> str:
    """The project's version, which is also the chart's appVersion and so its default tag."""
    document = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    return str(document["project"]["version"])


def labels(recipe: Recipe) -> dict[str, str]:
    """What an image says of itself, by the names of the OCI's image specification."""
    said = {
        "title": recipe.name,
        "description": recipe.description,
        "version": version(),
        "licenses": "Apache-2.0",
    }
    return {f"org.opencontainers.image.{name}": value for name, value in said.items()}


def build(
    name: str,
    dockerfile: Path,
    context: Path,
    base: str,
    *,
    inputs: Sequence[str] = (".",),
    stage: str = "",
    labels: Mapping[str, str] | None = None,
    engine: Engine | None = None,
) -> Built:
    """Build an image where its content has changed, and remove its older versions.

    Args:
        name: the image's name, without a tag.
        dockerfile: with ``ARG BASE_IMAGE`` before its FROM.
        context: the folder that its COPY lines start from.
        base: ``name:tag`` of the base: one that was built here, or a public one that was pulled.
        inputs: the files and folders of the context that it may copy; all by default.
        stage: the Dockerfile's stage to stop after; the last one by default.
        labels: of the image; none by default.
        engine: what to build with; found out by default.

    Raises:
        CommandError: the build failed; its output is on standard error.
    """
    engine = engine or detect()
    started = time.monotonic()
    key = content_key(dockerfile, context, inputs, base, labels)
    tag = f"{name}:{key}"
    with shell.lock("images"):
        if engine.image_id(tag) is None:
            print(f"building {tag} with {engine.name} ...", file=sys.stderr, flush=True)
            engine.discard_leftovers()
            with tempfile.TemporaryDirectory(prefix="finetune-build-") as scratch:
                staged = Path(scratch) / "context"
                _stage(context, inputs, staged)
                if content_key(dockerfile, staged, inputs, base, labels) != key:
                    raise shell.CommandError(f"a file of {tag} was changed while it was being copied: build it again")
                engine.build(
                    BuildRequest(
                        tag=tag,
                        dockerfile=dockerfile,
                        context=staged,
                        stage=stage,
                        arguments={"BASE_IMAGE": engine.local_reference(base) if engine.image_id(base) else base},
                        secrets=host_access.secrets(Path(scratch), environment=host_access.current()),
                        labels=labels or {},
                        seconds=int(EPOCH.timestamp()),
                    )
                )
            engine.remove([old for old in engine.tags(name) if old != tag])
    return Built(tag=tag, bytes=engine.size(tag), seconds=time.monotonic() - started)


def base_image(engine: Engine) -> str:
    """The base image of this machine: ``BASE_IMAGE``, the public Python image, or one made from Debian packages.

    The last is for machines that reach a Debian mirror and a package index but no public image registry.
    """
    configured = host_access.current().get("BASE_IMAGE")
    if configured:
        if engine.image_id(configured) is None and not engine.pull(configured):
            raise shell.CommandError(f"BASE_IMAGE={configured} is neither here nor can it be pulled")
        return configured
    own = f"finetune-base:{rootfs.recipe_key()}"
    with shell.lock("images"):
        if engine.image_id(own):
            return own
        if engine.image_id(PUBLIC_BASE) or engine.pull(PUBLIC_BASE):
            return PUBLIC_BASE
        engine.import_rootfs(rootfs.archive(), own)
        engine.remove([old for old in engine.tags("finetune-base") if old != own])
    return own


def content_key(
    dockerfile: Path, context: Path, inputs: Sequence[str], base: str, labels: Mapping[str, str] | None = None
) -> str:
    """A digest of an image's base, labels, Dockerfile and inputs: names, contents and whether one can be executed."""
    digest = hashlib.sha256(f"{base}\0".encode())
    for name, value in sorted((labels or {}).items()):
        digest.update(f"{name}={value}\0".encode())
    digest.update(dockerfile.read_bytes())
    for path in _files(context, inputs):
        digest.update(f"\0{path.relative_to(context)}\0{path.stat().st_mode & 0o100}\0".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


def _files(context: Path, inputs: Sequence[str]) -> Iterator[Path]:
    for name in sorted(inputs):
        top = context / name
        if not top.exists():
            raise shell.CommandError(f"{top} does not exist, and an image is made from it")
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            names = path.relative_to(context).parts
            if path.is_file() and not any(IGNORED("", [part]) for part in names):
                yield path


def _stage(context: Path, inputs: Sequence[str], target: Path) -> None:
    """Copy the inputs, and only those, to a folder of their own: what was forgotten in a recipe cannot be copied."""
    for path in _files(context, inputs):
        copy = target / path.relative_to(context)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        # Readable for the image's user, whatever the umask here, and of the same time in every clone.
        copy.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
        os.utime(copy, (EPOCH.timestamp(), EPOCH.timestamp()))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m images.build", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*RECIPES, []], help="which images; all by default")
    parser.add_argument("--list", action="store_true", help="print the names")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(RECIPES))
        return 0
    try:
        engine = detect()
        for name in options.names or RECIPES:
            built = build_known(name, engine=engine)
            print(f"{built.tag}  {built.bytes / 1e6:.0f} MB  {built.seconds:.1f} s", flush=True)
    except shell.CommandError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
