"""The documents of the registry's HTTP API, shared by its service and its client.

Field names are camelCase on the wire and snake_case in Python. Requests refuse unknown keys, so that a
misspelt one is an error and not a silence; answers and the trainer's own documents ignore them, so that an
older reader keeps working.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, StringConstraints
from pydantic.alias_generators import to_camel

from .fields import MAX_DECIMAL

NAME_PATTERN = r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$"
NAMESPACE_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
UID_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
CLAIM_PATTERN = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"
SHA256_PATTERN = r"^[0-9a-f]{64}$"
FILE_PATH_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$"
PRINTABLE_PATTERN = r"^[^\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]+$"
"""No control characters, nor those that turn the direction of writing: a terminal and a page show what is there."""
PARENT_ADAPTER_NOT_FOUND = "ParentAdapterNotFound"
"""Reason of the 404 for a run whose parent adapter does not exist; every other one says `NotFound`."""
PARENT_ADAPTER_CHANGED = "ParentAdapterChanged"
"""Reason of the 409 for a run whose parent adapter's number is another adapter's by now."""

DECIMAL_PATTERN = r"^-?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?$"


DATASET_CHANGED = "DatasetChanged"
"""Reason of the 409 for a run whose dataset version has other rows by now."""

DELETED = "Deleted"
"""Phase of a run whose object was deleted before it had ended; all others are the operator's own words."""


def _to_utc(time: datetime) -> datetime:
    try:
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except OverflowError:
        raise ValueError("the time is outside the years 1 to 9999 in UTC") from None


def _storable(spec: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Refuse what a reader of JSON made of a number beyond a double."""
    try:
        json.dumps(spec, allow_nan=False)
    except ValueError:
        raise ValueError("it holds a number that is too large, or no number") from None
    return spec


def _without_nul(text: str) -> str:
    """PostgreSQL stores no NUL."""
    return text.replace("\0", "\ufffd")


Time = Annotated[datetime, AfterValidator(_to_utc)]
"""A time in UTC; one without a zone is taken for UTC."""
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Uid = Annotated[str, StringConstraints(pattern=UID_PATTERN)]
Sha256 = Annotated[str, StringConstraints(pattern=SHA256_PATTERN)]
Decimal = Annotated[str, StringConstraints(pattern=DECIMAL_PATTERN, max_length=MAX_DECIMAL)]
Count = Annotated[int, Field(ge=0, le=2**53)]
"""As in the status of a run, and small enough for every reader of JSON."""
VersionNumber = Annotated[int, Field(ge=1, le=2**31 - 1)]
Shape = Literal[
    "text",
    "prompt-completion",
    "messages",
    "preference",
    "preference-messages",
    "unpaired",
    "unpaired-messages",
    "other",
]


class Document(BaseModel):
    """A document that somebody else wrote: unknown keys are ignored."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)


class Request(Document):
    """A document that asks for something: unknown keys are refused."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid")


class DatasetVersion(Document):
    """One immutable version of a dataset: what is known about its rows."""

    name: str
    version: int
    rows: int
    bytes: int
    sha256: str
    """Hex SHA-256 of the rows exactly as they were uploaded."""
    shape: Shape
    created_time: Time


class DatasetVersions(Document):
    """Versions, newest first; for a list of datasets the newest version of each, sorted by name."""

    items: list[DatasetVersion]
    continue_: str | None = Field(default=None, alias="continue")
    """Pass this as `continue` to get the next page; absent on the last page."""


MetricName = Annotated[str, StringConstraints(pattern=PRINTABLE_PATTERN, max_length=64)]
MAX_STEPS_A_POST = 1000


class Metric(Document):
    """One number of a training run, as text, the way Kubeflow's trainerStatus carries it."""

    name: MetricName
    value: Annotated[str, StringConstraints(max_length=64), AfterValidator(_without_nul)]


class TrainerStatus(Document):
    """Progress of a training run."""

    progress_percentage: int | None = Field(default=None, ge=0, le=100)
    estimated_remaining_seconds: Count | None = None
    metrics: list[Metric] = Field(default_factory=list, max_length=64)
    last_updated_time: Time | None = None

    def value(self, name: str) -> str | None:
        """The value of the metric `name`, or None when it was not posted."""
        return next((metric.value for metric in self.metrics if metric.name == name), None)


class StepValues(Document):
    """What was measured at one step; null is a number that is not finite, and makes no point."""

    step: Count
    values: dict[MetricName, Annotated[float, Field(allow_inf_nan=False)] | None] = Field(max_length=64)


class StatusPost(Document):
    """The body that a trainer posts: Kubeflow's trainerStatus and, from ours, every step since the post before."""

    trainer_status: TrainerStatus
    attempt: Annotated[int, Field(ge=1, le=2**31)] | None = None
    """Which start of the trainer in its run directory this is, from 1."""
    start_step: Count = 0
    """The step that the attempt went on from: what earlier ones told of later steps is forgotten."""
    points: list[StepValues] = Field(default_factory=list, max_length=MAX_STEPS_A_POST)


class StatusAnswer(Document):
    """What the registry knows after a trainer's post."""

    step: int | None = None
    """The newest step."""


class RunOutcome(Document):
    """What became of a run, in the operator's words."""

    phase: Annotated[str, StringConstraints(pattern=r"^[A-Za-z]{1,32}$")]
    reason: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]{1,64}$")] | None = None
    message: Annotated[str, StringConstraints(max_length=8192), AfterValidator(_without_nul)] | None = None
    hint: Annotated[str, StringConstraints(max_length=8192), AfterValidator(_without_nul)] | None = None
    row: Count | None = None
    """Number of the offending row of the dataset, from 1."""
    attempts: Count | None = None
    gpu_seconds: Count | None = None
    resumed_from_step: Count | None = None
    start_time: Time | None = None
    completion_time: Time | None = None
    evaluation_loss: Decimal | None = None
    base_evaluation_loss: Decimal | None = None
    ended: bool = False
    """Nothing more will be said of the run."""


