"""What a person at a terminal sees instead of JSON lines: a bar, plain sentences, and what to do next."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from model.exits import FailureError
from model.training.output import plot
from model.training.output.remaining import RemainingTime

PROGRAM = "python -m model.training.cli"

HINTS = {
    "AccessDenied": "for a private or gated model or dataset, put your token into HF_TOKEN",
    "BaseModelUnavailable": "--base-model takes a directory with config.json and weights, or owner/name on the hub",
    "DatasetInvalid": f"mend the rows, or leave them out with --invalid-rows=Drop; {PROGRAM} validate looks at them",
    "DatasetUnavailable": "--dataset takes a file, a glob in quotes, s3://..., sql:SELECT ... or owner/name on the hub",
    "Diverged": "lower --learning-rate; a longer --warmup-percent helps too",
    "GPUOutOfMemory": f"lower --max-length, or try --quantization=NF4; {PROGRAM} plan tells what a run needs",
    "GPUUnavailable": "leave --gpus out to train on the CPU",
    "InvalidSpec": f"{PROGRAM} COMMAND --help lists the flags with their defaults",
    "StorageFull": "make room; the same command then goes on from the last checkpoint",
}

_LOSSES_SHOWN = 10


def explain(failure: FailureError) -> str:
    """Return a failure as text for a person: the reason, each problem in a line of its own, and a hint."""
    problems = getattr(failure, "problems", ())
    if len(problems) > 1:
        lines = [f"{failure.reason}: {len(problems)} problems", *(f"  - {problem}" for problem in problems)]
    else:
        lines = [f"{failure.reason}: {failure.message}"]
    if (hint := HINTS.get(failure.reason)) is not None:
        lines.append(f"hint: {hint}")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Return a time span in words, at most two units of it."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    hours = whole // 3600
    return f"{hours} h {whole % 3600 // 60:02} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def size(count: float) -> str:
    """Return a number of bytes in words."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(count) >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} B"


def dataset_line(manifest: Mapping[str, Any]) -> str:
    """Return what an export found, in one line."""
    parts = [f"{manifest['rows']:,} rows to train on", f"{manifest['evaluationRows']:,} held out"]
    parts += [f"{manifest[key]:,} {key}" for key in ("dropped", "duplicates") if manifest.get(key)]
    return ", ".join(parts)


def width() -> int:
    """Return the terminal's width, bounded so that a line can be read."""
    return min(100, shutil.get_terminal_size((80, 24)).columns)


