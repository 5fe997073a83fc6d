"""Adapters: named series of versions, one version for one successful run."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, insert, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from finetune.api.registry import (
    AdapterFile,
    AdapterLineage,
    AdapterRequest,
    AdapterVersion,
    AdapterVersions,
    BaseModelReference,
    DatasetFacts,
    ParentAdapter,
    RunResult,
    adapter_digest,
)
from finetune.registry.database import Database
from finetune.registry.errors import Conflict, DigestMismatch, Invalid, NotFound
from finetune.registry.schema import (
    adapter_aliases,
    adapter_files,
    adapter_versions,
    adapters,
    dataset_versions,
    datasets,
    experiments,
    run_parents,
    runs,
)

from .common import fields, named, now, record
from .files import settle
from .series import Series


class AdapterStore:
    """Stores adapters and gives them back."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def register(
        self, namespace: str, uid: str, request: AdapterRequest, *, actor: str
    ) -> tuple[AdapterVersion, bool]:
        """Register the adapter of a run; returns the version and whether it is new.

        Idempotent by the run's uid: the second call gives the version of the first. Numbers start at 1 and have
        neither gaps nor duplicates, however many runs finish at once. Raises `NotFound` for a run that was not
        recorded, `DigestMismatch`, `Invalid`, and `Conflict` when the run's adapter is another one.
        """
        _check(uid, request.result)

        async def transaction(connection: AsyncConnection) -> bool:
            # The run's row is the lock for its uid, the adapter's row the lock for its numbers; always in this order.
            query = select(runs).where(runs.c.uid == uid, runs.c.namespace == namespace).with_for_update()
            run = (await connection.execute(query)).first()
            if run is None:
                raise NotFound(f"run {uid!r} is not known in namespace {namespace!r}", hint=f"PUT runs/{uid} first")
            existing = (await connection.execute(_versions().where(adapter_versions.c.run_id == run.id))).first()
            if existing is not None:
                _refuse_another(existing, request)
                return False
            await _insert(connection, namespace, run, request, actor=actor)
            await settle(connection, run, actor=actor)
            return True

        created = await self._database.write(transaction)
        async with self._database.reading() as connection:
            row = (await connection.execute(_versions().where(runs.c.uid == uid))).one()
            return (await complete(connection, [row]))[0], created

    async def newest(self, namespace: str, *, after: str | None = None) -> AdapterVersions:
        """The newest version of each adapter, sorted by name."""
        async with self._database.reading() as connection:
            rows, more = await ADAPTERS.newest(connection, namespace, after)
            return AdapterVersions(items=await complete(connection, rows), continue_=more)

    async def versions(self, namespace: str, name: str, *, before: int | None = None) -> AdapterVersions:
        """The versions of an adapter, newest first. Raises `NotFound`."""
        async with self._database.reading() as connection:
            rows, more = await ADAPTERS.all_of(connection, namespace, name, before)
            return AdapterVersions(items=await complete(connection, rows), continue_=more)

    async def version(self, namespace: str, name: str, version: int | str | None) -> AdapterVersion:
        """One version, by number or alias; the newest that is offered when `version` is None. Raises `NotFound`."""
        async with self._database.reading() as connection:
            row = await find_version(connection, namespace, name, version)
            return (await complete(connection, [row]))[0]


async def adapters_of_runs(connection: AsyncConnection, run_ids: Sequence[int]) -> dict[int, AdapterVersion]:
    """The adapters of those runs that have one, by the run's row id."""
    rows = (await connection.execute(_versions().where(adapter_versions.c.run_id.in_(run_ids)))).all()
    versions = await complete(connection, rows)
    return {row.run_id: version for row, version in zip(rows, versions, strict=True)}


async def _insert(
    connection: AsyncConnection, namespace: str, run: Any, request: AdapterRequest, *, actor: str
) -> None:
    adapter = await ADAPTERS.locked(connection, namespace, request.adapter_name)
    version = await ADAPTERS.take_number(connection, adapter)
    result = request.result
    query = insert(adapter_versions).values(
        public_id=str(uuid.uuid4()),
        adapter_id=adapter.id,
        version=version,
        run_id=run.id,
        claim_name=request.claim_name,
        base_model_name=request.base_model.name,
        base_model_revision=request.base_model.revision,
        dataset_sha256=request.dataset.sha256,
        dataset=request.dataset.model_dump(mode="json", by_alias=True, exclude_none=True),
        sha256=result.adapter.sha256,
        bytes=result.adapter.bytes,
        final_loss=result.final_loss,
        evaluation_loss=result.evaluation_loss,
        base_evaluation_loss=result.base_evaluation_loss,
        reward_accuracy=result.reward_accuracy,
        reward_margin=result.reward_margin,
        steps=result.steps,
        best_step=result.best_step,
        tokens=result.tokens,
        resumed_from_step=result.resumed_from_step,
        created_time=now(),
        tags={},
        notes="",
    )
    identifier = (await connection.execute(query.returning(adapter_versions.c.id))).scalar_one()
    await connection.execute(
        insert(adapter_files),
        [{"adapter_version_id": identifier, **file.model_dump()} for file in result.adapter.files],
    )
    await record(
        connection,
        actor=actor,
        action="RegisterAdapter",
        namespace=namespace,
        subject=f"{request.adapter_name}/{version}",
        details={"runUid": run.uid, "sha256": result.adapter.sha256},
    )


