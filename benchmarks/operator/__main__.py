"""What a run costs the operator: `make bench-operator BENCH="--quick --loads=a,f"` writes out/bench-operator.json.

Each load runs on a cluster of its own, several rounds of it; figures are median, lowest and highest. Times and CPU
seconds need a quiet machine (each entry has the load average with which it began), numbers of requests do not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import platform
import sys
from pathlib import Path
from typing import Any

from benchmarks.operator.loads import FOUND_BY, loads, spread


def main() -> int:
    """Run the loads that were asked for."""
    parser = argparse.ArgumentParser(prog="benchmarks.operator", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the runs, one round")
    parser.add_argument("--runs", type=int, help="how many runs, instead of each load's own number")
    parser.add_argument("--wait-seconds", type=float, default=600, help="how long to look at what only waits (600)")
    parser.add_argument("--rounds", type=int, help="rounds of each load (5, with --quick 1)")
    parser.add_argument("--loads", default="", help="names, such as a,f; default: all")
    parser.add_argument("--output", type=Path, default=Path("out/bench-operator.json"))
    arguments = parser.parse_args()
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # what asks a registry that is not there yet
    known = loads(quick=arguments.quick, runs=arguments.runs, wait_seconds=arguments.wait_seconds)
    named = arguments.loads.split(",") if arguments.loads else list(known)
    wanted = list(dict.fromkeys(FOUND_BY.get(name, name) for name in named))
    if unknown := sorted(set(wanted) - set(known)):
        parser.error(f"no such load: {', '.join(unknown)}; there are {', '.join([*known, *FOUND_BY])}")
    rounds = arguments.rounds or (1 if arguments.quick else 5)
    entries: list[dict[str, Any]] = []
    for name in wanted:
        measured: list[list[dict[str, Any]]] = []
        for _ in range(rounds):
            busy = {"loadAverage": round(os.getloadavg()[0], 2)}
            found = asyncio.run(known[name]())
            measured.append([entry | busy for entry in (found if isinstance(found, list) else [found])])
            sys.stdout.write(f"{json.dumps(measured[-1])}\n")
            sys.stdout.flush()
        entries += [spread(list(each)) for each in zip(*measured, strict=True)]
    document = {"quick": arguments.quick, "rounds": rounds, "cores": os.cpu_count(), "machine": platform.machine()}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps({**document, "loads": entries}, indent=1) + "\n")
    sys.stdout.write(f"written to {arguments.output}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
