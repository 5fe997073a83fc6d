"""TrainingRun v1alpha1: what a person asks for. The status is in `finetune.api.status`.

The docstring under each field is what `kubectl explain` prints. Defaults here are the static defaults of the
CRD; a default that depends on another field is a property (`learning_rate`), its field stays empty.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints

from .fields import (
    ApiModel,
    ByteQuantity,
    CpuQuantity,
    DataKey,
    Name,
    ObjectName,
    RelativePath,
    Time,
    matching,
    rule,
    ruled,
)
from .status import TrainingRunStatus

Method = Literal["SFT"]

DEFAULT_LEARNING_RATES: dict[Method, str] = {"SFT": "2e-4"}
DEFAULT_EPOCHS = 1


class SecretKeyRef(ApiModel):
    """One key of a Secret in the run's namespace."""

    name: ObjectName
    """Name of the Secret."""
    key: DataKey
    """Key in the Secret's data."""


class HubModel(ApiModel):
    """A model on the Hugging Face Hub."""

    repository: Annotated[
        str,
        StringConstraints(min_length=1, max_length=200),
        matching(
            "[A-Za-z0-9][-A-Za-z0-9._]*(/[A-Za-z0-9][-A-Za-z0-9._]*)?",
            "must be a repository of the hub, such as HuggingFaceTB/SmolLM2-135M-Instruct",
        ),
    ]
    """Repository, such as HuggingFaceTB/SmolLM2-135M-Instruct."""
    revision: (
        Annotated[
            str,
            StringConstraints(min_length=1, max_length=128),
            matching("[A-Za-z0-9][-A-Za-z0-9._/]*", "must be a branch, a tag or a commit"),
        ]
        | None
    ) = None
    """Branch, tag or commit. Default: the repository's main branch; the commit that was used is recorded."""
    token_secret_ref: SecretKeyRef | None = None
    """Secret key with an access token, for private and gated repositories."""


class VolumeModel(ApiModel):
    """A model in a folder of a PersistentVolumeClaim, mounted read-only."""

    claim_name: ObjectName
    """Name of the PersistentVolumeClaim."""
    path: RelativePath | None = None
    """Folder that holds config.json and the weights, from the root of the claim. Default: the root itself."""


class BaseModelSource(ApiModel):
    """The model to start from; exactly one source."""

    hub: HubModel | None = None
    """A model on the Hugging Face Hub, downloaded once into the output claim."""
    volume: VolumeModel | None = None
    """A model in a folder of a PersistentVolumeClaim of the run's namespace."""

    @property
    def display_name(self) -> str:
        """How people know the model: its repository, or its folder on the claim."""
        if self.hub is not None:
            return self.hub.repository
        if self.volume is not None:
            return self.volume.path or self.volume.claim_name
        return ""


class RegistryDataset(ApiModel):
    """A dataset of the registry, of the run's namespace."""

    name: Name
    """Name of the dataset."""
    version: Annotated[int, Field(ge=1, le=2147483647)] | None = None
    """Version of the dataset. Default: the newest when the run is accepted; it is recorded in
    status.dataset.version."""


class ConfigMapDataset(ApiModel):
    """A small dataset in a ConfigMap (1 MiB at most)."""

    name: ObjectName
    """Name of the ConfigMap."""
    key: DataKey
    """Key whose text holds one JSON object a line."""


class VolumeDataset(ApiModel):
    """A dataset in a file of a PersistentVolumeClaim, mounted read-only."""

    claim_name: ObjectName
    """Name of the PersistentVolumeClaim."""
    path: RelativePath
    """File with one JSON object a line, from the root of the claim."""


ColumnName = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class Columns(ApiModel):
    """Which columns of the source hold what the method needs."""

    prompt: ColumnName | None = None
    """Column that holds the prompt. Default: prompt."""
    completion: ColumnName | None = None
    """Column that holds the completion. Default: completion."""
    messages: ColumnName | None = None
    """Column that holds the list of chat messages. Default: messages."""

    def renamed(self) -> dict[str, str]:
        """The mapping from what the method needs to the source's column; only what was set."""
        return {str(name): str(column) for name, column in self.to_dict().items()}


