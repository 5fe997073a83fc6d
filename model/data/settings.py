"""What to export, from where and how: the flags of the export, all problems told at once."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from model import flags
from model.data.forms import CANONICAL_FIELDS, FORMS
from model.data.parts import Part
from model.data.shapes import Shaper, candidates, unknown_columns
from model.data.source_settings import (
    DATABASE_VARIABLE,
    MAX_SOURCES,
    NEEDS_DATABASE,
    MixEntry,
    SourceSettings,
    mix_problems,
    source_problems,
    variables_of,
)
from model.data.sources import Source
from model.data.split import Share
from model.files import RunDirectory
from model.registry import RunRegistry

DEFAULT_SHARE = Share(percent=5, max_rows=500)
"""What is held out when nothing is said."""

_REGISTRY = ("registry_url", "namespace", "run_uid")
"""What a source of the registry needs."""


class ExportSettings(SourceSettings):
    """What to export and how."""

    run_directory: Path = Field(description="The run's directory on the output volume")
    method: Literal["SFT", "DPO", "KTO"] = Field(
        "SFT", description="Training method, which decides what a row looks like"
    )
    seed: int = Field(42, ge=0, lt=2**32, description="Seed of the split")
    evaluation_percent: int | None = Field(
        None, ge=0, le=50, description="Share of the rows to hold out; when nothing is said 5, and 500 rows at most"
    )
    evaluation_max_rows: int | None = Field(
        None, ge=0, le=1_000_000, description="How many rows to hold out, half at most"
    )
    invalid_rows: Literal["Fail", "Drop"] = Field("Fail", description="What to do when a row is invalid")
    turns: Literal["Strict", "Merge"] = Field(
        "Strict", description="What to do with turns of one role that follow upon each other: refuse or join them"
    )
    report: bool = Field(False, description="Print what is known about the dataset")
    mix: list[MixEntry] = Field(
        default_factory=list,
        max_length=MAX_SOURCES,
        json_schema_extra=flags.REPEATED,
        description="Instead of --source: one of several sources, as JSON of its flags with name, weight or maxRows, "
        'as in \'{"source": "volume", "path": "rows.jsonl", "weight": 3}\'; once per source',
    )
    registry_url: str | None = Field(None, description="Base URL of the registry, for registry")
    registry_token_file: Path | None = Field(None, description="File with the token for the registry")
    namespace: str | None = Field(None, description="The run's namespace, for registry")
    run_uid: str | None = Field(None, description="The run's uid, for registry")

    @model_validator(mode="wrap")
    @classmethod
    def _check_together(cls, data: Any, handler: ModelWrapValidatorHandler[ExportSettings]) -> ExportSettings:
        """Add what is wrong with several flags together to what is wrong with each."""
        details: list[InitErrorDetails] = []
        result = None
        try:
            result = handler(data)
        except ValidationError as error:
            for entry in error.errors():
                detail = InitErrorDetails(type=entry["type"], loc=entry["loc"], input=entry["input"])
                details.append({**detail, "ctx": entry["ctx"]} if "ctx" in entry else detail)
        if isinstance(data, Mapping):
            details += map(_together, _problems_together(data))
        if result is not None:
            details += map(_together, _mix_problems(result))
        if details or result is None:
            raise ValidationError.from_exception_data(cls.__name__, details)
        return result

    @property
    def _registry(self) -> RunRegistry | None:
        """The registry as the run sees it, None outside a run."""
        if self.registry_url is None or self.namespace is None or self.run_uid is None:
            return None
        return RunRegistry(self.registry_url, self.namespace, self.run_uid, self.registry_token_file)

    def sources(self) -> list[Source]:
        """Return the sources that the flags name: one, or those of the mix."""
        if not self.mix:
            return [self.build_source(self._registry, os.environ)]
        return [
            entry.build_source(self._registry, variables_of(index, os.environ)) for index, entry in enumerate(self.mix)
        ]

    def parts(self, sources: Sequence[Source]) -> list[Part]:
        """Return the sources with what turns their rows, of which none was read yet, into content."""
        if not self.mix:
            return [Part(sources[0], self._shaper(sources[0].name, self.column, self.ignore_column, self.turns))]
        parts = []
        for index, (source, entry) in enumerate(zip(sources, self.mix, strict=True)):
            columns, ignored = entry.column or self.column, entry.ignore_column or self.ignore_column
            shaper = self._shaper("", columns, ignored, entry.turns or self.turns)
            parts.append(Part(source, shaper, index, entry.name, entry.weight, entry.max_rows))
        return parts

    def _shaper(self, name: str, columns: Mapping[str, str], ignored: Sequence[str], turns: str) -> Shaper:
        return Shaper(name, self.method, columns, ignored=ignored, merge=turns == "Merge")

    def source_request(self) -> dict[str, Any]:
        """Return what is asked of the sources, as far as an earlier export can be told by it; nothing is looked up."""
        in_a_run = self.run_uid is not None
        if not self.mix:
            return self.asked(self._registry, os.environ, in_a_run=in_a_run)
        requests = [
            {**entry.asked(self._registry, variables_of(index, os.environ), in_a_run=in_a_run), **entry.request()}
            for index, entry in enumerate(self.mix)
        ]
        return {"type": "mix", "mix": requests}

    def request(self) -> dict[str, Any]:
        """Return what, beside the source's content and the seed, decides what the files hold."""
        return {
            "method": self.method,
            "columns": self.column,
            **({"ignoredColumns": self.ignore_column} if self.ignore_column else {}),
            **({"turns": self.turns} if self.turns != "Strict" else {}),
            "invalidRows": self.invalid_rows,
            "evaluationPercent": self.share.percent,
            "evaluationMaxRows": self.share.max_rows,
        }

    @property
    def share(self) -> Share:
        """How many rows to hold out."""
        if self.evaluation_percent is None and self.evaluation_max_rows is None:
            return DEFAULT_SHARE
        return Share(self.evaluation_percent, self.evaluation_max_rows)


