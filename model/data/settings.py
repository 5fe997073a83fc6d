"""What to export, from where and how: the flags of the export, all problems told at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from model import flags
from model.data.forms import CANONICAL_FIELDS, FORMS
from model.data.shapes import Shaper, candidates, unknown_columns
from model.data.sources import FileSource, HubSource, ObjectStoreSource, RegistrySource, Source, SqlSource
from model.data.split import Share
from model.files import RunDirectory
from model.registry import RunRegistry

DEFAULT_SHARE = Share(percent=5, max_rows=500)
"""What is held out when nothing is said."""

DATABASE_VARIABLE = "DATASET_URL"
_NEEDS_DATABASE = f"--source=sql needs the environment variable {DATABASE_VARIABLE}, the database's URL"

_NEEDED = {
    "registry": ("registry_url", "namespace", "run_uid"),
    "configMap": ("path",),
    "volume": ("path",),
    "sql": ("query",),
    "objectStore": ("uri",),
    "hub": ("repository",),
}
_ONLY_FOR = {
    "path": ("configMap", "volume"),
    "query": ("sql",),
    "uri": ("objectStore",),
    "endpoint": ("objectStore",),
    "repository": ("hub",),
    "revision": ("hub",),
    "split": ("hub",),
    "configuration": ("hub",),
}


class ExportSettings(flags.Settings):
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
    column: dict[str, str] = Field(
        default_factory=dict, description="Where a field is found: prompt=question, once per field"
    )
    ignore_column: list[str] = Field(
        default_factory=list,
        json_schema_extra=flags.REPEATED,
        description="A column that is as good as not there, once per column",
    )
    turns: Literal["Strict", "Merge"] = Field(
        "Strict", description="What to do with turns of one role that follow upon each other: refuse or join them"
    )
    report: bool = Field(False, description="Print what is known about the dataset")
    source: Literal["registry", "configMap", "volume", "sql", "objectStore", "hub"] = Field(
        description="Where the dataset comes from"
    )
    path: Path | None = Field(None, description="For configMap and volume: a file, a directory, or a glob")
    registry_url: str | None = Field(None, description="Base URL of the registry, for registry")
    registry_token_file: Path | None = Field(None, description="File with the token for the registry")
    namespace: str | None = Field(None, description="The run's namespace, for registry")
    run_uid: str | None = Field(None, description="The run's uid, for registry")
    query: str | None = Field(None, description=f"For sql: the query; {DATABASE_VARIABLE} holds the database's URL")
    uri: str | None = Field(None, description="For objectStore: s3://bucket/key, with wildcards if need be")
    endpoint: str | None = Field(None, description="For objectStore: URL of the S3 interface, if it is not AWS")
    repository: str | None = Field(None, description="For hub: the dataset repository, owner/name")
    revision: str | None = Field(None, description="For hub: branch, tag or commit")
    configuration: str | None = Field(None, description="For hub: the configuration, where the dataset has several")
    split: str | None = Field(None, description="For hub: the split to train on, train when nothing is said")

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
            details += [
                InitErrorDetails(type=PydanticCustomError("together", "{text}", {"text": text}), input=None)
                for text in _problems_together(data)
            ]
        if details or result is None:
            raise ValidationError.from_exception_data(cls.__name__, details)
        return result

    def build_source(self) -> Source:
        """Return the source that the flags name."""
        if self.source == "registry":
            assert self.registry_url is not None
            assert self.namespace is not None
            assert self.run_uid is not None
            return RegistrySource(
                RunRegistry(self.registry_url, self.namespace, self.run_uid, self.registry_token_file)
            )
        if self.source == "sql":
            assert self.query is not None
            if not (url := os.environ.get(DATABASE_VARIABLE)):
                raise flags.InvalidSettingsError([_NEEDS_DATABASE])
            return SqlSource(url, self.query)
        if self.source == "objectStore":
            assert self.uri is not None
            return ObjectStoreSource(self.uri, self.endpoint)
        if self.source == "hub":
            assert self.repository is not None
            return HubSource(self.repository, self.revision, self.split or "train", configuration=self.configuration)
        assert self.path is not None
        return FileSource(self.source, self.path)

    def shaper(self, source: str) -> Shaper:
        """Return what turns the source's rows, whatever messages call it, into content."""
        return Shaper(source, self.method, self.column, ignored=self.ignore_column, merge=self.turns == "Merge")

    def source_request(self) -> dict[str, Any]:
        """Return what is asked of the source, as far as an earlier export can be told by it; nothing is looked up.

        A run's rows are exported once: which database they came from, its Secret need not say again, and may say in
        another way once its password has changed.
        """
        if self.source == "sql" and (self.run_uid or not os.environ.get(DATABASE_VARIABLE)):
            return {"type": "sql", "query": self.query}
        return self.build_source().request()

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


def _problems_together(data: Mapping[str, Any]) -> list[str]:
    problems = []
    given = {name for name, value in data.items() if value is not None}
    source = str(data.get("source"))
    if {"evaluation_percent", "evaluation_max_rows"} <= given:
        problems.append("give --evaluation-percent or --evaluation-max-rows, not both")
    problems += [f"--source={source} needs {flags.flag(name)}" for name in _NEEDED.get(source, ()) if name not in given]
    if source == "sql" and not os.environ.get(DATABASE_VARIABLE) and not _exported_before(data):
        problems.append(_NEEDS_DATABASE)
    problems += [
        f"{flags.flag(name)}: is for --source={' or '.join(sources)} only"
        for name, sources in _ONLY_FOR.items()
        if name in given and source in _NEEDED and source not in sources
    ]
    if isinstance(columns := data.get("column"), Mapping):
        problems += _column_problems(columns, data.get("method", "SFT"))
        both = sorted(set(columns.values()) & set(data.get("ignore_column") or ()))
        problems += [f"--ignore-column={name}: --column maps it, do one of the two" for name in both]
    return problems


def _exported_before(data: Mapping[str, Any]) -> bool:
    """Whether there may be nothing left to do, for which no source is needed."""
    directory = data.get("run_directory")
    return directory is not None and RunDirectory(Path(str(directory))).manifest.is_file()


def _column_problems(columns: Mapping[str, Any], method: Any) -> list[str]:
    if unknown := sorted(set(columns) - set(CANONICAL_FIELDS)):
        return [f"--column={name}=...: no such field, use one of {', '.join(CANONICAL_FIELDS)}" for name in unknown]
    problems = [f"--column={name}=: needs the name of a column" for name, column in columns.items() if not column]
    if repeated := sorted({column for column in columns.values() if list(columns.values()).count(column) > 1}):
        problems += [f"--column: several fields are mapped to the column {column}" for column in repeated if column]
    if method not in FORMS:
        return problems
    if other := unknown_columns(method, columns):
        return [*problems, *(f"--column={name}=...: no row for --method={method} has that field" for name in other)]
    if not candidates(method, columns):
        return [*problems, f"--column: no row has all of {', '.join(sorted(columns))}, map the fields of one shape"]
    return problems
