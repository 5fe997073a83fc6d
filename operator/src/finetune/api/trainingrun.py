"""TrainingRun v1alpha1: what a person asks for.

Where models and rows come from is in `finetune.api.sources`, the status in `finetune.api.status`.

The docstring under each field is what `kubectl explain` prints. Defaults here are the static defaults of the
CRD; a default that depends on the method or on the parent adapter is the trainer's, and its field stays empty.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints

from .fields import (
    DNS_LABEL,
    LABEL_KEY,
    LABEL_NAME,
    MAX_PREFIX,
    ApiModel,
    ByteQuantity,
    CpuQuantity,
    DecimalNumber,
    Name,
    ObjectName,
    Time,
    decimal,
    matching,
    rule,
    ruled,
)
from .sources import BaseModelSource, Dataset, ParentAdapter
from .status import TrainingRunStatus

Method = Literal["SFT", "DPO", "KTO"]

BELOW_ONE = r"0\.[0-9]*[1-9][0-9]*|[1-9](\.[0-9]+)?[eE]-0?[1-9][0-9]?"
"""A decimal number above 0 and below 1, such as 0.0002 or 2e-4."""


WEIGHT = f"{BELOW_ONE}|[1-9][0-9]{{0,2}}(\\.[0-9]+)?|1000(\\.0+)?"
"""A decimal number above 0 and at most 1000."""


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
            DecimalNumber,
            decimal(f"{BELOW_ONE}|1(\\.0+)?", minimum=0, exclusiveMinimum=True, maximum=1),
        ]
        | None
    ) = None
    """Peak learning rate, a decimal number such as 0.0002 or 2e-4, above 0 and at most 1. Default: 2e-4 for SFT, 5e-6
    for DPO and 5e-6 for KTO."""
    schedule: Literal["Cosine", "Linear", "Constant"] = "Cosine"
    """Course of the learning rate after the warm-up."""
    warmup_percent: Annotated[int, Field(ge=0, le=100)] = 3
    """Percentage of the steps over which the learning rate rises to its peak."""
    weight_decay: Annotated[DecimalNumber, decimal(f"{BELOW_ONE}|[01](\\.0+)?", minimum=0, maximum=1)] = "0"
    """How strongly each step pulls the adapter's weights towards 0 (AdamW's weight decay), a decimal number from 0 to
    1."""
    max_gradient_norm: Annotated[
        DecimalNumber, decimal(f"{BELOW_ONE}|[0-9]{{1,3}}(\\.[0-9]+)?|1000(\\.0+)?", minimum=0, maximum=1000)
    ] = "1"
    """A larger gradient is scaled down to this norm, a decimal number from 0 to 1000. 0: none is."""
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
    evaluation_steps: Annotated[int, Field(ge=1, le=10000000)] | None = None
    """Steps between two measurements of the evaluation loss; one more follows the last step. Default: a tenth of the
    run, at least 200."""
    early_stopping_patience: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Stop after this many evaluations without a better evaluation loss. Default: never stop early."""
    samples: Annotated[int, Field(ge=0, le=5)] = 5
    """Held-out prompts that the base model and the adapter answer at the end, for people to compare. They stand with
    their answers in the result and in the adapter's model card. 0: none."""


