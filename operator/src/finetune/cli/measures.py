"""By which number the best version of an adapter is chosen, and what may not take a better one's place. Pure."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .output import number

if TYPE_CHECKING:
    from finetune.api.registry import AdapterVersion

USABLE = frozenset({"Ready", "Registered"})
"""States of versions that are given out and that nobody has advised against."""
MEASURES = {
    "heldOutLoss": "evaluation_loss",
    "evaluationLoss": "evaluation_loss",  # the same, by its name in the API
    "finalLoss": "final_loss",
    "rewardAccuracy": "reward_accuracy",
}
LARGER_IS_BETTER = frozenset({"rewardAccuracy"})


@dataclass(frozen=True)
class Guard:
    """By how much a new version may be worse than the one whose place it takes."""

    value: float = 0.0
    is_percent: bool = False
    """Of the other one's number; otherwise it is a difference."""

    def __str__(self) -> str:
        return f"{self.value:g}" + (" %" if self.is_percent else "")

    def allows(self, new: float, old: float, by: str) -> bool:
        """Whether the new number is no more than this worse than the old one."""
        worse_by = old - new if by in LARGER_IS_BETTER else new - old
        most = abs(old) * self.value / 100 if self.is_percent else self.value
        return worse_by <= most or math.isclose(worse_by, most, rel_tol=1e-9)  # 1.02 - 1.00 is above 0.02


def guard(text: str) -> Guard:
    """A guard as it is typed: `1%`, or `0.02`. Raises argparse's error."""
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(%?)", text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a difference, such as 0.02, nor a percentage, such as 1%")
    return Guard(float(found[1]), is_percent=bool(found[2]))


def measure(item: AdapterVersion, by: str) -> float | None:
    """A measure of a version; None where it was not measured, or is no number."""
    text = getattr(item, MEASURES[by])
    value = float(text) if text is not None else math.nan
    return value if math.isfinite(value) else None


def best_of(versions: Iterable[AdapterVersion], by: str) -> AdapterVersion | None:
    """The version with the best measure among those that are given out; of equal ones the newest."""
    sign = -1 if by in LARGER_IS_BETTER else 1
    usable = usable_of(versions, by)
    return min(usable, key=lambda each: (sign * (measure(each, by) or 0.0), -each.version), default=None)


def usable_of(versions: Iterable[AdapterVersion], by: str) -> list[AdapterVersion]:
    """The versions that `best_of` chooses from."""
    return [each for each in versions if each.state in USABLE and measure(each, by) is not None]


def objection(best: AdapterVersion, current: AdapterVersion, by: str, allowed: Guard) -> str | None:
    """Why a version shall not take the place of the current one, with both numbers; None where it may."""
    new, old = measure(best, by), measure(current, by)
    if old is None:
        return (
            f"it has no {by} that version {best.version} ({number(new)}) could be compared with; "
            f"`finetune adapters alias {best.name} ALIAS {best.version}` moves an alias all the same"
        )
    if new is None or allowed.allows(new, old, by):
        return None
    share = f" ({abs(new - old) / abs(old):.1%})" if old else ""
    return (
        f"its {by} is {number(old)}, and that of the best other one, version {best.version}, is {number(new)}: "
        f"worse by {number(abs(new - old))}{share}, and the guard allows {allowed}"
    )
