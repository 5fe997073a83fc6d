"""Fetches the wheels that a machine with torch lacks, in the versions of the trainer's image.

    python -m benchmarks.gpu.wheels [--nf4] [--python=3.12]      22 MiB; with --nf4 bitsandbytes alone

They go to out/wheels, which git ignores, at most 64 MiB. On the machine, without a network:

    python3 -m pip install --no-index --no-deps out/wheels/*.whl
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.rows import REPOSITORY

LIBRARIES = (
    *("transformers", "tokenizers", "huggingface-hub", "httpx2", "httpcore2", "truststore"),
    *("trl", "peft", "datasets", "dill", "multiprocess"),
    *("pydantic", "pydantic-core", "annotated-types", "typing-inspection"),
)
"""What usual images with torch lack, or have in other versions."""
QUANTIZATION = ("bitsandbytes",)
"""Larger than all of those together, and beside them too large: carried by itself, to a machine that has the others."""
MOST_BYTES = 64 << 20


def pinned(lock: str, names: Sequence[str]) -> list[str]:
    """Return `name==version` of libraries, as a lock file has them."""
    found = dict(re.findall(r"^([a-z0-9-]+)==([^\s;\\]+)", lock, re.MULTILINE))
    return [f"{name}=={found[name]}" for name in names]


def main(arguments: Sequence[str] | None = None) -> None:
    """Fetch as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nf4", action="store_true", help="bitsandbytes alone")
    parser.add_argument("--python", default="3.12", help="the machine's version of Python")
    parser.add_argument("--to", type=Path, default=REPOSITORY / "out" / "wheels")
    options = parser.parse_args(arguments)
    lock = (REPOSITORY / "locks" / "training.txt").read_text(encoding="utf-8")
    names = QUANTIZATION if options.nf4 else LIBRARIES
    options.to.mkdir(parents=True, exist_ok=True)
    for old in options.to.glob("*.whl"):
        old.unlink()
    platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in (34, 28, 27, 24, 17)]
    argv = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"),
        *(*platforms, "--platform=manylinux2014_x86_64", f"--python-version={options.python}", f"--dest={options.to}"),
        *pinned(lock, names),
    ]
    subprocess.run(argv, check=True)  # noqa: S603 - pip, with names from our own lock
    size = sum(path.stat().st_size for path in options.to.glob("*.whl"))
    sys.stdout.write(f"{options.to}: {size / (1 << 20):.1f} MiB\n")
    if size > MOST_BYTES:
        raise SystemExit(f"more than {MOST_BYTES >> 20} MiB: fetch fewer, or carry them in two calls")


if __name__ == "__main__":
    main()
