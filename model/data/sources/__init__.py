"""Where a dataset's rows come from. A source yields records; everything else is the export's business."""

from __future__ import annotations

from model.data.sources.base import Source, SourceInterruptedError
from model.data.sources.files import FileSource
from model.data.sources.hub import HubSource
from model.data.sources.object_store import ObjectStoreSource
from model.data.sources.registry import RegistrySource
from model.data.sources.sql import SqlSource

__all__ = [
    "FileSource",
    "HubSource",
    "ObjectStoreSource",
    "RegistrySource",
    "Source",
    "SourceInterruptedError",
    "SqlSource",
]
