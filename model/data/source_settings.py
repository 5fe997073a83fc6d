"""Where rows come from and how they are read: the flags of a dataset's only source, or the keys of one of a mix."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from model import flags
from model.data.sources import FileSource, HubSource, ObjectStoreSource, RegistrySource, Source, SqlSource
from model.registry import RunRegistry

DATABASE_VARIABLE = "DATASET_URL"
NEEDS_DATABASE = f"--source=sql needs the environment variable {DATABASE_VARIABLE}, the database's URL"

MAX_SOURCES = 16
"""Of one mix: each has a part in the container's last words."""

_NEEDED: dict[str, tuple[str, ...]] = {
    "registry": (),
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


class SourceSettings(flags.Settings):
    """One source, and how its rows are read."""

    source: Literal["registry", "configMap", "volume", "sql", "objectStore", "hub"] | None = Field(
        None, description="Where the dataset comes from"
    )
    path: Path | None = Field(None, description="For configMap and volume: a file, a directory, or a glob")
    query: str | None = Field(None, description=f"For sql: the query; {DATABASE_VARIABLE} holds the database's URL")
    uri: str | None = Field(None, description="For objectStore: s3://bucket/key, with wildcards if need be")
    endpoint: str | None = Field(None, description="For objectStore: URL of the S3 interface, if it is not AWS")
    repository: str | None = Field(None, description="For hub: the dataset repository, owner/name")
    revision: str | None = Field(None, description="For hub: branch, tag or commit")
    configuration: str | None = Field(None, description="For hub: the configuration, where the dataset has several")
    split: str | None = Field(None, description="For hub: the split to train on, train when nothing is said")
    column: dict[str, str] = Field(
        default_factory=dict, description="Where a field is found: prompt=question, once per field"
    )
    ignore_column: list[str] = Field(
        default_factory=list,
        json_schema_extra=flags.REPEATED,
        description="A column that is as good as not there, once per column",
    )

    def build_source(self, registry: RunRegistry | None, variables: Mapping[str, str]) -> Source:
        """Return the source.

        Parameters
        ----------
        registry
            The registry as the run sees it; only for registry.
        variables
            Where the secrets are looked up.

        Raises
        ------
        InvalidSettingsError
            When the database's URL is not among the variables.
        """
        if self.source == "registry":
            assert registry is not None
            return RegistrySource(registry)
        if self.source == "sql":
            assert self.query is not None
            if not (url := variables.get(DATABASE_VARIABLE)):
                raise flags.InvalidSettingsError([NEEDS_DATABASE])
            return SqlSource(url, self.query)
        if self.source == "objectStore":
            assert self.uri is not None
            return ObjectStoreSource(self.uri, self.endpoint, variables)
        if self.source == "hub":
            assert self.repository is not None
            split = self.split or "train"
            return HubSource(self.repository, self.revision, split, variables, configuration=self.configuration)
        assert self.source is not None
        assert self.path is not None
        return FileSource(self.source, self.path)

    def asked(self, registry: RunRegistry | None, variables: Mapping[str, str], *, in_a_run: bool) -> dict[str, Any]:
        """Return what is asked of the source, as far as an earlier export can be told by it; nothing is looked up.

        A run's rows are exported once: which database they came from, its Secret need not say again, and may say in
        another way once its password has changed.
        """
        if self.source == "sql" and (in_a_run or not variables.get(DATABASE_VARIABLE)):
            return {"type": "sql", "query": self.query}
        return self.build_source(registry, variables).request()


class MixedSource(SourceSettings):
    """One source of a mix: what it does not say of its columns and turns is as for the whole dataset."""

    name: str | None = Field(
        None, min_length=1, max_length=63, description="What to call it; what it reads when nothing is said"
    )
    weight: int | None = Field(None, ge=1, le=1000, description="Share of the rows, measured by the other weights")
    max_rows: int | None = Field(None, ge=1, le=100_000_000, description="How many rows to take, drawn by the seed")
    turns: Literal["Strict", "Merge"] | None = Field(None, description="As for the whole dataset")

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        problems = ["needs source"] if self.source is None else []
        problems += source_problems(self.model_dump(exclude_none=True), str(self.source), lambda field: field)
        problems += ["give weight or maxRows, not both"] if self.weight and self.max_rows else []
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def request(self) -> dict[str, Any]:
        """Return what, beside the source's content, decides which of its rows are taken and what becomes of them."""
        given = {
            "name": self.name,
            "weight": self.weight,
            "maxRows": self.max_rows,
            "turns": self.turns,
            "columns": self.column,
            "ignoredColumns": self.ignore_column,
        }
        return {key: value for key, value in given.items() if value}


def _from_text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        decoded = json.loads(value)
    except ValueError:
        decoded = None
    if not isinstance(decoded, dict):
        raise ValueError('must be a JSON object, such as {"source": "volume", "path": "rows.jsonl", "weight": 3}')
    return decoded


MixEntry = Annotated[MixedSource, BeforeValidator(_from_text)]
"""A source of a mix, or the JSON of one."""


def mix_problems(mix: Sequence[MixedSource]) -> list[str]:
    """Return what does not fit together among the sources of a mix."""
    problems = []
    named = [entry.name for entry in mix if entry.name]
    problems += [f"--mix: two sources are called {name}" for name in dict.fromkeys(named) if named.count(name) > 1]
    if sum(entry.source == "registry" for entry in mix) > 1:
        problems.append("--mix: only one source may be of the registry, for it records one dataset for each run")
    weighted = [entry for entry in mix if entry.weight]
    if len(weighted) == 1:
        problems.append("--mix: one weight alone says nothing, give others, too, or maxRows instead")
    if weighted and any(not (entry.weight or entry.max_rows) for entry in mix):
        problems.append("--mix: where one source has a weight, each needs one, or maxRows")
    return problems


def variables_of(index: int, variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a mix's source: its own `MIX_<index>_HF_TOKEN` stands for `HF_TOKEN`, and so on."""
    prefix = f"MIX_{index}_"
    own = {name.removeprefix(prefix): value for name, value in variables.items() if name.startswith(prefix)}
    return {**variables, **own}


def source_problems(given: Mapping[str, Any], source: str, called: Callable[[str], str]) -> list[str]:
    """Return what does not fit together among the settings of a source; `called` says how people write one of them."""
    if source not in _NEEDED:
        return []
    problems = [f"{called('source')}={source} needs {called(name)}" for name in _NEEDED[source] if name not in given]
    return problems + [
        f"{called(name)}: is for {called('source')}={' or '.join(sources)} only"
        for name, sources in _ONLY_FOR.items()
        if name in given and source not in sources
    ]
