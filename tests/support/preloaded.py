"""What the server of new processes imports once for all of them: the operator, the registry, what they import later."""

from __future__ import annotations

import gc

import aiosqlite
import anyio._backends._asyncio
import uvicorn.lifespan.on
import uvicorn.loops.auto
import uvicorn.protocols.http.auto
import uvicorn.protocols.websockets.auto

import finetune.controller.handlers
import finetune.registry.server
import finetune.registry.service.app
from tests.support import processes, skewed

__all__ = ["aiosqlite", "anyio", "finetune", "processes", "skewed", "uvicorn"]

# A collection in a child would otherwise walk through, and copy, all that the libraries made on import.
gc.collect()
gc.freeze()
