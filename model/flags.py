"""Settings from `--flag=value` arguments, `--set key=value` and YAML files, checked by one pydantic model.

A field `batch_size` is the flag `--batch-size` and the key `batchSize`. Lists are comma-separated, mappings
are repeated `--flag=key=value`, and `--flag` alone sets a switch. A key with dots is a nested key of the file:
`lora.rank`, `lora: {rank: 8}` and `loraRank` are the same. All problems are reported together, each with the flag
or the line of the file that it comes from.
"""

from __future__ import annotations

import difflib
import re
import shutil
import textwrap
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


class InvalidSettingsError(FailureError):
    """Wrong settings; `problems` holds each of them as a sentence of its own."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(exits.INVALID_CONFIGURATION, "InvalidSpec", "; ".join(problems))
        self.problems = list(problems)


REPEATED: dict[str, JsonValue] = {"repeated": True}
"""`json_schema_extra` of a list whose items may hold commas: one flag gives one item."""

POSITIONAL: dict[str, JsonValue] = {"positional": True}
"""`json_schema_extra` of the field that an argument without a flag goes to."""


def bare(value: str) -> dict[str, JsonValue]:
    """Return the `json_schema_extra` of a field whose flag may stand without a value, and then means `value`."""
    return {"bare": value}


S = TypeVar("S", bound=Settings)
Groups = Sequence[tuple[str, Sequence[str]]]
"""Titles for `--help`, each with the names of its fields."""

_WORDS = {"path_type": "must be a path", "too_short": "must not be empty", "string_too_short": "must not be empty"}
"""What pydantic says of some mistakes in the words of a programmer."""

PSEUDO_FLAGS = {
    "--config": "YAML or JSON file with the same settings as camelCase keys; flags win over it",
    "--set": "One setting under its name in the file, as in --set lora.rank=8; wins over the file",
}


def parse(settings: type[S], arguments: Sequence[str]) -> S:
    """Return the settings that the files of `--config`, `--set` and the flags give; the later wins.

    Raises
    ------
    InvalidSettingsError
        With every problem.
    """
    reader = _Reader(settings)
    given = reader.collect(arguments)
    for path in given.pop("--config", []):
        reader.read_file(Path(path))
    for text in given.pop("--set", []):
        reader.put(text)
    for name, texts in given.items():
        reader.give(name, texts)
    try:
        result = settings.model_validate(reader.values)
    except ValidationError as error:
        reader.explain(error)
        result = None
    if reader.problems or result is None:
        raise InvalidSettingsError(list(dict.fromkeys(reader.problems)))
    return result


def flag(name: str) -> str:
    """Return the flag of a field."""
    return "--" + name.replace("_", "-")


def help_text(settings: type[Settings], usage: str, groups: Groups = ()) -> str:
    """Return the text for `--help`: every flag with its default and meaning, under the titles of `groups`."""
    width = min(120, max(60, shutil.get_terminal_size((100, 24)).columns))
    rest = [name for name in settings.model_fields if not any(name in names for _, names in groups)]
    lines = [usage, ""]
    for title, names in (*groups, ("", rest)):
        entries = [_help_entry(name, settings.model_fields[name]) for name in names]
        if not title:
            entries += [(f"{name}=...", text) for name, text in PSEUDO_FLAGS.items()]
        lines += [f"{title}:"] if title else []
        for left, text in entries:
            lines += _columns(left, text, width)
        lines.append("")
    return "\n".join(lines[:-1])


class _Reader:
    """Collects values from all places, with where each came from and what is wrong with it."""

    def __init__(self, settings: type[Settings]) -> None:
        self._fields = settings.model_fields
        self._settings = settings
        self._keys = {to_camel(name): name for name in self._fields}
        self.values: dict[str, Any] = {}
        self.labels: dict[str, str] = {}
        self.problems: list[str] = []
        self._wrong: set[str] = set()

    def collect(self, arguments: Sequence[str]) -> dict[str, list[str]]:
        """Return the texts given for each field, and for `--config` and `--set`."""
        known = {flag(name): name for name in self._fields} | {name: name for name in PSEUDO_FLAGS}
        positional = next((name for name, field in self._fields.items() if _extra(field, "positional")), None)
        given: dict[str, list[str]] = {}
        rest = list(arguments)
        while rest:
            argument = rest.pop(0)
            key, separator, value = argument.partition("=")
            if not argument.startswith("--") and positional is not None and positional not in given:
                given[positional] = [argument]
                continue
            if key not in known:
                self.problems.append(
                    f"{key}: no such flag{suggest(key, known)}"
                    if argument.startswith("-")
                    else f"{argument}: no flag stands before it; settings are given as --flag=value, and a value with "
                    "spaces in quotes"
                )
                continue
            name = known[key]
            field = self._fields.get(name)
            if not separator:
                if field is not None and _base_type(field) is bool:
                    value = "true"
                elif rest and not rest[0].startswith("--"):
                    value = rest.pop(0)
                elif field is not None and (without := _extra(field, "bare")):
                    value = str(without)
                else:
                    self.problems.append(f"{key}: needs a value, as in {key}=...")
                    self._wrong.add(name)
                    continue
            given.setdefault(name, []).append(value)
        return given

    def give(self, name: str, texts: list[str]) -> None:
        """Take the texts of a field's flag."""
        self.labels[name] = f"{flag(name)}={texts[-1]}"
        self.values[name] = self._convert(name, texts)

    def put(self, text: str) -> None:
        """Take `key=value`, the key as it stands in a file."""
        key, separator, value = text.partition("=")
        if not separator:
            self.problems.append(f"--set {text}: must be key=value")
            return
        decoded: Any = value
        if value[:1] in ("[", "{") or value in ("null", "~"):
            import yaml

            try:
                decoded = yaml.safe_load(value)
            except yaml.YAMLError as error:
                self.problems.append(f"--set {text}: {error}")
                return
        self._take(key.split("."), decoded, f"--set {key}", key)

    def read_file(self, path: Path) -> None:
        """Take the settings of a YAML or JSON file."""
        import yaml

        try:
            node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            self.problems.append(f"--config={path}: {error}")
            return
        if not isinstance(node, yaml.MappingNode):
            self.problems.append(f"--config={path}: must hold a mapping of settings")
            return
        self._read_mapping(node, (), path, set())

    def _read_mapping(self, node: Any, above: tuple[str, ...], path: Path, seen: set[str]) -> None:
        """Take the settings of a mapping; `seen` holds what the file has said, however it was spelled."""
        import yaml

        for key_node, value_node in node.value:
            key = str(key_node.value)
            where = f"{path} line {key_node.start_mark.line + 1}: {'.'.join((*above, key))}"
            name = self._keys.get(_camel((*above, key)))
            nested = isinstance(value_node, yaml.MappingNode)
            if nested and name is None and any(known.startswith(_camel((*above, key))) for known in self._keys):
                self._read_mapping(value_node, (*above, key), path, seen)
                continue
            if (spelled := _camel((*above, key))) in seen:
                self.problems.append(f"{where}: given twice")
            seen.add(spelled)
            try:
                value = _construct(value_node)
            except yaml.YAMLError as error:
                self.problems.append(f"{where}: {error}")
                continue
            self._take([*above, key], value, where, key)

    def _take(self, key: Sequence[str], value: Any, where: str, shown: str) -> None:
        name = self._keys.get(_camel(key))
        parent = self._keys.get(key[0])
        if name is None and len(key) == 2 and parent and _kind(self._fields[parent]) is dict:  # column.prompt=question
            self.values[parent] = {**self.values.get(parent, {}), key[1]: value}
            self.labels[parent] = f"{where}={value}"
            return
        if name is None:
            self.problems.append(f"{where}: no such setting{suggest(shown, self._keys)}")
            return
        self.labels[name] = f"{where}={value}"
        self.values[name] = self._convert(name, [value]) if isinstance(value, str) else value
        if isinstance(value, bool) and _base_type(self._fields[name]) in (int, float):  # pydantic would take it for 1
            self.problems.append(f"{where}={value}: must be a number (yes, no, on and off are true and false in YAML)")

    def _convert(self, name: str, texts: list[str]) -> Any:
        field = self._fields[name]
        kind = _kind(field)
        if kind is dict:
            pairs = [text.partition("=") for text in texts]
            self.problems += [f"{flag(name)}={key}: must be name=value" for key, separator, _ in pairs if not separator]
            return {key: value for key, _, value in pairs}
        if kind is list and _extra(field, "repeated"):
            return texts
        if kind is list:
            return [part.strip() for text in texts for part in text.split(",") if part.strip()]
        if len(texts) > 1:
            self.problems.append(f"{flag(name)}: given {len(texts)} times")
        return texts[-1]

    def explain(self, error: ValidationError) -> None:
        """Put what pydantic found into words, and add what it would have found had the single fields been right."""
        together: list[str] = []
        for entry in error.errors():
            if not entry["loc"]:
                together += _without_prefix(entry["msg"]).split("; ")
                continue
            key = str(entry["loc"][0])
            name = self._keys.get(key, key)
            self._wrong.add(name)
            self.problems.append(self._explain_field(name, entry))
        together += self._problems_between() if self._wrong else []
        # Of a flag whose own problem is told already, nothing that follows from it is told.
        mentioned = {flag(name) for name in self._wrong}
        self.problems += [text for text in together if mentioned.isdisjoint(re.findall(r"--[a-z0-9-]+", text))]

    def _explain_field(self, name: str, entry: Any) -> str:
        label = self.labels.get(name, flag(name))
        if entry["type"] == "missing":
            return f"{flag(name)}: is required"
        message = _WORDS.get(entry["type"]) or _without_prefix(str(entry["msg"]))
        message = message.replace("Input should be", "must be").replace("Input must be", "must be")
        message = message.split(", unable to parse")[0].replace("String should", "must")
        if entry["type"] == "literal_error":
            choices = {str(choice).lower(): choice for choice in typing.get_args(_base_type(self._fields[name]))}
            nearest = difflib.get_close_matches(str(entry["input"]).lower(), choices, n=1)
            message += f", did you mean {choices[nearest[0]]}?" if nearest else ""
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in entry["loc"][1:])
        if _extra(self._fields[name], "repeated"):  # which of the texts it is, the place says
            label, where = f"{flag(name)}{where}", ""
        return f"{label}: {where + ' ' if where else ''}{message}"

    def _problems_between(self) -> list[str]:
        """Return what is wrong between the fields, with the wrong ones left out or filled with something right."""
        values = {name: value for name, value in self.values.items() if name not in self._wrong}
        for name in self._wrong:
            if self._fields[name].is_required():
                values[name] = _stand_in(self._fields[name])
        try:
            self._settings.model_validate(values)
        except ValidationError as error:
            return [
                problem
                for entry in error.errors()
                if not entry["loc"]
                for problem in _without_prefix(entry["msg"]).split("; ")
            ]
        return []


