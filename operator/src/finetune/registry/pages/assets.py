"""The files that browsers fetch: named by their digest, so that they may be kept for ever."""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from finetune.registry.errors import NotFound

STATIC = Path(__file__).parent / "static"
FOREVER = "public, max-age=31536000, immutable"
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One file, as it is and packed."""

    digest: str
    media_type: str
    content: bytes
    packed: bytes


@cache
def assets() -> dict[str, Asset]:
    """Every file below `static` that browsers fetch, by its path there. Read once."""
    found = {}
    for path in sorted(STATIC.rglob("*")):
        if path.suffix in MEDIA_TYPES:
            content = path.read_bytes()
            found[path.relative_to(STATIC).as_posix()] = Asset(
                digest=hashlib.sha256(content).hexdigest()[:12],
                media_type=MEDIA_TYPES[path.suffix],
                content=content,
                packed=gzip.compress(content, mtime=0),
            )
    return found


def vendored() -> list[dict[str, object]]:
    """Name, version, licence and digests of what comes from other projects."""
    listed: list[dict[str, object]] = json.loads((STATIC / "vendor" / "vendor.json").read_text())
    return listed


def asset_url(path: str) -> str:
    """Where a file is fetched: below a folder that changes with its content."""
    return f"/ui/static/{assets()[path].digest}/{path}"


async def asset(request: Request) -> Response:
    """One of the files."""
    found = assets().get(request.path_params["path"])
    if found is None or found.digest != request.path_params["digest"]:
        raise NotFound("there is no such file", hint="load the page again: the registry is another version by now")
    headers = {"Cache-Control": FOREVER, "Vary": "Accept-Encoding", "X-Content-Type-Options": "nosniff"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(found.packed, media_type=found.media_type, headers={**headers, "Content-Encoding": "gzip"})
    return Response(found.content, media_type=found.media_type, headers=headers)