class Evaluation(ApiModel):
    """How many rows are held out of training to measure the loss on; exactly one field."""

    percent: Annotated[int, Field(ge=0, le=50)] | None = None
    """Rough percentage of the rows: a row's content decides, so that equal rows stay together. 0 holds out nothing."""
    max_rows: Annotated[int, Field(ge=0, le=1000000)] | None = None
    """Number of rows; never more than half of the dataset. 0 holds out nothing."""


class Dataset(ApiModel):
    """The rows to train on; exactly one source."""

    registry: RegistryDataset | None = None
    """A dataset of the registry."""
    config_map: ConfigMapDataset | None = None
    """A key of a ConfigMap of the run's namespace."""
    volume: VolumeDataset | None = None
    """A file on a PersistentVolumeClaim of the run's namespace."""
    columns: Columns | None = None
    """Names of the source's columns, where they are not prompt and completion, or messages."""
    evaluation: Evaluation = Evaluation(percent=5)
    """Rows that are held out of training to measure the loss on. Default: 5 percent."""
    too_long: Literal["Truncate", "Drop", "Fail"] = "Truncate"
    """What happens to a row of more than training.maxLength tokens: Truncate cuts it, Drop leaves it out,
    Fail ends the run."""
    invalid_rows: Literal["Fail", "Drop"] = "Fail"
    """What happens to a malformed row: Fail ends the run and names the row, Drop leaves the row out and
    counts it."""


class Training(ApiModel):
    """How to train."""

    epochs: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Passes over the training rows. Default: 1, unless maxSteps is set."""
    max_steps: Annotated[int, Field(ge=1, le=10000000)] | None = None
    """Number of optimizer steps, instead of epochs."""
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 16
    """Rows per optimizer step, over all GPUs together."""
    micro_batch_size: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Rows per forward pass on one GPU; it changes memory and speed, not the result. Default: found by a
    probe."""
    learning_rate: (
        Annotated[
            str,
            StringConstraints(min_length=1, max_length=16),
            ruled(
                rule(
                    r"self.matches('^[0-9]+(\\.[0-9]+)?([eE][-+]?[0-9]+)?$')"
                    " && double(self) > 0.0 && double(self) <= 1.0",
                    'must be a decimal number in quotes, above 0 and at most 1, such as "2e-4"',
                )
            ),
        ]
        | None
    ) = None
    """Peak learning rate, a decimal number in quotes. Default: "2e-4" for SFT."""
    schedule: Literal["Cosine", "Linear", "Constant"] = "Cosine"
    """Course of the learning rate after the warm-up."""
    warmup_percent: Annotated[int, Field(ge=0, le=100)] = 3
    """Percentage of the steps over which the learning rate rises to its peak."""
    max_length: Annotated[int, Field(ge=8, le=1048576)] = 1024
    """Longest row in tokens; dataset.tooLong says what happens to longer ones."""
    packing: Literal["Auto", "Enabled", "Disabled"] = "Auto"
    """Whether the rows of a forward pass share one sequence, unseen by each other, instead of being padded.
    Auto: the trainer chooses."""
    precision: Literal["Auto", "BFloat16", "Float32"] = "Auto"
    """Number format of the frozen weights and of the computation. Auto: BFloat16 where the hardware has
    it."""
    gradient_checkpointing: Literal["Auto", "Enabled", "Disabled"] = "Auto"
    """Whether activations are computed again to save memory, at the price of speed. Auto: on a GPU only."""
    seed: Annotated[int, Field(ge=0, le=2147483647)] = 42
    """Seed of the split, of the order of the rows, and of the initial adapter."""
    checkpoint_steps: Annotated[int, Field(ge=1, le=10000000)] = 200
    """Steps between two checkpoints; an interrupted run goes on from the newest."""
    evaluation_steps: Annotated[int, Field(ge=1, le=10000000)] = 200
    """Steps between two measurements of the evaluation loss; one more follows the last step."""
    early_stopping_patience: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Stop after this many evaluations without a better evaluation loss. Default: never stop early."""


class Lora(ApiModel):
    """The adapter's shape, in the words of PEFT's LoraConfig."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank of the update matrices. vLLM serves 1, 8, 16, 32, 64, 128, 256, 320 and 512."""
    alpha: Annotated[int, Field(ge=1, le=4096)] = 32
    """Scaling: the update is multiplied by alpha / rank."""
    dropout_percent: Annotated[int, Field(ge=0, le=90)] = 5
    """Dropout before the update matrices, in percent."""
    target_modules: Annotated[
        tuple[
            Annotated[
                str,
                StringConstraints(min_length=1, max_length=128),
                matching("[A-Za-z0-9_][-A-Za-z0-9._]*", "must be the name of a module, or all-linear"),
            ],
            ...,
        ],
        Field(min_length=1, max_length=64),
    ] = ("all-linear",)
    """Names of the modules that are adapted, or all-linear."""
    variant: Literal["LoRA", "RSLoRA", "DoRA"] = "LoRA"
    """LoRA, RSLoRA (scaled by the root of the rank), or DoRA (magnitude and direction apart; vLLM cannot
    serve it)."""


