"""Routes for the bytes of adapters: what runs' pods send, and what people pull."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from finetune.api.files import InterimRequest, MissingFiles, RunFiles
from finetune.api.registry import FILE_PATH_PATTERN, SHA256_PATTERN, AdapterFile
from finetune.registry import safetensors
from finetune.registry.archive import archive, archive_size
from finetune.registry.errors import NotFound

from .common import (
    NamePath,
    NamespacePath,
    ReferencePath,
    Services,
    ServicesOf,
    UidPath,
    body_of,
    document,
    people,
    reference,
    run_callers,
)
from .errors import LengthRequired
from .pacing import paced
from .ranges import file_response, is_known

router = APIRouter(prefix="/api/v1/namespaces/{namespace}", tags=["files"])

Sha256Path = Annotated[str, Path(pattern=SHA256_PATTERN)]
FilePath = Annotated[str, Path(pattern=FILE_PATH_PATTERN, max_length=512)]
Redirect = Annotated[
    bool, Query(description="whether 307 to the store will do, where the registry sends readers there")
]
BYTES = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
READING: dict[int | str, dict[str, Any]] = {
    200: BYTES,
    206: BYTES,
    304: {"description": "The reader has it"},
    307: {"description": "The store has it, at an address that is good for five minutes"},
    416: {"description": "No such part"},
}


@router.put("/runs/{uid}/files", openapi_extra=body_of(RunFiles))
async def announce_files(
    *,
    namespace: NamespacePath,
    uid: UidPath,
    services: ServicesOf,
    actor: Annotated[str, run_callers(pod=True)],
    body: Annotated[RunFiles, document(RunFiles)],
) -> MissingFiles:
    """Take note of the files that a run has made, and say which of them are to be sent. Idempotent."""
    return await services.files.announce(namespace, uid, body, actor=actor)


@router.put(
    "/runs/{uid}/steps/{step}/adapter",
    dependencies=[run_callers(pod=True)],
    openapi_extra=body_of(InterimRequest),
)
async def announce_interim(
    *,
    namespace: NamespacePath,
    uid: UidPath,
    step: Annotated[int, Path(ge=1, le=2**53)],
    services: ServicesOf,
    body: Annotated[InterimRequest, document(InterimRequest)],
) -> MissingFiles:
    """Take note of the adapter that a run has after a step, and say which of its files are to be sent. Idempotent."""
    return await services.files.announce_interim(namespace, uid, step, body)


@router.put(
    "/runs/{uid}/blobs/{sha256}",
    status_code=201,
    response_class=Response,
    responses={200: {"description": "The store has these bytes already; they are not read"}},
    openapi_extra={"requestBody": {"required": True, **BYTES}},
)
async def put_blob(
    *,
    namespace: NamespacePath,
    uid: UidPath,
    sha256: Sha256Path,
    request: Request,
    services: ServicesOf,
    actor: Annotated[str, run_callers(pod=True)],
) -> Response:
    """Take the bytes of an announced file. They are checked while they come; what is wrong leaves nothing behind."""
    file = await services.files.awaited(namespace, uid, sha256)
    if file is None:
        return Response(status_code=200)
    size = request.headers.get("content-length", "")
    if not (size.isascii() and size.isdigit() and len(size) < 19):
        raise LengthRequired
    blocks = paced(request.stream())
    if file.path.endswith(".safetensors"):
        blocks = safetensors.checked(blocks, path=file.path, size=file.bytes)
    await services.files.put(namespace, uid, file, blocks, size=int(size), actor=actor)
    return Response(status_code=201)


@router.head(
    "/runs/{uid}/blobs/{sha256}",
    dependencies=[run_callers(pod=True)],
    response_class=Response,
    responses={404: {"description": "It is to be sent"}},
)
async def head_blob(namespace: NamespacePath, uid: UidPath, sha256: Sha256Path, services: ServicesOf) -> Response:
    """Whether the store has the bytes of an announced file: 200, or 404."""
    held = await services.files.awaited(namespace, uid, sha256) is None
    return Response(status_code=200 if held else 404)


@router.head(
    "/adapters/{name}/versions/{version}/files/{path:path}",
    dependencies=[people("get", "adapters")],
    include_in_schema=False,
)
@router.get(
    "/adapters/{name}/versions/{version}/files/{path:path}",
    dependencies=[people("get", "adapters")],
    response_class=StreamingResponse,
    responses=READING,
)
async def get_file(
    *,
    namespace: NamespacePath,
    name: NamePath,
    version: ReferencePath,
    path: FilePath,
    request: Request,
    services: ServicesOf,
    redirect: Redirect = True,
) -> Response:
    """One file of an adapter version, or a range of it; its ETag is its SHA-256."""
    found = await services.states.given_out(namespace, name, reference(version))
    of = f"version {found.version} of adapter {name!r}"
    return await adapter_file(request, services, found.files, path, of=of, redirect=redirect)


async def adapter_file(
    request: Request, services: Services, files: Sequence[AdapterFile], path: str, *, of: str, redirect: bool
) -> Response:
    """The file of that path among those of an adapter, which messages call `of`, or where it is. Raises `NotFound`."""
    file = next((file for file in files if file.path == path), None)
    if file is None:
        raise NotFound(
            f"{of} has no file {path!r}",
            hint=f"it has: {', '.join(file.path for file in files)}",
        )
    store = services.files.store
    if redirect and request.method == "GET" and not is_known(request, file.sha256):
        url = await services.files.elsewhere(file.sha256)
        if url is not None:
            return Response(status_code=307, headers={"Location": url, "Cache-Control": "no-store"})

    async def opener(start: int, length: int) -> AsyncIterator[bytes]:
        return await store.read(file.sha256, start=start, length=length)

    return await file_response(
        request,
        opener,
        size=file.bytes,
        sha256=file.sha256,
        filename=path.rpartition("/")[2],
        media_type="application/octet-stream",
    )


@router.get(
    "/adapters/{name}/versions/{version}/archive.tar",
    dependencies=[people("get", "adapters")],
    response_class=StreamingResponse,
    responses={200: {"content": {"application/x-tar": {}}}},
)
async def get_archive(
    namespace: NamespacePath, name: NamePath, version: ReferencePath, services: ServicesOf
) -> StreamingResponse:
    """All files of an adapter version in one tar, below a folder `<name>-v<version>`."""
    return await archive_response(services, namespace, name, reference(version))


async def archive_response(
    services: Services, namespace: str, name: str, version: int | str | None
) -> StreamingResponse:
    """The files of a version as one tar. Raises `NotFound`, `Conflict`, and the store's errors before the first one."""
    found = await services.states.given_out(namespace, name, version)
    store = services.files.store
    for file in found.files:  # an answer that has begun cannot say any more that a file is missing
        async for _ in await store.read(file.sha256, length=min(1, file.bytes) or None):
            pass

    async def read(file: AdapterFile) -> AsyncIterator[bytes]:
        return await store.read(file.sha256)

    folder = f"{name}-v{found.version}"
    headers = {
        "Content-Length": str(archive_size(found.files)),
        "Content-Disposition": f'attachment; filename="{folder}.tar"',
        "X-Content-Type-Options": "nosniff",
    }
    return StreamingResponse(archive(folder, found.files, read), media_type="application/x-tar", headers=headers)
