"""`finetune adapters`: the adapters of the registry."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.api.losses import loss_change
from finetune.api.registry import AdapterVersion

from .output import document, facts, number, printable, table
from .session import Session, UsageError

if TYPE_CHECKING:
    from finetune.api.files import InterimAdapter
    from finetune.clients.people import Adapter, PeopleClient, Sample

COLUMNS = ("NAME", "VERSION", "STATE", "LOSS", "VS BASE", "BASE MODEL", "RUN", "CREATED", "ALIASES")
MORE = ("METHOD", "EXPERIMENT", "DATASET", "BYTES", "SHA256")
INTERIM_COLUMNS = ("NAME", "STEP", "LOSS", "VS BASE", "TRAIN LOSS", "BYTES", "CREATED", "KEPT AS")
SOURCE_COLUMNS = ("SOURCE", "VERSION", "ROWS", "HELD OUT", "FOUND", "DROPPED")


async def list_adapters(session: Session, arguments: argparse.Namespace) -> str:
    """The adapters of a namespace, the versions of one, or what a run that still trains has sent."""
    registry = await session.registry()
    if arguments.run is not None:
        if arguments.name is not None:
            raise UsageError("name an adapter, or a run with --run: not both")
        return _interim_list(await registry.interim_adapters(session.namespace, arguments.run), arguments.output)
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


def _plain(item: Adapter) -> dict[str, object]:
    return item.model_dump(mode="json", by_alias=True, exclude_none=True)


def _interim_list(items: Sequence[InterimAdapter], output: str) -> str:
    if output == "name":
        return "\n".join(item.reference for item in items)
    if output in {"json", "yaml"}:
        return document([_plain(item) for item in items], output)
    rows = (
        (
            item.reference,
            item.step,
            number(item.evaluation_loss),
            loss_change(item.evaluation_loss, item.base_evaluation_loss) or "-",
            number(item.train_loss),
            item.bytes,
            f"{item.created_time:%Y-%m-%d %H:%M:%SZ}",
            kept_as(item),
        )
        for item in items
    )
    return table(INTERIM_COLUMNS, rows)


def kept_as(item: InterimAdapter) -> str:
    """Why an adapter of a run that still trains is kept."""
    return ", ".join(word for word, true in (("best", item.best), ("newest", item.newest)) if true)


async def find(registry: PeopleClient, namespace: str, name: str, reference: str) -> Adapter:
    """A version by number, alias or `latest`, or what a run has sent while it trains, as `RUN/STEP`."""
    run, is_interim, step = reference.partition("/")
    if is_interim:
        return await registry.find_interim(namespace, name, run, step)
    return await registry.find_adapter(namespace, name, reference)


def called(adapter: Adapter) -> str:
    """What messages call it."""
    return f"{adapter.name} version {adapter.version}" if isinstance(adapter, AdapterVersion) else adapter.reference


def _brief(adapter: Adapter, output: str) -> str | None:
    """An adapter for programs; None where a person reads."""
    if output in {"json", "yaml"}:
        return document(_plain(adapter), output)
    if output == "name":
        return f"{adapter.name}@{adapter.version}" if isinstance(adapter, AdapterVersion) else adapter.reference
    return None


async def pull(session: Session, arguments: argparse.Namespace) -> str:
    """Fetch an adapter's files into a new directory."""
    registry = await session.registry()
    found = await find(registry, session.namespace, *arguments.adapter)
    target = arguments.to
    if target is None:
        of = f"v{found.version}" if isinstance(found, AdapterVersion) else f"{found.run_name}-{found.step}"
        target = Path(f"{found.name}-{of}")
    await registry.fetch(session.namespace, found, target)
    if (brief := _brief(found, arguments.output)) is not None:
        return brief
    return f"{called(found)}: {len(found.files)} files, {found.bytes} bytes in {target}"


async def verify(session: Session, arguments: argparse.Namespace) -> str:
    """Compare the files of a directory with what the registry recorded."""
    from finetune.clients.people import check_files

    found = await find(await session.registry(), session.namespace, *arguments.adapter)
    check_files(arguments.directory, found)
    if (brief := _brief(found, arguments.output)) is not None:
        return brief
    return f"{arguments.directory} is {called(found)}, SHA-256 {found.sha256}"


async def alias(session: Session, arguments: argparse.Namespace) -> str:
    """Say which version a name stands for, point it to another one, or remove it."""
    registry, name, alias = await session.registry(), arguments.name, arguments.alias
    if arguments.remove:
        await registry.remove_alias(session.namespace, name, alias, expected=arguments.expected)
        return f"removed {name}@{alias}"
    if arguments.version is None:
        found = await registry.find_adapter(session.namespace, name, alias)
        return _brief(found, arguments.output) or f"{name}@{alias} is version {found.version}"
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
    run, is_interim, step = str(version).partition("/")
    if is_interim:
        return f"deleted {(await registry.delete_interim(session.namespace, name, run, step)).reference}"
    await registry.delete_adapter(session.namespace, name, version)
    return f"deleted the files of {name} version {version}"


async def show_adapter(session: Session, arguments: argparse.Namespace) -> str:
    """One version of an adapter: files, losses, where it comes from, sample answers."""
    registry, (name, reference) = await session.registry(), arguments.adapter
    item = await find(registry, session.namespace, name, reference)
    if (brief := _brief(item, arguments.output)) is not None:
        return brief
    if not isinstance(item, AdapterVersion):
        return printable("\n\n".join([facts(_interim_facts(item)), _files(item)]))
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
    parts = [facts(known), *_sources(item), _files(item), *await _samples(registry, session.namespace, item)]
    return printable("\n\n".join(parts))


def _files(item: Adapter) -> str:
    return table(("FILE", "BYTES", "SHA256"), ((file.path, file.bytes, file.sha256) for file in item.files))


def _interim_facts(item: InterimAdapter) -> dict[str, object]:
    return {
        "Adapter": f"{item.reference}, as it was after step {item.step}",
        "Kept as": kept_as(item),
        "SHA-256": item.sha256,
        "Bytes": item.bytes,
        "Run": f"{item.run_name} ({item.run_uid})",
        "Training loss": item.train_loss or "-",
        "Evaluation loss": item.evaluation_loss,
        "Base model's": item.base_evaluation_loss or "-",
        "Against it": loss_change(item.evaluation_loss, item.base_evaluation_loss) or "-",
        "Created": f"{item.created_time:%Y-%m-%d %H:%M:%SZ}",
    }


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
