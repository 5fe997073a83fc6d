"""Routes for datasets."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from finetune.api.registry import DatasetVersion, DatasetVersions

from .common import (
    NameAfter,
    NamePath,
    NamespacePath,
    NumberBefore,
    NumberPath,
    ServicesOf,
    VersionPath,
    page_number,
    people,
    rows_response,
    version_number,
)
from .pacing import paced

router = APIRouter(prefix="/api/v1/namespaces/{namespace}/datasets", tags=["datasets"])

ROWS_BODY = {
    "requestBody": {
        "required": True,
        "description": "JSON lines: one JSON object a line, all of one shape",
        "content": {"application/jsonl": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post(
    "/{name}/versions",
    status_code=201,
    responses={200: {"model": DatasetVersion, "description": "The dataset has this content already"}},
    openapi_extra=ROWS_BODY,
)
async def create_version(
    *,
    namespace: NamespacePath,
    name: NamePath,
    request: Request,
    response: Response,
    services: ServicesOf,
    actor: Annotated[str, people("create", "datasets")],
) -> DatasetVersion:
    """Store JSON lines as a new version of a dataset. A line that is wrong is named, and nothing is stored."""
    version, created = await services.datasets.add_version(namespace, name, paced(request.stream()), actor=actor)
    if created:
        services.metrics.uploaded(rows=version.rows, size=version.bytes)
    else:
        response.status_code = 200
    return version


@router.get("", dependencies=[people("list", "datasets", operator=True)])
async def list_datasets(namespace: NamespacePath, services: ServicesOf, after: NameAfter = None) -> DatasetVersions:
    """The newest version of each dataset, sorted by name."""
    return await services.datasets.newest(namespace, after=after)


@router.get("/{name}", dependencies=[people("get", "datasets", operator=True)])
async def list_versions(
    namespace: NamespacePath, name: NamePath, services: ServicesOf, before: NumberBefore = None
) -> DatasetVersions:
    """The versions of a dataset, newest first."""
    return await services.datasets.versions(namespace, name, before=page_number(before))


@router.get("/{name}/versions/{version}", dependencies=[people("get", "datasets", operator=True)])
async def get_version(
    namespace: NamespacePath, name: NamePath, version: VersionPath, services: ServicesOf
) -> DatasetVersion:
    """What is known about one version."""
    return await services.datasets.version(namespace, name, version_number(version))


@router.delete("/{name}/versions/{version}", status_code=204)
async def delete_version(
    *,
    namespace: NamespacePath,
    name: NamePath,
    version: NumberPath,
    services: ServicesOf,
    actor: Annotated[str, people("delete", "datasets")],
) -> None:
    """Delete the rows of a version. Refused while a run trains on it that has not ended."""
    await services.datasets.delete(namespace, name, int(version), actor=actor)


@router.get(
    "/{name}/versions/{version}/rows",
    dependencies=[people("get", "datasets/rows")],
    response_class=StreamingResponse,
    responses={200: {"content": {"application/jsonl": {}}}},
)
async def get_rows(
    namespace: NamespacePath, name: NamePath, version: VersionPath, services: ServicesOf
) -> StreamingResponse:
    """The rows of one version, byte for byte as they were uploaded."""
    return rows_response(*await services.datasets.rows(namespace, name, version_number(version)))
