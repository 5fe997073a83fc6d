"""The `finetune` command, which is `kubectl finetune` as well: commands for people, and the servers.

    finetune run|list|status|watch|logs|compare|suspend|resume|retry|delete     runs
    finetune sweep|promote                runs with each of several settings; the best of them behind an alias
    finetune datasets ...                 push, list, show, diff, delete datasets of the registry
    finetune adapters ...                 list, show, pull, verify, alias, delete adapters of the registry
    finetune login|doctor|completion      to begin with
    finetune operator                     serve TrainingRuns (settings: FINETUNE_* variables)
    finetune registry serve|migrate|gc    the registry

Everything heavy is imported by the command that needs it, so that `--help` is immediate.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper

from . import people, registry
from .session import add_options


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0 done, 1 failed, 2 wrong usage, 130 interrupted)."""
    given = sys.argv[1:] if argv is None else list(argv)
    if given[:1] == ["__complete"]:
        from .completion import complete

        print("\n".join(complete(given[1:])))
        return 0
    arguments = build_parser().parse_args(given)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # rows and messages hold every letter, and not every terminal has it
            stream.reconfigure(errors="replace")
    try:
        result: int = arguments.handler(arguments)
        sys.stdout.flush()
    except ModuleNotFoundError as error:
        if (error.name or "finetune").startswith("finetune"):
            raise
        print(f"finetune: {error.name} is missing: pip install 'finetune-operator[operator]' has it", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return result


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    called = "kubectl finetune" if os.path.basename(sys.argv[0]).startswith("kubectl-") else "finetune"  # noqa: PTH119
    parser = argparse.ArgumentParser(prog=called, description="Fine-tune language models on Kubernetes.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    add_options(parser, inner=False)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    people.add_commands(subparsers)
    operator = subparsers.add_parser("operator", help="serve TrainingRuns; settings are FINETUNE_* variables")
    registry.add_log_format(operator)
    operator.set_defaults(handler=_operator)
    registry.add_commands(subparsers)
    return parser


class _Version(argparse.Action):
    """As argparse's own, but it is looked up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"finetune-operator {version('finetune-operator')}")
        parser.exit()


def _operator(arguments: argparse.Namespace) -> int:
    import asyncio
    import gc

    from pydantic import ValidationError

    from finetune.controller.core.settings import Settings
    from finetune.controller.handlers import run_operator
    from finetune.controller.watch import quiet_logs
    from finetune.logs import install

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
    gc.freeze()  # the interpreter would look through all that is loaded several times before it ends
    return 0


if __name__ == "__main__":
    sys.exit(main())
