"""Routes for adapters."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from finetune.api.files import AdapterAlias, AdapterAliases, AliasRequest, VersionChange
from finetune.api.registry import AdapterVersion, AdapterVersions

from .common import (
    AliasPath,
    NameAfter,
    NamePath,
    NamespacePath,
    NumberBefore,
    NumberPath,
    ReferencePath,
    ServicesOf,
    body_of,
    document_about,
    may,
    page_number,
    people,
    reference,
)

router = APIRouter(prefix="/api/v1/namespaces/{namespace}/adapters", tags=["adapters"])


@router.get("", dependencies=[people("list", "adapters")])
async def list_adapters(namespace: NamespacePath, services: ServicesOf, after: NameAfter = None) -> AdapterVersions:
    """The newest version of each adapter, sorted by name."""
    return await services.adapters.newest(namespace, after=after)


@router.get("/{name}", dependencies=[people("get", "adapters")])
async def list_versions(
    namespace: NamespacePath, name: NamePath, services: ServicesOf, before: NumberBefore = None
) -> AdapterVersions:
    """The versions of an adapter, newest first."""
    return await services.adapters.versions(namespace, name, before=page_number(before))


@router.get("/{name}/versions/{version}", dependencies=[people("get", "adapters")])
async def get_version(
    namespace: NamespacePath, name: NamePath, version: ReferencePath, services: ServicesOf
) -> AdapterVersion:
    """One version, with its files, losses and lineage."""
    return await services.adapters.version(namespace, name, reference(version))


@router.patch("/{name}/versions/{version}", openapi_extra=body_of(VersionChange))
async def change_version(
    *,
    namespace: NamespacePath,
    name: NamePath,
    version: ReferencePath,
    services: ServicesOf,
    actor: Annotated[str, people("update", "adapters")],
    body: Annotated[VersionChange, document_about(VersionChange)],
) -> AdapterVersion:
    """Mark a version as deprecated, archived or quarantined, or change its tags and notes."""
    return await services.states.change(namespace, name, reference(version), body, actor=actor)


@router.delete("/{name}/versions/{version}")
async def delete_version(
    *,
    namespace: NamespacePath,
    name: NamePath,
    version: NumberPath,
    services: ServicesOf,
    actor: Annotated[str, people("delete", "adapters")],
) -> AdapterVersion:
    """Delete the files of a version. Refused while an alias points to it or an unfinished run goes on from it."""
    deleted = await services.states.delete(namespace, name, int(version), actor=actor)
    await services.files.release(deleted.files)
    return deleted


@router.get("/{name}/aliases", dependencies=[people("get", "adapters")])
async def list_aliases(namespace: NamespacePath, name: NamePath, services: ServicesOf) -> AdapterAliases:
    """The aliases of an adapter, sorted by name."""
    return await services.states.aliases(namespace, name)


@router.put("/{name}/aliases/{alias}", openapi_extra=body_of(AliasRequest))
async def put_alias(
    *,
    namespace: NamespacePath,
    name: NamePath,
    alias: AliasPath,
    request: Request,
    services: ServicesOf,
    actor: Annotated[str, people("update", "adapters")],
    body: Annotated[AliasRequest, document_about(AliasRequest)],
) -> AdapterAlias:
    """Point an alias to a version; with `expected` only if it points there now. Protected ones need `protect`."""
    protects = await may(request, "protect", "adapters", namespace=namespace, name=name)
    return await services.states.point(namespace, name, alias, body, protects=protects, actor=actor)


@router.delete("/{name}/aliases/{alias}", status_code=204)
async def delete_alias(
    *,
    namespace: NamespacePath,
    name: NamePath,
    alias: AliasPath,
    request: Request,
    services: ServicesOf,
    actor: Annotated[str, people("update", "adapters")],
    expected: Annotated[int | None, Query(ge=0, le=2**31 - 1, description="only if it points there now")] = None,
) -> None:
    """Remove an alias; the version stays."""
    protects = await may(request, "protect", "adapters", namespace=namespace, name=name)
    await services.states.unpoint(namespace, name, alias, expected=expected, protects=protects, actor=actor)
