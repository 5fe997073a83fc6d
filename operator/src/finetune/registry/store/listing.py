"""Lists of runs: filtered, sorted, and paged by a token that only fits the list that it came from."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, literal, or_, select, tuple_, union

from finetune.api.registry import Run, Runs
from finetune.registry.database import Database
from finetune.registry.errors import Invalid
from finetune.registry.schema import dataset_versions, datasets, experiments, runs

from .common import PAGE_SIZE, run_missing
from .runs import complete, find_named_run, select_runs

SORTS: dict[str, ColumnElement[Any]] = {
    "created": runs.c.id,
    "name": runs.c.name,
    "finished": runs.c.finished_time,
    "evaluationLoss": runs.c.evaluation_loss,
}
"""What a list can be sorted by; with `-` in front the other way round."""
NULLABLE = frozenset({runs.c.finished_time, runs.c.evaluation_loss})
"""Of these, the columns that a run may have nothing in; it stands at the end then, whichever way it is sorted."""
UNKNOWN_PHASE = "Unknown"
"""The state of a run of which the operator has not said anything."""


@dataclass(frozen=True, kw_only=True)
class RunFilter:
    """Which runs, and in what order. Everything that is given must fit."""

    states: tuple[str, ...] = ()
    """Phases, any of them."""
    experiment: str | None = None
    dataset: str | None = None
    """Name of a dataset of the registry, or `name/version`."""
    base_model: str | None = None
    name: str | None = None
    method: str | None = None
    archived: bool | None = None
    """Whether somebody has archived it; None: either."""
    text: str | None = None
    """Stands in the name, the experiment, the base model, the reason or the message; case does not matter."""
    sort: str = "-created"
    """A key of `SORTS`."""

    def digest(self) -> str:
        """Something that differs for every other filter."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


