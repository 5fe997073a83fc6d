"""How commands print: tables as kubectl's, facts, documents, ages, colours on a terminal only."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

FORMATS = ("table", "wide", "json", "yaml", "name")
COLOURS = {"red": 31, "green": 32, "yellow": 33, "blue": 34, "dim": 2, "bold": 1}
PHASES = {
    "Succeeded": "green",
    "Failed": "red",
    "Deleted": "dim",
    "Training": "blue",
    "Exporting": "blue",
    "Registering": "blue",
}
WAITING = "yellow"

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_OTHERS = re.compile(r"[-+]?(\.?\d+|\d+\.\d*|\d*\.\d+)([eE][-+]?\d+)?|[-+]?0[oO][0-7]+|[yYnN]")
"""Numbers and booleans of YAML 1.2 and of Go's YAML."""


def printable(text: str) -> str:
    """The text without what moves a terminal's cursor or turns the direction of writing: a run's pod has written it."""
    return _UNPRINTABLE.sub("\ufffd", text)


def colourful() -> bool:
    """Whether standard output is a terminal that wants colours."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def painted(text: str, colour: str | None, *, on: bool | None = None) -> str:
    """The text in a colour where colours are wanted."""
    wanted = colourful() if on is None else on
    return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m" if wanted and colour else text


def phase_colour(phase: str) -> str:
    """Green for a success, red for a failure, yellow for what waits."""
    return PHASES.get(phase.strip(), WAITING)


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    paint: Mapping[str, Callable[[str], str]] | None = None,
    on: bool | None = None,
) -> str:
    """Columns as wide as their widest cell, two spaces apart, the way kubectl prints them.

    `paint` gives a colour for the cells of a column. Control characters of cells are shown as such.
    """
    cells = [tuple(columns), *(tuple(printable(str(cell)).replace("\n", " ") for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(columns))]
    lines = []
    for number, row in enumerate(cells):
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        padded[-1] = padded[-1].rstrip()
        for name, colour in (paint or {}).items() if number else ():
            place = columns.index(name)
            padded[place] = painted(padded[place], colour(row[place]), on=on)
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def facts(given: Mapping[str, object]) -> str:
    """One fact a line, its name first; those without a value are left out."""
    known = {key: value for key, value in given.items() if value is not None}
    width = max((len(key) for key in known), default=0) + 2
    indent = "\n" + " " * max(width, 17)
    lines = (
        f"{key + ':':{max(width, 17)}}{printable(str(value)).replace(chr(10), indent)}" for key, value in known.items()
    )
    return "\n".join(lines)


def document(value: Any, form: str) -> str:
    """A document or a list of documents as JSON or YAML."""
    if form == "json":
        return json.dumps(value, indent=2, ensure_ascii=False)
    import yaml

    class Dumper(yaml.SafeDumper):
        """Quotes texts that kubectl would read as numbers or booleans, and YAML 1.1 does not."""

    def text_of(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'" if _OTHERS.fullmatch(text) else None)

    Dumper.add_representer(str, text_of)
    text: str = yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text.rstrip("\n")


def duration(seconds: float | None) -> str:
    """A time as kubectl prints an age: 45s, 12m, 3h20m, 5d."""
    if seconds is None:
        return "-"
    whole = max(0, round(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if whole < 120:
        return f"{whole}s"
    if minutes < 60:
        return f"{minutes}m"
    if hours < 10:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    return f"{hours}h" if hours < 48 else f"{days}d"


def age(moment: datetime | None, now: datetime) -> str:
    """How long ago something was."""
    return "-" if moment is None else duration((now - moment).total_seconds())


def number(text: str | float | None) -> str:
    """A loss with four significant digits after the point at most; `-` where there is none."""
    if text is None or text == "":
        return "-"
    try:
        return f"{float(text):.4g}"
    except ValueError:
        return printable(str(text))
