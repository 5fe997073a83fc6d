"""Routes for runs, their pods, and their adapters' registration."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from finetune.api.registry import (
    AdapterRequest,
    AdapterVersion,
    DatasetVersion,
    ProgressByRun,
    Run,
    RunRequest,
    Runs,
    StatusPost,
)
from finetune.registry.errors import Invalid

from .common import (
    Continue,
    LimitedRoute,
    NamespacePath,
    ServicesOf,
    UidPath,
    operator_everywhere,
    page_number,
    people,
    rows_response,
    run_callers,
)

MAX_PROGRESS_RUNS = 1000

router = APIRouter(prefix="/api/v1/namespaces/{namespace}/runs", tags=["runs"], route_class=LimitedRoute)
progress_router = APIRouter(prefix="/api/v1", tags=["runs"])

JSON_BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}}


@router.put("/{uid}", responses={201: {"model": Run}})
async def put_run(
    *,
    namespace: NamespacePath,
    uid: UidPath,
    body: RunRequest,
    response: Response,
    services: ServicesOf,
    actor: Annotated[str, run_callers(operator=True)],
) -> Run:
    """Record a run. Idempotent; the first call pins the versions of its dataset and of its parent adapter."""
    run, created = await services.runs.put(namespace, uid, body, actor=actor)
    response.status_code = 201 if created else 200
    return run


@router.get("", dependencies=[people("list", "trainingruns", operator=True)])
async def list_runs(namespace: NamespacePath, services: ServicesOf, before: Continue = None) -> Runs:
    """Runs, newest first."""
    return await services.runs.page(namespace, before=page_number(before))


@router.get("/{uid}", dependencies=[people("get", "trainingruns", operator=True)])
async def get_run(namespace: NamespacePath, uid: UidPath, services: ServicesOf) -> Run:
    """A run with its latest progress and its adapter."""
    return await services.runs.get(namespace, uid)


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


@router.post(
    "/{uid}/status",
    status_code=204,
    dependencies=[run_callers(pod=True)],
)
async def post_status(namespace: NamespacePath, uid: UidPath, body: StatusPost, services: ServicesOf) -> None:
    """Take a trainer's progress."""
    await services.runs.add_progress(namespace, uid, body.trainer_status)
    services.metrics.points_written(len(body.trainer_status.metrics))


@router.put("/{uid}/result", status_code=204, openapi_extra=JSON_BODY)
async def put_result(
    namespace: NamespacePath,
    uid: UidPath,
    request: Request,
    services: ServicesOf,
    actor: Annotated[str, run_callers(pod=True)],
) -> None:
    """Keep the training_config.json of a run, byte for byte."""
    await services.runs.put_result(namespace, uid, await request.body(), actor=actor)


@router.get(
    "/{uid}/result",
    dependencies=[run_callers(pod=True, operator=True)],
    response_class=Response,
    responses={200: {"content": {"application/json": {}}}},
)
async def get_result(namespace: NamespacePath, uid: UidPath, services: ServicesOf) -> Response:
    """The document that the run's trainer stored."""
    return Response(await services.runs.result(namespace, uid), media_type="application/json")


@router.put("/{uid}/adapter", responses={201: {"model": AdapterVersion}})
async def put_adapter(
    *,
    namespace: NamespacePath,
    uid: UidPath,
    body: AdapterRequest,
    response: Response,
    services: ServicesOf,
    actor: Annotated[str, run_callers(operator=True)],
) -> AdapterVersion:
    """Register the adapter of a finished run. Idempotent: one run makes one version."""
    version, created = await services.adapters.register(namespace, uid, body, actor=actor)
    response.status_code = 201 if created else 200
    return version


@progress_router.get("/progress", dependencies=[operator_everywhere()])
async def latest_progress(
    services: ServicesOf, runs: Annotated[str, Query(description="uids, separated by commas")]
) -> ProgressByRun:
    """The latest progress of many runs of any namespace."""
    uids = [uid for uid in runs.split(",") if uid]
    if len(uids) > MAX_PROGRESS_RUNS:
        raise Invalid(f"{len(uids)} runs in one request", hint=f"ask for at most {MAX_PROGRESS_RUNS}")
    return await services.runs.latest_progress(uids)
