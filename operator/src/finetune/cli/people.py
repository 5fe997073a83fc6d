"""`finetune dataset` and `finetune adapter`: what people ask the registry."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.clients.registry import AdapterVersion, DatasetVersion, RegistryClient

REGISTRY_URL = "FINETUNE_REGISTRY_URL"
TOKEN_FILE = "FINETUNE_TOKEN_FILE"  # noqa: S105 - the name of a variable
DEFAULT_URL = "http://127.0.0.1:8080"

Command = Callable[["RegistryClient", argparse.Namespace], Awaitable[str]]


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `dataset` and `adapter` with their sub-commands; each sets `handler`, from arguments to an exit code."""
    dataset = subparsers.add_parser("dataset", help="datasets in the registry")
    commands = dataset.add_subparsers(required=True, metavar="COMMAND")
    push = _add(commands, "push", _push, "store a file of JSON lines as a new version of a dataset")
    push.add_argument("name", help="the dataset; made when it does not exist")
    push.add_argument("file", type=Path, help="JSON lines: one JSON object a line")
    listing = _add(commands, "list", _list_datasets, "the datasets of a namespace, or the versions of one")
    listing.add_argument("name", nargs="?", help="list this dataset's versions")

    adapter = subparsers.add_parser("adapter", help="adapters in the registry")
    commands = adapter.add_subparsers(required=True, metavar="COMMAND")
    listing = _add(commands, "list", _list_adapters, "the adapters of a namespace, or the versions of one")
    listing.add_argument("name", nargs="?", help="list this adapter's versions")
    show = _add(commands, "show", _show_adapter, "one version of an adapter: files, losses, where it comes from")
    show.add_argument("name")
    show.add_argument("version", nargs="?", type=int, help="default: the newest")


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
    from finetune.clients.registry import RegistryClient, RegistryError, RegistryRefused

    token_file = arguments.token_file or os.environ.get(TOKEN_FILE)

    async def call() -> str:
        url = arguments.registry_url or os.environ.get(REGISTRY_URL) or DEFAULT_URL
        async with RegistryClient(base_url=url, token_file=Path(token_file) if token_file else None) as client:
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
        print(f"finetune: cannot read {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


async def _push(client: RegistryClient, arguments: argparse.Namespace) -> str:
    arguments.file.open("rb").close()  # what cannot be read fails here: the client would take it for a lost connection
    version, created = await client.push_dataset(arguments.namespace, arguments.name, arguments.file)
    if arguments.output == "json":
        return _json(version)
    done = "stored as" if created else "unchanged: it already is"
    return f"{done} {version.name} version {version.version} ({version.rows} rows, {version.shape})"


async def _list_datasets(client: RegistryClient, arguments: argparse.Namespace) -> str:
    if arguments.name is None:
        items = await client.list_datasets(arguments.namespace)
    else:
        items = await client.list_dataset_versions(arguments.namespace, arguments.name)
    if arguments.output == "json":
        return _json_list(items)
    return _table(("NAME", "VERSION", "ROWS", "BYTES", "SHAPE", "SHA256", "CREATED"), map(_dataset_row, items))


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


async def _list_adapters(client: RegistryClient, arguments: argparse.Namespace) -> str:
    if arguments.name is None:
        items = await client.list_adapters(arguments.namespace)
    else:
        items = await client.list_adapter_versions(arguments.namespace, arguments.name)
    if arguments.output == "json":
        return _json_list(items)
    columns = ("NAME", "VERSION", "LOSS", "EVALUATION", "BASE EVALUATION", "BASE MODEL", "RUN", "CREATED")
    return _table(columns, map(_adapter_row, items))


def _adapter_row(item: AdapterVersion) -> Sequence[object]:
    return (
        item.name,
        item.version,
        item.final_loss,
        item.evaluation_loss or "-",
        item.base_evaluation_loss or "-",
        item.base_model.name,
        item.run_name,
        f"{item.created_time:%Y-%m-%d %H:%M:%SZ}",
    )


async def _show_adapter(client: RegistryClient, arguments: argparse.Namespace) -> str:
    item = await client.get_adapter_version(arguments.namespace, arguments.name, arguments.version)
    if arguments.output == "json":
        return _json(item)
    dataset = f"{item.dataset_name}/{item.dataset.version}" if item.dataset_name else "not from the registry"
    facts = {
        "Adapter": f"{item.name} version {item.version}",
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
        **_preference_facts(item),
        "Steps": item.steps if item.best_step is None else f"{item.steps}, the best is {item.best_step}",
        "Created": f"{item.created_time:%Y-%m-%d %H:%M:%SZ}",
    }
    lines = [f"{key + ':':17}{value}" for key, value in facts.items()]
    files = _table(("FILE", "BYTES", "SHA256"), ((file.path, file.bytes, file.sha256) for file in item.files))
    return "\n".join([*lines, "", files])


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
