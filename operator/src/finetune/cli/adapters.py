"""`finetune adapters`: the adapters of the registry."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.api.losses import loss_change

from .output import document, facts, number, printable, table
from .session import Session

if TYPE_CHECKING:
    from finetune.clients.people import PeopleClient, Sample
    from finetune.clients.registry import AdapterVersion

COLUMNS = ("NAME", "VERSION", "STATE", "LOSS", "VS BASE", "BASE MODEL", "RUN", "CREATED", "ALIASES")
MORE = ("METHOD", "EXPERIMENT", "DATASET", "BYTES", "SHA256")
SOURCE_COLUMNS = ("SOURCE", "VERSION", "ROWS", "HELD OUT", "FOUND", "DROPPED")


async def list_adapters(session: Session, arguments: argparse.Namespace) -> str:
    """The adapters of a namespace, or the versions of one."""
    registry = await session.registry()
    if arguments.name is None:
        items = await registry.list_adapters(session.namespace)
    else:
        items = await registry.list_adapter_versions(session.namespace, arguments.name)
    if arguments.output == "name":
        return "\n".join(f"{item.name}@{item.version}" for item in items)
    if arguments.output in {"json", "yaml"}:
        return document([_plain(item) for item in items], arguments.output)
    wide = arguments.output == "wide"
    return table((*COLUMNS, *MORE) if wide else COLUMNS, (_row(item, wide=wide) for item in items))


def _row(item: AdapterVersion, *, wide: bool) -> Sequence[object]:
    return (
        item.name,
        item.version,
        item.state,
        number(item.evaluation_loss or item.final_loss),
        loss_change(item.evaluation_loss, item.base_evaluation_loss) or "-",
        item.base_model.name,
        item.run_name,
        f"{item.created_time:%Y-%m-%d %H:%M:%SZ}",
        ",".join(item.aliases) or "-",
        *((item.method, item.experiment, _dataset(item), item.bytes, item.sha256[:12]) if wide else ()),
    )


def _plain(item: AdapterVersion) -> dict[str, object]:
    return item.model_dump(mode="json", by_alias=True, exclude_none=True)


async def pull(session: Session, arguments: argparse.Namespace) -> str:
    """Fetch an adapter's files into a new directory."""
    registry, (name, reference) = await session.registry(), arguments.adapter
    target = arguments.to
    if target is None:
        version = await registry.find_adapter(session.namespace, name, reference)
        reference, target = str(version.version), Path(f"{name}-v{version.version}")
    version = await registry.pull(session.namespace, name, reference, target)
    if arguments.output in {"json", "yaml"}:
        return document(_plain(version), arguments.output)
    return f"{version.name} version {version.version}: {len(version.files)} files, {version.bytes} bytes in {target}"


async def verify(session: Session, arguments: argparse.Namespace) -> str:
    """Compare the files of a directory with what the registry recorded."""
    from finetune.clients.people import check_files

    registry, (name, reference) = await session.registry(), arguments.adapter
    version = await registry.find_adapter(session.namespace, name, reference)
    check_files(arguments.directory, version)
    return f"{arguments.directory} is {version.name} version {version.version}, SHA-256 {version.sha256}"


async def alias(session: Session, arguments: argparse.Namespace) -> str:
    """Say which version a name stands for, point it to another one, or remove it."""
    registry, name, alias = await session.registry(), arguments.name, arguments.alias
    if arguments.remove:
        await registry.remove_alias(session.namespace, name, alias, expected=arguments.expected)
        return f"removed {name}@{alias}"
    if arguments.version is None:
        found = await registry.find_adapter(session.namespace, name, alias)
        return f"{name}@{alias} is version {found.version}"
    moved = await registry.point_alias(
        session.namespace,
        name,
        alias,
        arguments.version,
        expected=arguments.expected,
        protected=arguments.protect,
    )
    return f"{name}@{alias} is version {moved.version}" + (", protected" if moved.protected else "")


async def delete_adapter(session: Session, arguments: argparse.Namespace) -> str:
    """Delete the files of a version."""
    registry, (name, version) = await session.registry(), arguments.adapter
    await registry.delete_adapter(session.namespace, name, version)
    return f"deleted the files of {name} version {version}"


async def show_adapter(session: Session, arguments: argparse.Namespace) -> str:
    """One version of an adapter: files, losses, where it comes from, sample answers."""
    registry, (name, reference) = await session.registry(), arguments.adapter
    item = await registry.find_adapter(session.namespace, name, reference)
    if arguments.output in {"json", "yaml"}:
        return document(_plain(item), arguments.output)
    known: dict[str, object] = {
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
        "Dataset": f"{_dataset(item)}, {item.dataset.rows} rows, SHA-256 {item.dataset.sha256}",
        "Final loss": item.final_loss,
        "Evaluation loss": item.evaluation_loss or "-",
        "Base model's": item.base_evaluation_loss or "-",
        "Against it": loss_change(item.evaluation_loss, item.base_evaluation_loss) or "-",
        **_preference_facts(item),
        "Steps": item.steps if item.best_step is None else f"{item.steps}, the best is {item.best_step}",
        "Created": f"{item.created_time:%Y-%m-%d %H:%M:%SZ}",
    }
    files = table(("FILE", "BYTES", "SHA256"), ((file.path, file.bytes, file.sha256) for file in item.files))
    parts = [facts(known), *_sources(item), files, *await _samples(registry, session.namespace, item)]
    return printable("\n\n".join(parts))


def _dataset(item: AdapterVersion) -> str:
    return f"{item.dataset_name}/{item.dataset.version}" if item.dataset_name else "not from the registry"


def _sources(item: AdapterVersion) -> list[str]:
    """The sources of a mix, and what became of their rows."""
    if not item.dataset.sources:
        return []
    rows = (
        (each.name, each.version or "-", each.rows, each.evaluation_rows, each.found, each.dropped)
        for each in item.dataset.sources
    )
    return [table(SOURCE_COLUMNS, rows)]


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


def _preference_facts(item: AdapterVersion) -> dict[str, str]:
    if item.reward_accuracy is None:
        return {}
    return {"Reward accuracy": item.reward_accuracy, "Reward margin": item.reward_margin or "-"}
