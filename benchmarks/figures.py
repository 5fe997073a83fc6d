"""From measured blocks to figures with their spread."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.race import Block

Figure = dict[str, float]
"""median, low and high."""


def figure(values: Sequence[float], digits: int = 3) -> Figure:
    """Return median, lowest and highest of some values."""
    return {
        "median": round(statistics.median(values), digits),
        "low": round(min(values), digits),
        "high": round(max(values), digits),
    }


def per_cpu_second(block: Block) -> float:
    """Return tokens per CPU second."""
    return block.tokens / block.cpu_seconds


def per_second(block: Block) -> float:
    """Return tokens per second."""
    return block.tokens / block.wall_seconds


def ratios(ours: Sequence[Block], others: Sequence[Block], speed: Callable[[Block], float]) -> list[float]:
    """Return how many times as fast we were, by round: what slows a round down slows both sides of its ratio down."""
    return [speed(our) / speed(other) for our, other in zip(ours, others, strict=True)]


def speeds(blocks: dict[str, list[Block]], walls: dict[str, list[Block]]) -> dict[str, Any]:
    """Return a method's figures.

    Parameters
    ----------
    blocks
        Rounds with one pinned thread, of ours, stock, tuned and floor.
    walls
        Rounds with all cores, of ours, stock and floor.
    """
    ours, wall = blocks["ours"], walls["ours"]
    return {
        "oursOverStock": figure(ratios(ours, blocks["stock"], per_cpu_second)),
        "oursOverTuned": figure(ratios(ours, blocks["tuned"], per_cpu_second)),
        "oursOverFloor": figure(ratios(ours, blocks["floor"], per_cpu_second)),
        **{
            f"{name}TokensPerCpuSecond": figure([per_cpu_second(block) for block in rounds], 1)
            for name, rounds in blocks.items()
        },
        "wallOursOverStock": figure(ratios(wall, walls["stock"], per_second)),
        "wallOursOverFloor": figure(ratios(wall, walls["floor"], per_second)),
        "wallOursTokensPerSecond": figure([per_second(block) for block in wall], 1),
    }
