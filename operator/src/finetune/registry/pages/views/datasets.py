"""Datasets: rows as they are learned, their lengths, and what differs between two versions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.registry.pages.text import shortened

ROWS_SHOWN = 10
LOOKED_AT_BYTES = 2 * 1024 * 1024
"""As many of a dataset's first bytes are read for lengths and duplicates."""
FOUND_BYTES = 64 * 1024 * 1024
"""As far a single row is looked for."""
DIFFERED_BYTES = 16 * 1024 * 1024
"""Versions larger than this are not compared on a page."""
BARS = 20
TEXT = 4000
EXAMPLES = 10


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of a row, and what training makes of it."""

    role: str
    text: str
    kind: str
    """`learned`, `preferred`, `avoided` or `given`."""


@dataclass(frozen=True, kw_only=True)
class RowView:
    """A row, by its number."""

    number: int
    segments: tuple[Segment, ...]
    extra: tuple[str, ...]
    """Keys that nothing is learned from."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A bar of the histogram, in its coordinates."""

    x: float
    y: float
    height: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Of the rows that were looked at, in characters of the whole line."""

    rows: int
    is_all: bool
    middle: int
    ninety: int
    ninety_nine: int
    longest: int
    duplicates: int
    bars: tuple[Bar, ...]


@dataclass(frozen=True, kw_only=True)
class VersionDifference:
    """Two versions, row by row; the order does not matter."""

    added: int
    removed: int
    kept: int
    added_rows: tuple[str, ...]
    removed_rows: tuple[str, ...]


async def lines_of(blocks: AsyncIterator[bytes], limit: int) -> AsyncIterator[bytes]:
    """The lines of the first `limit` bytes, without one that is cut there; blank ones too, for they count."""
    rest, read = b"", 0
    async for block in blocks:
        read += len(block)
        *whole, rest = (rest + block).split(b"\n")
        for line in whole:
            yield line
        if read >= limit:
            return
    if rest:
        yield rest


async def row_text(blocks: AsyncIterator[bytes], wanted: int) -> str:
    """The text of one row, from 1; empty when it is not among the first `FOUND_BYTES`."""
    number = 0
    async for line in lines_of(blocks, FOUND_BYTES):
        number += 1
        if number == wanted:
            return line.decode(errors="replace")
    return ""


def rows_at(lines: Sequence[bytes], first: int, shape: str) -> list[RowView]:
    """The rows from number `first` on, as training sees them."""
    chosen = [(number, line) for number, line in enumerate(lines, start=1) if number >= first and line.strip()]
    return [row_view(number, line, shape) for number, line in chosen[:ROWS_SHOWN]]


def row_view(number: int, line: bytes, shape: str) -> RowView:
    """A row as parts, by the shape of its dataset."""
    text = line.decode(errors="replace")
    try:
        row = json.loads(text)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        return RowView(number=number, segments=(_segment("row", text, "given"),), extra=())
    segments, used = _segments(row, shape)
    return RowView(number=number, segments=tuple(segments), extra=tuple(sorted(set(map(str, row)) - used))[:20])


def _segments(row: Mapping[str, Any], shape: str) -> tuple[list[Segment], set[str]]:
    if shape == "text" and "text" in row:
        return [_segment("text", row["text"], "learned")], {"text"}
    if shape == "messages" and "messages" in row:
        return _messages(row["messages"]), {"messages"}
    if shape.startswith("preference") and {"chosen", "rejected"} <= set(row):
        parts = _messages(row.get("prompt"), role="prompt", kind="given")
        parts += _messages(row["chosen"], role="chosen", kind="preferred")
        return parts + _messages(row["rejected"], role="rejected", kind="avoided"), {"prompt", "chosen", "rejected"}
    if "completion" in row:
        kind = "learned"
        if shape.startswith("unpaired"):
            kind = "preferred" if row.get("label") else "avoided"
        parts = _messages(row.get("prompt"), role="prompt", kind="given")
        return parts + _messages(row["completion"], role="completion", kind=kind), {"prompt", "completion", "label"}
    return [_segment("row", json.dumps(row, ensure_ascii=False), "given")], set(map(str, row))


def _messages(value: Any, *, role: str = "", kind: str | None = None) -> list[Segment]:
    """A text, or messages: of a conversation the assistant's are learned, unless `kind` says what all are."""
    if value is None:
        return []
    if not isinstance(value, list):
        return [_segment(role, value, kind or "learned")]
    found = []
    for each in value:
        said = each if isinstance(each, Mapping) else {"content": each}
        who = str(said.get("role", role))
        content = said.get("content")
        calls = said.get("tool_calls")
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        if calls:
            text = f"{text if content else ''}{json.dumps(calls, ensure_ascii=False)}"
        found.append(_segment(who, text, kind or ("learned" if who == "assistant" else "given")))
    return found


def _segment(role: str, value: Any, kind: str) -> Segment:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return Segment(role=shortened(role, 40), text=shortened(text, TEXT), kind=kind)


def lengths_of(lines: Sequence[bytes], *, is_all: bool) -> Lengths | None:
    """Lengths and exact duplicates; None without rows."""
    kept = [line.strip() for line in lines if line.strip()]
    if not kept:
        return None
    sizes = sorted(len(line.decode(errors="replace")) for line in kept)
    return Lengths(
        rows=len(kept),
        is_all=is_all,
        middle=_quantile(sizes, 0.5),
        ninety=_quantile(sizes, 0.9),
        ninety_nine=_quantile(sizes, 0.99),
        longest=sizes[-1],
        duplicates=len(kept) - len(set(kept)),
        bars=tuple(_bars(sizes)),
    )


def _quantile(ordered: Sequence[int], share: float) -> int:
    """The smallest value that so large a share of all does not exceed."""
    place = -(-len(ordered) * share // 1)
    return ordered[max(0, min(len(ordered) - 1, int(place) - 1))]


def _bars(sizes: Sequence[int], *, width: float = 300, height: float = 60) -> list[Bar]:
    low, high = sizes[0], sizes[-1]
    step = max(1, -(-(high - low + 1) // BARS))
    counts = Counter((each - low) // step for each in sizes)
    most = max(counts.values())
    bars = []
    for place in range(max(counts) + 1):
        tall = round(height * counts[place] / most, 1)
        start = low + place * step
        text = f"{start:,} to {start + step - 1:,} characters: {counts[place]:,} rows"
        bars.append(Bar(x=round(place * width / BARS, 1), y=height - tall, height=tall, text=text))
    return bars


async def difference(old: AsyncIterator[bytes], new: AsyncIterator[bytes]) -> VersionDifference:
    """Which rows each of two versions has that the other has not; a row counts as often as it stands there."""
    before = Counter([line.strip() async for line in lines_of(old, DIFFERED_BYTES) if line.strip()])
    after = Counter([line.strip() async for line in lines_of(new, DIFFERED_BYTES) if line.strip()])
    added, removed = after - before, before - after
    return VersionDifference(
        added=added.total(),
        removed=removed.total(),
        kept=(before & after).total(),
        added_rows=_examples(added),
        removed_rows=_examples(removed),
    )


def _examples(rows: Counter[bytes]) -> tuple[str, ...]:
    return tuple(shortened(line.decode(errors="replace"), 300) for line in list(rows)[:EXAMPLES])
