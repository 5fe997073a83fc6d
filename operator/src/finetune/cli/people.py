"""The commands that people use: their names, flags and help. What each does is in a module of its own.

A command is named by module and function and imported when it runs, so that `--help` is immediate.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from .export.destinations import add_adapter_flags
from .measures import MEASURES, Guard, guard
from .output import FORMATS
from .session import add_options, run_command

METHODS = ("SFT", "DPO", "KTO")
RUN_NAME = re.compile(r"(?:trainingruns?(?:\.finetune\.dev)?/)?([a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?)")
REGISTRY_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?")


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands; each sets `handler`, from arguments to an exit code."""
    _add_making(subparsers)
    _add_sweeps(subparsers)
    _add_looking(subparsers)
    _add_changing(subparsers)
    _add_datasets(subparsers)
    _add_adapters(subparsers)
    login = add(subparsers, "login", "login.login", "get a token for the registry, with the rights that kubectl has")
    login.add_argument(
        "account", type=_account, nargs="?", default="finetune", help="service account; default: %(default)s"
    )
    login.add_argument("--create", action="store_true", help="make the account, with the rights of the role edit")
    login.add_argument("--hours", type=int, default=12, help="how long a token is good; default: %(default)s")
    add(subparsers, "logout", "login.logout", "forget the namespace's token")
    ui = add(subparsers, "ui", "ui.ui", "open the registry's pages in a browser, as who you are here")
    ui.add_argument("--port", type=int, default=0, help="of the loopback address; default: a free one")
    ui.add_argument("--no-open", dest="open", action="store_false", help="only print the address")
    doctor = add(subparsers, "doctor", "doctor.doctor", "what works for you, and what to do about the rest")
    doctor.add_argument("run", metavar="RUN", type=run_name, nargs="?", help="also look for what this run refers to")
    completion = subparsers.add_parser("completion", help="print the completion of a shell")
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    completion.set_defaults(handler=_completion)


def _add_making(subparsers: Any) -> None:
    run = add(subparsers, "run", "making.run", "make a run: from flags, a file or an earlier run")
    run.add_argument("name", nargs="?", help="default: one is made up, from the adapter's name")
    _add_beginning(run)
    _add_submitting(run)
    retry = add(subparsers, "retry", "making.retry", "make a run that goes on from a failed run's newest checkpoint")
    retry.add_argument("run", metavar="RUN", type=run_name, help="the failed run")
    retry.add_argument("name", nargs="?", help="of the new run; default: one is made up")
    _add_submitting(retry)


def _add_beginning(parser: argparse.ArgumentParser) -> None:
    """What a run, or a sweep, begins with: flags, a file, or an earlier run."""
    parser.add_argument("-f", "--filename", metavar="FILE", help="a TrainingRun in YAML; - is standard input")
    parser.add_argument(
        "--from", dest="from_run", metavar="RUN", type=run_name, help="copy this run; --set changes the copy"
    )
    parser.add_argument("--method", choices=METHODS, default="SFT", help="default: %(default)s")
    parser.add_argument("--model", metavar="MODEL", help="REPOSITORY[@REVISION] of the hub, or claim://CLAIM/PATH")
    parser.add_argument(
        "--dataset",
        metavar="DATASET",
        help="NAME[@VERSION] of the registry, hub://REPOSITORY, claim://CLAIM/PATH, configmap://NAME/KEY, s3://BUCKET/PATH",
    )
    parser.add_argument("--adapter", metavar="NAME", help="the adapter that the run makes a version of")
    parser.add_argument("--parent", metavar="NAME[@VERSION]", help="an adapter of the registry to go on from")
    parser.add_argument("--experiment", metavar="NAME", help="groups runs; default: the run's name")
    parser.add_argument("--gpus", type=int, metavar="N", help="0 trains on the CPU; default: 1")
    parser.add_argument("--memory", metavar="SIZE", help="such as 16Gi")
    parser.add_argument("--queue", metavar="NAME", help="Kueue's LocalQueue")


def _add_submitting(parser: argparse.ArgumentParser, *, settings: str = "any field, such as training.epochs=3") -> None:
    parser.add_argument(*("--set", "-s"), action="append", default=[], metavar="PATH=VALUE", help=settings)
    parser.add_argument(
        "--dry-run", choices=("none", "client", "server"), nargs="?", const="client", default="none",
        help="print the manifest (client), or let the API server judge it (server)",
    )  # fmt: skip
    parser.add_argument("-w", "--watch", action="store_true", help="then show it until it ends, as `finetune watch`")


