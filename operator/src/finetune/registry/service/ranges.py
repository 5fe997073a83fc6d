"""Answers that give files: whole, one range of them (RFC 9110, section 14), or nothing when the reader has them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")

Opener = Callable[[int, int], Awaitable[AsyncIterator[bytes]]]
"""From the first byte's number and how many there are to the bytes."""


def requested_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Start and length of the one range that is asked for; None for the whole file.

    What is not one range of bytes is ignored, as the RFC allows. Raises `ValueError` for one outside the file.
    """
    match = _RANGE.fullmatch((header or "").strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:  # the last so many bytes
        length = min(int(last), size)
        start, end = size - length, size
    else:
        start = int(first)
        end = min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return None
    if start >= size or start >= end:
        raise ValueError(f"bytes {header} of {size}")
    return start, end - start


def is_known(request: Request, sha256: str) -> bool:
    """Whether the reader has the file already."""
    return f'"{sha256}"' in (each.strip() for each in request.headers.get("if-none-match", "").split(","))


async def file_response(
    request: Request, opener: Opener, *, size: int, sha256: str, filename: str, media_type: str
) -> Response:
    """The file, or the part of it that the request asks for; 304 when the reader has it, 416 for no such part.

    The digest is its ETag, so a reader may go on where a connection was cut, and knows that it is the same file.
    """
    tag = f'"{sha256}"'
    headers = {
        "ETag": tag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f'attachment; filename="{filename}"',
        "X-Content-Type-Options": "nosniff",
    }
    if is_known(request, sha256):
        return Response(status_code=304, headers=headers)
    part = None
    if request.headers.get("if-range", tag) == tag:
        try:
            part = requested_range(request.headers.get("range"), size)
        except ValueError:
            return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{size}"})
    start, length = part or (0, size)
    headers["Content-Length"] = str(length)
    if part is not None:
        headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{size}"
    status = 200 if part is None else 206
    if request.method == "HEAD":
        async for _ in await opener(start, min(1, length)):  # a file that is lost is told as GET tells it
            pass
        return Response(status_code=status, headers=headers, media_type=media_type)
    blocks = await opener(start, length)
    return StreamingResponse(blocks, status_code=status, headers=headers, media_type=media_type)