def _check(uid: str, result: RunResult) -> None:
    """Refuse a result that contradicts itself: what is registered can be verified by anybody, for ever."""
    if result.run_uid != uid:
        raise Invalid(
            f"the result belongs to run {result.run_uid!r}, not to {uid!r}",
            hint="send the result of the run that the path names",
        )
    files = result.adapter.files
    paths = [file.path for file in files]
    if len(set(paths)) != len(paths):
        raise Invalid("a file of the adapter is listed twice", hint="list every file once")
    digest = adapter_digest(files)
    if digest != result.adapter.sha256:
        raise DigestMismatch(
            f"the adapter's sha256 is {result.adapter.sha256}, but its files give {digest}",
            hint="it is the SHA-256 of the lines '<sha256>  <path>' sorted by path, as sha256sum prints them",
        )
    size = sum(file.bytes for file in files)
    if size != result.adapter.bytes:
        raise DigestMismatch(
            f"the adapter has {result.adapter.bytes} bytes, but its files have {size}",
            hint="bytes is the sum over the files",
        )


def _refuse_another(existing: Any, request: AdapterRequest) -> None:
    known = (existing.name, existing.claim_name, existing.sha256)
    asked = (request.adapter_name, request.claim_name, request.result.adapter.sha256)
    if known != asked:
        raise Conflict(
            f"run {existing.run_uid} is registered as {existing.name}/{existing.version} on claim "
            f"{existing.claim_name} with sha256 {existing.sha256}; this is another adapter",
            hint="one run makes one adapter version: create a new TrainingRun to train again",
        )


_parents = adapter_versions.alias("parents")
_parent_names = adapters.alias("parent_names")
_parent_runs = runs.alias("parent_runs")
_parent_experiments = experiments.alias("parent_experiments")


def with_parent(query: Select[Any]) -> Select[Any]:
    """Add the recorded parent to a query on `runs`; `parent_of` reads it from the rows."""
    return (
        query.add_columns(
            _parent_names.c.name.label("parent_name"),
            _parents.c.version.label("parent_version"),
            _parents.c.sha256.label("parent_sha256"),
            _parents.c.claim_name.label("parent_claim_name"),
            _parent_experiments.c.name.label("parent_experiment"),
            _parent_runs.c.uid.label("parent_run_uid"),
            _parents.c.base_model_name.label("parent_base_model_name"),
            _parents.c.base_model_revision.label("parent_base_model_revision"),
        )
        .outerjoin(run_parents, run_parents.c.run_id == runs.c.id)
        .outerjoin(_parents, _parents.c.id == run_parents.c.adapter_version_id)
        .outerjoin(_parent_names, _parent_names.c.id == _parents.c.adapter_id)
        .outerjoin(_parent_runs, _parent_runs.c.id == _parents.c.run_id)
        .outerjoin(_parent_experiments, _parent_experiments.c.id == _parent_runs.c.experiment_id)
    )


def parent_of(row: Any) -> ParentAdapter | None:
    """The parent in a row of a query that went through `with_parent`."""
    if row.parent_name is None:
        return None
    return ParentAdapter(
        name=row.parent_name,
        version=row.parent_version,
        sha256=row.parent_sha256,
        uri=_uri(row.parent_claim_name, row.parent_experiment, row.parent_run_uid),
        base_model=BaseModelReference(name=row.parent_base_model_name, revision=row.parent_base_model_revision),
    )


def _uri(claim_name: str, experiment: str, run_uid: str) -> str:
    return f"pvc://{claim_name}/{experiment}/{run_uid}/adapter"