class OutputClaim(ApiModel):
    """A PersistentVolumeClaim that the operator creates for the run."""

    size: ByteQuantity = "20Gi"
    """Requested storage. Dataset, checkpoints, adapter and hub downloads live there."""
    storage_class_name: ObjectName | None = None
    """StorageClass. Default: the cluster's default class."""
    access_mode: Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"] = "ReadWriteOnce"
    """Access mode of the claim."""
    retain: bool = True
    """Whether the claim, and with it the adapter, outlives the run. False: it is deleted with the run."""


class Output(ApiModel):
    """Where dataset, checkpoints and adapter are kept: an existing claim or a new one."""

    claim_name: ObjectName | None = None
    """Name of an existing PersistentVolumeClaim; several runs may share it."""
    claim: OutputClaim | None = None
    """The claim that is created for this run, named after its Job. Default: 20Gi of the default class,
    kept."""


class AdapterTarget(ApiModel):
    """The series of versions in the registry that the result joins."""

    name: Name
    """Name of the adapter; a successful run adds one version to it."""


class Resources(ApiModel):
    """What the run's pod asks for."""

    gpus: Annotated[int, Field(ge=0, le=64)] = 1
    """Number of GPUs. 0 trains on the CPU."""
    gpu_resource_name: Annotated[
        str,
        StringConstraints(min_length=3, max_length=253),
        matching(
            r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)+/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?",
            "must be a resource of a device plugin, such as nvidia.com/gpu",
        ),
    ] = "nvidia.com/gpu"
    """Name under which the device plugin offers the GPUs."""
    cpu: CpuQuantity = "1"
    """CPU that is requested. There is no limit: what is idle on the node may be used."""
    memory: ByteQuantity = "8Gi"
    """Memory that is requested, and the limit."""
    shared_memory: ByteQuantity = "2Gi"
    """Size of /dev/shm; what is used of it counts as memory."""


class Toleration(ApiModel):
    """A taint that the run's pod tolerates, as in a pod's spec."""

    key: Annotated[str, StringConstraints(max_length=317)] | None = None
    """Key of the taint. Without a key, and with operator Exists, every taint is tolerated."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """Whether the taint's value must be equal to value, or whether any value will do."""
    value: Annotated[str, StringConstraints(max_length=63)] | None = None
    """Value of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint. Default: every effect."""
    toleration_seconds: Annotated[int, Field(ge=0, le=2147483647)] | None = None
    """How long a NoExecute taint is tolerated. Default: for ever."""


