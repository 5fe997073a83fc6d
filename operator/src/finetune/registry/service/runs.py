"""Routes for runs, their pods, and their adapters' registration."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import StringConstraints

from finetune.api.registry import (
    NAME_PATTERN,
    PRINTABLE_PATTERN,
    UID_PATTERN,
    AdapterRequest,
    AdapterVersion,
    DatasetVersion,
    OutcomeRequest,
    ProgressByRun,
    Run,
    RunOutcome,
    RunRequest,
    Runs,
    SeriesList,
    StatusAnswer,
    StatusPost,
    UnfinishedRuns,
)
from finetune.registry.store.common import PAGE_SIZE
from finetune.registry.store.listing import RunFilter

from .common import (
    Continue,
    NamePath,
    NamespacePath,
    RowAfter,
    ServicesOf,
    UidPath,
    body_of,
    document,
    limited,
    operator_everywhere,
    page_number,
    people,
    read_body,
    rows_response,
    run_callers,
)

MAX_PROGRESS_RUNS = 1000
MAX_SERIES_RUNS = 20
MAX_SERIES_METRICS = 8

router = APIRouter(prefix="/api/v1/namespaces/{namespace}/runs", tags=["runs"])
series_router = APIRouter(prefix="/api/v1/namespaces/{namespace}", tags=["runs"])
operator_router = APIRouter(prefix="/api/v1", tags=["runs"])

JSON_BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}}
_NAMES = NAME_PATTERN.strip("^$")
_METRIC = r"[^\x00-\x1f\x7f,]{1,64}"
_UIDS = UID_PATTERN.strip("^$")

State = Annotated[str, StringConstraints(pattern=r"^[A-Za-z]{1,32}$")]
Sort = Literal["created", "-created", "name", "-name", "finished", "-finished", "evaluationLoss", "-evaluationLoss"]


@router.put("/{uid}", responses={201: {"model": Run}}, openapi_extra=body_of(RunRequest))
async def put_run(
    *,
    namespace: NamespacePath,
    uid: UidPath,
    response: Response,
    services: ServicesOf,
    actor: Annotated[str, run_callers(operator=True)],
    body: Annotated[RunRequest, document(RunRequest)],
) -> Run:
    """Record a run. Idempotent; the first call pins the versions of its dataset and of its parent adapter."""
    run, created = await services.runs.put(namespace, uid, body, actor=actor)
    response.status_code = 201 if created else 200
    return run


@router.get("", dependencies=[people("list", "trainingruns", operator=True)])
async def list_runs(
    *,
    namespace: NamespacePath,
    services: ServicesOf,
    state: Annotated[list[State] | None, Query(max_length=16, description="phases, any of them")] = None,
    experiment: Annotated[str | None, Query(pattern=NAME_PATTERN)] = None,
    dataset: Annotated[
        str | None, Query(pattern=f"^{_NAMES}(/[1-9][0-9]{{0,8}})?$", description="a name, or name/version")
    ] = None,
    base_model: Annotated[
        str | None, Query(alias="baseModel", pattern=PRINTABLE_PATTERN, max_length=512, description="the whole name")
    ] = None,
    name: Annotated[str | None, Query(pattern=NAME_PATTERN)] = None,
    text: Annotated[
        str | None,
        Query(
            pattern=PRINTABLE_PATTERN, max_length=200, description="in name, experiment, base model, reason, message"
        ),
    ] = None,
    sort: Annotated[Sort, Query(description="with - in front the largest first")] = "-created",
    limit: Annotated[int, Query(ge=1, le=PAGE_SIZE)] = PAGE_SIZE,
    token: Continue = None,
) -> Runs:
    """Runs that fit everything that is asked for, newest first unless `sort` says otherwise."""
    wanted = RunFilter(
        states=tuple(state or ()),
        experiment=experiment,
        dataset=dataset,
        base_model=base_model,
        name=name,
        text=text,
        sort=sort,
    )
    return await services.lists.page(namespace, wanted, limit=limit, token=token)


@router.get("/{name}", dependencies=[people("get", "trainingruns", operator=True)])
async def get_run(namespace: NamespacePath, name: NamePath, services: ServicesOf) -> Run:
    """The run of this uid, else the newest of this name: its outcome, its latest progress and its adapter."""
    return await services.lists.find(namespace, name)


@router.put("/{uid}/status", openapi_extra=body_of(OutcomeRequest))
async def put_outcome(
    *,
    namespace: NamespacePath,
    uid: UidPath,
    services: ServicesOf,
    actor: Annotated[str, run_callers(operator=True)],
    body: Annotated[OutcomeRequest, document(OutcomeRequest)],
) -> RunOutcome:
    """Take what the operator says of a run. Idempotent; gives back what is known now, which may be newer."""
    return await services.outcomes.put(namespace, uid, body, actor=actor)


@router.get("/{uid}/dataset", dependencies=[run_callers(pod=True)])
async def get_run_dataset(namespace: NamespacePath, uid: UidPath, services: ServicesOf) -> DatasetVersion:
    """The dataset version that is recorded for the run."""
    return await services.runs.dataset(namespace, uid)


@router.get(
    "/{uid}/dataset/rows",
    dependencies=[run_callers(pod=True)],
    response_class=StreamingResponse,
    responses={200: {"content": {"application/jsonl": {}}}},
)
async def get_run_rows(namespace: NamespacePath, uid: UidPath, services: ServicesOf) -> StreamingResponse:
    """The rows of that version, byte for byte."""
    version = await services.runs.dataset(namespace, uid)
    return rows_response(*await services.datasets.rows(namespace, version.name, version.version))


@router.post("/{uid}/status", dependencies=[run_callers(pod=True), limited()], openapi_extra=body_of(StatusPost))
async def post_status(
    *, namespace: NamespacePath, uid: UidPath, services: ServicesOf, body: Annotated[StatusPost, document(StatusPost)]
) -> StatusAnswer:
    """Take a trainer's progress, and the numbers of every step since its last post."""
    step = await services.points.add(namespace, uid, body)
    numbers = sum(len(each.values) for each in body.points)
    services.metrics.points_written(numbers or len(body.trainer_status.metrics))
    return StatusAnswer(step=step)


