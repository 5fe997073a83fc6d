"""A sweep: from one manifest and values of settings to the runs of a grid, or of random choices. Pure.

members(base, ["learningRate=1e-4,2e-4", "lora.rank=8,16"], name="support")             the grid: four runs
members(base, ["learningRate=1e-5..1e-3", "lora.rank=8,16"], name="support", count=10)   ten random ones

A member is named after the sweep, its values and a digest of its spec: the same sweep is the same objects, a larger one
is those and others, and a changed manifest is new runs beside the old ones.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from .manifest import Document, changed, check, is_text, resolve
from .session import UsageError
from .views import ENDED

SWEEP_LABEL = "finetune.dev/sweep"
"""On every member: the sweep's name."""
HELD_ANNOTATION = "finetune.dev/sweep-held"
"""On a member that waits for its turn, and only there: `--parallel` has created it suspended."""
MOST = 200
"""Members of one sweep."""
LONGEST_NAME = 40
DIGITS = 6
LONGEST_RUN = 63
DECADE = 10
"""A range whose ends are so many times apart is drawn from by its logarithm."""

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})(?<!\.)\.\.(?!\.)({_NUMBER})")
"""With a third point it would go on to a tenth of what was meant: 1e-5...1e-3 has .1e-3 at its end."""
_NEARLY_RANGE = re.compile(rf"(?:{_NUMBER})?\.\.+(?:{_NUMBER})?")


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One setting and the values that it may have: `choices`, or what lies between two numbers."""

    path: str
    choices: tuple[str, ...] = ()
    """As they were typed; an empty one is the field's default."""
    low: float = 0.0
    high: float = 0.0
    is_whole: bool = False
    """Whether the numbers of a range are whole ones."""

    @property
    def is_range(self) -> bool:
        """Whether there are values between two numbers."""
        return not self.choices

    @property
    def varies(self) -> bool:
        """Whether members can differ in it."""
        return self.is_range or len(self.choices) > 1

    def at(self, share: float) -> str:
        """The value at a share of its choices, from 0 to below 1."""
        if not self.is_range:
            return self.choices[int(share * len(self.choices))]
        is_logarithmic = self.low > 0 and self.high / self.low >= DECADE
        low, high = (self.low - 0.5, self.high + 0.5) if self.is_whole else (self.low, self.high)  # ends as likely
        if is_logarithmic:
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            value = low + share * (high - low)
        value = min(self.high, max(self.low, round(value) if self.is_whole else value))
        return str(round(value)) if self.is_whole else _short(value)


@dataclass(frozen=True, kw_only=True)
class Member:
    """One run of a sweep."""

    name: str
    settings: Mapping[str, str]
    """The values of what varies, by path."""
    manifest: Document = field(repr=False)

    @property
    def label(self) -> str:
        """Its settings in a line."""
        return ", ".join(f"{path}={value or '(default)'}" for path, value in self.settings.items())


def members(
    base: Mapping[str, Any], settings: Iterable[str], *, name: str, count: int | None = None, seed: int = 0
) -> list[Member]:
    """The runs of a sweep over a manifest, in the order in which they begin.

    `settings` are `path=value`; of several values (`a,b`) or a range (`1e-5..1e-3`) members have different ones.
    `count` is the number of random members; None makes the whole grid. Every spec is checked as far as it can be
    without the API server. Raises UsageError, which names all members that cannot be.
    """
    if len(name) > LONGEST_NAME:
        raise UsageError(f"the sweep's name {name} has more than {LONGEST_NAME} letters: its runs' names would not fit")
    axes = [axis_of(setting) for setting in settings]
    twice = sorted({axis.path for axis in axes if sum(axis.path == each.path for each in axes) > 1})
    if twice:
        raise UsageError(f"{', '.join(twice)} is set twice: give all of its values in one --set, separated by commas")
    if not any(axis.varies for axis in axes):
        raise UsageError("nothing varies: give a setting several values, such as --set learningRate=1e-4,2e-4")
    drawn = _grid(axes) if count is None else _random(axes, count, seed)
    made, problems = [], []
    for values in drawn:
        member = _member(base, axes, values, name)
        try:
            check(member.manifest["spec"])
        except UsageError as error:
            problems.append(f"{member.label}: {error}")
        made.append(member)
    if problems:
        raise UsageError("\n  ".join([f"{len(problems)} of {len(made)} runs cannot be", *problems]))
    return made


def axis_of(setting: str) -> Axis:
    """The axis that `path=value,value` or `path=low..high` names. Raises UsageError."""
    key, equals, text = setting.partition("=")
    if not equals:
        raise UsageError(f"--set {setting}: it is PATH=VALUE, or PATH=VALUE,VALUE for a run with each")
    parts, annotation = resolve(key.strip().removeprefix("spec."))
    path = ".".join(parts)
    if found := _RANGE.fullmatch(text.strip()):
        low, high = float(found[1]), float(found[2])
        is_whole = not is_text(annotation)
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UsageError(f"--set {setting}: a range goes from a smaller number to a larger one")
        if is_whole and not (low.is_integer() and high.is_integer()):
            raise UsageError(f"--set {setting}: {path} takes whole numbers")
        return Axis(path=path, low=low, high=high, is_whole=is_whole)
    choices = tuple(each.strip() for each in _split(text))
    if nearly := [each for each in choices if _NEARLY_RANGE.fullmatch(each)]:
        raise UsageError(
            f"--set {setting}: {nearly[0]} is no value; a range stands alone and has both ends: 1e-5..1e-3"
        )
    same = [each for place, each in enumerate(choices) if _value(each) in map(_value, choices[:place])]
    if same:
        raise UsageError(f"--set {setting}: {same[0] or 'the default'} stands there twice")
    return Axis(path=path, choices=choices)


