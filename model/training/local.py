"""A run without Kubernetes: the dataset is exported on the way, and the run's directory is found or made.

A directory belongs to one set of settings. The same command again finds its directory and goes on there; other settings
get the next free name, so that no run is ever continued with other settings than it began with.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from model import exits, flags, locks
from model.exits import FailureError
from model.files import RunDirectory, write_json
from model.training.config import TrainSettings
from model.training.processes import parallel

RUN_FILE = "run.json"
DATA_SUFFIXES = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet", ".gz", ".zst")
MIX_SUFFIXES = (".yaml", ".yml")
DATASET_FIELDS = (
    "dataset",
    "dataset_revision",
    "dataset_configuration",
    "dataset_split",
    "dataset_endpoint",
    "evaluation_percent",
    "evaluation_max_rows",
    "invalid_rows",
    "column",
    "ignore_column",
    "turns",
)
LOCK = ".lock"
_locked: dict[Path, int] = {}
"""The run directories that this process has locked, with the descriptors that hold the locks."""

_FREE = {
    "run_directory", "run_uid", "name", "resume_from", "resume_from_run", "plot", "print_config", "image",
    "registry_url", "registry_token_file", "namespace", "checkpoint_steps", "micro_batch_size", "gpus", "processes",
    "samples",
}  # fmt: skip
"""Settings that do not decide what comes out: they may differ between the attempts of a run."""

GROUPS: flags.Groups = (
    (
        "What to train",
        ("method", "base_model", "base_model_revision", "chat_template", "parent_adapter", "quantization"),
    ),
    ("What to train it on", (*DATASET_FIELDS, "max_length", "too_long")),
    (
        "How",
        (
            "epochs",
            "max_steps",
            "batch_size",
            "learning_rate",
            "schedule",
            "warmup_percent",
            "weight_decay",
            "max_gradient_norm",
            "seed",
            "early_stopping_patience",
        ),
    ),
    ("The adapter", ("lora_rank", "lora_alpha", "lora_dropout_percent", "lora_target_modules", "lora_variant")),
    ("With --method=DPO", ("dpo_beta", "dpo_loss", "dpo_label_smoothing", "dpo_sft_weight")),
    ("With --method=KTO", ("kto_beta", "kto_desirable_weight", "kto_undesirable_weight")),
    ("Going on from another run", ("resume_from", "resume_from_run")),
    ("Where to, and what to show", ("name", "run_directory", "samples", "plot", "print_config")),
    (
        "Memory and speed",
        (
            "gpus",
            "processes",
            "precision",
            "micro_batch_size",
            "packing",
            "gradient_checkpointing",
            "checkpoint_steps",
            "evaluation_steps",
        ),
    ),
    (
        "For the record, and inside a cluster",
        (
            "run_uid",
            "base_model_name",
            "parent_adapter_name",
            "parent_adapter_sha256",
            "pretended_gpus",
            "image",
            "registry_url",
            "registry_token_file",
            "namespace",
        ),
    ),
)


class TrainCommand(TrainSettings):
    """A run's settings, and what a person may say instead of exporting a dataset first."""

    run_directory: Path = Field(Path(), description="The run's directory; runs/<name> when left out")
    run_uid: str = Field("", description="The run's uid; one is made and kept in the directory when left out")
    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Name of the run; made of dataset, model and method when left out",
    )

    dataset: str | None = Field(
        None,
        min_length=1,
        description="Rows to train on: a file, a glob in quotes, s3://bucket/key, sql:SELECT ... (the database's URL "
        "in DATASET_URL), owner/name on the hub, or a YAML file that lists several sources under mix",
    )
    dataset_revision: str | None = Field(None, description="Tag or commit of a dataset on the hub")
    dataset_configuration: str | None = Field(
        None, description="Configuration of a dataset on the hub that has several"
    )
    dataset_split: str | None = Field(None, description="Split of a dataset on the hub; train when left out")
    dataset_endpoint: str | None = Field(None, description="URL of the object store, when it is not Amazon's")
    evaluation_percent: int | None = Field(
        None, ge=0, le=50, description="Share of the rows to hold out; 5, but 500 rows at most, when nothing is said"
    )
    evaluation_max_rows: int | None = Field(None, ge=0, description="How many rows to hold out, half at most")
    invalid_rows: Literal["Fail", "Drop"] = Field("Fail", description="What to do when a row is invalid")
    column: dict[str, str] = Field(
        default_factory=dict, description="Where a field is found: prompt=question, once per field"
    )
    ignore_column: list[str] = Field(
        default_factory=list,
        json_schema_extra=flags.REPEATED,
        description="A column that is as good as not there, once per column",
    )
    turns: Literal["Strict", "Merge"] | None = Field(
        None, description="What to do with turns of one role that follow upon each other: Strict refuses, Merge joins"
    )

    plot: Path | None = Field(
        None,
        description="Draw the loss into this file at the end; alone: loss.png in the run's directory",
        json_schema_extra=flags.bare("loss.png"),
    )
    print_config: bool = Field(False, description="Print the settings with all defaults as YAML, and do nothing")

    dataset_required: ClassVar[bool] = True

    def problems_together(self) -> list[str]:
        """Return what is wrong with settings that are right one by one."""
        problems = super().problems_together()
        if self.dataset is None:
            if self.run_directory == Path() and self.dataset_required:
                problems.append("--dataset: is required, or --run-directory with an exported dataset in it")
            problems += [
                f"{flags.flag(name)} needs --dataset"
                for name in DATASET_FIELDS[1:]
                if name in self.model_fields_set and getattr(self, name)
            ]
        else:
            problems += self._source_problems(self.dataset)
        if self.evaluation_percent is not None and self.evaluation_max_rows is not None:
            problems.append("give --evaluation-percent or --evaluation-max-rows, not both")
        if self.name and self.run_directory != Path():
            problems.append("give --name or --run-directory, not both")
        return problems

    def _source_problems(self, dataset: str) -> list[str]:
        source = source_flags(dataset).get("source")
        return [
            f"{flags.flag(name)} is for {what}, which --dataset={dataset} is not"
            for name, wanted, what in (
                ("dataset_revision", "hub", "a dataset on the hub"),
                ("dataset_configuration", "hub", "a dataset on the hub"),
                ("dataset_split", "hub", "a dataset on the hub"),
                ("dataset_endpoint", "objectStore", "an object store"),
            )
            if getattr(self, name) is not None and source != wanted
        ]

    def settings(self, directory: Path, uid: str) -> TrainSettings:
        """Return the trainer's settings for a directory and a uid; of a run that is the parent, its adapter."""
        values = self.model_dump(include=set(TrainSettings.model_fields), exclude_unset=True)
        if self.parent_adapter is not None and not (self.parent_adapter / "adapter_config.json").exists():
            adapter = RunDirectory(self.parent_adapter).adapter
            values |= {"parent_adapter": adapter} if adapter.is_dir() else {}
        return TrainSettings.model_validate(values | {"run_directory": directory, "run_uid": uid})

    def export_arguments(self, directory: Path) -> list[str]:
        """Return the arguments of `model.data.export` that bring the dataset into a run's directory."""
        assert self.dataset is not None
        given = {
            "run_directory": directory,
            "method": self.method,
            "seed": self.seed,
            "evaluation_percent": self.evaluation_percent,
            "evaluation_max_rows": self.evaluation_max_rows,
            "invalid_rows": self.invalid_rows,
            "turns": self.turns,
            "revision": self.dataset_revision,
            "configuration": self.dataset_configuration,
            "split": self.dataset_split,
            "endpoint": self.dataset_endpoint,
            **source_flags(self.dataset),
        }
        rendered = [f"{flags.flag(name)}={value}" for name, value in given.items() if value is not None]
        return [
            *rendered,
            *(f"--column={ours}={theirs}" for ours, theirs in self.column.items()),
            *(f"--ignore-column={column}" for column in self.ignore_column),
        ]

    def identity(self) -> dict[str, Any]:
        """Return everything that decides what comes out, with the size and time of local files."""
        document = self.resolved().document()
        kept = {key: value for key, value in document.items() if key not in {_camel(name) for name in _FREE}}
        for name in ("baseModel", "parentAdapter", "dataset"):  # one place, however it is spelled
            if kept.get(name) and (path := Path(kept[name]).expanduser()).exists():
                kept[name] = str(path.resolve())
        if self.early_stopping_patience is None:
            kept.pop("evaluationSteps")  # evaluations decide nothing then
        return kept | {"datasetFiles": _files_stamp(self.dataset)}

    def defaults(self) -> dict[str, Any]:
        """Return all that may be in `identity`, as it would be were nothing said of it."""
        nothing_said = type(self).model_construct(method=self.method, base_model=self.base_model)
        defaults = nothing_said.resolved().document() | {"datasetFiles": None}
        if self.early_stopping_patience is None:
            defaults.pop("evaluationSteps")
        return defaults

    def shown(self) -> dict[str, Any]:
        """Return the settings that have a value, with all defaults filled in."""
        hidden = {"printConfig", "tokens", "noProbe"}
        document = self.resolved().document()
        return {key: value for key, value in document.items() if value not in (None, {}, "", ".") and key not in hidden}

    def default_name(self) -> str:
        """Return a name made of dataset, model and method."""
        dataset = re.sub(r"^[a-z0-9]+:/*", "", self.dataset or "run")
        parts = (Path(dataset).name.partition(".")[0], Path(self.base_model.rstrip("/")).name, self.method)
        clean = (re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-")[:40] for part in parts)
        return "-".join(part for part in clean if part)


class PlanCommand(TrainCommand):
    """A run's settings, and how to find out what it needs."""

    dataset_required = False
    no_probe: bool = Field(False, description="Calculate only; without it the two heaviest steps are really made")


def source_flags(dataset: str) -> dict[str, str]:
    """Return the export's flags for what a person calls a dataset."""
    if dataset.endswith(MIX_SUFFIXES):
        return {"config": str(Path(dataset).expanduser())}
    if dataset.startswith("sql:"):
        return {"source": "sql", "query": dataset.removeprefix("sql:").strip()}
    if dataset.startswith("s3://"):
        return {"source": "objectStore", "uri": dataset}
    hub = re.fullmatch(r"(?:hub:|hf://(?:datasets/)?)?([\w.-]+/[\w.-]+)", dataset)
    marked = dataset.startswith(("hub:", "hf://"))
    if hub and (marked or not (Path(dataset).exists() or dataset.endswith(DATA_SUFFIXES) or dataset[0] in "./~")):
        return {"source": "hub", "repository": hub[1]}
    return {"source": "volume", "path": str(Path(dataset).expanduser())}


@dataclass(frozen=True)
class Place:
    """Where a run goes, and why not to where a person would look first."""

    directory: Path
    uid: str
    note: str = ""


def find_place(command: TrainCommand, root: Path = Path("runs")) -> Place:
    """Return the directory and uid of a run, those of an earlier attempt when there was one.

    Raises
    ------
    FailureError
        When the named directory belongs to a run with other settings.
    """
    if command.run_directory != Path() and command.run_uid:
        if parallel.PARENT not in os.environ and parallel.first():  # else another process has it for all
            lock(command.run_directory, seconds=locks.WAIT_SECONDS if command.dataset is None else 0.0)
        return Place(command.run_directory, command.run_uid)
    exported = RunDirectory(command.run_directory).manifest
    if command.dataset is None and not exported.is_file():
        raise FailureError(
            exits.DOES_NOT_EXIST, "DatasetUnavailable", f"{exported} does not exist: give --dataset=rows.jsonl"
        )
    identity = command.identity()
    named = command.run_directory if command.run_directory != Path() else root / command.name if command.name else None
    if named is not None:
        place = _take(named, command, identity)
        if isinstance(place, str):
            raise FailureError(
                exits.INVALID_CONFIGURATION,
                "InvalidSpec",
                f"{named} belongs to a run with other settings ({place}): give the new run another name, or remove "
                "the directory",
            )
        return place
    note = ""
    for directory in _names(root / command.default_name()):
        if (
            directory.exists()
            and _recorded(directory) is None
            and any(path.name != LOCK for path in directory.iterdir())
        ):
            continue
        place = _take(directory, command, identity)
        if isinstance(place, Place):
            return Place(place.directory, place.uid, note)
        note = f"{directory} is a run with other settings ({place})"
    raise AssertionError("there is always another name")


def export_dataset(command: TrainCommand, directory: Path) -> dict[str, Any]:
    """Bring the dataset into the run's directory unless it is there, and return its manifest."""
    from model.data.export import export
    from model.data.settings import ExportSettings

    return export(flags.parse(ExportSettings, command.export_arguments(directory)))


def lock(directory: Path, *, seconds: float = 0.0) -> None:
    """Keep other processes out of a run's directory for as long as this one lives.

    Parameters
    ----------
    directory
        The run's directory.
    seconds
        How long to wait for another process.

    Raises
    ------
    FailureError
        When another process is there, or something that is no directory.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise FailureError(
            exits.INVALID_CONFIGURATION,
            "InvalidSpec",
            f"{directory} cannot be a run's directory, for there is a file in its place: name another",
        ) from error
    if directory.resolve() in _locked:
        return
    descriptor = locks.take(directory / LOCK, seconds=seconds)
    if descriptor is None:
        if seconds:
            raise locks.held(directory / LOCK, seconds)
        text = f"another process is training in {directory}: wait or stop it"
        raise FailureError(exits.INVALID_CONFIGURATION, "InvalidSpec", text)
    _locked[directory.resolve()] = descriptor


def differences(before: dict[str, Any], now: dict[str, Any], defaults: Mapping[str, Any] | None = None) -> str:
    """Return what differs between two sets of settings, in words; empty when nothing does.

    Parameters
    ----------
    before, now
        The settings, by their names in JSON.
    defaults
        All settings that this version knows, with their defaults: another version may have recorded more or fewer.
    """
    if defaults is not None:
        before = {key: value for key, value in before.items() if key in defaults}
        before = {key: defaults[key] for key in now if key in defaults} | before
    changed = []
    for key in [*now, *sorted(before.keys() - now.keys())]:
        old, new = ("not given" if value.get(key) in (None, []) else value[key] for value in (before, now))
        if old != new:
            changed.append("the dataset's files" if key == "datasetFiles" else f"{key} {old}, now {new}")
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return ", ".join(changed[:3]) + more


def _take(directory: Path, command: TrainCommand, identity: dict[str, Any]) -> Place | str:
    """Return the directory for this run, locked; or what differs when it belongs to another one.

    Settings with which nothing was trained, because the dataset was refused or the base model was not there, give way
    to the new ones, so that a mended command goes where the first one wanted to.
    """
    defaults = command.defaults()
    recorded = _recorded(directory)
    changed = differences(recorded["settings"], identity, defaults) if recorded else ""
    if changed and _has_trained(directory):
        return changed
    try:
        lock(directory)
    except FailureError:
        if changed:
            return changed
        raise
    recorded = _recorded(directory)  # again, for another process may have been first
    changed = differences(recorded["settings"], identity, defaults) if recorded else ""
    if recorded is not None and not changed:
        return Place(directory, command.run_uid or recorded["uid"])
    if changed and _has_trained(directory):
        return changed
    if changed and command.dataset is not None:
        shutil.rmtree(RunDirectory(directory).dataset, ignore_errors=True)
    uid = command.run_uid or _finished_uid(directory) or str(uuid.uuid4())
    write_json(directory / RUN_FILE, {"uid": uid, "settings": identity})
    return Place(directory, uid)


def _has_trained(directory: Path) -> bool:
    run = RunDirectory(directory)
    return run.training_config.exists() or run.adapter.exists() or any(run.checkpoints.glob("checkpoint-*"))


def _recorded(directory: Path) -> dict[str, Any] | None:
    try:
        document: dict[str, Any] = json.loads((directory / RUN_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise FailureError(
            exits.INVALID_CONFIGURATION, "InvalidSpec", f"{directory / RUN_FILE} is damaged ({error}): remove it"
        ) from error
    return document


def _finished_uid(directory: Path) -> str | None:
    try:
        document = json.loads(RunDirectory(directory).training_config.read_text(encoding="utf-8"))
        uid: str = document["result"]["runUid"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return uid


def _names(first: Path) -> Iterator[Path]:
    yield first
    number = 2
    while True:
        yield first.with_name(f"{first.name}-{number}")
        number += 1


def _files_stamp(dataset: str | None) -> str | None:
    if dataset is None:
        return None
    given = source_flags(dataset)
    named = [given[key] for key in ("path", "config") if key in given]
    if "config" in given:
        named += _mixed_paths(Path(given["config"]))
    if not named:
        return None
    paths = [found for path in named for found in _matching(Path(path).resolve())]
    entries = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in paths if p.is_file()]
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:16]


def _matching(path: Path) -> list[Path]:
    return [path] if path.exists() else sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))


def _mixed_paths(path: Path) -> list[str]:
    """Return the files that the sources of a mix name; what is wrong with it, the export says."""
    import yaml

    try:
        mix = yaml.safe_load(path.read_text(encoding="utf-8"))["mix"]
        return [entry["path"] for entry in mix if isinstance(entry.get("path"), str)]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError):
        return []


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)