class OutcomeRequest(RunOutcome):
    """What the operator says at each change of a run's phase."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid")

    version: Count = 0
    """Of the object that says so, its resourceVersion: what an older one says changes nothing. 0: not known."""


class UnfinishedRun(Document):
    """A run of which the registry knows no end."""

    namespace: str
    name: str
    uid: str
    phase: str | None = None


class UnfinishedRuns(Document):
    """Runs of all namespaces, oldest first."""

    items: list[UnfinishedRun]
    continue_: str | None = Field(default=None, alias="continue")


class Series(Document):
    """One metric of one run, thinned to as many points as were asked for: lists of equal length, sorted by step."""

    run: str
    """The run's uid."""
    name: str
    """The run's name."""
    metric: str
    steps: list[int]
    values: list[float]
    seconds: list[int]
    """Since the run was recorded, by the registry's clock."""
    attempts: list[int]


class SeriesList(Document):
    """The series of those runs and metrics that have any points."""

    items: list[Series]


class ProgressByRun(Document):
    """Latest progress by run uid; runs without any are left out."""

    items: dict[str, TrainerStatus]


class BaseModelReference(Document):
    """What an adapter was trained on: the name that it gives as its base, and the commit if there is one."""

    name: Annotated[str, StringConstraints(pattern=PRINTABLE_PATTERN, max_length=512)]
    revision: Annotated[str, StringConstraints(pattern=PRINTABLE_PATTERN, max_length=128)] | None = None


class SourceFacts(Document):
    """What became of one source of a mix: rows that were found, and those of them that the run took."""

    name: Annotated[str, StringConstraints(max_length=253)]
    version: int | None = None
    rows: Count = 0
    evaluation_rows: Count = 0
    found: Count = 0
    dropped: Count = 0


class DatasetFacts(Document):
    """What the export container measured about the rows that were trained on."""

    version: int | None = None
    rows: Count
    evaluation_rows: Count = 0
    dropped: Count = 0
    duplicates: Count | None = None
    truncated: Count | None = None
    tokens: Count | None = None
    bytes: Count | None = None
    sha256: Sha256
    sources: Annotated[list[SourceFacts], Field(max_length=16)] | None = None
    """For a mix, in its order."""


class AdapterFile(Document):
    """One file of an adapter; `path` is relative to the adapter's directory."""

    path: Annotated[str, StringConstraints(pattern=FILE_PATH_PATTERN, max_length=512)]
    bytes: Count
    sha256: Sha256


class AdapterFacts(Document):
    """What the trainer measured about the files that it wrote."""

    sha256: Sha256
    """See `adapter_digest`."""
    bytes: Count
    files: list[AdapterFile] = Field(min_length=1, max_length=256)


class RunResult(Document):
    """The `result` of the trainer's termination message. Losses are decimal strings."""

    run_uid: Uid
    final_loss: Decimal
    evaluation_loss: Decimal | None = None
    base_evaluation_loss: Decimal | None = None
    reward_accuracy: Decimal | None = None
    reward_margin: Decimal | None = None
    steps: Count
    best_step: Count | None = None
    tokens: Count = 0
    resumed_from_step: Count = 0
    adapter: AdapterFacts