@router.put("/{uid}/result", status_code=204, openapi_extra=JSON_BODY)
async def put_result(
    namespace: NamespacePath,
    uid: UidPath,
    request: Request,
    services: ServicesOf,
    actor: Annotated[str, run_callers(pod=True)],
) -> None:
    """Keep the training_config.json of a run, byte for byte."""
    await services.runs.put_result(namespace, uid, await read_body(request), actor=actor)


@router.get(
    "/{uid}/result",
    dependencies=[run_callers(pod=True, operator=True, readers=True)],
    response_class=Response,
    responses={200: {"content": {"application/json": {}}}},
)
async def get_result(namespace: NamespacePath, uid: UidPath, services: ServicesOf) -> Response:
    """The document that the run's trainer stored."""
    return Response(await services.runs.result(namespace, uid), media_type="application/json")


@router.put("/{uid}/adapter", responses={201: {"model": AdapterVersion}}, openapi_extra=body_of(AdapterRequest))
async def put_adapter(
    *,
    namespace: NamespacePath,
    uid: UidPath,
    response: Response,
    services: ServicesOf,
    actor: Annotated[str, run_callers(operator=True)],
    body: Annotated[AdapterRequest, document(AdapterRequest)],
) -> AdapterVersion:
    """Register the adapter of a finished run. Idempotent: one run makes one version."""
    version, created = await services.adapters.register(namespace, uid, body, actor=actor)
    response.status_code = 201 if created else 200
    # Without a store nothing can be sent either, which the operator must know.
    return version if services.files.is_kept else version.model_copy(update={"stored": None})


@series_router.get("/series", dependencies=[people("list", "trainingruns")])
async def get_series(
    *,
    namespace: NamespacePath,
    services: ServicesOf,
    runs: Annotated[
        str,
        Query(
            pattern=f"^{_NAMES}(,{_NAMES}){{0,{MAX_SERIES_RUNS - 1}}}$",
            description="uids or names, separated by commas",
        ),
    ],
    metric: Annotated[
        str,
        Query(
            pattern=f"^{_METRIC}(,{_METRIC}){{0,{MAX_SERIES_METRICS - 1}}}$",
            description="names of metrics, separated by commas",
        ),
    ],
    points: Annotated[int, Query(ge=4, le=2000, description="the most points of each series")] = 500,
) -> SeriesList:
    """Curves, thinned to the lowest and the highest of equal parts, so that no spike is lost."""
    uids = await services.lists.uids_of(namespace, runs.split(","))
    return await services.points.series(namespace, uids, metric.split(","), points=points)


@operator_router.get("/progress", dependencies=[operator_everywhere()])
async def latest_progress(
    services: ServicesOf,
    runs: Annotated[
        str,
        Query(pattern=f"^{_UIDS}(,{_UIDS}){{0,{MAX_PROGRESS_RUNS - 1}}}$", description="uids, separated by commas"),
    ],
) -> ProgressByRun:
    """The latest progress of many runs of any namespace."""
    return await services.points.latest(runs.split(","))


@operator_router.get("/unfinished", dependencies=[operator_everywhere()])
async def list_unfinished(services: ServicesOf, after: RowAfter = None) -> UnfinishedRuns:
    """The runs of all namespaces of which no end is known, oldest first."""
    return await services.outcomes.unfinished(after=page_number(after))
