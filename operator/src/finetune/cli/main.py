"""The `finetune` command: servers for the cluster's administrator, and commands for people.

    finetune operator                     serve TrainingRuns (settings: FINETUNE_* variables)
    finetune registry serve|migrate|gc    the registry
    finetune datasets ...                 push, list, show, delete datasets of the registry
    finetune adapters ...                 list, show, pull, verify, alias, delete adapters of the registry

Everything heavy is imported by the command that needs it, so that `--help` is immediate.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

from finetune.logs import install

from . import people, registry


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0 done, 1 failed, 2 wrong usage)."""
    parser = argparse.ArgumentParser(prog="finetune", description="Fine-tune language models on Kubernetes.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    operator = subparsers.add_parser("operator", help="serve TrainingRuns; settings are FINETUNE_* variables")
    registry.add_log_format(operator)
    operator.set_defaults(handler=_operator)
    registry.add_commands(subparsers)
    people.add_commands(subparsers)
    arguments = parser.parse_args(argv)
    result: int = arguments.handler(arguments)
    return result


def _operator(arguments: argparse.Namespace) -> int:
    from pydantic import ValidationError

    from finetune.controller.core.settings import Settings
    from finetune.controller.handlers import run_operator
    from finetune.controller.watch import quiet_logs

    install(arguments.log_format)
    quiet_logs()
    try:
        settings = Settings.from_environment(os.environ)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            name = "FINETUNE_" + "_".join(str(part) for part in problem["loc"]).upper()
            print(f"finetune operator: {name}: {problem['msg']}", file=sys.stderr)
        return 2
    asyncio.run(run_operator(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