class Display:
    """Shows a run's events on a terminal.

    Parameters
    ----------
    output
        The terminal.
    directory
        The run's directory.
    """

    def __init__(self, output: TextIO, directory: Path) -> None:
        self._output = output
        self._directory = directory
        self._bar: Any = None
        self._remaining = RemainingTime()
        self._losses: deque[float] = deque(maxlen=_LOSSES_SHOWN)
        self._resumed_step = 0
        self._handlers: dict[str, Callable[[Mapping[str, Any]], None]] = {
            "start": self._start,
            "resume": self._resume,
            "train": self._train,
            "evaluation": self._evaluation,
            "checkpoint": lambda _fields: None,
            "warning": lambda fields: self._say(f"warning: {fields['message']}"),
            "interrupted": self._interrupted,
            "error": lambda _fields: self._close(),
            "sample": self._sample,
            "end": self._end,
        }

    def show(self, event: str, fields: Mapping[str, Any]) -> None:
        """Show one event."""
        handler = self._handlers.get(event)
        if handler is not None:
            handler(fields)
        else:
            self._say(f"{event}: {', '.join(f'{key} {value}' for key, value in fields.items())}")

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        print(text, file=self._output, flush=True)
        if self._bar is not None:
            self._bar.refresh()

    def _start(self, fields: Mapping[str, Any]) -> None:
        if "totalSteps" not in fields:
            self._say(", ".join(f"{key} {value}" for key, value in fields.items()))
            return
        parts = [f"{fields['rows']:,} rows", f"{fields['tokens']:,} tokens", f"longest {fields['longestRow']:,}"]
        if fields.get("evaluationRows"):
            parts.insert(1, f"{fields['evaluationRows']:,} held out")
        tokens = fields.get("microBatchTokens")
        at_once = f"{tokens:,} tokens" if tokens else f"{fields['microBatchSize']} rows"
        parts += [f"{at_once} at once", str(fields["precision"])]
        self._say(", ".join(parts))
        from tqdm import tqdm

        self._bar = tqdm(
            total=fields["totalSteps"],
            file=self._output,
            leave=False,
            **_bar_size(self._output),
            bar_format="{percentage:3.0f}%|{bar}| step {n_fmt}/{total_fmt}{postfix}",
        )

    def _resume(self, fields: Mapping[str, Any]) -> None:
        if "skipped" in fields:
            self._say(f"{fields['skipped']} is not used: {fields['reason']}")
            return
        where = f" of run {fields['run']}" if "run" in fields else ""
        self._say(f"going on from step {fields['step']}{where}")
        self._resumed_step = fields["step"]
        if self._bar is not None:
            self._bar.n = fields["step"]
            self._bar.refresh()

    def _train(self, fields: Mapping[str, Any]) -> None:
        if self._bar is None:
            return
        step, total, speed = fields["step"], fields["totalSteps"], fields["tokensPerSecond"]
        self._losses.append(fields["loss"] if fields["loss"] is not None else float("nan"))
        remaining = self._remaining.seconds(step, total)
        if remaining is None and speed:  # the first step of this process tells at least its own time
            remaining = round(fields["tokens"] / speed * (total - step))
        left = "" if remaining is None else f", {duration(remaining)} left"
        mean = sum(self._losses) / len(self._losses)
        self._bar.set_postfix_str(f"loss {mean:.3f}, {speed:,.0f} tokens/s{left}", refresh=False)
        self._bar.n = step
        self._bar.refresh()

    def _evaluation(self, fields: Mapping[str, Any]) -> None:
        if fields.get("loss") is not None and not fields.get("final"):
            self._say(f"step {fields['step']}: held-out loss {fields['loss']:.4f}")

    def _interrupted(self, fields: Mapping[str, Any]) -> None:
        self._close()
        self._say(f"stopped after step {fields['step']}, which is saved: the same command goes on from there")

    def _sample(self, fields: Mapping[str, Any]) -> None:
        self._close()
        where = f"row {fields['row']}" + (f" of {fields['file']}" if "file" in fields else "")
        lines = [f"\nasked, as in {where}"]
        for name, title in (("prompt", ""), ("reference", "the row"), ("base", "base"), ("adapter", "adapter")):
            if name in fields:
                text = fields[name] + (" ..." if name in fields["truncated"] else "")
                lines.append(f"  {title:<10}" + text.replace("\n", "\n" + " " * 12))
        self._say("\n".join(lines))

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _end(self, fields: Mapping[str, Any]) -> None:
        self._close()
        with contextlib.suppress(FailureError):  # a run of which nothing was left to do has no steps to draw
            self._say("\n" + plot.draw(plot.read_losses(self._directory / "metrics.jsonl"), width=width()) + "\n")
        adapter = fields["adapter"]
        lines = [f"done: {fields['steps']} steps, {int(fields['tokens']):,} tokens"]
        lines.append(f"  training loss   {float(fields['finalLoss']):.4f} (mean of the last steps)")
        if "evaluationLoss" in fields:
            before, after = float(fields["baseEvaluationLoss"]), float(fields["evaluationLoss"])
            change = f" ({100 * (after / before - 1):+.1f} %)" if before else ""
            lines.append(f"  held-out loss   {before:.4f} -> {after:.4f}{change}")
        if "rewardAccuracy" in fields:
            margin = fields.get("rewardMargin", "?")
            lines.append(f"  rewards         {100 * float(fields['rewardAccuracy']):.1f} % right, margin {margin}")
        elif "rewardMargin" in fields:
            good, bad, margin = (fields[name] for name in ("desirableReward", "undesirableReward", "rewardMargin"))
            lines.append(f"  rewards         {good} of good answers, {bad} of bad ones, margin {margin}")
        lines.append(f"  adapter         {self._directory / 'adapter'} ({size(adapter['bytes'])})")
        lines.append(f"try it with       {PROGRAM} chat {self._directory}")
        self._say("\n".join(lines))


def _bar_size(output: TextIO) -> dict[str, Any]:
    """Return how large the bar is; a terminal that does not know its size, as in a container, would show none."""
    try:
        size = os.get_terminal_size(output.fileno())
    except OSError:
        size = os.terminal_size((0, 0))
    return {"dynamic_ncols": True} if min(size) > 1 else {"ncols": 80, "nrows": 20}


def is_terminal(stream: TextIO) -> bool:
    """Whether a person reads this stream; `TERM=dumb` says that it shows no bar."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"
