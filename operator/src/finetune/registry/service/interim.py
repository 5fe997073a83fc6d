"""Routes for adapters of runs that still train, and of those that ended without one: listed, shown, pulled, deleted."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import StreamingResponse

from finetune.api.files import InterimAdapter, InterimAdapters
from finetune.api.registry import NAME_PATTERN

from .common import NamePath, NamespacePath, ServicesOf, people
from .files import READING, FilePath, Redirect, adapter_file

router = APIRouter(prefix="/api/v1/namespaces/{namespace}", tags=["files"])

RunPath = Annotated[str, Path(pattern=NAME_PATTERN, description="a run: its uid, or its name for the newest of it")]
StepPath = Annotated[str, Path(pattern=r"^(latest|best|[1-9][0-9]{0,15})$", description='a step, "best" or "latest"')]
ADAPTER = "/adapters/{name}/runs/{run}/steps/{step}"


@router.get("/runs/{name}/adapters", dependencies=[people("get", "trainingruns")])
async def list_interim(namespace: NamespacePath, name: NamePath, services: ServicesOf) -> InterimAdapters:
    """The adapters that are kept of a run that still trains, or that ended without one: the newest and the best."""
    return await services.interim.of_run(namespace, name)


@router.get(ADAPTER, dependencies=[people("get", "adapters")])
async def get_interim(
    namespace: NamespacePath, name: NamePath, run: RunPath, step: StepPath, services: ServicesOf
) -> InterimAdapter:
    """One of them, with its files and losses."""
    return await services.interim.find(namespace, name, run, step)


@router.delete(ADAPTER)
async def delete_interim(
    *,
    namespace: NamespacePath,
    name: NamePath,
    run: RunPath,
    step: StepPath,
    services: ServicesOf,
    actor: Annotated[str, people("delete", "adapters")],
) -> InterimAdapter:
    """Delete the files of one of them."""
    deleted = await services.interim.delete(namespace, name, run, step, actor=actor)
    await services.files.release(deleted.files)
    return deleted


@router.head(ADAPTER + "/files/{path:path}", dependencies=[people("get", "adapters")], include_in_schema=False)
@router.get(
    ADAPTER + "/files/{path:path}",
    dependencies=[people("get", "adapters")],
    response_class=StreamingResponse,
    responses=READING,
)
async def get_interim_file(
    *,
    namespace: NamespacePath,
    name: NamePath,
    run: RunPath,
    step: StepPath,
    path: FilePath,
    request: Request,
    services: ServicesOf,
    redirect: Redirect = True,
) -> Response:
    """One file of it, or a range of it; its ETag is its SHA-256."""
    found = await services.interim.find(namespace, name, run, step)
    return await adapter_file(request, services, found.files, path, of=found.reference, redirect=redirect)
