"""Experiments: what their runs have reached, and by which settings."""

from __future__ import annotations

from datetime import UTC, datetime

from starlette.responses import Response
from starlette.routing import BaseRoute

from finetune.api.registry import Runs
from finetune.registry.errors import NotFound
from finetune.registry.pages.queries import MAX_LISTED
from finetune.registry.pages.rendering import HEADERS
from finetune.registry.pages.routes.runs import rows_of
from finetune.registry.pages.text import age, number
from finetune.registry.pages.views.compare import MOST
from finetune.registry.pages.views.experiments import MOST_RUNS, parallel, ranked, scatters, table
from finetune.registry.pages.views.runs import base_path
from finetune.registry.pages.visit import Visit, screen
from finetune.registry.store.listing import RunFilter


def routes() -> list[BaseRoute]:
    """Routes of experiments."""
    return [
        screen("/{namespace}/experiments", _experiments, verb="list", resource="trainingruns"),
        screen("/{namespace}/experiments/{name}", _experiment, verb="list", resource="trainingruns"),
        screen("/{namespace}/experiments/{name}/runs.csv", _table, verb="list", resource="trainingruns"),
    ]


async def _experiments(visit: Visit) -> Response:
    after = visit.query("continue") or None
    found = await visit.site.queries.experiments(visit.namespace, after=after)
    path = f"{base_path(visit.namespace)}/experiments"
    shown, now = found[:MAX_LISTED], datetime.now(UTC)
    rows = [
        {
            "name": row.name,
            "href": f"{path}/{row.name}",
            "count": row.count,
            "best": number(row.best),
            "age": age(row.newest, now),
        }
        for row in shown
    ]
    return visit.page(
        "experiments.html",
        "experiments",
        rows=rows,
        links={
            "newest": path if after else None,
            "older": f"{path}?continue={shown[-1].name}" if len(found) > MAX_LISTED else None,
        },
    )


async def _runs_of(visit: Visit) -> Runs:
    """The runs of the experiment, those with the lowest losses first. Raises `NotFound`."""
    name = visit.path("name")
    wanted = RunFilter(experiment=name, sort="evaluationLoss")
    found = await visit.services.lists.page(visit.namespace, wanted, limit=MOST_RUNS)
    if not found.items:
        raise NotFound(
            f"experiment {name!r} has no runs in namespace {visit.namespace!r}",
            hint="an experiment is there as soon as a run names it in spec.experiment",
        )
    return found


async def _table(visit: Visit) -> Response:
    found = await _runs_of(visit)
    headers = {**HEADERS, "Content-Disposition": f'attachment; filename="{visit.path("name")}.csv"'}
    return Response(table(ranked(found.items)), media_type="text/csv; charset=utf-8", headers=headers)


async def _experiment(visit: Visit) -> Response:
    name, found = visit.path("name"), await _runs_of(visit)
    runs = ranked(found.items)
    rows = await rows_of(visit, runs)
    best = rows[0] if rows[0].loss.value is not None else None
    measured = [row.uid for row in rows if row.loss.value is not None][:MOST]
    compare = f"{base_path(visit.namespace)}/compare?" + "&".join(f"run={uid}" for uid in measured)
    return visit.page(
        "experiment.html",
        "experiments",
        name=name,
        rows=rows,
        best=best,
        compare=compare if len(measured) > 1 else "",
        compared=len(measured),
        csv=f"{base_path(visit.namespace)}/experiments/{name}/runs.csv",
        parallel=parallel(runs),
        scatters=scatters(visit.namespace, runs),
        is_all=found.continue_ is None,
    )
