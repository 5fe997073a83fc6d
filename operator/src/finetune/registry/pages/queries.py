"""What the pages read beside the stores: counts, outlines of curves, who uses what. By indices, not run by run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import and_, case, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from finetune.registry.database import Database
from finetune.registry.schema import (
    adapter_versions,
    adapters,
    audit,
    blobs,
    dataset_versions,
    datasets,
    experiments,
    metric_points,
    metrics,
    namespaces,
    run_files,
    run_parents,
    run_progress,
    runs,
)
from finetune.registry.store.outcomes import FORGOTTEN_KEY

MAX_NAMESPACES = 1000
MAX_LISTED = 200


class Part(NamedTuple):
    """A part of a curve: its first step, the lowest and the highest value there, and its last step."""

    step: int
    low: float
    high: float
    last: int


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Runs of a namespace by phase; None for those of which nothing was said yet."""

    by_phase: Mapping[str | None, int]

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.by_phase.values())

    def of(self, *phases: str) -> int:
        """Those of some phases."""
        return sum(self.by_phase.get(phase, 0) for phase in phases)


class PageQueries:
    """Reads for pages."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def namespaces(self) -> list[str]:
        """The namespaces that have runs, datasets or adapters, sorted."""
        found: set[str] = set()
        async with self._database.reading() as connection:
            for table in (runs, datasets, adapters):
                found |= set(await _distinct(connection, table.c.namespace))
        return sorted(name for name in found if not name.startswith(FORGOTTEN_KEY))

    async def counts(self, namespace: str) -> Counts:
        """How many runs there are of each phase."""
        query = select(runs.c.phase, func.count()).where(runs.c.namespace == namespace).group_by(runs.c.phase)
        async with self._database.reading() as connection:
            return Counts(by_phase={row[0]: row[1] for row in await connection.execute(query)})

    async def outlines(
        self, uids: Sequence[str], names: Sequence[str], *, parts: int
    ) -> dict[tuple[str, str], list[Part]]:
        """The shape of curves, by run's uid and metric: lowest and highest value of `parts` equal parts of the steps.

        As `thin` does it, but in the database: of a thousand points a few dozen come here.
        """
        part = metric_points.c.step * parts // (run_progress.c.step + 1)
        query = (
            select(
                runs.c.uid,
                metrics.c.name,
                func.min(metric_points.c.step),
                func.min(metric_points.c.value),
                func.max(metric_points.c.value),
                func.max(metric_points.c.step),
            )
            .select_from(runs)
            .join(run_progress, run_progress.c.run_id == runs.c.id)
            .join(metrics, metrics.c.name.in_(names))
            .join(metric_points, and_(metric_points.c.run_id == runs.c.id, metric_points.c.metric_id == metrics.c.id))
            .where(runs.c.uid.in_(uids), run_progress.c.step.is_not(None))
            .group_by(runs.c.uid, metrics.c.name, part)
        )
        found: defaultdict[tuple[str, str], list[Part]] = defaultdict(list)
        async with self._database.reading() as connection:
            for uid, name, *values in await connection.execute(query):
                found[uid, name].append(Part(*values))
        return {key: sorted(each) for key, each in found.items()}

    async def attempts(self, uid: str) -> list[Any]:
        """The attempts that have points of the loss: `attempt`, its `first` and `last` step, its first `seconds`."""
        query = (
            select(
                metric_points.c.attempt,
                func.min(metric_points.c.step).label("first"),
                func.max(metric_points.c.step).label("last"),
                func.min(metric_points.c.seconds).label("seconds"),
            )
            .join(runs, runs.c.id == metric_points.c.run_id)
            .join(metrics, metrics.c.id == metric_points.c.metric_id)
            .where(runs.c.uid == uid, metrics.c.name == "loss")
            .group_by(metric_points.c.attempt)
            .order_by(metric_points.c.attempt)
        )
        async with self._database.reading() as connection:
            return list((await connection.execute(query)).all())

    async def best(self, uids: Sequence[str], metric: str) -> dict[str, tuple[float, int]]:
        """The lowest value of a metric and its first step, by uid."""
        lowest = (
            select(metric_points.c.run_id, metric_points.c.metric_id, func.min(metric_points.c.value).label("value"))
            .join(runs, runs.c.id == metric_points.c.run_id)
            .join(metrics, metrics.c.id == metric_points.c.metric_id)
            .where(runs.c.uid.in_(uids), metrics.c.name == metric)
            .group_by(metric_points.c.run_id, metric_points.c.metric_id)
            .subquery()
        )
        at = and_(
            metric_points.c.run_id == lowest.c.run_id,
            metric_points.c.metric_id == lowest.c.metric_id,
            metric_points.c.value == lowest.c.value,
        )
        query = (
            select(runs.c.uid, lowest.c.value, func.min(metric_points.c.step))
            .select_from(lowest)
            .join(metric_points, at)
            .join(runs, runs.c.id == lowest.c.run_id)
            .group_by(runs.c.uid, lowest.c.value)
        )
        async with self._database.reading() as connection:
            return {uid: (value, step) for uid, value, step in await connection.execute(query)}

    async def runs_of_dataset(self, namespace: str, name: str, version: int) -> list[Any]:
        """The newest runs that trained on a version: `name`, `uid`, `phase`, `ended`."""
        query = (
            select(runs.c.name, runs.c.uid, runs.c.phase, runs.c.ended)
            .join(dataset_versions, dataset_versions.c.id == runs.c.dataset_version_id)
            .join(datasets, datasets.c.id == dataset_versions.c.dataset_id)
            .where(datasets.c.namespace == namespace, datasets.c.name == name, dataset_versions.c.version == version)
            .order_by(runs.c.id.desc())
            .limit(MAX_LISTED)
        )
        return await self._all(query)

    async def runs_of_versions(self, namespace: str, name: str) -> dict[int, int]:
        """How many runs trained on each version of a dataset."""
        query = (
            select(dataset_versions.c.version, func.count().label("runs"))
            .select_from(datasets)
            .join(dataset_versions, dataset_versions.c.dataset_id == datasets.c.id)
            .join(runs, runs.c.dataset_version_id == dataset_versions.c.id)
            .where(datasets.c.namespace == namespace, datasets.c.name == name)
            .group_by(dataset_versions.c.version)
        )
        rows = await self._all(query)
        return {row.version: row.runs for row in rows}

    async def users_of_adapter(self, namespace: str, name: str, version: int) -> list[Any]:
        """The newest runs that went on from a version: `name`, `uid`, `phase`."""
        query = (
            select(runs.c.name, runs.c.uid, runs.c.phase)
            .select_from(adapters)
            .join(adapter_versions, adapter_versions.c.adapter_id == adapters.c.id)
            .join(run_parents, run_parents.c.adapter_version_id == adapter_versions.c.id)
            .join(runs, runs.c.id == run_parents.c.run_id)
            .where(adapters.c.namespace == namespace, adapters.c.name == name, adapter_versions.c.version == version)
            .order_by(runs.c.id.desc())
            .limit(MAX_LISTED)
        )
        return await self._all(query)

    async def experiments(self, namespace: str, *, after: str | None) -> list[Any]:
        """Experiments by name: `name`, `count`, `best` held-out loss, `newest` creation; one more than a page."""
        query = (
            select(
                experiments.c.name,
                func.count(runs.c.id).label("count"),
                func.min(runs.c.evaluation_loss).label("best"),
                func.max(runs.c.created_time).label("newest"),
            )
            .join(runs, runs.c.experiment_id == experiments.c.id)
            .where(experiments.c.namespace == namespace)
            .group_by(experiments.c.id, experiments.c.name)
            .order_by(experiments.c.name)
            .limit(MAX_LISTED + 1)
        )
        return await self._all(query if after is None else query.where(experiments.c.name > after))

    async def storage(self) -> list[dict[str, Any]]:
        """What each namespace keeps: runs, bytes of datasets, bytes of stored adapters."""
        counted = select(runs.c.namespace, func.count(), func.sum(case((runs.c.ended, 0), else_=1)))
        rows_of = (
            select(datasets.c.namespace, func.count(), func.sum(dataset_versions.c.bytes))
            .join(dataset_versions, dataset_versions.c.dataset_id == datasets.c.id)
            .where(dataset_versions.c.deleted_time.is_(None))
        )
        held = (
            select(adapters.c.namespace, func.count(), func.sum(adapter_versions.c.bytes))
            .join(adapter_versions, adapter_versions.c.adapter_id == adapters.c.id)
            .where(adapter_versions.c.stored_time.is_not(None))
        )
        found: defaultdict[str, dict[str, Any]] = defaultdict(
            lambda: {"runs": 0, "unfinished": 0, "datasets": 0, "dataset_bytes": 0, "adapters": 0, "adapter_bytes": 0}
        )
        for query, keys, column in (
            (counted, ("runs", "unfinished"), runs.c.namespace),
            (rows_of, ("datasets", "dataset_bytes"), datasets.c.namespace),
            (held, ("adapters", "adapter_bytes"), adapters.c.namespace),
        ):
            for namespace, *values in await self._all(query.group_by(column).limit(MAX_NAMESPACES)):
                found[namespace] |= {key: int(value or 0) for key, value in zip(keys, values, strict=True)}
        return [{"namespace": name, **values} for name, values in sorted(found.items())]

    async def store_totals(self) -> dict[str, int]:
        """Files that the store holds, their bytes, and those that were announced and have not come."""
        query = select(func.count(), func.sum(blobs.c.bytes)).where(blobs.c.stored)
        waiting = select(func.count()).select_from(run_files).where(run_files.c.held.is_(False))
        (count, total), (missing,) = (await self._all(query))[0], (await self._all(waiting))[0]
        return {"files": int(count), "bytes": int(total or 0), "awaited": int(missing)}

    async def former_namespaces(self) -> list[Any]:
        """Namespaces that are gone, whose rows are kept: `key`, `name`, `retired_time`."""
        query = select(namespaces.c.key, namespaces.c.name, namespaces.c.retired_time)
        return await self._all(query.where(namespaces.c.retired_time.is_not(None)).limit(MAX_NAMESPACES))

    async def audit(self, *, namespace: str | None, before: int | None, limit: int) -> list[Any]:
        """The newest entries of the audit trail, one more than `limit`."""
        query = select(audit).order_by(audit.c.id.desc()).limit(limit + 1)
        if namespace is not None:
            query = query.where(audit.c.namespace == namespace)
        return await self._all(query if before is None else query.where(audit.c.id < before))

    async def _all(self, query: Any) -> list[Any]:
        async with self._database.reading() as connection:
            return list((await connection.execute(query)).all())


async def _distinct(connection: AsyncConnection, column: Any) -> list[str]:
    """The values of a column, each found by one step in its index instead of by reading all rows."""
    found: list[str] = []
    query = select(func.min(column))
    while len(found) < MAX_NAMESPACES:
        value = (await connection.execute(query.where(column > found[-1]) if found else query)).scalar()
        if value is None:
            break
        found.append(value)
    return found