def _versions() -> Select[Any]:
    query = (
        select(
            adapter_versions,
            adapters.c.name,
            runs.c.uid.label("run_uid"),
            runs.c.name.label("run_name"),
            runs.c.method,
            experiments.c.name.label("experiment"),
            datasets.c.name.label("dataset_name"),
        )
        .select_from(adapter_versions)
        .join(adapters, adapters.c.id == adapter_versions.c.adapter_id)
        .join(runs, runs.c.id == adapter_versions.c.run_id)
        .join(experiments, experiments.c.id == runs.c.experiment_id)
        .outerjoin(dataset_versions, dataset_versions.c.id == runs.c.dataset_version_id)
        .outerjoin(datasets, datasets.c.id == dataset_versions.c.dataset_id)
    )
    return with_parent(query)


WITHHELD = ("Deleted", "Quarantined")

ADAPTERS = Series(
    noun="adapter",
    names=adapters,
    versions=adapter_versions,
    owner=adapter_versions.c.adapter_id,
    offered=or_(adapter_versions.c.mark.is_(None), adapter_versions.c.mark == "Deprecated"),
    query=_versions,
    how_to_make=lambda namespace, name: (
        f"it is made by the first run that succeeds with spec.adapter.name: {name}; list what there is with: "
        f"finetune adapters list -n {namespace}"
    ),
)


async def find_version(connection: AsyncConnection, namespace: str, name: str, version: int | str | None) -> Any:
    """The row of a version, by number, by alias, or the newest. Raises `NotFound`, naming the aliases that exist."""
    if not isinstance(version, str):
        return await ADAPTERS.find(connection, namespace, name, version)
    query = (
        select(adapter_aliases.c.alias, adapter_versions.c.version)
        .join(adapters, adapters.c.id == adapter_aliases.c.adapter_id)
        .join(adapter_versions, adapter_versions.c.id == adapter_aliases.c.adapter_version_id)
        .where(named(adapters, namespace, name))
    )
    known = {row.alias: row.version for row in await connection.execute(query)}
    if version in known:
        return await ADAPTERS.find(connection, namespace, name, known[version])
    await ADAPTERS.find(connection, namespace, name, None)  # says if there is no such adapter at all
    raise NotFound(
        f"adapter {name!r} in namespace {namespace!r} has no alias {version!r}",
        hint=f"its aliases: {', '.join(sorted(known)) or 'none yet'}; set one with: "
        f"finetune adapters alias {name} {version} VERSION -n {namespace}",
    )


def refuse_withheld(row: Any) -> None:
    """Deleted and quarantined versions are given to nobody: neither their files, nor as a parent. Raises `NotFound`."""
    if row.mark in WITHHELD:
        why = f": {row.mark_reason}" if row.mark_reason else ""
        raise NotFound(
            f"version {row.version} of adapter {row.name!r} was {row.mark.lower()} at "
            f"{row.marked_time:%Y-%m-%d %H:%M:%SZ}{why}",
            hint="use another version"
            if row.mark == "Deleted"
            else "use another version, or lift the mark: PATCH the version with mark null",
        )


async def complete(connection: AsyncConnection, rows: Sequence[Any]) -> list[AdapterVersion]:
    """Versions with their files and aliases, in two queries however many there are."""
    ids = [row.id for row in rows]
    pointing = select(adapter_aliases).where(adapter_aliases.c.adapter_version_id.in_(ids))
    aliases: defaultdict[int, list[str]] = defaultdict(list)
    for row in await connection.execute(pointing.order_by(adapter_aliases.c.alias)):
        aliases[row.adapter_version_id].append(row.alias)
    query = select(adapter_files).where(adapter_files.c.adapter_version_id.in_(ids)).order_by(adapter_files.c.path)
    files: defaultdict[int, list[AdapterFile]] = defaultdict(list)
    for row in await connection.execute(query):
        files[row.adapter_version_id].append(AdapterFile(path=row.path, bytes=row.bytes, sha256=row.sha256))
    return [
        AdapterVersion.model_validate(
            {
                **fields(row),
                "id": row.public_id,
                "uri": _uri(row.claim_name, row.experiment, row.run_uid),
                "parent": _lineage(parent_of(row)),
                "files": files[row.id],
                "state": state_of(row),
                "state_reason": row.mark_reason,
                "stored": row.stored_time is not None,
                "aliases": aliases[row.id],
                "base_model": BaseModelReference(name=row.base_model_name, revision=row.base_model_revision),
                "dataset": DatasetFacts.model_validate(row.dataset),
            }
        )
        for row in rows
    ]


def state_of(row: Any) -> str:
    """The state of a version: what was said of it, else whether the store has its files."""
    return row.mark or ("Ready" if row.stored_time is not None else "Registered")


def _lineage(parent: ParentAdapter | None) -> AdapterLineage | None:
    return None if parent is None else AdapterLineage(name=parent.name, version=parent.version, sha256=parent.sha256)
