"""Where a run's model, adapter and rows come from: parts of the spec that refer to something outside it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from .fields import ApiModel, DataKey, Name, ObjectName, RelativePath, matching, rule, ruled

VersionNumber = Annotated[int, Field(ge=1, le=2147483647)]

WITHOUT_NUL = ruled(rule(r"!self.contains('\x00')", "must not contain the character NUL: no program can be given one"))
"""Annotation: text that becomes a program's argument as it is."""

Repository = Annotated[
    str,
    StringConstraints(min_length=1, max_length=200),
    matching(
        "[A-Za-z0-9][-A-Za-z0-9._]*(/[A-Za-z0-9][-A-Za-z0-9._]*)?",
        "must be a repository of the hub, such as HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
]
Revision = Annotated[
    str,
    StringConstraints(min_length=1, max_length=128),
    matching("[A-Za-z0-9][-A-Za-z0-9._/]*", "must be a branch, a tag or a commit"),
]
FilePattern = Annotated[
    str,
    StringConstraints(min_length=1, max_length=512),
    matching(
        r"[A-Za-z0-9_*?\\[][-A-Za-z0-9._*?!\\[\\]]*(/[A-Za-z0-9_*?\\[][-A-Za-z0-9._*?!\\[\\]]*)*",
        "must be a file, a folder or a pattern from the root of the claim: no leading or trailing '/', no '..', no "
        "hidden names, only letters, digits, '-', '_', '.' and the wildcards *, ? and [...] between the slashes",
    ),
]
"""A path below the root of a claim that may hold wildcards."""


class SecretKeyRef(ApiModel):
    """One key of a Secret in the run's namespace."""

    name: ObjectName
    """Name of the Secret."""
    key: DataKey
    """Key in the Secret's data."""


class SecretRef(ApiModel):
    """A Secret in the run's namespace."""

    name: ObjectName
    """Name of the Secret."""


class HubModel(ApiModel):
    """A model on the Hugging Face Hub."""

    repository: Repository
    """Repository, such as HuggingFaceTB/SmolLM2-135M-Instruct."""
    revision: Revision | None = None
    """Branch, tag or commit. Default: the repository's main branch; the commit that was used is recorded."""
    token_secret_ref: SecretKeyRef | None = None
    """Secret key with an access token, for private and gated repositories."""


class VolumeModel(ApiModel):
    """A model in a folder of a PersistentVolumeClaim, mounted read-only."""

    claim_name: ObjectName
    """Name of the PersistentVolumeClaim."""
    path: RelativePath | None = None
    """Folder that holds config.json and the weights, from the root of the claim. Default: the root itself."""


class ConfigMapKey(ApiModel):
    """A key of a ConfigMap of the run's namespace."""

    name: ObjectName
    """Name of the ConfigMap."""
    key: DataKey
    """Key in its data."""


class ChatTemplate(ApiModel):
    """A chat template in Jinja, as in a model's chat_template.jinja."""

    config_map: ConfigMapKey
    """The key of a ConfigMap whose text it is."""


class BaseModelSource(ApiModel):
    """The model to start from; exactly one source."""

    hub: HubModel | None = None
    """A model on the Hugging Face Hub, downloaded once into the output claim."""
    volume: VolumeModel | None = None
    """A model in a folder of a PersistentVolumeClaim of the run's namespace."""
    chat_template: ChatTemplate | None = None
    """Takes the place of the model's own chat template, or gives it one; it is saved with the adapter."""

    @property
    def display_name(self) -> str:
        """How people know the model: its repository, or its folder on the claim."""
        if self.hub is not None:
            return self.hub.repository
        if self.volume is not None:
            return self.volume.path or self.volume.claim_name
        return ""


class ParentAdapter(ApiModel):
    """An adapter of the registry, of the run's namespace, trained on the same base model."""

    name: Name
    """Name of the adapter."""
    version: VersionNumber | None = None
    """Version of the adapter. Default: the newest when the run is accepted; it is recorded in
    status.parentAdapter."""


class RegistryDataset(ApiModel):
    """A dataset of the registry, of the run's namespace."""

    name: Name
    """Name of the dataset."""
    version: VersionNumber | None = None
    """Version of the dataset. Default: the newest when the run is accepted; it is recorded in
    status.dataset.version."""


class SqlDataset(ApiModel):
    """The rows that a database answers to a query, read as a stream."""

    url_secret_ref: SecretKeyRef
    """Secret key with the database's URL, such as postgresql://user:password@host/name."""
    query: Annotated[str, StringConstraints(min_length=1, max_length=8192), WITHOUT_NUL]
    """The query; the names of its columns are the rows' fields. Let it sort the rows, so that a second reading gives
    the same ones."""


class HubDataset(ApiModel):
    """A dataset on the Hugging Face Hub."""

    repository: Repository
    """Repository, such as HuggingFaceH4/ultrafeedback_binarized."""
    revision: Revision | None = None
    """Branch, tag or commit. Default: the repository's main branch."""
    configuration: (
        Annotated[
            str,
            StringConstraints(min_length=1, max_length=128),
            matching("[A-Za-z0-9_][-A-Za-z0-9._+]*", "must be the name of a configuration, such as main"),
        ]
        | None
    ) = None
    """Configuration (subset) of the dataset, where it has several. Default: the one that its card marks as default, or
    the only one."""
    split: (
        Annotated[
            str,
            StringConstraints(min_length=1, max_length=128),
            matching("[A-Za-z0-9_][-A-Za-z0-9._]*", "must be the name of a split, such as train"),
        ]
        | None
    ) = None
    """Split of the dataset. Default: train."""
    token_secret_ref: SecretKeyRef | None = None
    """Secret key with an access token, for private and gated repositories."""


class ObjectStoreDataset(ApiModel):
    """Objects of a store that speaks the S3 protocol: JSON lines, JSON, CSV or Parquet."""

    uri: Annotated[
        str,
        StringConstraints(min_length=1, max_length=1024),
        matching(
            r"s3://[a-z0-9][-a-z0-9._]{1,61}[a-z0-9]/([^\\s\\x00]([^\\r\\n\\x00]*[^\\s\\x00])?)?",
            "must be the address of an object, of several by wildcards, or of a folder by a slash at the end, such as "
            "s3://bucket/prefix/*.jsonl",
        ),
    ]
    """Address of the objects: s3://bucket/key, where the key may hold the wildcards *, ? and [...], or end in a slash
    for the data files of a folder."""
    credentials_secret_ref: SecretRef | None = None
    """Secret with the keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_SESSION_TOKEN where one is needed.
    Default: what the cluster gives the run's service account, else no credentials."""
    endpoint: (
        Annotated[
            str,
            StringConstraints(min_length=1, max_length=512),
            matching(
                r"https?://[A-Za-z0-9][-A-Za-z0-9.]*(:[0-9]{1,5})?(/[-A-Za-z0-9._~/]*)?",
                "must be the address of the store, such as https://minio.storage:9000",
            ),
        ]
        | None
    ) = None
    """Address of the store. Default: Amazon's."""


class VolumeDataset(ApiModel):
    """A dataset in files of a PersistentVolumeClaim, mounted read-only: JSON lines, JSON, CSV or Parquet."""

    claim_name: ObjectName
    """Name of the PersistentVolumeClaim."""
    path: FilePattern
    """File, folder or pattern such as data/*.parquet, from the root of the claim."""


class ConfigMapDataset(ApiModel):
    """A small dataset in a ConfigMap (1 MiB at most)."""

    name: ObjectName
    """Name of the ConfigMap."""
    key: DataKey
    """Key whose text holds one JSON object a line."""


ColumnName = Annotated[str, StringConstraints(min_length=1, max_length=128), WITHOUT_NUL]


class Columns(ApiModel):
    """Which columns of the source hold what the method needs."""

    prompt: ColumnName | None = None
    """Column that holds the prompt. Default: prompt."""
    completion: ColumnName | None = None
    """Column that holds the completion. Default: completion."""
    text: ColumnName | None = None
    """Column that holds a text to learn as it stands, for SFT. Default: text."""
    messages: ColumnName | None = None
    """Column that holds the list of chat messages. Default: messages."""
    tools: ColumnName | None = None
    """Column that holds the descriptions of the tools that may be called. Default: tools."""
    system: ColumnName | None = None
    """Column that holds the system prompt. Default: system."""
    history: ColumnName | None = None
    """Column that holds earlier turns, which are seen and not learned. Default: history."""
    chosen: ColumnName | None = None
    """Column that holds the better answer, for DPO. Default: chosen."""
    rejected: ColumnName | None = None
    """Column that holds the worse answer, for DPO. Default: rejected."""
    label: ColumnName | None = None
    """Column that says whether the answer is good, for KTO: true or false, also as text, or 1 or 0. Default: label."""

    def renamed(self) -> dict[str, str]:
        """The mapping from what the method needs to the source's column; only what was set."""
        return {str(name): str(column) for name, column in self.to_dict().items()}


class Evaluation(ApiModel):
    """How many rows are held out of training to measure the loss on; exactly one field."""

    percent: Annotated[int, Field(ge=0, le=50)] | None = None
    """Rough percentage of the rows: a row's content decides, so that equal rows stay together. 0 holds out nothing."""
    max_rows: Annotated[int, Field(ge=0, le=1000000)] | None = None
    """Number of rows; never more than half of the dataset. 0 holds out nothing."""


class DatasetSource(ApiModel):
    """Where rows come from: exactly one of the sources, and how its columns are read."""

    registry: RegistryDataset | None = None
    """A dataset of the registry."""
    sql: SqlDataset | None = None
    """The answer of a database to a query."""
    hub: HubDataset | None = None
    """A dataset on the Hugging Face Hub."""
    object_store: ObjectStoreDataset | None = None
    """Objects of a store that speaks the S3 protocol."""
    volume: VolumeDataset | None = None
    """Files on a PersistentVolumeClaim of the run's namespace."""
    config_map: ConfigMapDataset | None = None
    """A key of a ConfigMap of the run's namespace."""
    columns: Columns | None = None
    """Names of the source's columns, where they are not those that the method looks for."""
    ignored_columns: Annotated[tuple[ColumnName, ...], Field(min_length=1, max_length=32)] | None = None
    """Columns that are as good as not there: those that would be used, or refused as images are, and do not matter."""


class MixedDataset(DatasetSource):
    """One source of a mix. Columns, ignored columns and turns are those of the dataset, unless it has its own."""

    name: Name | None = None
    """What to call the source in messages and in the status. Default: what it reads."""
    weight: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Share of the rows, measured by the weights of the other sources: with 3 and 1 three quarters of the rows are of
    the first. The source that has too few gives all it has, of the others rows are left out; none is repeated."""
    max_rows: Annotated[int, Field(ge=1, le=100000000)] | None = None
    """How many rows are taken, drawn by training.seed. Default, without a weight: all."""
    turns: Literal["Strict", "Merge"] | None = None
    """As dataset.turns, for this source. Default: as for the dataset."""


class Dataset(DatasetSource):
    """The rows to train on; exactly one source, or a mix of several."""

    mix: Annotated[tuple[MixedDataset, ...], Field(min_length=1, max_length=16)] | None = None
    """Several sources, one after the other; one of them may be of the registry."""
    turns: Literal["Strict", "Merge"] = "Strict"
    """What happens to turns of one role that follow upon each other: Strict makes the row malformed, Merge joins
    them."""
    evaluation: Evaluation | None = None
    """Rows that are held out of training to measure the loss on. Default: 5 percent, at most 500 rows; percent: 5 has
    no such bound."""
    too_long: Literal["Truncate", "Drop", "Fail"] = "Truncate"
    """What happens to a row of more than training.maxLength tokens: Truncate cuts it (DPO and KTO keep the end
    of the prompt, a text goes on in another row), Drop leaves it out, Fail ends the run."""
    invalid_rows: Literal["Fail", "Drop"] = "Fail"
    """What happens to a malformed row: Fail ends the run and names the row, Drop leaves the row out and
    counts it."""

    @property
    def sources(self) -> tuple[DatasetSource, ...]:
        """The sources: those of the mix, else the dataset itself."""
        return self.mix or (self,)

    @property
    def registered(self) -> RegistryDataset | None:
        """The dataset of the registry among the sources, of which there is one at most."""
        return next((source.registry for source in self.sources if source.registry), None)
