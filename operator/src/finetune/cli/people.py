"""`finetune datasets` and `finetune adapters`: what people ask the registry."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import re
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.clients.people import PeopleClient, Sample
    from finetune.clients.registry import AdapterVersion, DatasetVersion

REGISTRY_URL = "FINETUNE_REGISTRY_URL"
TOKEN_FILE = "FINETUNE_TOKEN_FILE"  # noqa: S105 - the name of a variable
DEFAULT_URL = "http://127.0.0.1:8080"

DATASET_COLUMNS = ("NAME", "VERSION", "ROWS", "BYTES", "SHAPE", "SHA256", "CREATED")
ADAPTER_COLUMNS = ("NAME", "VERSION", "STATE", "LOSS", "VS BASE", "BASE MODEL", "RUN", "CREATED", "ALIASES")
SOURCE_COLUMNS = ("SOURCE", "VERSION", "ROWS", "HELD OUT", "FOUND", "DROPPED")

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")

Command = Callable[["PeopleClient", argparse.Namespace], Awaitable[str]]


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `datasets` and `adapters` with their sub-commands; each sets `handler`, from arguments to an exit code."""
    datasets = subparsers.add_parser("datasets", help="datasets in the registry")
    commands = datasets.add_subparsers(required=True, metavar="COMMAND")
    push = _add(commands, "push", _push, "store a file of JSON lines as a new version of a dataset")
    push.add_argument("name", help="the dataset; made when it does not exist")
    push.add_argument("file", type=Path, help="JSON lines: one JSON object a line")
    listing = _add(commands, "list", _list_datasets, "the datasets of a namespace, or the versions of one")
    listing.add_argument("name", nargs="?", help="list this dataset's versions")
    show = _add(commands, "show", _show_dataset, "one version of a dataset")
    show.add_argument("dataset", metavar="NAME[@VERSION]", type=_reference, help="default: the newest version")
    delete = _add(commands, "delete", _delete_dataset, "delete the rows of a version")
    delete.add_argument("dataset", metavar="NAME@VERSION", type=_numbered)

    adapters = subparsers.add_parser("adapters", help="adapters in the registry")
    commands = adapters.add_subparsers(required=True, metavar="COMMAND")
    listing = _add(commands, "list", _list_adapters, "the adapters of a namespace, or the versions of one")
    listing.add_argument("name", nargs="?", help="list this adapter's versions")
    show = _add(commands, "show", _show_adapter, "one version of an adapter: files, losses, where it comes from")
    show.add_argument("adapter", **_ADAPTER)
    pull = _add(commands, "pull", _pull, "fetch an adapter's files and compare them with their digests")
    pull.add_argument("adapter", **_ADAPTER)
    pull.add_argument("--to", type=Path, metavar="DIRECTORY", help="a new directory; default: NAME-vVERSION")
    verify = _add(commands, "verify", _verify, "compare the files of a directory with what the registry recorded")
    verify.add_argument("adapter", **_ADAPTER)
    verify.add_argument("directory", type=Path)
    alias = _add(commands, "alias", _alias, "name a version, or move a name to another one")
    alias.add_argument("name", help="the adapter")
    alias.add_argument("alias", help="for example production")
    alias.add_argument("version", type=_version, nargs="?", help="left out with --remove")
    alias.add_argument("--expected", type=int, metavar="VERSION", help="only if it points there now; 0: if it is new")
    alias.add_argument("--protect", action=argparse.BooleanOptionalAction, help="whether moving it needs `protect`")
    alias.add_argument("--remove", action="store_true", help="remove the alias; the version stays")
    delete = _add(commands, "delete", _delete_adapter, "delete the files of a version; what is known of it stays")
    delete.add_argument("adapter", metavar="NAME@VERSION", type=_numbered)


def _reference(text: str) -> tuple[str, str]:
    name, _, version = text.partition("@")
    return name, version or "latest"


def _numbered(text: str) -> tuple[str, int]:
    name, version = _reference(text)
    if version == "latest":
        raise argparse.ArgumentTypeError(f"say which version: {name}@3")
    return name, _version(version)


def _version(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 10**9):
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a version")
    return int(text)


_ADAPTER: dict[str, Any] = {
    "metavar": "NAME[@VERSION]",
    "type": _reference,
    "help": "a number, an alias, or latest; default: latest",
}


def _add(commands: Any, name: str, command: Command, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("-n", "--namespace", default="default", help="default: %(default)s")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table", help="default: %(default)s")
    parser.add_argument("--registry-url", metavar="URL", help=f"default: {REGISTRY_URL}, then {DEFAULT_URL}")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help=f"bearer token; default: {TOKEN_FILE}")
    parser.set_defaults(handler=lambda arguments: _run(command, arguments))
    return parser