def _together(text: str) -> InitErrorDetails:
    return InitErrorDetails(type=PydanticCustomError("together", "{text}", {"text": text}), input=None)


def _problems_together(data: Mapping[str, Any]) -> list[str]:
    problems = []
    given = {name for name, value in data.items() if value is not None}
    source = str(data.get("source"))
    if {"evaluation_percent", "evaluation_max_rows"} <= given:
        problems.append("give --evaluation-percent or --evaluation-max-rows, not both")
    if ("source" in given) == bool(data.get("mix")):
        problems.append("give --source or --mix, not both" if "source" in given else "--source: is required, or --mix")
    problems += source_problems({name: data[name] for name in given}, source, flags.flag)
    if source == "registry":
        problems += [f"--source=registry needs {flags.flag(name)}" for name in _REGISTRY if name not in given]
    if source == "sql" and not os.environ.get(DATABASE_VARIABLE) and not _exported_before(data.get("run_directory")):
        problems.append(NEEDS_DATABASE)
    if isinstance(columns := data.get("column"), Mapping):
        problems += _column_problems(columns, data.get("ignore_column") or (), data.get("method", "SFT"))
    return problems


def _mix_problems(settings: ExportSettings) -> list[str]:
    """Return what is wrong between the sources of a mix, and between them and the other flags."""
    problems = mix_problems(settings.mix)
    if any(entry.source == "registry" for entry in settings.mix):
        needed = [flags.flag(name) for name in _REGISTRY if getattr(settings, name) is None]
        problems += [f"--mix: a source of the registry needs {name}" for name in needed]
    for index, entry in enumerate(settings.mix):
        database = variables_of(index, os.environ).get(DATABASE_VARIABLE)
        if entry.source == "sql" and not database and not _exported_before(settings.run_directory):
            problems.append(f"--mix[{index}]: {NEEDS_DATABASE}, or MIX_{index}_{DATABASE_VARIABLE}")
        wrong = _column_problems(entry.column, entry.ignore_column, settings.method)
        problems += [f"--mix[{index}]: {text}" for text in wrong]
    return problems


def _exported_before(directory: Path | str | None) -> bool:
    """Whether there may be nothing left to do, for which no source is needed."""
    return directory is not None and RunDirectory(Path(directory)).manifest.is_file()


def _column_problems(columns: Mapping[str, Any], ignored: Collection[str], method: Any) -> list[str]:
    if unknown := sorted(set(columns) - set(CANONICAL_FIELDS)):
        return [f"--column={name}=...: no such field, use one of {', '.join(CANONICAL_FIELDS)}" for name in unknown]
    problems = [f"--column={name}=: needs the name of a column" for name, column in columns.items() if not column]
    both = sorted(set(columns.values()) & set(ignored))
    problems += [f"--ignore-column={name}: --column maps it, do one of the two" for name in both]
    if repeated := sorted({column for column in columns.values() if list(columns.values()).count(column) > 1}):
        problems += [f"--column: several fields are mapped to the column {column}" for column in repeated if column]
    if method not in FORMS:
        return problems
    if other := unknown_columns(method, columns):
        return [*problems, *(f"--column={name}=...: no row for --method={method} has that field" for name in other)]
    if not candidates(method, columns):
        return [*problems, f"--column: no row has all of {', '.join(sorted(columns))}, map the fields of one shape"]
    return problems