def _construct(node: Any) -> Any:
    import yaml

    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _camel(key: Sequence[str]) -> str:
    return key[0] + "".join(part[:1].upper() + part[1:] for part in key[1:])


def _stand_in(field: FieldInfo) -> Any:
    base = _base_type(field)
    if typing.get_origin(base) is typing.Literal:
        return typing.get_args(base)[0]
    return {int: 1, float: 1.0}.get(base, "x")


def _extra(field: FieldInfo, key: str) -> JsonValue:
    return field.json_schema_extra.get(key) if isinstance(field.json_schema_extra, dict) else None


def _without_prefix(message: str) -> str:
    return message.removeprefix("Value error, ")


def suggest(key: str, known: Mapping[str, Any]) -> str:
    """Return `, did you mean ...?` with the nearest known name, empty when none is near."""
    nearest = difflib.get_close_matches(key, known, n=1)
    return f", did you mean {nearest[0]}?" if nearest else ""


def _base_type(field: FieldInfo) -> Any:
    annotation = field.annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        annotation = next(part for part in typing.get_args(annotation) if part is not type(None))
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is typing.Annotated else annotation


def _kind(field: FieldInfo) -> Any:
    base = _base_type(field)
    return typing.get_origin(base) or base


def _help_entry(name: str, field: FieldInfo) -> tuple[str, str]:
    silent = field.is_required() or field.default_factory is not None or field.default in (None, False, "")
    default = "" if silent else f" (default {str(field.default).lower() if field.default is True else field.default})"
    required = " (required)" if field.is_required() else ""
    value = "" if _base_type(field) is bool and not field.default else f"={_placeholder(field)}"
    if _extra(field, "bare"):
        value = f"[{value}]"
    return f"{flag(name)}{value}", f"{field.description}{default}{required}"


def _columns(left: str, text: str, width: int) -> list[str]:
    indent = 36
    lines = textwrap.wrap(text, width - indent, break_on_hyphens=False) or [""]
    first = f"  {left}".ljust(indent)
    if len(first) > indent:
        return [first, *(" " * indent + line for line in lines)]
    return [first + lines[0], *(" " * indent + line for line in lines[1:])]


def _placeholder(field: FieldInfo) -> str:
    base = _base_type(field)
    kind = _kind(field)
    if kind is typing.Literal:
        return "|".join(map(str, typing.get_args(base)))
    names = {int: "N", float: "DECIMAL", bool: "true|false", dict: "NAME=VALUE", list: "A,B", Path: "PATH"}
    return names.get(kind, "TEXT")