def _split(text: str) -> list[str]:
    """The values between commas; those inside of brackets belong to a value."""
    found, depth, begun = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            found.append(text[begun:place])
            begun = place + 1
    return [*found, text[begun:]]


def _value(text: str) -> object:
    """What tells values apart: 1e-4 and 0.0001 are the same."""
    return float(text) if re.fullmatch(_NUMBER, text) else text


def _grid(axes: Sequence[Axis]) -> list[tuple[str, ...]]:
    ranges = [axis.path for axis in axes if axis.is_range]
    if ranges:
        raise UsageError(f"{', '.join(ranges)}: of a range values are drawn: say how many runs with --random=10")
    size = math.prod(len(axis.choices) for axis in axes)
    if size > MOST:
        raise UsageError(f"the grid has {size} runs, and a sweep has {MOST} at most: --random=20 tries some of them")
    return list(product(*(axis.choices for axis in axes)))


def _random(axes: Sequence[Axis], count: int, seed: int) -> list[tuple[str, ...]]:
    """So many different draws. The n-th is the same however many there are, and whatever else varies."""
    if count > MOST:
        raise UsageError(f"--random={count}: a sweep has {MOST} runs at most")
    found: dict[tuple[str, ...], None] = {}
    for number in range(100 * count):
        found[tuple(axis.at(_share(seed, number, axis.path)) for axis in axes)] = None
        if len(found) == count:
            return list(found)
    raise UsageError(f"--random={count}: these settings have about {len(found)} combinations; without it all are made")


def _share(seed: int, number: int, path: str) -> float:
    """A number from 0 to below 1 that is the same on every machine and in every version of Python."""
    digest = hashlib.sha256(f"{seed}/{number}/{path}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _member(base: Mapping[str, Any], axes: Sequence[Axis], values: Sequence[str], sweep: str) -> Member:
    pairs = list(zip(axes, values, strict=True))
    spec = changed(base["spec"], [f"{axis.path}={value}" for axis, value in pairs])
    spec.setdefault("experiment", sweep)
    settings = {axis.path: value for axis, value in pairs if axis.varies}
    name = member_name(sweep, settings, spec)
    metadata = {key: value for key, value in base["metadata"].items() if key not in {"name", "generateName"}}
    labels = {**(metadata.get("labels") or {}), SWEEP_LABEL: sweep}
    document = {**base, "metadata": {"name": name, **metadata, "labels": labels}, "spec": spec}
    return Member(name=name, settings=settings, manifest=document)


def member_name(sweep: str, settings: Mapping[str, str], spec: Mapping[str, Any]) -> str:
    """The name of the run with that spec, such as `support-1e-4-16-3f9a2c`: values for people, the digest for us."""
    told = {key: value for key, value in spec.items() if key != "suspend"}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:DIGITS]
    values = "-".join(settings[path] or "default" for path in sorted(settings))
    slug = re.sub(r"[^a-z0-9]+", "-", values.lower()).strip("-")[: LONGEST_RUN - len(sweep) - DIGITS - 2].strip("-")
    return "-".join(filter(None, (sweep, slug, digest)))


def held(member: Member) -> Document:
    """The manifest of a member that waits for its turn."""
    metadata = member.manifest["metadata"]
    annotations = {**(metadata.get("annotations") or {}), HELD_ANNOTATION: "true"}
    spec = {**member.manifest["spec"], "suspend": True}
    return {**member.manifest, "metadata": {**metadata, "annotations": annotations}, "spec": spec}


def is_held(run: Mapping[str, Any]) -> bool:
    """Whether a run waits for its turn in a sweep; one that a person has suspended or resumed does not."""
    return HELD_ANNOTATION in (run["metadata"].get("annotations") or {}) and bool(run["spec"].get("suspend"))


def is_over(run: Mapping[str, Any]) -> bool:
    """Whether a run has ended."""
    return (run.get("status") or {}).get("phase") in ENDED


def takes_place(run: Mapping[str, Any]) -> bool:
    """Whether a run counts among those that train at once."""
    return not is_over(run) and not run["spec"].get("suspend")


def next_ones(runs: Mapping[str, Mapping[str, Any]], order: Iterable[str], *, parallel: int) -> list[str]:
    """The names of the held runs whose turn it is; `runs` are the sweep's objects by name."""
    free = parallel - sum(takes_place(run) for run in runs.values())
    waiting = [name for name in order if name in runs and is_held(runs[name]) and not is_over(runs[name])]
    return waiting[: max(0, free)]


def _short(value: float) -> str:
    """Three digits, written as people write a learning rate: 0.031, 3.16e-5."""
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa
