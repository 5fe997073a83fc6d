"""The header of a safetensors file, checked by bounds while the file streams past; the tensors are not looked at.

The format: eight bytes with the length of the header, the header as JSON, then the tensors' bytes without gaps
(https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

from .errors import Invalid
from .strictjson import decode, has_more_values

MAX_HEADER_BYTES = 16 * 1024 * 1024
MAX_HEADER_VALUES = 1_000_000
"""Both far above an adapter of 30,000 tensors; together they bound what parsing takes of memory."""

BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
}

_parsing = asyncio.Lock()
"""One header at a time is parsed: the memory that it takes does not grow with the uploads."""


async def checked(blocks: AsyncIterator[bytes], *, path: str, size: int) -> AsyncIterator[bytes]:
    """The same blocks of a file of `size` bytes; raises `Invalid` before the first one if its header is wrong."""
    start = bytearray()
    wanted: int | None = None
    async for block in blocks:
        if wanted is not None and not start:
            yield block
            continue
        start += block
        if wanted is None and len(start) >= 8:
            wanted = 8 + _header_length(bytes(start[:8]), path, size)
        if wanted is not None and len(start) >= wanted:
            async with _parsing:
                await asyncio.to_thread(check_header, bytes(start[8:wanted]), path=path, tensor_bytes=size - wanted)
            yield bytes(start)
            start.clear()
    if start or wanted is None:
        raise _wrong(path, "it ends in its header")


def _header_length(first: bytes, path: str, size: int) -> int:
    length = int.from_bytes(first, "little")
    if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        raise _wrong(path, f"its header would have {length} bytes, of {size} in all")
    return length


def check_header(header: bytes, *, path: str, tensor_bytes: int) -> None:
    """Raises `Invalid` unless the header describes tensors that fill exactly the bytes after it."""
    if has_more_values(header, MAX_HEADER_VALUES):
        raise _wrong(path, f"its header has more than {MAX_HEADER_VALUES} values")
    try:
        entries = decode(header)
    except ValueError as error:
        raise _wrong(path, f"its header is no JSON: {error}") from None
    if not isinstance(entries, dict):
        raise _wrong(path, "its header is no JSON object")
    spans = sorted(_span(path, name, entry) for name, entry in entries.items() if name != "__metadata__")
    edges = [0, *(edge for span in spans for edge in span), tensor_bytes]
    if any(end != start for end, start in list(pairwise(edges))[::2]):
        raise _wrong(path, f"its tensors do not fill the {tensor_bytes} bytes after the header without gaps")


def _span(path: str, name: str, entry: Any) -> tuple[int, int]:
    """Where a tensor begins and ends, once it is seen that its shape fits there."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
            sizes_fit = dtype in BITS and all(type(each) is int and each >= 0 for each in shape)
            if sizes_fit and 0 <= start <= end and math.prod(shape) * BITS[dtype] == 8 * (end - start):
                return start, end
    raise _wrong(path, f"type, shape and place of tensor {name[:200]!r} do not fit together")


def _wrong(path: str, what: str) -> Invalid:
    return Invalid(f"{path} is no whole safetensors file: {what}", hint="send the file that the trainer has saved")
