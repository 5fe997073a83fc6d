"""`finetune adapters export` and `finetune registry export`: what the registry has, for other systems."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .export.destinations import Artifact, Folder
from .output import document
from .session import Result, Session, UsageError, fail, note

if TYPE_CHECKING:
    from finetune.api.registry import AdapterVersion, Run, Series
    from finetune.clients.docker_config import Credentials
    from finetune.clients.people import PeopleClient

POINTS = 2000
"""Of a metric the registry keeps no more."""
METRICS_A_CALL = 8
DONE = {
    "made": "new",
    "updated": "brought up to date",
    "unchanged": "unchanged",
    "deleted": "deleted in MLflow and left so",
}


async def export_adapter(session: Session, arguments: argparse.Namespace) -> Result:
    """Write an adapter as a Hugging Face folder, or push it as an OCI artifact."""
    from finetune.clients.docker_config import DockerConfigError
    from finetune.clients.oci import OciError

    given = [flag for flag in ("username", "password_file", "plain_http") if getattr(arguments, flag)]
    if isinstance(arguments.to, Folder):
        if given:
            raise UsageError(f"--{given[0].replace('_', '-')} is for oci://")
        return await _to_folder(session, arguments, arguments.to.path)
    try:
        return await _to_registry(session, arguments, arguments.to)
    except OciError as error:
        return fail(str(error), error.hint)
    except DockerConfigError as error:
        return fail(str(error), code=2)


async def export_registry(session: Session, arguments: argparse.Namespace) -> Result:
    """Write the runs of a namespace to MLflow."""
    from .export.mlflow_store import MlflowError, MlflowStore
    from .export.tracking import tracked

    try:
        import asyncio

        store = await asyncio.to_thread(MlflowStore, arguments.to)
        registry, done = await session.registry(), Counter[str]()
        wanted = {"experiment": arguments.experiment} if arguments.experiment else {}
        for listed in await registry.list_runs(session.namespace, sort="created", **wanted):
            run = await registry.get_run(session.namespace, listed.uid)
            series = await _series(registry, session.namespace, run)
            done[await asyncio.to_thread(store.write, tracked(run, series, namespace=session.namespace))] += 1
    except MlflowError as error:
        return fail(str(error))
    if arguments.output in {"json", "yaml"}:
        return document({name: done[name] for name in DONE}, arguments.output)
    told = ", ".join(f"{done[name]} {text}" for name, text in DONE.items() if done[name])
    return f"{done.total()} runs of {session.namespace} in {arguments.to}" + (f": {told}" if told else "")


async def _series(registry: PeopleClient, namespace: str, run: Run) -> list[Series]:
    """All points of a run that the registry has."""
    names = [name for name in run.metrics if "," not in name]  # which cannot be asked for
    found: list[Series] = []
    for start in range(0, len(names), METRICS_A_CALL):
        asked = ",".join(names[start : start + METRICS_A_CALL])
        found += (await registry.series(namespace, run.uid, asked, points=POINTS)).items
    return found


async def _to_folder(session: Session, arguments: argparse.Namespace, target: Path) -> str:
    from .export.card import CARD, CONFIG, model_card, notes_of

    if os.path.lexists(target):  # noqa: ASYNC240 - one call, a local path
        raise UsageError(f"{target} exists already: name a new directory")
    registry, (name, reference) = await session.registry(), arguments.adapter
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        pulled = Path(folder) / "adapter"
        version = await registry.pull(session.namespace, name, reference, pulled)
        card, config = pulled / CARD, _config(pulled / CONFIG)
        notes = notes_of(card.read_text(encoding="utf-8", errors="replace")) if card.exists() else []
        run = await _run(registry, session.namespace, version)
        card.write_text(model_card(version, run=run, config=config, notes=notes), encoding="utf-8")
        pulled.rename(target)
    if arguments.output in {"json", "yaml"}:
        return document(version.model_dump(mode="json", by_alias=True, exclude_none=True), arguments.output)
    return f"{version.name} version {version.version} in {target}: `hf upload OWNER/NAME {target}` puts it on the hub"


def _config(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"the adapter has no {path.name} that can be read, and PEFT loads none without: {error}"
        ) from error
    return found if isinstance(found, dict) else {}


async def _run(registry: PeopleClient, namespace: str, version: AdapterVersion) -> Run | None:
    """The run of a version; who may not read it gets a card that says less."""
    from finetune.clients.registry_errors import RegistryError

    try:
        return await registry.get_run(namespace, version.run_uid)
    except RegistryError as error:
        note(f"the card does not say all of the run: {error}")
        return None


async def _to_registry(session: Session, arguments: argparse.Namespace, to: Artifact) -> str:
    from finetune.clients.oci import OciClient

    from .export.artifact import EMPTY, EMPTY_DIGEST, MANIFEST_TYPE, manifest_of

    credentials = _credentials(arguments, to.host)
    plain = arguments.plain_http or to.is_loopback
    registry, (name, reference) = await session.registry(), arguments.adapter
    with tempfile.TemporaryDirectory(prefix="finetune-") as folder:
        pulled = Path(folder) / "adapter"
        version = await registry.pull(session.namespace, name, reference, pulled)
        async with OciClient(to.host, to.repository, credentials=credentials, plain_http=plain) as client:
            sent = [await client.push_file(f"sha256:{each.sha256}", pulled / each.path) for each in version.files]
            await client.push_bytes(EMPTY_DIGEST, EMPTY)
            digest = await client.push_manifest(to.tag, manifest_of(version), media_type=MANIFEST_TYPE)
    if arguments.output in {"json", "yaml"}:
        facts = {"reference": str(to), "digest": digest, "name": version.name, "version": version.version}
        return document(facts, arguments.output)
    if arguments.output == "name":
        return f"{to.host}/{to.repository}@{digest}"
    return f"{version.name} version {version.version} in {to}, {sum(sent)} of {len(sent)} files sent, {digest}"


def _credentials(arguments: argparse.Namespace, host: str) -> Credentials | None:
    from finetune.clients.docker_config import Credentials, find_credentials

    if arguments.username is None and arguments.password_file is None:
        return find_credentials(host, os.environ)
    if not arguments.username or not arguments.password_file:
        raise UsageError("give --username and --password-file together; - reads the password from standard input")
    file = arguments.password_file
    text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    return Credentials(arguments.username, text.rstrip("\r\n"))
