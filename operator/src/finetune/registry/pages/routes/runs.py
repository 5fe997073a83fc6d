"""Runs: the list, one, several beside each other, and their points."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import BaseRoute

from finetune.api import reasons
from finetune.api.conditions import Condition
from finetune.api.registry import NAME_PATTERN, Run
from finetune.registry.errors import Invalid, NotFound, RegistryFault
from finetune.registry.pages.charts import between
from finetune.registry.pages.rendering import HEADERS
from finetune.registry.pages.routes.datasets import rows_between
from finetune.registry.pages.text import clean
from finetune.registry.pages.views.compare import COMPARED, MOST, compare_charts, comparison, table
from finetune.registry.pages.views.datasets import row_text
from finetune.registry.pages.views.run import (
    CHARTS,
    PARTS,
    TOKENS,
    charts_of,
    manifest,
    read_result,
    run_view,
    summary,
    tags_text,
)
from finetune.registry.pages.views.runs import METHODS, PAGE, STATES, base_path, filter_of, page_links, run_row, step_of
from finetune.registry.pages.views.settings import IGNORED
from finetune.registry.pages.visit import Visit, screen

MOST_POINTS = 600
MOST_METRICS = 8
_METRIC = re.compile(r"[^\x00-\x1f\x7f,]{1,64}")


def routes() -> list[BaseRoute]:
    """Routes of runs."""
    may_list = {"verb": "list", "resource": "trainingruns"}
    may_get = {"verb": "get", "resource": "trainingruns"}
    return [
        screen("/{namespace}", _to_runs, **may_list),
        screen("/{namespace}/runs", _runs, **may_list),
        screen("/{namespace}/events", _list_events, **may_list),
        screen("/{namespace}/compare", _compare, **may_list),
        screen("/{namespace}/compare.csv", _compare_table, **may_list),
        screen("/{namespace}/series", _series, **may_list),
        screen("/{namespace}/runs/{name}", _run, **may_get),
        screen("/{namespace}/runs/{name}/events", _run_events, **may_get),
        screen("/{namespace}/runs/{name}/manifest", _manifest, **may_get),
    ]


async def _to_runs(visit: Visit) -> Response:
    return RedirectResponse(f"{base_path(visit.namespace)}/runs", status_code=303, headers=HEADERS)


async def rows_of(visit: Visit, runs: Sequence[Run]) -> list[Any]:
    """The lines of a list, with their curves."""
    now = datetime.now(UTC)
    sparks = await visit.site.curves.sparks(_told(runs))
    return [run_row(visit.namespace, run, sparks.get(run.uid, ""), now) for run in runs]


def _told(runs: Sequence[Run]) -> dict[str, datetime | None]:
    """When the runs told something last, those that did."""
    return {run.uid: run.trainer_status.last_updated_time for run in runs if run.trainer_status is not None}


async def _runs(visit: Visit) -> Response:
    query = visit.request.query_params
    wanted = filter_of(query)
    found = await visit.services.lists.page(visit.namespace, wanted, limit=PAGE, token=query.get("continue") or None)
    counts = await visit.site.queries.counts(visit.namespace)
    path = f"{base_path(visit.namespace)}/runs"
    return visit.page(
        "runs.html",
        "runs",
        rows=await rows_of(visit, found.items),
        links=page_links(path, query, found.continue_),
        query=query,
        states=STATES,
        methods=METHODS,
        counts=counts,
        failed=counts.of(reasons.FAILED),
        training=counts.of(reasons.TRAINING),
        events=f"{base_path(visit.namespace)}/events",
        may_archive=await visit.may("update", "trainingruns"),
    )


async def _run(visit: Visit) -> Response:
    run = await visit.services.lists.find(visit.namespace, visit.path("name"))
    queries = visit.site.queries
    names = sorted({*run.metrics, *(name for _, each in CHARTS for name in each)} - {TOKENS})
    outlines = await visit.site.curves.outlines(_told([run]), names, parts=PARTS)
    attempts = await queries.attempts(run.uid)
    view = run_view(
        visit.namespace,
        run,
        attempts=attempts,
        result=read_result(await _result(visit, run)),
        row_text=await _row(visit, run),
        conditions=await _conditions(visit, run),
    )
    marks = [each.first for each in attempts[1:]]
    return visit.page(
        "run.html",
        "runs",
        title=summary(run),
        run=view,
        tags=tags_text(view.tags),
        charts=charts_of(run, outlines, marks),
        has_tokens=TOKENS in run.metrics,
        series=f"{base_path(visit.namespace)}/series",
        events=f"{view.href}/events?{urlencode(_known(run))}" if view.is_live else "",
        may_update=await visit.may("update", "trainingruns"),
        may_delete=await visit.may("delete", "trainingruns"),
    )


async def _result(visit: Visit, run: Run) -> bytes | None:
    try:
        return await visit.services.runs.result(visit.namespace, run.uid)
    except NotFound:
        return None


async def _conditions(visit: Visit, run: Run) -> tuple[Condition, ...]:
    """What the cluster says of the run now; the page is there without it."""
    try:
        return await visit.services.access.conditions(visit.namespace, run.name, run.uid)
    except RegistryFault:
        return ()


async def _row(visit: Visit, run: Run) -> str:
    """The row that a run failed at, where its dataset is here and the person may read it."""
    row = run.outcome.row if run.outcome else None
    if row is None or run.dataset_name is None or not await visit.may("get", "datasets/rows", run.dataset_name):
        return ""
    try:
        _, blocks = await visit.services.datasets.rows(visit.namespace, run.dataset_name, run.dataset_version)
        return await row_text(blocks, row)
    except RegistryFault:  # deleted, or the store does not answer: the rest of the page is there
        return ""


async def _manifest(visit: Visit) -> Response:
    run = await visit.services.lists.find(visit.namespace, visit.path("name"))
    headers = {**HEADERS, "Content-Disposition": f'inline; filename="{run.name}.yaml"'}
    return PlainTextResponse(manifest(visit.namespace, run), headers=headers)


async def _chosen(visit: Visit) -> list[Run]:
    """The runs that the address names, in its order. Raises `Invalid`, `NotFound`."""
    names = list(dict.fromkeys(visit.request.query_params.getlist("run")))
    if not 2 <= len(names) <= MOST:
        raise Invalid(f"{len(names)} runs are chosen", hint=f"tick two to {MOST} runs in the list")
    if not all(re.fullmatch(NAME_PATTERN, name) for name in names):
        raise Invalid("one of these is no name of a run", hint="tick the runs in the list")
    return await visit.services.lists.find_all(visit.namespace, names)


def _ignored(visit: Visit) -> tuple[str, ...]:
    said = visit.request.query_params.get("ignore")
    return IGNORED if said is None else tuple(filter(None, (part.strip()[:100] for part in said.split(","))))


async def _compare(visit: Visit) -> Response:
    runs = await _chosen(visit)
    outlines = await visit.site.curves.outlines(_told(runs), [metric for _, metric in COMPARED], parts=PARTS)
    ignored = _ignored(visit)
    query = visit.request.query_params
    compared = comparison(
        visit.namespace,
        runs,
        best=await visit.site.curves.best(_told(runs), "evaluationLoss"),
        ignored=ignored,
        show_equal=bool(query.get("equal")),
    )
    return visit.page(
        "compare.html",
        "runs",
        compared=compared,
        charts=compare_charts(runs, outlines),
        has_tokens=any(TOKENS in run.metrics for run in runs),
        series=f"{base_path(visit.namespace)}/series",
        rows=[await rows_between(visit, each.name, each.old, each.new) for each in compared.datasets],
        ignored=", ".join(ignored),
        show_equal=bool(query.get("equal")),
        csv=f"{base_path(visit.namespace)}/compare.csv?{visit.request.url.query}",
    )


async def _compare_table(visit: Visit) -> Response:
    runs = await _chosen(visit)
    compared = comparison(
        visit.namespace,
        runs,
        best=await visit.site.curves.best(_told(runs), "evaluationLoss"),
        ignored=_ignored(visit),
        show_equal=bool(visit.query("equal")),
    )
    headers = {**HEADERS, "Content-Disposition": 'attachment; filename="comparison.csv"'}
    return Response(table(compared), media_type="text/csv; charset=utf-8", headers=headers)


async def _series(visit: Visit) -> Response:
    """Points of runs for the charts, thinned so that no spike is lost."""
    uids, names = visit.query("runs").split(","), visit.query("metrics").split(",")
    if len(uids) > MOST or not all(re.fullmatch(NAME_PATTERN, uid) for uid in uids):
        raise Invalid("the address names no runs, or too many", hint=f"at most {MOST}, separated by commas")
    if len(names) > MOST_METRICS or not all(_METRIC.fullmatch(name) for name in names):
        raise Invalid("the address names no metrics, or too many", hint=f"at most {MOST_METRICS}, separated by commas")
    asked = [*names, TOKENS] if visit.query("x") == "tokens" else names
    found = await visit.services.points.series(visit.namespace, uids, asked, points=MOST_POINTS)
    tokens = {each.run: (each.steps, each.values) for each in found.items if each.metric == TOKENS}
    lines = [
        {
            "run": each.run,
            "name": clean(each.name),
            "metric": each.metric,
            "steps": each.steps,
            "seconds": each.seconds,
            "values": [float(f"{value:.6g}") for value in each.values],
            **({"tokens": between(each.steps, *tokens[each.run])} if each.run in tokens else {}),
        }
        for each in found.items
        if each.metric in names
    ]
    body = json.dumps({"lines": lines}, separators=(",", ":"))
    return Response(body, media_type="application/json", headers=HEADERS)


async def _list_events(visit: Visit) -> Response:
    return _stream(visit, "")


async def _run_events(visit: Visit) -> Response:
    run = await visit.services.lists.find(visit.namespace, visit.path("name"))
    return _stream(visit, run.uid)


def _known(run: Run) -> dict[str, str]:
    """What the page shows of a run: the stream begins with what is newer."""
    step = step_of(run)[0]
    return {"phase": (run.outcome and run.outcome.phase) or "", "step": "" if step is None else str(step)}


def _stream(visit: Visit, uid: str) -> Response:
    """Events of a run, or of the namespace's list."""
    hub, topic = visit.site.hub, (visit.namespace, uid)
    step = visit.query("step")
    known = (visit.query("phase") or None, int(step) if step.isdecimal() and len(step) < 16 else -1)
    viewer = hub.join(topic, known if uid else None)

    async def is_allowed() -> bool:
        return await visit.still_may("get" if uid else "list", "trainingruns", uid)

    headers = {**HEADERS, "X-Accel-Buffering": "no"}
    return StreamingResponse(hub.stream(topic, viewer, is_allowed), media_type="text/event-stream", headers=headers)
