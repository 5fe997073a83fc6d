"""Copies one of the image's models to a claim; a second start does nothing: python copy_model.py MODEL FOLDER."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

MODELS = Path(__file__).parent / "models"


def main(name: str, target: Path) -> str:
    """Copy the model to `target/name`, whole or not at all; returns what was done."""
    source, final = MODELS / name, target / name
    if not source.is_dir():
        sys.exit(
            f"there is no model {name!r} here; there is {', '.join(sorted(path.name for path in MODELS.iterdir()))}"
        )
    if final.is_dir():
        return f"{final} is there"
    partial = target / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, copy_function=shutil.copyfile)
    partial.rename(final)
    return f"{final} written"


if __name__ == "__main__":
    print(main(sys.argv[1], Path(sys.argv[2])))
