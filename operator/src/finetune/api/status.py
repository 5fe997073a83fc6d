"""The status of a TrainingRun: only the operator writes it; numbers that are not integers are strings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    StringConstraints,
    ValidationError,
    model_validator,
)

from .conditions import Condition
from .fields import MAX_MESSAGE, ApiModel, DecimalString, Time

Count = Annotated[int, Field(ge=0, le=2**53)]
"""A number of things, small enough for every reader of JSON."""
Sha256 = Annotated[str, StringConstraints(max_length=64)]
ShortText = Annotated[str, StringConstraints(max_length=253)]
LongText = Annotated[str, StringConstraints(max_length=MAX_MESSAGE)]

MAX_CONDITIONS = 16
MAX_SOURCES = 16
MAX_LOSS_HISTORY = 32
MAX_WARNINGS = 16
MAX_ATTEMPT_HISTORY = 64
MAX_EARLIER_WAITS = 4


def _readable(model: type[ApiModel]) -> BeforeValidator:
    """Leaves out the entries of a list that this version cannot read, instead of the whole list."""

    def keep(entries: object) -> object:
        if not isinstance(entries, (list, tuple)):
            return ()
        return tuple(read for entry in entries if (read := _read(model, entry)) is not None)

    return BeforeValidator(keep)


def _read(model: type[ApiModel], entry: object) -> ApiModel | None:
    try:
        return model.model_validate(entry)
    except ValidationError:
        return None


class OutputStatus(ApiModel):
    """Where the run's files are."""

    claim_name: ShortText
    """Name of the PersistentVolumeClaim."""
    path: Annotated[str, StringConstraints(max_length=512)]
    """The run's folder, from the root of the claim."""


class Timings(ApiModel):
    """Where the time before the first step went; every value is in seconds since the run's creation."""

    accepted_seconds: Count | None = None
    """Until the operator had accepted the run."""
    scheduled_seconds: Count | None = None
    """Until the pod had a node."""
    export_seconds: Count | None = None
    """Until the dataset was on the output claim."""
    model_load_seconds: Count | None = None
    """Until the base model was loaded."""
    first_step_seconds: Count | None = None
    """Until the first optimizer step was done."""


class Progress(ApiModel):
    """How far the training is; up to 30 seconds old while it runs."""

    step: Count | None = None
    """Optimizer steps done."""
    total_steps: Count | None = None
    """Optimizer steps to do."""
    percent: Annotated[int, Field(ge=0, le=100)] | None = None
    """Share of the steps that are done."""
    epoch: DecimalString | None = None
    """Passes over the training rows so far."""
    loss: DecimalString | None = None
    """Training loss of the newest step."""
    learning_rate: DecimalString | None = None
    """Learning rate of the newest step."""
    tokens_per_second: DecimalString | None = None
    """Training tokens per second."""
    checkpoint_step: Count | None = None
    """Step of the newest checkpoint on the output claim."""
    remaining_seconds: Count | None = None
    """Estimated time until the last step, while the run trains."""
    last_update_time: Time | None = None
    """When the trainer reported this."""


class DatasetSourceStatus(ApiModel):
    """What became of one source of a mix."""

    name: ShortText
    """What the source is called: its name in the spec, else what it reads."""
    version: Count | None = None
    """Version in the registry."""
    rows: Count | None = None
    """Rows that are trained on."""
    evaluation_rows: Count | None = None
    """Rows that are held out."""
    found: Count | None = None
    """Usable rows of the source, of which weight and maxRows may leave out some."""
    dropped: Count | None = None
    """Malformed rows, which were left out."""


class DatasetStatus(ApiModel):
    """What the training data turned out to be."""

    version: Count | None = None
    """Version in the registry."""
    rows: Count | None = None
    """Rows that are trained on."""
    evaluation_rows: Count | None = None
    """Rows that are held out."""
    dropped: Count | None = None
    """Rows left out: malformed ones, and too long ones when dataset.tooLong is Drop."""
    duplicates: Count | None = None
    """Rows with the same content as an earlier one."""
    truncated: Count | None = None
    """Rows cut to training.maxLength tokens."""
    tokens: Count | None = None
    """Tokens of all training rows together."""
    bytes: Count | None = None
    """Size of the exported rows in bytes."""
    sha256: Sha256 | None = None
    """SHA-256 of the exported rows."""
    source_sha256: Sha256 | None = None
    """SHA-256 of that version in the registry, as it was uploaded: the run trains on these rows or on none."""
    sources: (
        Annotated[tuple[DatasetSourceStatus, ...], Field(max_length=MAX_SOURCES), _readable(DatasetSourceStatus)] | None
    ) = None
    """For a mix what became of each source, in its order."""


