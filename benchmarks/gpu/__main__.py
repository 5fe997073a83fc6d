"""Measures the trainer beside TRL on one CUDA GPU and writes the figures as one JSON document.

    python -m benchmarks.gpu paths --output=out/bench-gpu-paths.json         4 minutes
    python -m benchmarks.gpu ablation --output=out/bench-gpu-ablation.json   5 minutes
    python -m benchmarks.gpu shapes --output=out/bench-gpu-shapes.json       5 minutes, 20 GB of disk
    python -m benchmarks.gpu llama --output=out/bench-gpu-llama.json         6 minutes; with bitsandbytes on NF4, too
    python -m benchmarks.gpu paths --smoke --output=out/smoke.json           tiny models on the CPU: shows that it works

What the parts are: `benchmarks.gpu.bench`. The order of calls for a quarter of an hour: benchmarks/gpu/README.md.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.bench import FULL, SMOKE, Bench
from benchmarks.gpu.machine import gpu_query
from benchmarks.training import about_this_machine

PARTS = ("paths", "ablation", "shapes", "llama")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--output", type=Path, required=True, help="file for the JSON document")
    parser.add_argument("--work", type=Path, help="folder for models, rows and logs; beside the output if left out")
    parser.add_argument("--smoke", action="store_true", help="tiny models on the CPU")
    options = parser.parse_args(arguments)
    device = None if options.smoke else gpu_query("name")
    if device is None and not options.smoke:
        raise SystemExit("no NVIDIA GPU is usable here: run it on a machine with one, or with --smoke")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that trainers are ended
    work = (options.work or options.output.parent / "bench-gpu").resolve()
    work.mkdir(parents=True, exist_ok=True)
    document = about_this_machine() | {"gpu": device, "driver": gpu_query("driver_version"), "smoke": options.smoke}
    document |= Bench(SMOKE if options.smoke else FULL, work, cuda=device is not None).part(options.part)
    options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{options.output}\n")


if __name__ == "__main__":
    main()