class RunLists:
    """Gives back recorded runs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, namespace: str, name: str) -> Run:
        """The run with this uid, else the newest of this name. Raises `NotFound`."""
        async with self._database.reading() as connection:
            row = await find_named_run(connection, namespace, name)
            return (await complete(connection, [row]))[0]

    async def find_all(self, namespace: str, names: list[str]) -> list[Run]:
        """Runs by uid or name, as in `find`, in that order. Raises `NotFound`, naming the first that is not there."""
        query = select_runs().where(_named(namespace, names)).order_by(runs.c.id)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
            by_name = {row.name: row for row in rows} | {row.uid: row for row in rows}
            for name in names:
                if name not in by_name:
                    raise run_missing(namespace, name)
            return await complete(connection, [by_name[name] for name in names])

    async def uids_of(self, namespace: str, names: list[str]) -> list[str]:
        """The uids of runs by uid or name, as in `find`; those that are not known are left out."""
        query = select(runs.c.uid, runs.c.name).where(_named(namespace, names)).order_by(runs.c.id)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        by_name = {row.name: row.uid for row in rows} | {row.uid: row.uid for row in rows}
        return [by_name[name] for name in names if name in by_name]

    async def page(
        self, namespace: str, wanted: RunFilter, *, limit: int = PAGE_SIZE, token: str | None = None
    ) -> Runs:
        """At most `limit` runs, and where the next ones are. Raises `Invalid` for a token of another list."""
        query = _filtered(select_runs().where(runs.c.namespace == namespace), wanted)
        after = None if token is None else _read(token, wanted)
        rows: list[Any] = []
        async with self._database.reading() as connection:
            for part in _parts(query, wanted, after):
                if len(rows) <= limit:
                    rows += (await connection.execute(part.limit(limit + 1 - len(rows)))).all()
            items = await complete(connection, rows[:limit])
        more = _token(wanted, rows[limit - 1]) if len(rows) > limit else None
        return Runs(items=items, continue_=more)


def _named(namespace: str, names: list[str]) -> ColumnElement[bool]:
    """Runs of these uids or names. Two questions in one, each with an index of its own: an OR reads the namespace."""
    here = select(runs.c.id).where(runs.c.namespace == namespace)
    return runs.c.id.in_(union(here.where(runs.c.uid.in_(names)), here.where(runs.c.name.in_(names))))


def _filtered(query: Select[Any], wanted: RunFilter) -> Select[Any]:
    if wanted.states:
        said = [state for state in wanted.states if state != UNKNOWN_PHASE]
        unsaid = [runs.c.phase.is_(None)] if len(said) < len(wanted.states) else []
        query = query.where(or_(runs.c.phase.in_(said), *unsaid))
    if wanted.experiment is not None:
        query = query.where(experiments.c.name == wanted.experiment)
    if wanted.dataset is not None:
        name, _, version = wanted.dataset.partition("/")
        query = query.where(datasets.c.name == name)
        if version:
            query = query.where(dataset_versions.c.version == int(version))
    if wanted.base_model is not None:
        query = query.where(runs.c.base_model == wanted.base_model)
    if wanted.method is not None:
        query = query.where(runs.c.method == wanted.method)
    if wanted.archived is not None:
        query = query.where(runs.c.archived_time.is_not(None) if wanted.archived else runs.c.archived_time.is_(None))
    if wanted.name is not None:
        query = query.where(runs.c.name == wanted.name)
    if wanted.text:
        places = (runs.c.name, experiments.c.name, runs.c.base_model, runs.c.reason, runs.c.message)
        query = query.where(or_(*(place.icontains(wanted.text, autoescape=True) for place in places)))
    return query


def _parts(query: Select[Any], wanted: RunFilter, after: tuple[Any, int] | None) -> list[Select[Any]]:
    """What comes after a row, as queries that an index answers in order: runs with a value, then those without."""
    column = SORTS[wanted.sort.removeprefix("-")]
    descending = wanted.sort.startswith("-")
    parts = []
    if after is None or after[0] is not None:
        place, order = tuple_(column, runs.c.id), (column, runs.c.id)
        valued = query.where(column.is_not(None)) if column in NULLABLE else query
        if after is not None:
            last = tuple_(literal(after[0], column.type), literal(after[1]))
            valued = valued.where(place < last if descending else place > last)
        parts.append(valued.order_by(*(each.desc() if descending else each.asc() for each in order)))
    if column in NULLABLE:
        unvalued = query.where(column.is_(None))
        if after is not None and after[0] is None:
            unvalued = unvalued.where(runs.c.id < after[1])
        parts.append(unvalued.order_by(runs.c.id.desc()))
    return parts


def _token(wanted: RunFilter, row: Any) -> str:
    names = {"created": "id", "finished": "finished_time", "evaluationLoss": "evaluation_loss"}
    sort = wanted.sort.removeprefix("-")
    value = getattr(row, names.get(sort, sort))
    said = [wanted.digest(), value.isoformat() if isinstance(value, datetime) else value, row.id]
    return base64.urlsafe_b64encode(json.dumps(said).encode()).decode().rstrip("=")


def _read(token: str, wanted: RunFilter) -> tuple[Any, int]:
    """The place that a token names. Raises `Invalid`."""
    refusal = Invalid(
        f"continue={token[:40]!r} is not from this list",
        hint="pass on what the page before gave, with the same filter and order",
    )
    try:
        digest, value, identifier = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        if digest != wanted.digest() or not isinstance(identifier, int) or not 0 < identifier < 2**63:
            raise refusal
        return _typed(value, wanted.sort.removeprefix("-")), identifier
    except (ValueError, TypeError, OverflowError, binascii.Error, RecursionError):
        raise refusal from None


def _typed(value: Any, sort: str) -> Any:
    """The value as the column has it. Raises `ValueError` or `TypeError` for one that the column cannot have."""
    if value is None:
        return None
    if sort == "finished":
        return datetime.fromisoformat(value).astimezone(UTC)
    kind = {"created": int, "name": str, "evaluationLoss": float}[sort]
    if not isinstance(value, kind) or isinstance(value, bool) or "\0" in str(value) or len(str(value)) > 63:
        raise ValueError(value)
    return value