class ParentAdapterStatus(ApiModel):
    """The adapter version that the run goes on from."""

    name: ShortText
    """Name of the adapter."""
    version: Count
    """Version of the adapter."""
    sha256: Sha256
    """SHA-256 of the adapter, as in the status of the run that made it."""


class ResumeStatus(ApiModel):
    """The run whose newest checkpoint this one goes on from."""

    run: ShortText
    """Name of that run."""
    uid: ShortText
    """Identity of that run."""
    claim_name: ShortText
    """Name of the PersistentVolumeClaim with its checkpoints."""
    path: Annotated[str, StringConstraints(max_length=512)]
    """Its folder, from the root of that claim."""


class LossPoint(ApiModel):
    """The training loss at one step."""

    step: Count
    """Optimizer step."""
    loss: DecimalString
    """Training loss of that step."""


class AdapterStatus(ApiModel):
    """The adapter version that the run made."""

    id: ShortText
    """Identity of the adapter version in the registry."""
    name: ShortText
    """Name of the adapter."""
    version: Count
    """Version of the adapter; numbers are never used again."""
    uri: Annotated[str, StringConstraints(max_length=1024)]
    """Where the files are: pvc://<claim>/<path>."""
    sha256: Sha256
    """SHA-256 over the list of the files' SHA-256 sums: what `sha256sum $(ls | LC_ALL=C sort) | sha256sum` prints
    in the folder."""
    bytes: Count
    """Size of the files in bytes."""
    reference: ShortText | None = None
    """Name and version in one word, such as support/3."""
    stored: bool | None = None
    """Whether the registry's store has the files, so that they can be pulled: false while a Job sends them from the
    claim. Absent when they are on the claim alone."""


class Measurements(ApiModel):
    """What the trainer measured, as it says it in its last words and as the status shows it."""

    final_loss: DecimalString
    """Training loss, weighted by tokens, over the last ten steps."""
    evaluation_loss: DecimalString | None = None
    """Loss of the adapter on the held-out rows."""
    base_evaluation_loss: DecimalString | None = None
    """Loss of the base model alone on the held-out rows; for DPO and KTO, of the reference."""
    reward_accuracy: DecimalString | None = None
    """DPO: share of the held-out pairs whose chosen answer gets the higher reward."""
    reward_margin: DecimalString | None = None
    """DPO: mean of the chosen answers' rewards less the rejected ones', over the held-out pairs. KTO: mean reward of
    the good answers less that of the bad ones, over the held-out rows."""
    steps: Count
    """Optimizer steps done."""
    best_step: Count | None = None
    """Step whose adapter is the result, with early stopping."""
    tokens: Count
    """Tokens trained on."""


class Result(Measurements):
    """What a successful run has to show."""

    loss_change: ShortText | None = None
    """The evaluation loss against the base model's, such as -31 %."""
    adapter: AdapterStatus
    """The registered adapter version."""


class Failure(ApiModel):
    """Why the run failed, and what to change."""

    reason: ShortText
    """One word for the cause; docs/api.md lists all of them."""
    message: LongText
    """What happened, in the failing part's own words."""
    exit_code: int | None = None
    """Exit code of the container that failed last."""
    hint: LongText
    """What to change."""
    row: Count | None = None
    """Number of the offending row of the dataset, from 1."""


class Attempt(ApiModel):
    """One pod of the run, and how it ended."""

    pod: ShortText
    """Name of the pod."""
    uid: ShortText
    """Identity of the pod: each pod counts once."""
    start_time: Time | None = None
    """When the pod got a node; from then on it holds its GPUs."""
    completion_time: Time | None = None
    """When the pod ended."""
    exit_code: int | None = None
    """Exit code of the container that decided how the pod ended."""
    reason: ShortText | None = None
    """One word for why it ended: Completed, Interrupted, Suspended, or the cause of the failure."""
    step: Count | None = None
    """Newest step that is known to be kept from this attempt: what it said, or the last that it reported."""
    node: ShortText | None = None
    """Node that the pod ran on."""


class EarlierWait(ApiModel):
    """Something else that the run has waited for before, since it was last free of trouble."""

    reason: ShortText
    """One word for it, as above."""
    object: ShortText
    """What it is about."""
    seconds: Count = 0
    """How long, all times together: its clock goes on from here when it comes back."""


