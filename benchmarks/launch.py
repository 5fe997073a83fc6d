"""Runs a benchmark in the trainer's image, with the demo's base model: `make bench-training`, `make bench-quality`.

The base model is made once, by the image that makes it in the demo. The first argument names the benchmark, `training`
or `quality`; the others go to `benchmarks.training` or `benchmarks.quality`.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from images import build, host_access, shell
from images.run import run_in_image

MODEL = "smollm2-135m-instruct"
SCRATCH = "/scratch"


def main() -> int:
    """Make the model, measure, and put the document where it belongs."""
    host_access.current()
    out = shell.REPOSITORY / "out"
    name, *arguments = sys.argv[1:]
    work = out / "bench-training"
    try:
        trainer = build.build_known("trainer").tag
        code = 0 if (work / "models" / MODEL).is_dir() else make_model(work)
        if code == 0:
            code = run_in_image(trainer, command(name, arguments), environment=os.environ, scratch=work)
    except shell.CommandError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    if code == 0:
        shutil.copyfile(work / f"bench-{name}.json", out / f"bench-{name}.json")
    return code


def make_model(work: Path) -> int:
    """Make the base model's directory with the demo's image, and return the exit code."""
    folder = shell.REPOSITORY / "examples" / "base-model"
    tag = build.build("finetune-base-model", folder / "Dockerfile", folder, build.build_recipe(build.LIBRARIES).tag).tag
    (work / "models").mkdir(parents=True, exist_ok=True)
    convert = ["python", "/opt/base-model/convert.py", f"--directory={SCRATCH}/models", MODEL]
    return run_in_image(tag, convert, environment={}, scratch=work)


def command(name: str, arguments: list[str]) -> list[str]:
    """Return the command inside the image."""
    return [
        *("python", "-m", f"benchmarks.{name}"),
        *(
            f"--base-model={SCRATCH}/models/{MODEL}",
            f"--output={SCRATCH}/bench-{name}.json",
            f"--work={SCRATCH}/{name}",
        ),
        *arguments,
    ]


if __name__ == "__main__":
    sys.exit(main())