class RunRequest(Request):
    """What the operator says about a run before it starts."""

    name: Name
    experiment: Name
    method: Annotated[str, StringConstraints(pattern=r"^[A-Za-z]{1,16}$")]
    dataset_name: Name | None = None
    dataset_version: VersionNumber | None = None
    """Without a number the newest version is recorded; later calls for the same run give that one again."""
    dataset_sha256: Sha256 | None = None
    """Of the rows as they were uploaded, where the version was found before: a number alone does not identify them."""
    parent_adapter_name: Name | None = None
    parent_adapter_version: VersionNumber | None = None
    """As for the dataset: without a number the newest version is recorded, for good."""
    parent_adapter_sha256: Sha256 | None = None
    """What the parent was when it was found first. A registry that lost its database may give the number again."""
    spec: Annotated[dict[str, JsonValue], AfterValidator(_storable)]


class AdapterRequest(Request):
    """What the operator says when a run has finished: register its adapter."""

    adapter_name: Name
    claim_name: Annotated[str, StringConstraints(pattern=CLAIM_PATTERN)]
    base_model: BaseModelReference
    dataset: DatasetFacts
    result: RunResult


class AdapterLineage(Document):
    """The adapter version that another one was trained from."""

    name: str
    version: int
    sha256: str


class ParentAdapter(AdapterLineage):
    """The adapter version that is recorded as a run's parent: where its files are, and what they were trained on."""

    uri: str
    base_model: BaseModelReference


class AdapterVersion(Document):
    """One registered version of an adapter: files, losses and lineage."""

    id: str
    name: str
    version: int
    uri: str
    """`pvc://<claim>/<experiment>/<run uid>/adapter`"""
    sha256: str
    bytes: int
    files: list[AdapterFile]
    run_uid: str
    run_name: str
    experiment: str
    method: str
    base_model: BaseModelReference
    parent: AdapterLineage | None = None
    """The adapter version that the run went on from; absent when it started from the base model."""
    dataset_name: str | None = None
    dataset: DatasetFacts
    final_loss: str
    evaluation_loss: str | None = None
    base_evaluation_loss: str | None = None
    reward_accuracy: str | None = None
    reward_margin: str | None = None
    steps: int
    best_step: int | None = None
    tokens: int | None = None
    resumed_from_step: int = 0
    created_time: Time
    state: str = "Registered"
    """See `AdapterState` in `finetune.api.files`; a reader takes one that it does not know as it is."""
    state_reason: str | None = None
    stored: bool | None = None
    """Whether the registry's store has the files: then anybody who may read the adapter can pull them. Null in the
    answer to a registration when there is no store."""
    aliases: list[str] = Field(default_factory=list)
    tags: dict[str, str] = Field(default_factory=dict)
    notes: str = ""


class AdapterVersions(Document):
    """Versions, newest first; for a list of adapters the newest version of each, sorted by name."""

    items: list[AdapterVersion]
    continue_: str | None = Field(default=None, alias="continue")


class Run(Document):
    """A run with its latest progress and, once it has one, its adapter."""

    uid: str
    name: str
    experiment: str
    method: str
    dataset_name: str | None = None
    dataset_version: int | None = None
    """The version recorded for the run: what its pod is given."""
    dataset_sha256: str | None = None
    """Of that version's rows, as they were uploaded."""
    base_model: str | None = None
    """The repository or the folder that `spec.baseModel` names."""
    outcome: RunOutcome | None = None
    """What the operator said last; absent before it has said anything."""
    parent_adapter: ParentAdapter | None = None
    """The adapter version recorded for the run to go on from."""
    spec: dict[str, JsonValue]
    created_time: Time
    archived_time: Time | None = None
    """Since when lists of people leave it out."""
    tags: dict[str, str] | None = None
    notes: str | None = None
    trainer_status: TrainerStatus | None = None
    metrics: list[str] = Field(default_factory=list)
    """Names of the metrics that have points, see `series`."""
    adapter: AdapterVersion | None = None


class Runs(Document):
    """Runs, newest first."""

    items: list[Run]
    continue_: str | None = Field(default=None, alias="continue")


class ErrorDetail(Document):
    """What went wrong: a reason for programs, a message and a hint for people."""

    reason: str
    message: str
    hint: str = ""


class ErrorDocument(Document):
    """The body of every answer that is not a success."""

    error: ErrorDetail


def adapter_digest(files: Iterable[AdapterFile]) -> str:
    """The hex SHA-256 of the text `<sha256>  <path>` and a newline for every file, sorted by path."""
    lines = (f"{file.sha256}  {file.path}\n" for file in sorted(files, key=lambda file: file.path))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
