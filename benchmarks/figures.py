"""From measured blocks to figures with their spread."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.memory import ERRORS, SHAPES
from benchmarks.race import Block

AT_LEAST = {
    "sft.oursOverStock": 2.2,
    "sft.oursOverFloor": 0.95,
    "dpo.oursOverStock": 2.5,
    "dpo.oursOverFloor": 0.95,
}
AT_MOST = {
    "firstStepSeconds": 8.0,
    "helpSeconds": 0.4,
    "validateSeconds": 0.4,
    "checkpointPercent": 3.0,
    "exportSeconds": 20.0,
    "exportMiB": 300.0,
}
WITHIN = {f"memory.{shape}.{kind}": 15.0 for shape in SHAPES for kind in ERRORS}
"""How far a figure may be from 0, on either side."""

Figure = dict[str, float]
"""median, low and high."""


def figure(values: Sequence[float], digits: int = 3) -> Figure:
    """Return median, lowest and highest of some values."""
    return {
        "median": round(statistics.median(values), digits),
        "low": round(min(values), digits),
        "high": round(max(values), digits),
    }


def beside_targets(document: Mapping[str, Any]) -> list[str]:
    """Return a line for each figure that has a target: its name, what was seen, the target, and whether it is met."""
    lines = []
    for name, target in (AT_LEAST | AT_MOST | WITHIN).items():
        value: Any = document
        for key in name.split("."):
            value = value.get(key) if value is not None else None
        if value is None:
            continue
        seen = value["median"] if isinstance(value, Mapping) else value
        met = seen >= target if name in AT_LEAST else (abs(seen) if name in WITHIN else seen) <= target
        sign = ">=" if name in AT_LEAST else "<=" if name in AT_MOST else "+-"
        lines.append(f"{name:20} {seen:>9} {sign} {target:<6} {'met' if met else 'MISSED'}")
    return lines


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