def _run(command: Command, arguments: argparse.Namespace) -> int:
    """Run one command; what the registry says about a failure is printed as it is."""
    from finetune.clients.people import PeopleClient
    from finetune.clients.registry import RegistryError, RegistryRefused

    token_file = arguments.token_file or os.environ.get(TOKEN_FILE)

    async def call() -> str:
        url = arguments.registry_url or os.environ.get(REGISTRY_URL) or DEFAULT_URL
        async with PeopleClient(base_url=url, token_file=Path(token_file) if token_file else None) as client:
            return await command(client, arguments)

    try:
        print(asyncio.run(call()))
    except RegistryRefused as error:
        print(f"finetune: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return 1
    except RegistryError as error:
        print(f"finetune: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"finetune: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


async def _push(client: PeopleClient, arguments: argparse.Namespace) -> str:
    arguments.file.open("rb").close()  # what cannot be read fails here: the client would take it for a lost connection
    version, created = await client.push_dataset(arguments.namespace, arguments.name, arguments.file)
    if arguments.output == "json":
        return _json(version)
    done = "stored as" if created else "unchanged: it already is"
    return f"{done} {version.name} version {version.version} ({version.rows} rows, {version.shape})"


async def _list_datasets(client: PeopleClient, arguments: argparse.Namespace) -> str:
    if arguments.name is None:
        items = await client.list_datasets(arguments.namespace)
    else:
        items = await client.list_dataset_versions(arguments.namespace, arguments.name)
    if arguments.output == "json":
        return _json_list(items)
    return _table(DATASET_COLUMNS, map(_dataset_row, items))


async def _show_dataset(client: PeopleClient, arguments: argparse.Namespace) -> str:
    name, version = arguments.dataset
    item = await client.get_dataset_version(
        arguments.namespace, name, None if version == "latest" else _version(version)
    )
    return (
        _json(item)
        if arguments.output == "json"
        else _facts(dict(zip(DATASET_COLUMNS, _dataset_row(item), strict=True)))
    )


async def _delete_dataset(client: PeopleClient, arguments: argparse.Namespace) -> str:
    name, version = arguments.dataset
    await client.delete_dataset(arguments.namespace, name, version)
    return f"deleted the rows of {name} version {version}"


def _dataset_row(item: DatasetVersion) -> Sequence[object]:
    return (
        item.name,
        item.version,
        item.rows,
        item.bytes,
        item.shape,
        item.sha256[:12],
        f"{item.created_time:%Y-%m-%d %H:%M:%SZ}",
    )


async def _list_adapters(client: PeopleClient, arguments: argparse.Namespace) -> str:
    if arguments.name is None:
        items = await client.list_adapters(arguments.namespace)
    else:
        items = await client.list_adapter_versions(arguments.namespace, arguments.name)
    if arguments.output == "json":
        return _json_list(items)
    return _table(ADAPTER_COLUMNS, map(_adapter_row, items))


def _adapter_row(item: AdapterVersion) -> Sequence[object]:
    return (
        item.name,
        item.version,
        item.state,
        item.evaluation_loss or item.final_loss,
        change(item.evaluation_loss, item.base_evaluation_loss),
        item.base_model.name,
        item.run_name,
        f"{item.created_time:%Y-%m-%d %H:%M:%SZ}",
        ",".join(item.aliases) or "-",
    )


def change(loss: str | None, base: str | None) -> str:
    """How much lower a loss is than the base's, like `-31 %`; `-` where that says nothing."""
    if loss is None or base is None or not float(base) > 0 or not math.isfinite(float(loss) / float(base)):
        return "-"
    return f"{100 * (float(loss) / float(base) - 1):+.0f} %"


async def _pull(client: PeopleClient, arguments: argparse.Namespace) -> str:
    name, reference = arguments.adapter
    target = arguments.to
    if target is None:
        version = await client.find_adapter(arguments.namespace, name, reference)
        reference, target = str(version.version), Path(f"{name}-v{version.version}")
    version = await client.pull(arguments.namespace, name, reference, target)
    if arguments.output == "json":
        return _json(version)
    return f"{version.name} version {version.version}: {len(version.files)} files, {version.bytes} bytes in {target}"


async def _verify(client: PeopleClient, arguments: argparse.Namespace) -> str:
    from finetune.clients.people import check_files

    name, reference = arguments.adapter
    version = await client.find_adapter(arguments.namespace, name, reference)
    check_files(arguments.directory, version)
    return f"{arguments.directory} is {version.name} version {version.version}, SHA-256 {version.sha256}"


async def _alias(client: PeopleClient, arguments: argparse.Namespace) -> str:
    name, alias = arguments.name, arguments.alias
    if arguments.remove:
        await client.remove_alias(arguments.namespace, name, alias, expected=arguments.expected)
        return f"removed {name}@{alias}"
    if arguments.version is None:
        found = await client.find_adapter(arguments.namespace, name, alias)
        return f"{name}@{alias} is version {found.version}"
    moved = await client.point_alias(
        arguments.namespace,
        name,
        alias,
        arguments.version,
        expected=arguments.expected,
        protected=arguments.protect,
    )
    return f"{name}@{alias} is version {moved.version}" + (", protected" if moved.protected else "")


async def _delete_adapter(client: PeopleClient, arguments: argparse.Namespace) -> str:
    name, version = arguments.adapter
    await client.delete_adapter(arguments.namespace, name, version)
    return f"deleted the files of {name} version {version}"


async def _show_adapter(client: PeopleClient, arguments: argparse.Namespace) -> str:
    name, reference = arguments.adapter
    item = await client.find_adapter(arguments.namespace, name, reference)
    if arguments.output == "json":
        return _json(item)
    dataset = f"{item.dataset_name}/{item.dataset.version}" if item.dataset_name else "not from the registry"
    facts = {
        "Adapter": f"{item.name} version {item.version}",
        "State": item.state + (f": {item.state_reason}" if item.state_reason else ""),
        "Aliases": ", ".join(item.aliases) or "-",
        "Id": item.id,
        "URI": item.uri,
        "SHA-256": item.sha256,
        "Bytes": item.bytes,
        "Base model": item.base_model.name + (f"@{item.base_model.revision}" if item.base_model.revision else ""),
        "Parent": f"{item.parent.name} version {item.parent.version}, SHA-256 {item.parent.sha256}"
        if item.parent
        else "-",
        "Run": f"{item.run_name} ({item.run_uid})",
        "Experiment": item.experiment,
        "Method": item.method,
        "Dataset": f"{dataset}, {item.dataset.rows} rows, SHA-256 {item.dataset.sha256}",
        "Final loss": item.final_loss,
        "Evaluation loss": item.evaluation_loss or "-",
        "Base model's": item.base_evaluation_loss or "-",
        "Against it": change(item.evaluation_loss, item.base_evaluation_loss),
        **_preference_facts(item),
        "Steps": item.steps if item.best_step is None else f"{item.steps}, the best is {item.best_step}",
        "Created": f"{item.created_time:%Y-%m-%d %H:%M:%SZ}",
    }
    files = _table(("FILE", "BYTES", "SHA256"), ((file.path, file.bytes, file.sha256) for file in item.files))
    parts = [_facts(facts), *_sources(item), files, *await _samples(client, arguments.namespace, item)]
    return _printable("\n\n".join(parts))


def _sources(item: AdapterVersion) -> list[str]:
    """The sources of a mix, and what became of their rows."""
    if not item.dataset.sources:
        return []
    rows = (
        (each.name, each.version or "-", each.rows, each.evaluation_rows, each.found, each.dropped)
        for each in item.dataset.sources
    )
    return [_table(SOURCE_COLUMNS, rows)]


async def _samples(client: PeopleClient, namespace: str, item: AdapterVersion) -> list[str]:
    """The answers to held-out prompts; who may not read the run is told so, and sees the rest."""
    from finetune.clients.registry import RegistryError

    try:
        samples = await client.samples(namespace, item.run_uid)
    except RegistryError as error:
        return [f"Sample answers are not shown: {error}"]
    return [_sample(each) for each in samples]


def _sample(sample: Sample) -> str:
    lines = [f"Asked, as in row {sample.row}" + (f" of {sample.file}" if sample.file else "")]
    for name, title in (("prompt", ""), ("reference", "the row"), ("base", "base"), ("adapter", "adapter")):
        text = getattr(sample, name)
        if text is not None:
            text += " ..." if name in sample.truncated else ""
            lines.append(f"  {title:<10}" + text.replace("\n", "\n" + " " * 12))
    return "\n".join(lines)


def _printable(text: str) -> str:
    """The text without what moves a terminal's cursor or turns the direction of writing: a run's pod has written it."""
    return _UNPRINTABLE.sub("\ufffd", text)


def _facts(facts: Mapping[str, object]) -> str:
    return "\n".join(f"{key + ':':17}{value}" for key, value in facts.items())


def _preference_facts(item: AdapterVersion) -> dict[str, str]:
    if item.reward_accuracy is None:
        return {}
    return {"Reward accuracy": item.reward_accuracy, "Reward margin": item.reward_margin or "-"}


def _json(item: DatasetVersion | AdapterVersion) -> str:
    return item.model_dump_json(by_alias=True, exclude_none=True, indent=2)


def _json_list(items: Sequence[DatasetVersion] | Sequence[AdapterVersion]) -> str:
    return json.dumps([item.model_dump(mode="json", by_alias=True, exclude_none=True) for item in items], indent=2)


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns as wide as their widest cell, two spaces apart, the way kubectl prints them."""
    cells = [columns, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(columns))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)