class Waiting(ApiModel):
    """The one thing that the run waits for, and since when."""

    reason: ShortText
    """One word for it; docs/api.md lists all of them."""
    object: ShortText
    """What it is about, such as ConfigMap/rows."""
    message: LongText
    """What is wrong, in the words of whoever says so."""
    hint: LongText | None = None
    """What to do."""
    since: Time
    """Since when, by the operator's clock. Each reason and object has a clock of its own, which rests meanwhile."""
    earlier: Annotated[tuple[EarlierWait, ...], Field(max_length=MAX_EARLIER_WAITS), _readable(EarlierWait)] = ()
    """What else was waited for since nothing was in the run's way, newest last."""


class ActiveTime(ApiModel):
    """How long the Job was active: its deadline counts over suspensions."""

    seconds: Count = 0
    """Seconds of all active times that have ended."""
    since: Time | None = None
    """Start of the present one; absent while the Job is suspended."""


class TrainingRunStatus(ApiModel):
    """What became of a run."""

    observed_generation: int = -1
    """Generation of the spec that this status speaks of; -1 before the operator has seen the run."""
    phase: ShortText | None = None
    """One word for the state, for printing only: programs read the conditions."""
    conditions: Annotated[tuple[Condition, ...], Field(max_length=MAX_CONDITIONS), _readable(Condition)] = ()
    """Accepted, DatasetReady, Succeeded, Finished, Suspended, Reconciling and Stalled."""
    waiting: Waiting | None = None
    """What the run waits for; absent while it waits for nothing but its own work."""
    job_name: ShortText | None = None
    """Name of the run's Job."""
    job_uid: ShortText | None = None
    """Identity of the run's Job: only pods that it controls are the run's."""
    output: OutputStatus | None = None
    """Where the run's files are."""
    attempts: Count | None = None
    """Pods started so far, interrupted ones included."""
    attempt_history: Annotated[tuple[Attempt, ...], Field(max_length=MAX_ATTEMPT_HISTORY), _readable(Attempt)] = ()
    """The newest attempts and how each ended, oldest first."""
    resumed_from_step: Count | None = None
    """Step of the checkpoint that the newest attempt started from."""
    start_time: Time | None = None
    """When the first pod started."""
    training_start_time: Time | None = None
    """When the first attempt had reached its trainer. From then on nothing that may pass ends the run."""
    active: ActiveTime | None = None
    """How long the Job was active; what activeDeadlineSeconds is compared with."""
    completion_time: Time | None = None
    """When the run succeeded or failed."""
    duration_seconds: Count | None = None
    """Time from startTime to completionTime."""
    gpu_seconds: Count | None = None
    """Time that the pods held GPUs, multiplied by their number."""
    timings: Timings | None = None
    """Where the time before the first step went."""
    progress: Progress | None = None
    """How far the training is."""
    dataset: DatasetStatus | None = None
    """What the training data turned out to be."""
    parent_adapter: ParentAdapterStatus | None = None
    """The adapter version that the run goes on from."""
    resumed_from: ResumeStatus | None = None
    """The run of spec.resumeFrom, once it was found."""
    loss_history: Annotated[tuple[LossPoint, ...], Field(max_length=MAX_LOSS_HISTORY), _readable(LossPoint)] = ()
    """Course of the training loss, thinned out to at most 32 points."""
    result: Result | None = None
    """What a successful run has to show."""
    failure: Failure | None = None
    """Why a failed run failed."""
    warnings: Annotated[tuple[LongText, ...], Field(max_length=MAX_WARNINGS)] = ()
    """What a person should know although the run goes on."""

    @model_validator(mode="wrap")
    @classmethod
    def _without_what_does_not_fit(cls, data: Any, handler: ModelWrapValidatorHandler[TrainingRunStatus]) -> Any:
        """Leave out fields that do not fit: a status of another version, or one that was edited, is read all the same.

        It is also how a status is written whatever a container has posted: the rest of it matters more.
        """
        try:
            return handler(data)
        except ValidationError as error:
            if not isinstance(data, Mapping):
                return handler({})
            bad = {str(each["loc"][0]) for each in error.errors() if each["loc"]}
            names = {alias: name for name, field in cls.model_fields.items() if (alias := field.alias)}
            unwanted = bad | {names[each] for each in bad if each in names}
            return handler({key: value for key, value in data.items() if key not in unwanted})

    def condition(self, type_: str) -> Condition | None:
        """The condition of that type; none when it was never set."""
        return next((condition for condition in self.conditions if condition.type == type_), None)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, as the API server gives it back: empty lists are left out too."""
        return {key: value for key, value in super().to_dict().items() if value != []}
