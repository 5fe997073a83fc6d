"""Runs: what the operator says about them, and the document that their trainer leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import JsonValue
from pydantic_core import from_json
from sqlalchemy import Select, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from finetune.api.registry import DatasetVersion, Run, RunRequest
from finetune.registry.database import Database
from finetune.registry.errors import (
    Conflict,
    DatasetChanged,
    Invalid,
    NotFound,
    ParentAdapterChanged,
    ParentAdapterNotFound,
    RunEnded,
)
from finetune.registry.schema import (
    adapter_versions,
    dataset_versions,
    datasets,
    experiments,
    run_parents,
    run_progress,
    run_results,
    runs,
)

from .adapters import ADAPTERS, adapters_of_runs, parent_of, refuse_withheld, with_parent
from .common import fields, insert_missing, named_row_locked, now, record, run_missing
from .datasets import DATASETS
from .outcomes import outcome_of


class RunStore:
    """Stores runs and gives them back."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, namespace: str, uid: str, request: RunRequest, *, actor: str) -> tuple[Run, bool]:
        """Record a run; returns it and whether it is new.

        Idempotent: the first call pins the versions of dataset and parent adapter and the spec, later ones change
        nothing. Raises `NotFound` for a dataset that does not exist, `ParentAdapterNotFound`, `DatasetChanged` and
        `ParentAdapterChanged` for one with another digest than the request's, and `Conflict` when the uid is another
        run's.
        """

        async def transaction(connection: AsyncConnection) -> bool:
            row = (await connection.execute(select_runs().where(runs.c.uid == uid))).first()
            if row is not None:
                _refuse_another(row, namespace, uid, request)
                return False
            pinned = None
            if request.dataset_name is not None:
                await DATASETS.hold(connection, namespace, request.dataset_name)
                pinned = await DATASETS.find(connection, namespace, request.dataset_name, request.dataset_version)
                _refuse_another_dataset(request, pinned.version, pinned.sha256)
            parent = await _find_parent(connection, namespace, request)
            experiment = await named_row_locked(
                connection,
                experiments,
                namespace=namespace,
                name=request.experiment,
                values={"created_time": now()},
            )
            query = insert(runs).values(
                uid=uid,
                namespace=namespace,
                name=request.name,
                experiment_id=experiment.id,
                method=request.method,
                dataset_version_id=None if pinned is None else pinned.id,
                spec=request.spec,
                base_model=base_model_of(request.spec),
                created_time=now(),
                ended=False,
            )
            identifier = (await connection.execute(query.returning(runs.c.id))).scalar_one()
            if parent is not None:
                await connection.execute(insert(run_parents).values(run_id=identifier, adapter_version_id=parent.id))
            details = {"uid": uid, "dataset": _label(pinned), "parentAdapter": _label(parent)}
            await record(
                connection,
                actor=actor,
                action="CreateRun",
                namespace=namespace,
                subject=request.name,
                details=details,
            )
            return True

        created = await self._database.write(transaction)
        return await self.get(namespace, uid), created

    async def get(self, namespace: str, uid: str) -> Run:
        """A run with its latest progress and its adapter. Raises `NotFound`."""
        async with self._database.reading() as connection:
            row = await find_run(connection, namespace, uid)
            return (await complete(connection, [row]))[0]

    async def dataset(self, namespace: str, uid: str) -> DatasetVersion:
        """The dataset version that was recorded for a run. Raises `NotFound`."""
        async with self._database.reading() as connection:
            run = await find_run(connection, namespace, uid)
            if run.dataset_name is None:
                raise NotFound(
                    f"run {run.name!r} reads no dataset of the registry",
                    hint="set spec.dataset.registry.name in the TrainingRun",
                )
            row = await DATASETS.find(connection, namespace, run.dataset_name, run.dataset_version)
        return DatasetVersion.model_validate(fields(row))

    async def put_result(self, namespace: str, uid: str, document: bytes, *, actor: str) -> None:
        """Keep a trainer's training_config.json, byte for byte.

        The last one wins, because a trainer that is started again writes it again; once the run's adapter is
        registered, or the run has ended, only the same document is accepted. Raises `Invalid`, `Conflict`, `RunEnded`,
        `NotFound`.
        """
        _check_result(document, uid)

        async def transaction(connection: AsyncConnection) -> None:
            run = await find_run(connection, namespace, uid, lock=True)
            stored = select(run_results.c.document).where(run_results.c.run_id == run.id)
            if (await connection.execute(stored)).scalar_one_or_none() == document:
                return
            if run.ended:
                raise RunEnded(
                    f"run {run.name!r} has ended: its result cannot change any more",
                    hint="create a new TrainingRun to train again",
                )
            registered = select(adapter_versions.c.id).where(adapter_versions.c.run_id == run.id)
            if (await connection.execute(registered)).first() is not None:
                raise Conflict(
                    f"the adapter of run {run.name!r} is registered; its result cannot change any more",
                    hint="create a new TrainingRun to train again",
                )
            values = {"document": document, "stored_time": now()}
            if not await insert_missing(connection, run_results, {"run_id": run.id, **values}):
                query = update(run_results).where(run_results.c.run_id == run.id)
                await connection.execute(query.values(**values))
            await record(
                connection,
                actor=actor,
                action="StoreResult",
                namespace=namespace,
                subject=run.name,
                details={"uid": uid, "bytes": len(document)},
            )

        await self._database.write(transaction)

    async def result(self, namespace: str, uid: str) -> bytes:
        """The document, byte for byte. Raises `NotFound` while there is none."""
        async with self._database.reading() as connection:
            run = await find_run(connection, namespace, uid)
            query = select(run_results.c.document).where(run_results.c.run_id == run.id)
            document: bytes | None = (await connection.execute(query)).scalar_one_or_none()
        if document is None:
            raise NotFound(
                f"run {run.name!r} has no result yet",
                hint="its trainer stores it when training has ended",
            )
        return document


