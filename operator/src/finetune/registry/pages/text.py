"""Texts and numbers as people read them. Whatever a run, a dataset or a pod has written goes through `clean`."""

from __future__ import annotations

import math
import re
from datetime import datetime, timedelta

_SEQUENCES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
"""What terminals act on: CSI, OSC and the short ones (ECMA-48)."""
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
"""Control characters but tab and newline, those that turn the direction of writing, and what cannot be seen."""
_BREAKS = re.compile("\r\n?|[\x85\u2028\u2029]")
_HALVES = re.compile("[\ud800-\udfff]")

UNKNOWN = "–"  # noqa: RUF001 - a dash on purpose
"""Stands where there is no value."""


def clean(text: str) -> str:
    """The text without anything that would not be shown, or would show the rest as something else."""
    if text.isascii() and text.isprintable():
        return text
    text = _BREAKS.sub("\n", text)
    text = _UNSEEN.sub("", _SEQUENCES.sub("", text))
    return _HALVES.sub("\ufffd", text)


def shortened(text: str, limit: int) -> str:
    """At most `limit` characters; an ellipsis says that there were more."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def number(value: float | int | None, digits: int = 4) -> str:
    """A number with as many significant digits as help, thousands apart."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value == 0:
        return "0"
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e15):
        return f"{int(value):,}"
    if 10_000 <= abs(value) < 1e15:
        return f"{value:,.0f}"
    if abs(value) >= 10_000 or abs(value) < 0.001:
        return f"{value:.{digits - 2}e}".replace("e-0", "e-").replace("e+0", "e+")
    return f"{value:,.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def decimal(text: str | None) -> float | None:
    """The number in a decimal text; None where it holds none."""
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def percent(value: float | None) -> str:
    """A share as a signed percentage: -0.31 is minus 31 %."""
    if value is None:
        return UNKNOWN
    rounded = round(100 * value)
    return f"{'−' if rounded < 0 else '+' if rounded > 0 else ''}{abs(rounded)} %"  # noqa: RUF001 - a true minus


def change(value: float | None, base: float | None) -> float | None:
    """How far a loss is from the base's, as a share of that; None where it cannot be said."""
    if value is None or base is None or base == 0:
        return None
    return (value - base) / abs(base)


def size(count: int | None) -> str:
    """Bytes in the unit that fits, of 1000."""
    if count is None:
        return UNKNOWN
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.3g} {unit}"
        value /= 1000
    raise AssertionError("unreachable: the last unit takes all")


def duration(seconds: float | None) -> str:
    """A time span in its two largest units: "2h 10m"."""
    if seconds is None:
        return UNKNOWN
    whole = max(0, round(seconds))
    units = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
    for place, (name, length) in enumerate(units):
        if whole >= length:
            count, rest = divmod(whole, length)
            if place + 1 == len(units):
                return f"{count}{name}"
            finer, step = units[place + 1]
            return f"{count}{name} {rest // step}{finer}" if rest // step else f"{count}{name}"
    return "0s"


def age(since: datetime, now: datetime) -> str:
    """How long ago, in one unit."""
    return duration((now - since).total_seconds()).split(" ")[0]


def moment(time: datetime | None) -> str:
    """A time to the minute, in UTC."""
    return UNKNOWN if time is None else f"{time:%Y-%m-%d %H:%M} UTC"


def span(start: datetime | None, end: datetime | None) -> timedelta | None:
    """The time between two, where both are known."""
    return None if start is None or end is None else max(timedelta(), end - start)
