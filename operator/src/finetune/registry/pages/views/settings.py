"""A run's settings as flat lists: what differs from the defaults, and what differs between runs."""

from __future__ import annotations

import json
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, JsonValue
from pydantic_core import PydanticUndefined

from finetune.api.trainingrun import TrainingRunSpec
from finetune.registry.pages.text import UNKNOWN

IGNORED = ("training.seed", "adapter.name", "output", "jobTTLSeconds", "retries", "suspend", "scheduling")
"""Settings that a comparison leaves out unless it is asked for others: they change no result, or every one."""
MAX_TEXT = 400


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One value of a spec."""

    path: str
    """As `kubectl explain` has it, below `spec`."""
    value: str
    default: str
    """The default; `UNKNOWN` where there is none."""
    differs: bool


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One setting of several runs."""

    path: str
    values: tuple[str, ...]
    differs: bool
    is_ignored: bool


def flat(value: JsonValue, path: str = "") -> dict[str, str]:
    """Every value below `value` by its path, as text; a list is one value."""
    if isinstance(value, Mapping) and value:
        found: dict[str, str] = {}
        for key, each in value.items():
            found |= flat(each, f"{path}.{key}" if path else str(key))
        return found
    return {path: _text(value)} if path else {}


def settings_of(spec: Mapping[str, JsonValue]) -> list[Setting]:
    """The settings of a spec: those that differ from their defaults first, then by path."""
    known = defaults()
    listed = [
        Setting(path=path, value=value, default=known.get(path, UNKNOWN), differs=value != known.get(path))
        for path, value in flat(dict(spec)).items()
    ]
    return sorted(listed, key=lambda each: (not each.differs, each.path))


def differences(specs: Sequence[Mapping[str, JsonValue]], *, ignored: Iterable[str]) -> list[Difference]:
    """The settings of several specs beside each other; one that is not written has its default."""
    known = defaults()
    left_out = tuple(ignored)
    flats = [flat(dict(spec)) for spec in specs]
    rows = []
    for path in sorted({path for each in flats for path in each}):
        values = tuple(each.get(path, known.get(path, UNKNOWN)) for each in flats)
        rows.append(
            Difference(path=path, values=values, differs=len(set(values)) > 1, is_ignored=_is_below(path, left_out))
        )
    return rows


@cache
def defaults() -> Mapping[str, str]:
    """The default of every field of a TrainingRun's spec that has one, by path."""
    return types.MappingProxyType(dict(_defaults(TrainingRunSpec, "")))


def _defaults(model: type[BaseModel], path: str) -> Iterable[tuple[str, str]]:
    for name, field in model.model_fields.items():
        here = f"{path}.{field.alias or name}" if path else field.alias or name
        below = _model_of(field.annotation)
        if below is not None:
            yield from _defaults(below, here)
            continue
        default: Any = field.default_factory() if field.default_factory else field.default  # type: ignore[call-arg]
        if default is not PydanticUndefined and default is not None:
            yield here, _text(list(default) if isinstance(default, tuple) else default)


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds, also where it may be missing."""
    if get_origin(annotation) is Annotated:
        return _model_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return next(filter(None, map(_model_of, get_args(annotation))), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _is_below(path: str, above: Iterable[str]) -> bool:
    return any(path == each or path.startswith(f"{each}.") for each in above)


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