async def find_run(connection: AsyncConnection, namespace: str, uid: str, *, lock: bool = False) -> Any:
    """The row of a run, with experiment and dataset; `lock` keeps others from writing to it. Raises `NotFound`."""
    query = select_runs().where(runs.c.uid == uid, runs.c.namespace == namespace)
    if lock:
        query = query.with_for_update(of=runs, key_share=True)
    row = (await connection.execute(query)).first()
    if row is None:
        raise run_missing(namespace, uid)
    return row


async def find_named_run(connection: AsyncConnection, namespace: str, name: str, *, lock: bool = False) -> Any:
    """The row of the run with this uid, else of the newest of this name, as `find_run` gives it. Raises `NotFound`."""
    by_name = select(runs.c.uid).where(runs.c.namespace == namespace, runs.c.name == name)
    newest = (await connection.execute(by_name.order_by(runs.c.id.desc()).limit(1))).scalar_one_or_none()
    by_uid = select(runs.c.uid).where(runs.c.namespace == namespace, runs.c.uid == name)
    exact = (await connection.execute(by_uid)).scalar_one_or_none()
    return await find_run(connection, namespace, exact or newest or name, lock=lock)


async def _find_parent(connection: AsyncConnection, namespace: str, request: RunRequest) -> Any:
    """The row of the adapter version that the run goes on from; None without one.

    Raises `ParentAdapterNotFound` and `ParentAdapterChanged`.
    """
    if request.parent_adapter_name is None:
        return None
    try:
        await ADAPTERS.hold(connection, namespace, request.parent_adapter_name)
        row = await ADAPTERS.find(connection, namespace, request.parent_adapter_name, request.parent_adapter_version)
        refuse_withheld(row)
    except NotFound as error:
        raise ParentAdapterNotFound(error.message, hint=error.hint) from None
    _refuse_another_parent(request, row.version, row.sha256)
    return row


def _refuse_another_parent(request: RunRequest, version: int, sha256: str) -> None:
    """A parent is what it was when it was found first, not whatever has its number now."""
    if request.parent_adapter_sha256 not in (None, sha256):
        raise ParentAdapterChanged(
            f"adapter {request.parent_adapter_name!r} version {version} is not the one that was recorded for the run: "
            f"its SHA-256 was {request.parent_adapter_sha256}, and now is {sha256}",
            hint="restore the registry's database from a backup that has the parent, or create the run under a new "
            "name to go on from the adapter that has the number now",
        )


def _refuse_another_dataset(request: RunRequest, version: int, sha256: str) -> None:
    """A dataset version is what it was when it was found first, not whatever has its number now."""
    if request.dataset_sha256 not in (None, sha256):
        raise DatasetChanged(
            f"dataset {request.dataset_name!r} version {version} is not the one that was recorded for the run: "
            f"its SHA-256 was {request.dataset_sha256}, and now is {sha256}",
            hint="restore the registry's database from a backup that has the dataset, or create the run under a new "
            "name to train on the rows that have the number now",
        )


