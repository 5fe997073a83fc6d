"""Routes for adapters."""

from __future__ import annotations

from fastapi import APIRouter

from finetune.api.registry import AdapterVersion, AdapterVersions

from .common import (
    NameAfter,
    NamePath,
    NamespacePath,
    NumberBefore,
    ServicesOf,
    VersionPath,
    page_number,
    people,
    version_number,
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
    namespace: NamespacePath, name: NamePath, version: VersionPath, services: ServicesOf
) -> AdapterVersion:
    """One version, with its files, losses and lineage."""
    return await services.adapters.version(namespace, name, version_number(version))
