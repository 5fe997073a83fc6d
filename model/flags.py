"""Settings from `--flag=value` arguments and a YAML file, checked by one pydantic model.

A field `batch_size` is the flag `--batch-size` and the key `batchSize`. Lists are comma-separated, mappings
are repeated `--flag=key=value`, and `--flag` alone sets a switch. All problems are reported together.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo

from model import exits
from model.exits import FailureError


class Settings(BaseModel):
    """Base of the settings of a command."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)


REPEATED: dict[str, JsonValue] = {"repeated": True}
"""`json_schema_extra` of a list whose items may hold commas: one flag gives one item."""

S = TypeVar("S", bound=Settings)


def parse(settings: type[S], arguments: Sequence[str]) -> S:
    """Return the settings that the arguments and the file of `--config` give; a flag wins over the file.

    Raises
    ------
    FailureError
        With code 2 and one message that holds every problem.
    """
    problems: list[str] = []
    given = _collect(settings, arguments, problems)
    values: dict[str, Any] = {}
    for path in given.pop("config", []):
        values.update(_read_file(settings, Path(path), problems))
    origins = dict.fromkeys(values, "")
    for name, texts in given.items():
        origins[name] = texts[-1]
        values[name] = _convert(settings.model_fields[name], name, texts, problems)
    try:
        result = settings.model_validate(values)
    except ValidationError as error:
        problems += [_explain(settings, entry, values) for entry in error.errors()]
        result = None
    if problems or result is None:
        raise FailureError(exits.INVALID_CONFIGURATION, "InvalidSpec", "; ".join(problems))
    return result


def help_text(settings: type[Settings], usage: str) -> str:
    """Return the text for `--help`: every flag with its default and meaning."""
    lines = [
        usage,
        "",
        "  --config=PATH",
        "      YAML file with the same settings as camelCase keys; flags win over it",
    ]
    for name, field in settings.model_fields.items():
        silent = field.is_required() or field.default_factory is not None or field.default in (None, False)
        default = "" if silent else f" (default {field.default})"
        required = " (required)" if field.is_required() else ""
        lines.append(f"  {flag(name)}={_placeholder(field)}")
        lines.append(f"      {field.description}{default}{required}")
    return "\n".join(lines)


def flag(name: str) -> str:
    """Return the flag of a field."""
    return "--" + name.replace("_", "-")


def _collect(settings: type[Settings], arguments: Sequence[str], problems: list[str]) -> dict[str, list[str]]:
    known = {flag(name): name for name in settings.model_fields} | {"--config": "config"}
    given: dict[str, list[str]] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        key, separator, value = argument.partition("=")
        if key not in known:
            problems.append(f"{key}: no such flag{_suggest(key, known)}")
            continue
        name = known[key]
        if not separator:
            if name in settings.model_fields and _base_type(settings.model_fields[name]) is bool:
                value = "true"
            elif rest and not rest[0].startswith("--"):
                value = rest.pop(0)
            else:
                problems.append(f"{key}: needs a value, as in {key}=...")
                continue
        given.setdefault(name, []).append(value)
    return given


def _convert(field: FieldInfo, name: str, texts: list[str], problems: list[str]) -> Any:
    kind = typing.get_origin(_base_type(field)) or _base_type(field)
    if kind is dict:
        pairs = [text.partition("=") for text in texts]
        problems += [f"{flag(name)}={key}: must be name=value" for key, separator, _ in pairs if not separator]
        return {key: value for key, _, value in pairs}
    if kind is list and (field.json_schema_extra or {}) == REPEATED:
        return texts
    if kind is list:
        return [part.strip() for text in texts for part in text.split(",") if part.strip()]
    if len(texts) > 1:
        problems.append(f"{flag(name)}: given {len(texts)} times")
    return texts[-1]


def _read_file(settings: type[Settings], path: Path, problems: list[str]) -> dict[str, Any]:
    import yaml

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problems.append(f"--config={path}: {error}")
        return {}
    if not isinstance(document, Mapping):
        problems.append(f"--config={path}: must hold a mapping of settings")
        return {}
    known = {to_camel(name): name for name in settings.model_fields}
    problems += [f"{path}: {key}: no such setting{_suggest(str(key), known)}" for key in document if key not in known]
    return {known[key]: value for key, value in document.items() if key in known}


def _explain(settings: type[Settings], entry: Any, values: Mapping[str, Any]) -> str:
    if not entry["loc"]:
        return str(entry["msg"]).removeprefix("Value error, ")
    key = str(entry["loc"][0])
    name = next((name for name in settings.model_fields if key in (name, to_camel(name))), key)
    if entry["type"] == "missing":
        return f"{flag(name)}: is required"
    message = str(entry["msg"]).removeprefix("Value error, ")
    message = message.replace("Input should be", "must be").replace("Input must be", "must be")
    return f"{flag(name)}={values.get(name)}: {message}"


def _suggest(key: str, known: Mapping[str, Any]) -> str:
    nearest = difflib.get_close_matches(key, known, n=1)
    return f", did you mean {nearest[0]}?" if nearest else ""


def _base_type(field: FieldInfo) -> Any:
    annotation = field.annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next(part for part in typing.get_args(annotation) if part is not type(None))
    return annotation


def _placeholder(field: FieldInfo) -> str:
    base = _base_type(field)
    kind = typing.get_origin(base) or base
    if kind is typing.Literal:
        return "|".join(map(str, typing.get_args(base)))
    names = {int: "N", float: "DECIMAL", bool: "true|false", dict: "NAME=VALUE", list: "A,B", Path: "PATH"}
    return names.get(kind, "TEXT")
