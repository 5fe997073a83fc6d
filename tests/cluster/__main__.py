"""The local Kubernetes by hand.

python -m tests.cluster build | up | down [--purge] | status | load NAME:TAG ... | kubeconfig | bin
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from tests.cluster import go_build
from tests.cluster.base import Cluster, ClusterError
from tests.cluster.choose import cluster


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, 1 after an error, or 3 where ``status`` finds the cluster not running."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="build all programs into the cache, the tests' among them")
    commands.add_parser("up", help="start it and wait until pods can run")
    down = commands.add_parser("down", help="stop it and throw its objects away")
    down.add_argument("--purge", action="store_true", help="throw its images away as well")
    commands.add_parser("status", help="print the state of each part")
    load = commands.add_parser("load", help="make local images available to pods, and print their references")
    load.add_argument("images", nargs="+", metavar="NAME:TAG")
    commands.add_parser("kubeconfig", help="print the path of the administrator's kubeconfig")
    commands.add_parser("bin", help="print the folder with kubectl and helm")
    options = parser.parse_args(arguments)
    try:
        return _run(cluster(), options)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(target: Cluster, options: argparse.Namespace) -> int:
    started = time.monotonic()
    match options.command:
        case "build":
            go_build.build(go_build.TESTS)
        case "up":
            target.up()
            print(f"up ({target.kind}, {time.monotonic() - started:.1f} s): export KUBECONFIG={target.kubeconfig}")
        case "down":
            target.down(purge=options.purge)
            print(f"down ({target.kind}, {time.monotonic() - started:.1f} s)")
        case "status":
            states = target.status()
            print("\n".join(f"{name}: {state}" for name, state in states.items()))
            return 0 if all(state == "running" for state in states.values()) else 3
        case "load":
            for name in options.images:
                print(target.load_image(name), flush=True)
        case "kubeconfig":
            print(target.kubeconfig)
        case "bin":
            print(target.bin_dir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