class Dpo(ApiModel):
    """How answers are preferred; for the method DPO only."""

    beta: Annotated[
        DecimalNumber,
        decimal(f"{BELOW_ONE}|[1-9](\\.[0-9]+)?|10(\\.0+)?", minimum=0, exclusiveMinimum=True, maximum=10),
    ] = "0.1"
    """Pull towards the reference, a decimal number above 0 and at most 10: the larger, the closer the result stays to
    it."""
    loss: Literal["Sigmoid", "IPO", "Hinge", "RobustSigmoid"] = "Sigmoid"
    """Loss of a pair of answers. RobustSigmoid allows for pairs that are labelled the wrong way round."""
    label_smoothing: (
        Annotated[
            DecimalNumber,
            decimal(
                r"0\.(0[0-9]*[1-9][0-9]*|[1-4][0-9]*)|[1-4](\.[0-9]+)?[eE]-0?1|[1-9](\.[0-9]+)?[eE]-(0?[2-9]|[1-9][0-9])",
                minimum=0,
                exclusiveMinimum=True,
                maximum=0.5,
                exclusiveMaximum=True,
            ),
        ]
        | None
    ) = None
    """Share of the pairs that are thought to be labelled the wrong way round, a decimal number above 0 and below 0.5;
    for the loss RobustSigmoid, which needs it."""
    sft_weight: Annotated[
        DecimalNumber,
        decimal(f"{BELOW_ONE}|[0-9](\\.[0-9]+)?|10(\\.0+)?", minimum=0, maximum=10),
    ] = "0"
    """Weight of the chosen answer's own loss, as in SFT, which is added to the pair's: a decimal number from 0 to
    10."""


class Kto(ApiModel):
    """How good and bad answers are learned from; for the method KTO only."""

    beta: Annotated[
        DecimalNumber,
        decimal(f"{BELOW_ONE}|[1-9](\\.[0-9]+)?|10(\\.0+)?", minimum=0, exclusiveMinimum=True, maximum=10),
    ] = "0.1"
    """Pull towards the reference, a decimal number above 0 and at most 10: the larger, the closer the result stays to
    it."""
    desirable_weight: Annotated[DecimalNumber, decimal(WEIGHT, minimum=0, exclusiveMinimum=True, maximum=1000)] = "1"
    """Weight of the good answers' losses, a decimal number above 0 and at most 1000: raise it where there are few of
    them."""
    undesirable_weight: Annotated[DecimalNumber, decimal(WEIGHT, minimum=0, exclusiveMinimum=True, maximum=1000)] = "1"
    """Weight of the bad answers' losses, a decimal number above 0 and at most 1000: raise it where there are few of
    them."""


class Lora(ApiModel):
    """The adapter's shape, in the words of PEFT's LoraConfig. A run with a parentAdapter has its parent's shape."""

    rank: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Rank of the update matrices. vLLM serves up to 16 by default, up to 512 with --max-lora-rank. Default: 16."""
    alpha: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Scaling: the update is multiplied by alpha / rank. Default: 32."""
    dropout_percent: Annotated[int, Field(ge=0, le=90)] | None = None
    """Dropout before the update matrices, in percent. Default: 5 for SFT, 0 for DPO and 0 for KTO."""
    target_modules: (
        Annotated[
            tuple[
                Annotated[
                    str,
                    StringConstraints(min_length=1, max_length=128),
                    matching("[A-Za-z0-9_][-A-Za-z0-9._]*", "must be the name of a module, or all-linear"),
                ],
                ...,
            ],
            Field(min_length=1, max_length=64),
        ]
        | None
    ) = None
    """Names of the modules that are adapted, or all-linear. Default: [all-linear]."""
    variant: Literal["LoRA", "RSLoRA", "DoRA"] | None = None
    """LoRA, RSLoRA (scaled by the root of the rank), or DoRA (magnitude and direction apart; vLLM cannot
    serve it). Default: LoRA."""


class OutputClaim(ApiModel):
    """A PersistentVolumeClaim that the operator creates for the run."""

    size: ByteQuantity = "20Gi"
    """Requested storage. Dataset, checkpoints, adapter and hub downloads live there."""
    storage_class_name: ObjectName | None = None
    """StorageClass. Default: the cluster's default class."""
    access_mode: Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"] = "ReadWriteOnce"
    """Access mode of the claim."""
    retain: bool = True
    """Whether the claim, and with it the adapter, outlives the run. False: it is deleted with the run. A run that
    fails before it has trained leaves no claim either way."""


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