class Scheduling(ApiModel):
    """Where and how the run's pod is scheduled."""

    priority_class_name: ObjectName | None = None
    """PriorityClass of the pod."""
    node_selector: Annotated[
        dict[str, Annotated[str, StringConstraints(max_length=63)]],
        Field(max_length=32),
        ruled(
            rule(
                "self.all(k, k.matches("
                "'^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$'))",
                "every key must be the key of a node's label",
            ),
            rule(
                r"self.all(k, self[k].matches('^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$'))",
                "every value must be the value of a node's label",
            ),
        ),
    ] = Field(default_factory=dict)
    """Labels that a node must have."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] = ()
    """Taints that the pod tolerates."""
    runtime_class_name: ObjectName | None = None
    """RuntimeClass of the pod, such as nvidia."""


class TrainingRunSpec(ApiModel):
    """What to train, on what, and how. Immutable except suspend."""

    experiment: Name | None = None
    """Groups runs for comparison, and is a folder on the output claim. Default: the run's name."""
    method: Method
    """SFT: supervised fine-tuning on prompts and completions, or on chat messages."""
    suspend: bool = False
    """True stops the pod after it has saved a checkpoint; false lets the run go on from there. May change
    at any time."""
    base_model: BaseModelSource
    """The model to start from; exactly one source."""
    dataset: Dataset
    """The rows to train on; exactly one source."""
    training: Training = Training()
    """How to train."""
    lora: Lora = Lora()
    """The adapter's shape."""
    output: Output = Output()
    """Where dataset, checkpoints and adapter are kept. Default: a claim named after the run's Job, kept
    when the run is deleted."""
    adapter: AdapterTarget | None = None
    """The adapter in the registry that the result becomes a version of. Default: named after the
    experiment."""
    resources: Resources = Resources()
    """What the run's pod asks for."""
    scheduling: Scheduling = Scheduling()
    """Where and how the run's pod is scheduled."""
    retries: Annotated[int, Field(ge=0, le=100)] = 3
    """How many failed attempts are repeated, each from the newest checkpoint. Preemptions and evictions do
    not count."""
    active_deadline_seconds: Annotated[int, Field(ge=1, le=31536000)] | None = None
    """Longest time that the run may be active, pending included and suspension excluded. Default: no
    limit."""
    job_ttl_seconds: Annotated[int, Field(ge=0, le=31536000, alias="jobTTLSeconds")] = 3600
    """How long the Job and its pods, with their logs, are kept after the run has finished. The run itself
    stays."""


class ObjectMeta(ApiModel):
    """What the operator reads of an object's metadata."""

    name: str
    """Name of the object."""
    namespace: str = ""
    """Namespace of the object."""
    uid: str = ""
    """Identity of the object, unique in the cluster and in time."""
    generation: int = 0
    """Counts the changes of the spec."""
    resource_version: str = ""
    """Version of the object for optimistic locking."""
    creation_timestamp: Time | None = None
    """When the object was created."""
    deletion_timestamp: Time | None = None
    """When the deletion of the object was asked for; absent while nobody has."""
    labels: dict[str, str] = Field(default_factory=dict)
    """The object's labels."""
    annotations: dict[str, str] = Field(default_factory=dict)
    """The object's annotations."""


class TrainingRun(ApiModel):
    """One fine-tuning of a language model: from a base model and a dataset to a registered adapter."""

    metadata: ObjectMeta
    """The object's metadata."""
    spec: TrainingRunSpec
    """What to train, on what, and how. Immutable except suspend."""
    status: TrainingRunStatus = TrainingRunStatus()
    """What became of it. Only the operator writes it."""

    @classmethod
    def from_object(cls, obj: object) -> Self:
        """Read an object as the API server gives it; pydantic.ValidationError if it is no TrainingRun."""
        return cls.model_validate(obj)

    @property
    def experiment(self) -> str:
        """The experiment: the spec's, else the run's name."""
        return self.spec.experiment or self.metadata.name

    @property
    def adapter_name(self) -> str:
        """The adapter's name in the registry: the spec's, else the experiment."""
        return self.spec.adapter.name if self.spec.adapter else self.experiment

    @property
    def learning_rate(self) -> str:
        """The peak learning rate as a decimal string: the spec's, else the method's default."""
        return self.spec.training.learning_rate or DEFAULT_LEARNING_RATES[self.spec.method]

    @property
    def epochs(self) -> int | None:
        """Passes over the data; none when the length is given in steps."""
        training = self.spec.training
        return None if training.max_steps is not None else training.epochs or DEFAULT_EPOCHS

    @property
    def new_output_claim(self) -> OutputClaim | None:
        """The claim to create for the run; none when it uses an existing one."""
        output = self.spec.output
        return None if output.claim_name is not None else output.claim or OutputClaim()
