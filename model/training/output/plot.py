"""The loss of a run, read from its metrics.jsonl: as a picture, and as a curve of braille dots for a terminal."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from model import exits
from model.exits import FailureError

Points = list[tuple[int, float]]

_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Bits of the left and the right column of a braille character, from top to bottom."""

_LABEL_WIDTH = 8

PICTURES = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Losses:
    """What metrics.jsonl says about the loss: pairs of step and loss, each step once, in order."""

    training: Points
    held_out: Points
    base: float | None = None
    """Loss of the base model on the held-out rows."""


def read_losses(metrics: Path) -> Losses:
    """Return the losses of all attempts.

    Raises
    ------
    FailureError
        When there is no file, or no step in it.
    """
    training: dict[int, float] = {}
    held_out: dict[int, float] = {}
    base: float | None = None
    try:
        lines = metrics.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise FailureError(
            exits.DOES_NOT_EXIST, "RunNotFound", f"{metrics} cannot be read ({error.strerror}): name a run's directory"
        ) from error
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:  # a line that a crash cut off
            continue
        step, loss = event.get("step"), event.get("loss")
        if loss is None or step is None:
            continue
        if event["event"] == "train":
            training[step] = loss
        elif event["event"] == "evaluation":
            held_out[step] = loss
            base = event.get("baseLoss", base)
    if not training:
        raise FailureError(exits.DOES_NOT_EXIST, "RunNotFound", f"{metrics} holds no training step yet")
    return Losses(sorted(training.items()), sorted(held_out.items()), base)


def smooth(points: Points, window: int) -> Points:
    """Return the mean of each point and up to `window` - 1 before it."""
    result, total = [], 0.0
    for index, (step, loss) in enumerate(points):
        total += loss
        if index >= window:
            total -= points[index - window][1]
        result.append((step, total / min(window, index + 1)))
    return result


def check_picture(path: Path) -> None:
    """Refuse a picture that could not be drawn, before anything is trained.

    Raises
    ------
    FailureError
        When it has no picture's name, nothing can be written there, or nothing is installed that draws.
    """
    above = next(parent for parent in path.absolute().parents if parent.exists())
    problem = None
    if path.suffix not in PICTURES:
        problem = f"must end in one of {', '.join(PICTURES)}"
    elif not (above.is_dir() and os.access(above, os.W_OK)):
        problem = f"{above} is no directory that can be written to: name another"
    elif importlib.util.find_spec("matplotlib") is None:
        problem = "needs the Python package matplotlib: install it, or leave the picture out"
    if problem:
        raise FailureError(exits.INVALID_CONFIGURATION, "InvalidSpec", f"--plot={path}: {problem}")


def write_picture(losses: Losses, path: Path, title: str) -> None:
    """Draw the losses into a file that `check_picture` has nothing against."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    window = max(1, len(losses.training) // 30)
    axes.plot(*zip(*losses.training, strict=True), color="C0", alpha=0.3, linewidth=1, label="training, each step")
    label = f"training, mean of {window} steps"
    axes.plot(*zip(*smooth(losses.training, window), strict=True), color="C0", linewidth=2, label=label)
    if losses.held_out:
        axes.plot(*zip(*losses.held_out, strict=True), color="C1", marker="o", label="held-out rows")
    if losses.base is not None:
        axes.axhline(losses.base, color="C1", linestyle=":", label="held-out rows, base model")
    axes.set(xlabel="step", ylabel="loss per learned token", title=title)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def draw(losses: Losses, *, width: int = 80, height: int = 12) -> str:
    """Return the losses as text: dots for the training, `o` for the held-out rows."""
    columns = max(10, width - _LABEL_WIDTH - 2)
    points = smooth(losses.training, max(1, len(losses.training) // (2 * columns)))
    values = [loss for _, loss in (*points, *losses.held_out)]
    low, high = min(values), max(values)
    spread = (high - low) or 1.0
    first, last = losses.training[0][0], losses.training[-1][0]

    def place(step: int, loss: float) -> tuple[int, int]:
        across = round((step - first) / max(1, last - first) * (2 * columns - 1))
        return min(max(across, 0), 2 * columns - 1), round((high - loss) / spread * (4 * height - 1))

    cells = [[0] * columns for _ in range(height)]
    for x, y in _joined([place(*point) for point in points]):
        cells[y // 4][x // 2] |= _DOTS[x % 2][y % 4]
    rows = [[chr(0x2800 + bits) for bits in row] for row in cells]
    for point in losses.held_out:
        x, y = place(*point)
        rows[y // 4][x // 2] = "o"
    labels = {0: high, height // 2: (high + low) / 2, height - 1: low}
    lines = [
        f"{labels[index]:{_LABEL_WIDTH}.4g} ┤{''.join(row)}"
        if index in labels
        else f"{'':{_LABEL_WIDTH}} │{''.join(row)}"
        for index, row in enumerate(rows)
    ]
    ends = f"step {first}".ljust(columns - len(str(last))) + str(last)
    legend = "⠒ training loss" + ("   o held-out loss" if losses.held_out else "")
    return "\n".join([*lines, f"{'':{_LABEL_WIDTH}} └{'─' * columns}", f"{'':{_LABEL_WIDTH + 2}}{ends}", legend])


def _joined(places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the dots of a line through the places, one or more in each column."""
    dots = list(places[:1])
    for (x0, y0), (x1, y1) in pairwise(places):
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        dots += [(x0 + round((x1 - x0) * k / steps), y0 + round((y1 - y0) * k / steps)) for k in range(1, steps + 1)]
    return dots
