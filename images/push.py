"""Puts the project's images into a registry of one's own, under the version that the chart asks for.

    python -m images.push images.example.com/ml    builds what has changed, pushes both, prints the flags

Log in to the registry before, with the program that builds here (docker login, buildah login).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from images import build, shell
from images.engine import detect


def push(registry: str, tag: str) -> dict[str, str]:
    """Build and push all images to `registry`, its host with a path; the reference of each by its name.

    Raises
    ------
    CommandError: a build or a push failed.
    """
    engine, pushed = detect(), {}
    for name, recipe in build.RECIPES.items():
        built = build.build_known(name, engine=engine)
        pushed[name] = f"{registry.rstrip('/')}/{recipe.name}:{tag}"
        engine.push(built.tag, pushed[name])
    return pushed


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m images.push", description=__doc__.splitlines()[0])
    parser.add_argument("registry", help="where to, such as images.example.com/ml")
    parser.add_argument("--tag", default=build.version(), help="default: the project's version")
    options = parser.parse_args(arguments)
    try:
        pushed = push(options.registry, options.tag)
    except shell.CommandError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    operator, trainer = (pushed[name].rpartition(":") for name in ("operator", "trainer"))
    print(
        f"--set image.repository={operator[0]} --set image.tag={operator[2]} "
        f"--set trainer.image.repository={trainer[0]} --set trainer.image.tag={trainer[2]}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
