"""`finetune run` and `finetune retry`: make a run from flags, a file, or an earlier run."""

from __future__ import annotations

import argparse
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

from .manifest import Document, build, changed, check, copied, from_file, manifest
from .output import document
from .runs import find_run
from .session import Result, Session, UsageError, note
from .views import RunView

_FLAGS = {"method": "--method", "model": "--model", "dataset": "--dataset"}
_ONLY_FLAGS = ("model", "dataset", "adapter", "parent", "experiment", "gpus", "memory", "queue")


async def run(session: Session, arguments: argparse.Namespace) -> Result:
    """Make a run, or print its manifest."""
    made = await described(session, arguments)
    made["spec"] = changed(made["spec"], arguments.set)
    check(made["spec"])
    return await _submit(session, arguments, made)


async def retry(session: Session, arguments: argparse.Namespace) -> Result:
    """Make a run that goes on from a failed run's newest checkpoint."""
    before = await find_run(session, arguments.run)
    if not before.is_over:
        raise UsageError(f"{before.name} has not ended ({before.phase}); `finetune watch {before.name}` shows it")
    if before.phase == "Succeeded":
        raise UsageError(f"{before.name} has succeeded; `finetune run --from {before.name}` makes another one like it")
    spec = changed(again(before), arguments.set)
    check(spec)
    note(_begins(before, (spec.get("resumeFrom") or {}).get("run")))
    made = manifest(spec, name=arguments.name, namespace=session.namespace, stem=before.name)
    return await _submit(session, arguments, made)


def again(before: RunView) -> Document:
    """The spec of a run that goes on from a failed one, where that has left a checkpoint and its object."""
    spec = copied(before.spec, name=before.name)
    if before.checkpoint and before.in_cluster:
        spec["resumeFrom"] = {"run": before.name}
    elif before.spec.get("resumeFrom"):  # it came no further than where it began
        spec["resumeFrom"] = deepcopy(before.spec["resumeFrom"])
    return spec


def _begins(before: RunView, resumed: str | None) -> str:
    """Where the new run begins, in a sentence."""
    if resumed == before.name:
        return f"it goes on from step {before.checkpoint} of {before.name}"
    if resumed:
        return f"it goes on from {resumed}, as {before.name} did; --set resumeFrom= starts anew"
    why = "has left no checkpoint" if before.in_cluster else "was deleted, and only its record is left"
    return f"{before.name} {why}: it starts anew"


async def described(session: Session, arguments: argparse.Namespace) -> Document:
    """The manifest that the arguments begin with, before `--set`. Raises UsageError."""
    given = [f"--{name}" for name in _ONLY_FLAGS if getattr(arguments, name) is not None]
    if arguments.from_run and arguments.filename:
        raise UsageError("--from and --filename are two ways to begin: give one of them")
    if (arguments.from_run or arguments.filename) and given:
        raise UsageError(f"{', '.join(given)}: with --from or --filename a setting is changed by --set PATH=VALUE")
    if arguments.from_run:
        before = await find_run(session, arguments.from_run)
        spec = copied(before.spec, name=before.name)
        return manifest(spec, name=arguments.name, namespace=session.namespace, stem=before.adapter_name)
    if arguments.filename:
        return _of_file(session, arguments)
    missing = [flag for name, flag in _FLAGS.items() if getattr(arguments, name) is None]
    if missing:
        raise UsageError(f"{', '.join(missing)} missing; or begin with --from RUN or --filename FILE")
    if arguments.adapter is None and arguments.experiment is None:
        note("without --adapter the adapter is named after the run, and is always version 1")
    spec = build(method=arguments.method, **{name: getattr(arguments, name) for name in _ONLY_FLAGS})
    namespace = session.namespace if arguments.dry_run != "client" else arguments.namespace
    stem = arguments.adapter or arguments.experiment or "run"
    return manifest(spec, name=arguments.name, namespace=namespace, stem=stem)


def _of_file(session: Session, arguments: argparse.Namespace) -> Document:
    import yaml

    source = arguments.filename
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
        documents = list(yaml.safe_load_all(text))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{source} is no YAML: {error}") from error
    made = from_file(documents, source=source)
    made.pop("status", None)
    metadata = made["metadata"]
    if arguments.name:
        metadata.pop("generateName", None)
        metadata["name"] = arguments.name
    if arguments.namespace and metadata.get("namespace", arguments.namespace) != arguments.namespace:
        raise UsageError(f"{source} is for namespace {metadata['namespace']}, and --namespace={arguments.namespace}")
    if arguments.dry_run != "client":
        metadata.setdefault("namespace", session.namespace)
    return made


async def _submit(session: Session, arguments: argparse.Namespace, made: Document) -> Result:
    """Create the run as far as `--dry-run` lets it, and say so."""
    from finetune.clients.cluster import runs_path

    if arguments.dry_run == "client":
        return document(made, "json" if arguments.output == "json" else "yaml")
    query: dict[str, str] = {"fieldValidation": "Strict", "fieldManager": "finetune"}
    if arguments.dry_run == "server":
        query["dryRun"] = "All"
    namespace = made["metadata"]["namespace"]
    created: dict[str, Any] = await (await session.cluster()).create(runs_path(namespace), made, **query)
    name = created["metadata"]["name"]
    if arguments.output in {"json", "yaml"}:
        created["metadata"].pop("managedFields", None)
        return document(created, arguments.output)
    if arguments.output == "name":
        said = f"trainingrun/{name}"
    elif arguments.dry_run == "server":
        said = f"{name} would be made (server dry run)"
    else:
        said = f"made {name}" + ("" if arguments.watch else f"; `finetune watch {name}` shows how it goes")
    if not arguments.watch or arguments.dry_run != "none":
        return said
    from .watching import follow

    print(said, flush=True)
    return await follow(session, name, namespace=namespace)