class ResumeFrom(ApiModel):
    """Another run of the namespace, with the same model, rows and training, that ended too early."""

    run: Name
    """Name of the TrainingRun; its newest whole checkpoint is gone on from."""


MAX_GPU_DOMAIN = MAX_PREFIX - len("requests.")
"""Longest domain of a device plugin's resource: a quota speaks of `requests.<name>`."""


class Resources(ApiModel):
    """What the run's pod asks for."""

    gpus: Annotated[int, Field(ge=0, le=64)] = 1
    """Number of GPUs. 0 trains on the CPU."""
    gpu_resource_name: Annotated[
        str,
        StringConstraints(min_length=3, max_length=253),
        ruled(
            rule(
                f"self.matches('^{DNS_LABEL}(\\\\.{DNS_LABEL})+/{LABEL_NAME}$') "
                f"&& self.indexOf('/') <= {MAX_GPU_DOMAIN} "
                "&& !self.contains('kubernetes.io/') && !self.startsWith('requests.')",
                "must be a resource of a device plugin, such as nvidia.com/gpu",
            )
        ),
    ] = "nvidia.com/gpu"
    """Name under which the device plugin offers the GPUs."""
    cpu: CpuQuantity = "1"
    """CPU that is requested, such as 4, 0.5 or 500m; without cpuLimit, what is idle on the node may be used beyond
    it."""
    cpu_limit: CpuQuantity | None = None
    """Most CPU that the trainer may use, for namespaces whose quota asks for a limit; a limit below cpu is what is
    requested, too. Default: what the administrator has set, else no limit."""
    memory: ByteQuantity = "8Gi"
    """Memory that is requested, and the limit."""
    shared_memory: ByteQuantity = "2Gi"
    """Size of /dev/shm; what is used of it counts as memory."""


class Toleration(ApiModel):
    """A taint that the run's pod tolerates, as in a pod's spec."""

    key: (
        Annotated[
            str,
            StringConstraints(max_length=317),
            ruled(
                rule(
                    f"self == '' || self.matches('^{LABEL_KEY}$') && self.indexOf('/') <= {MAX_PREFIX}",
                    "must be the key of a taint, such as nvidia.com/gpu",
                )
            ),
        ]
        | None
    ) = None
    """Key of the taint. Without a key, and with operator Exists, every taint is tolerated."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """Whether the taint's value must be equal to value, or whether any value will do."""
    value: (
        Annotated[
            str,
            StringConstraints(max_length=63),
            matching(f"({LABEL_NAME})?", "must be the value of a taint: letters, digits, '-', '_' and '.'"),
        ]
        | None
    ) = None
    """Value of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint. Default: every effect."""
    toleration_seconds: Annotated[int, Field(ge=0, le=2147483647)] | None = None
    """How long a NoExecute taint is tolerated. Default: for ever."""