def _add_sweeps(subparsers: Any) -> None:
    sweep = add(subparsers, "sweep", "sweeping.sweep", "make runs with each of several settings, all of them or none")
    sweep.add_argument("name", nargs="?", type=_name, help="of the sweep; default: the file's run's")
    _add_beginning(sweep)
    _add_submitting(sweep, settings="any field, such as lora.rank=8,16, or learningRate=1e-5..1e-3 for --random")
    sweep.add_argument("--random", type=_positive, metavar="N", help="so many random choices instead of the whole grid")
    sweep.add_argument("--seed", type=int, metavar="S", help="of the random choices; default: 0")
    sweep.add_argument(
        "--parallel", type=_positive, metavar="N", help="how many train at once; the others are created suspended"
    )
    promote = add(subparsers, "promote", "promoting.promote", "point an alias to the best adapter of an experiment")
    promote.add_argument("experiment", type=_name)
    promote.add_argument("--alias", type=_name, required=True, help="for example production")
    promote.add_argument("--adapter", type=_name, help="where the experiment's runs have made several")
    _add_choosing(promote)


def _add_choosing(parser: argparse.ArgumentParser) -> None:
    """Which version is the best, and when it is not good enough."""
    parser.add_argument("--by", choices=MEASURES, default="heldOutLoss", help="default: %(default)s")
    parser.add_argument(
        "--guard", type=guard, default=Guard(), metavar="X[%]",
        help="may be worse than the version that the alias has by so much; default: not at all",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")


def _add_looking(subparsers: Any) -> None:
    listing = add(subparsers, "list", "runs.list_runs", "the runs of a namespace, newest first")
    listing.add_argument("-A", "--all-namespaces", action="store_true", help="of all namespaces, from the cluster")
    listing.add_argument("-a", "--all", action="store_true", help="those, too, whose object was deleted")
    listing.add_argument("--state", metavar="PHASE", help="such as Failed or Training")
    listing.add_argument("--experiment", metavar="NAME")
    listing.add_argument("--text", help="in name, experiment, model, reason or message")
    listing.add_argument("--limit", type=_positive, default=50, help="default: %(default)s")
    status = add(subparsers, "status", "runs.status", "one run: state, losses, and what to do when it fails")
    status.add_argument("name", metavar="RUN", type=run_name)
    watch = add(subparsers, "watch", "watching.watch", "show a run until it ends: exit code 0 succeeded, 1 failed")
    watch.add_argument("name", metavar="RUN", type=run_name)
    logs = add(subparsers, "logs", "watching.logs", "what a run's containers write")
    logs.add_argument("name", metavar="RUN", type=run_name)
    logs.add_argument("-f", "--follow", action="store_true", help="wait for the pod, and go on over attempts")
    logs.add_argument("-c", "--container", help="export, trainer, collect, or another one of the pod; default: ours")
    logs.add_argument("--attempt", type=_positive, metavar="N", help="the pod's number, from 1; default: the newest")
    logs.add_argument("--tail", type=_positive, metavar="LINES", help="the last lines only")
    compare = add(subparsers, "compare", "runs.compare", "what differs between runs, and their losses")
    compare.add_argument("names", metavar="RUN", type=run_name, nargs="+")
    compare.add_argument("--equal", action="store_true", help="show settings that are the same, too")


def _add_changing(subparsers: Any) -> None:
    for name, function, text in (
        ("suspend", "runs.suspend", "stop runs after they have saved a checkpoint"),
        ("resume", "runs.resume", "let suspended runs go on"),
        ("delete", "runs.delete", "delete runs; records and adapters stay in the registry"),
    ):
        add(subparsers, name, function, text).add_argument("names", metavar="RUN", type=run_name, nargs="+")


def _add_datasets(subparsers: Any) -> None:
    datasets = subparsers.add_parser("datasets", help="datasets in the registry")
    commands = datasets.add_subparsers(required=True, metavar="COMMAND")
    push = add(commands, "push", "datasets.push", "store a file of JSON lines as a new version of a dataset")
    push.add_argument("name", type=_name, help="the dataset; made when it does not exist")
    push.add_argument("file", type=Path, help="JSON lines: one JSON object a line")
    listing = add(commands, "list", "datasets.list_datasets", "the datasets of a namespace, or the versions of one")
    listing.add_argument("name", type=_name, nargs="?", help="list this dataset's versions")
    show = add(commands, "show", "datasets.show", "one version of a dataset; -o wide shows its first rows")
    show.add_argument("dataset", metavar="NAME[@VERSION]", type=_dataset, help="default: the newest version")
    diff = add(commands, "diff", "datasets.diff", "rows that two versions do not share")
    diff.add_argument("dataset", metavar="NAME@VERSION", type=_dataset)
    diff.add_argument("other", metavar="VERSION", type=_version, nargs="?", help="default: the newest version")
    delete = add(commands, "delete", "datasets.delete", "delete the rows of a version")
    delete.add_argument("dataset", metavar="NAME@VERSION", type=_numbered)


def _add_adapters(subparsers: Any) -> None:
    adapters = subparsers.add_parser("adapters", help="adapters in the registry")
    commands = adapters.add_subparsers(required=True, metavar="COMMAND")
    listing = add(commands, "list", "adapters.list_adapters", "the adapters of a namespace, or the versions of one")
    listing.add_argument("name", type=_name, nargs="?", help="list this adapter's versions")
    listing.add_argument(
        "--run", metavar="RUN", type=run_name, help="what this run has sent while it trains: its newest and its best"
    )
    show = add(commands, "show", "adapters.show_adapter", "one version: files, losses, where it comes from")
    show.add_argument("adapter", **ADAPTER_OR_STEP)
    pull = add(commands, "pull", "adapters.pull", "fetch an adapter's files and compare them with their digests")
    pull.add_argument("adapter", **ADAPTER_OR_STEP)
    pull.add_argument("--to", type=Path, metavar="DIRECTORY", help="a new directory; default: NAME-vVERSION")
    verify = add(commands, "verify", "adapters.verify", "compare a directory's files with what the registry recorded")
    verify.add_argument("adapter", **ADAPTER_OR_STEP)
    verify.add_argument("directory", type=Path)
    export = add(commands, "export", "exporting.export_adapter", "as a Hugging Face folder, or into an OCI registry")
    export.add_argument("adapter", **ADAPTER)
    add_adapter_flags(export)
    alias = add(commands, "alias", "adapters.alias", "name a version, or move a name to another one")
    alias.add_argument("name", type=_name, help="the adapter")
    alias.add_argument("alias", type=_name, help="for example production")
    alias.add_argument("version", type=_version, nargs="?", help="left out with --remove")
    alias.add_argument("--expected", type=int, metavar="VERSION", help="only if it points there now; 0: if it is new")
    alias.add_argument("--protect", action=argparse.BooleanOptionalAction, help="whether moving it needs `protect`")
    alias.add_argument("--remove", action="store_true", help="remove the alias; the version stays")
    promote = add(
        commands, "promote", "promoting.promote_adapter", "point an alias to the best version, unless that is worse"
    )
    promote.add_argument("name", type=_name, help="the adapter")
    promote.add_argument("alias", type=_name, help="for example candidate")
    _add_choosing(promote)
    delete = add(commands, "delete", "adapters.delete_adapter", "delete a version's files; what is known of it stays")
    delete.add_argument("adapter", metavar="NAME@VERSION", type=_deletable, help="or NAME@RUN/STEP")


def add(commands: Any, name: str, function: str, text: str) -> argparse.ArgumentParser:
    """Add a command that is a function of a module of this package, such as `runs.status`."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("-o", "--output", choices=FORMATS, default="table", help="default: %(default)s")
    add_options(parser, inner=True)

    def handle(arguments: argparse.Namespace) -> int:
        from importlib import import_module

        module, _, called = function.partition(".")
        return run_command(getattr(import_module(f".{module}", __package__), called), arguments)

    parser.set_defaults(handler=handle)
    return parser


def _completion(arguments: argparse.Namespace) -> int:
    from .completion import script

    print(script(arguments.shell), end="")
    return 0


def run_name(text: str) -> str:
    """The name of a run, which `-o name` prints as `trainingrun/NAME`.

    What cannot be one is refused here: in a URL it would mean something else, and no name at all means every run.
    """
    found = RUN_NAME.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a run")
    return found[1]


def _account(text: str) -> str:
    if not RUN_NAME.fullmatch(text) or "/" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a service account")
    return text


def _name(text: str) -> str:
    """The name of a dataset or an adapter, or of a version: a number, an alias."""
    if not REGISTRY_NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a name: lower-case letters, digits, '-' and '.', at most 63, no '-' or '.' at the ends"
        )
    return text


def _reference(text: str) -> tuple[str, str]:
    name, _, version = text.partition("@")
    return _name(name), _name(version or "latest")


def _adapter(text: str) -> tuple[str, str]:
    """As `_reference`, or the adapter of a run after a step: NAME@RUN/STEP."""
    name, _, version = text.partition("@")
    run, is_interim, step = version.partition("/")
    if not is_interim:
        return _reference(text)
    is_number = step.isascii() and step.isdigit() and 0 < int(step) < 10**9
    if not is_number and step not in {"best", "latest"}:
        raise argparse.ArgumentTypeError(
            f"{text!r} names no step: write NAME@RUN/100, NAME@RUN/best or NAME@RUN/latest"
        )
    return _name(name), f"{run_name(run)}/{step}"


def _deletable(text: str) -> tuple[str, int | str]:
    return _adapter(text) if "/" in text else _numbered(text)


def _dataset(text: str) -> tuple[str, int | None]:
    name, version = _reference(text)
    return name, None if version == "latest" else _version(version)


def _numbered(text: str) -> tuple[str, int]:
    name, version = _reference(text)
    if version == "latest":
        raise argparse.ArgumentTypeError(f"say which version: {name}@3")
    return name, _version(version)


def _version(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 10**9):
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a version")
    return int(text)


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 10**9):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


ADAPTER: dict[str, Any] = {
    "metavar": "NAME[@VERSION]",
    "type": _reference,
    "help": "a number, an alias, or latest; default: latest",
}
ADAPTER_OR_STEP: dict[str, Any] = {
    "metavar": "NAME[@VERSION]",
    "type": _adapter,
    "help": f"{ADAPTER['help']}; or RUN/STEP, RUN/best, RUN/latest of a run that still trains",
}