def base_model_of(spec: Mapping[str, JsonValue]) -> str | None:
    """The repository or the folder that a spec's `baseModel` names; None where it names none that can be stored."""
    base = spec.get("baseModel")
    found = [
        source.get(field)
        for kind, fields_ in (("hub", ("repository",)), ("volume", ("path", "claimName")))
        if isinstance(base, dict) and isinstance(source := base.get(kind), dict)
        for field in fields_
    ]
    return next((name[:512] for name in found if isinstance(name, str) and name and "\0" not in name), None)


def adapter_name(spec: Any, experiment: str) -> str:
    """The adapter that a run makes a version of, as the operator names it."""
    adapter = spec.get("adapter") if isinstance(spec, dict) else None
    name = adapter.get("name") if isinstance(adapter, dict) else None
    return name if isinstance(name, str) and name else experiment


def _label(row: Any) -> str | None:
    return None if row is None else f"{row.name}/{row.version}"


def select_runs() -> Select[Any]:
    """Runs with the names of what they belong to; `complete` makes documents of the rows."""
    query = (
        select(
            runs,
            experiments.c.name.label("experiment"),
            datasets.c.name.label("dataset_name"),
            dataset_versions.c.version.label("dataset_version"),
            dataset_versions.c.sha256.label("dataset_sha256"),
        )
        .select_from(runs)
        .join(experiments, experiments.c.id == runs.c.experiment_id)
        .outerjoin(dataset_versions, dataset_versions.c.id == runs.c.dataset_version_id)
        .outerjoin(datasets, datasets.c.id == dataset_versions.c.dataset_id)
    )
    return with_parent(query)


async def complete(connection: AsyncConnection, rows: Sequence[Any]) -> list[Run]:
    """Runs with their progress and adapters, in two queries however many there are."""
    ids = [row.id for row in rows]
    query = select(run_progress).where(run_progress.c.run_id.in_(ids))
    progress = {row.run_id: row for row in await connection.execute(query)}
    adapters = await adapters_of_runs(connection, ids)
    return [
        Run.model_validate(
            {
                **fields(row),
                "parent_adapter": parent_of(row),
                "trainer_status": progress[row.id].trainer_status if row.id in progress else None,
                "metrics": progress[row.id].metric_names if row.id in progress else [],
                "outcome": outcome_of(row),
                "adapter": adapters.get(row.id),
            }
        )
        for row in rows
    ]


def _refuse_another(row: Any, namespace: str, uid: str, request: RunRequest) -> None:
    """A uid names one run for ever: refuse a request that describes another one."""
    known: dict[str, object] = {
        "namespace": row.namespace,
        "name": row.name,
        "experiment": row.experiment,
        "method": row.method,
    }
    asked: dict[str, object] = {
        "namespace": namespace,
        "name": request.name,
        "experiment": request.experiment,
        "method": request.method,
    }
    if request.dataset_name is not None or row.dataset_name is not None:
        known["dataset"], asked["dataset"] = row.dataset_name, request.dataset_name
    if request.dataset_version is not None:
        known["dataset version"], asked["dataset version"] = row.dataset_version, request.dataset_version
    if request.parent_adapter_name is not None or row.parent_name is not None:
        known["parent adapter"], asked["parent adapter"] = row.parent_name, request.parent_adapter_name
    if request.parent_adapter_version is not None:
        known["parent adapter version"] = row.parent_version
        asked["parent adapter version"] = request.parent_adapter_version
    different = [key for key, value in asked.items() if known[key] != value]
    if different:
        key = different[0]
        raise Conflict(
            f"run {uid} is recorded with {key} {known[key]!r}, not {asked[key]!r}",
            hint="a run never changes: use the uid of the TrainingRun, and the versions recorded for it",
        )
    if row.dataset_name is not None:
        _refuse_another_dataset(request, row.dataset_version, row.dataset_sha256)
    if row.parent_name is not None:
        _refuse_another_parent(request, row.parent_version, row.parent_sha256)


def _check_result(document: bytes, uid: str) -> None:
    try:
        parsed = from_json(document, allow_inf_nan=False)
    except ValueError as error:
        raise Invalid(f"the result is not valid JSON: {error}", hint="send training_config.json") from None
    result = parsed.get("result") if isinstance(parsed, dict) else None
    if not isinstance(result, dict):
        raise Invalid('the result has no object "result"', hint="send training_config.json as the trainer wrote it")
    if result.get("runUid") != uid:
        raise Invalid(
            f"the result belongs to run {str(result.get('runUid'))[:63]!r}, not to {uid!r}",
            hint="is the pod's claim mounted at another run's directory?",
        )