class Scheduling(ApiModel):
    """When, where and how the run's pod is scheduled."""

    queue_name: Name | None = None
    """Kueue's LocalQueue of the run's namespace that the run waits in. Default: none, or the namespace's default
    queue."""
    workload_priority_class_name: Name | None = None
    """Kueue's WorkloadPriorityClass: the run's place in the queue, and who is preempted for whom. Default: the
    priority of the pod."""
    priority_class_name: ObjectName | None = None
    """PriorityClass of the pod."""
    node_selector: Annotated[
        dict[str, Annotated[str, StringConstraints(max_length=63)]],
        Field(max_length=32),
        ruled(
            rule(
                f"self.all(k, k.matches('^{LABEL_KEY}$') && k.indexOf('/') <= {MAX_PREFIX})",
                "every key must be the key of a node's label",
            ),
            rule(
                f"self.all(k, self[k].matches('^({LABEL_NAME})?$'))",
                "every value must be the value of a node's label",
            ),
        ),
    ] = Field(default_factory=dict)
    """Labels that a node must have."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] = ()
    """Taints that the pod tolerates."""
    runtime_class_name: ObjectName | None = None
    """RuntimeClass of the pod, such as nvidia."""


PodLabels = Annotated[
    dict[str, Annotated[str, StringConstraints(max_length=63)]],
    Field(max_length=32),
    ruled(
        rule(
            f"self.all(k, k.matches('^{LABEL_KEY}$') && k.indexOf('/') <= {MAX_PREFIX})",
            "every key must be the key of a label",
        ),
        rule(f"self.all(k, self[k].matches('^({LABEL_NAME})?$'))", "every value must be the value of a label"),
        rule(
            "!self.exists(k, k.matches('^([^/]*[-.])?(kubernetes[.]io|k8s[.]io|finetune[.]dev)/'))",
            "labels of kubernetes.io, k8s.io and finetune.dev are set by the cluster, not by a run",
        ),
    ),
]


class TrainingRunSpec(ApiModel):
    """What to train, on what, and how. Immutable except suspend."""

    experiment: Name | None = None
    """Groups runs for comparison, and is a folder on the output claim. Default: the run's name."""
    method: Method
    """SFT: supervised fine-tuning on prompts and completions, on chat messages, or on texts as they stand. DPO: direct
    preference optimisation on prompts with a chosen and a rejected answer. KTO: Kahneman-Tversky optimisation on
    answers that are labelled good or bad."""
    suspend: bool = False
    """True stops the pod after it has saved a checkpoint; false lets the run go on from there. May change
    at any time."""
    base_model: BaseModelSource
    """The model to start from; exactly one source."""
    parent_adapter: ParentAdapter | None = None
    """An adapter of the registry to go on from: it is trained further, and the result alone on the base model
    is the whole. DPO's and KTO's reference is a copy of it; without it, the base model alone."""
    dataset: Dataset
    """The rows to train on; exactly one source."""
    resume_from: ResumeFrom | None = None
    """A failed run whose newest checkpoint this run goes on from, with more memory, time or retries. What decides
    the result must be the same in both: another value is refused with its name."""
    training: Training = Training()
    """How to train."""
    dpo: Dpo | None = None
    """How answers are preferred; for the method DPO only."""
    kto: Kto | None = None
    """How good and bad answers are learned from; for the method KTO only."""
    lora: Lora = Lora()
    """The adapter's shape. With a parentAdapter only dropoutPercent may be set."""
    quantization: Literal["None", "NF4", "Int8"] = "None"
    """Type of the frozen base weights in the GPU's memory: NF4 needs about a quarter of it, Int8 half. The
    adapter is trained in full precision. None: as training.precision says."""
    output: Output = Output()
    """Where dataset, checkpoints and adapter are kept. Default: a claim named after the run's Job, kept
    when the run is deleted."""
    adapter: AdapterTarget | None = None
    """The adapter in the registry that the result becomes a version of. Default: named after the
    experiment."""
    resources: Resources = Resources()
    """What the run's pod asks for."""
    scheduling: Scheduling = Scheduling()
    """When, where and how the run's pod is scheduled."""
    image: (
        Annotated[
            str,
            StringConstraints(min_length=1, max_length=512),
            matching(
                "[A-Za-z0-9][-A-Za-z0-9._:/@]*",
                "must be an image, such as registry.example.com/ml/trainer:1 or ...@sha256:...",
            ),
        ]
        | None
    ) = None
    """Image of the run's pods, made from the trainer's; one of those that the administrator allows. Default: the
    administrator's."""
    service_account_name: ObjectName | None = None
    """Service account of the run's pods, for what a cloud gives to it (workload identity); one of those that the
    administrator allows. Default: the administrator's for the namespace."""
    pod_labels: PodLabels = Field(default_factory=dict)
    """Labels of the run's pods, such as a cost centre; keys that begin as the administrator allows."""
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
    def new_output_claim(self) -> OutputClaim | None:
        """The claim to create for the run; none when it uses an existing one."""
        output = self.spec.output
        return None if output.claim_name is not None else output.claim or OutputClaim()
