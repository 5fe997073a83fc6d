"""The settings of a training run: one model, from which flags, the YAML file and the JSON schema follow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from model import flags
from model.registry import RunRegistry

Positive = Annotated[int, Field(ge=1)]
Method = Literal["SFT", "DPO", "KTO"]
Quantization = Literal["None", "NF4", "Int8"]

LEARNING_RATES: dict[str, float] = {"SFT": 2e-4, "DPO": 5e-6, "KTO": 5e-6}
DROPOUT_PERCENT: dict[str, int] = {"SFT": 5, "DPO": 0, "KTO": 0}
"""Dropout is noise in what is compared with the reference, which has none."""
LORA_DEFAULTS: dict[str, Any] = {
    "lora_rank": 16,
    "lora_alpha": 32,
    "lora_target_modules": ["all-linear"],
    "lora_variant": "LoRA",
}
DPO_FIELDS = frozenset({"dpo_beta", "dpo_loss", "dpo_label_smoothing", "dpo_sft_weight"})
KTO_FIELDS = frozenset({"kto_beta", "kto_desirable_weight", "kto_undesirable_weight"})


class TrainSettings(flags.Settings):
    """Everything that decides what a run trains, and how."""

    method: Method = Field(description="Training method")
    run_directory: Path = Field(description="The run's directory on the output volume")
    run_uid: str = Field(min_length=1, description="The run's uid")
    base_model: str = Field(min_length=1, description="Directory of the base model, or its name on the hub")
    base_model_revision: str | None = Field(None, description="Tag or commit on the hub")
    base_model_name: str | None = Field(
        None, description="What the adapter names as its base; the value of --base-model when left out"
    )

    chat_template: Path | None = Field(
        None, description="File of a chat template in place of the base's own; saved with the adapter"
    )

    parent_adapter: Path | None = Field(
        None, description="Directory of an adapter to go on from: it is trained further, and the reference is a copy"
    )
    parent_adapter_name: str | None = Field(
        None, description="What the record calls the parent, as in support/3; its directory when left out"
    )
    parent_adapter_sha256: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="Digest of the parent's files, checked before anything is trained"
    )

    resume_from: Path | None = Field(
        None,
        description="Directory of another run, whose newest whole checkpoint to go on from; only the first attempt "
        "looks there",
    )
    resume_from_run: str | None = Field(
        None, min_length=1, description="What the record calls that run; the name of its directory when left out"
    )

    epochs: Positive | None = Field(None, description="Passes over the rows; 1 when nothing else is said")
    max_steps: Positive | None = Field(None, description="Optimizer steps, in place of --epochs")
    batch_size: int = Field(16, ge=1, le=65536, description="Examples per optimizer step")
    micro_batch_size: Positive | None = Field(
        None, description="Examples per forward pass; found from the rows' lengths when left out"
    )
    learning_rate: float | None = Field(
        None, gt=0, le=1, description="Peak learning rate; 2e-4 for SFT, 5e-6 for DPO and KTO when left out"
    )
    schedule: Literal["Cosine", "Linear", "Constant"] = Field("Cosine", description="How the learning rate falls")
    warmup_percent: int = Field(3, ge=0, le=100, description="Share of the steps in which it rises")
    weight_decay: float = Field(0.0, ge=0, le=1, description="Share of the adapter's weights that each step takes away")
    max_gradient_norm: float = Field(
        1.0, ge=0, le=1000, description="Larger gradients are scaled down to this norm; 0: none is"
    )
    max_length: int = Field(1024, ge=8, description="Tokens per example")
    too_long: Literal["Truncate", "Drop", "Fail"] = Field("Truncate", description="What to do with a longer example")
    packing: Literal["Auto", "Enabled", "Disabled"] = Field(
        "Auto", description="Join a forward pass's examples into one sequence instead of padding them"
    )
    precision: Literal["Auto", "BFloat16", "Float32"] = Field("Auto", description="Type of the base's weights")
    gradient_checkpointing: Literal["Auto", "Enabled", "Disabled"] = Field(
        "Auto", description="Compute activations twice to save memory; Auto: on a GPU, as far as its memory asks for it"
    )
    seed: int = Field(42, ge=0, lt=2**32, description="Seed of everything random")
    checkpoint_steps: Positive = Field(200, description="Steps between checkpoints")
    evaluation_steps: Positive | None = Field(
        None, description="Steps between evaluations on the held-out rows; a tenth of the run, at least 200"
    )
    early_stopping_patience: Positive | None = Field(
        None, description="Stop after that many evaluations without a new best"
    )

    samples: int = Field(
        5, ge=0, le=5, description="Held-out prompts that base and adapter answer at the end, for a person to compare"
    )

    dpo_beta: float = Field(0.1, gt=0, le=10, description="Strength of the pull towards the reference")
    dpo_loss: Literal["Sigmoid", "IPO", "Hinge", "RobustSigmoid"] = Field("Sigmoid", description="Loss of a pair")
    dpo_label_smoothing: float = Field(
        0, ge=0, lt=0.5, description="Share of pairs thought to be labelled the wrong way round, for RobustSigmoid"
    )
    dpo_sft_weight: float = Field(
        0, ge=0, le=10, description="Weight of the chosen answers' own loss, added to a pair's"
    )

    kto_beta: float = Field(0.1, gt=0, le=10, description="Strength of the pull towards the reference")
    kto_desirable_weight: float = Field(1, gt=0, le=1000, description="Weight of the good answers' losses")
    kto_undesirable_weight: float = Field(1, gt=0, le=1000, description="Weight of the bad answers' losses")

    lora_rank: int | None = Field(None, ge=1, le=1024, description="Rank of the adapter; 16, or the parent's")
    lora_alpha: int | None = Field(
        None, ge=1, le=65536, description="Scale of the adapter, times its rank; 32, or the parent's"
    )
    lora_dropout_percent: int | None = Field(
        None, ge=0, le=99, description="Dropout in front of the adapter; 5 for SFT, 0 for DPO and KTO when left out"
    )
    lora_target_modules: list[str] | None = Field(
        None,
        min_length=1,
        description="Names of the layers to adapt; all-linear (all but the head), or the parent's",
    )
    lora_variant: Literal["LoRA", "RSLoRA", "DoRA"] | None = Field(
        None, description="Kind of adapter; LoRA, or the parent's"
    )
    quantization: Quantization = Field(
        "None", description="Type of the base's weights in memory; NF4 and Int8 need CUDA"
    )

    gpus: int = Field(0, ge=0, description="GPUs to train on; 0: the CPU")
    processes: int = Field(1, ge=1, le=64, description="Processes that train together on the CPU; GPUs have one each")
    pretended_gpus: bool = Field(
        False, description="The GPUs of this cluster are pretended ones: train on the CPU when there is none"
    )
    image: str | None = Field(None, description="The trainer's image, for the record")
    registry_url: str | None = Field(None, description="Base URL of the registry, to post progress to")
    registry_token_file: Path | None = Field(None, description="File with the token for the registry")
    namespace: str | None = Field(None, description="The run's namespace, with --registry-url")

    @model_validator(mode="after")
    def _check_together(self) -> TrainSettings:
        if problems := self.problems_together():
            raise ValueError("; ".join(problems))
        return self

    def problems_together(self) -> list[str]:
        """Return what is wrong with settings that are right one by one."""
        problems = []
        if self.epochs is not None and self.max_steps is not None:
            problems.append("give --epochs or --max-steps, not both")
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            problems.append(f"--micro-batch-size={self.micro_batch_size} is larger than --batch-size={self.batch_size}")
        if self.gpus > 0 and self.processes > 1:
            problems.append("--processes is for the CPU: with --gpus there is one process for each GPU")
        if self.batch_size < (together := max(self.gpus, self.processes)):
            problems.append(f"--batch-size={self.batch_size} leaves some of {together} processes without an example")
        if self.resume_from_run is not None and self.resume_from is None:
            problems.append("--resume-from-run needs --resume-from")
        problems += self._adapter_problems()
        if self.registry_url is not None and self.namespace is None:
            problems.append("--registry-url needs --namespace")
        return problems

    def _adapter_problems(self) -> list[str]:
        problems = []
        modules = self.lora_target_modules or []
        if "all-linear" in modules and len(modules) > 1:
            problems.append("--lora-target-modules: all-linear stands alone")
        if "lm_head" in modules:
            problems.append("--lora-target-modules: the output layer lm_head cannot be adapted")
        for method, fields in (("DPO", DPO_FIELDS), ("KTO", KTO_FIELDS)):
            if self.method != method and (given := self.model_fields_set & fields):
                problems.append(f"{flags.flag(min(given))} needs --method={method}")
        if self.method == "KTO" and self.batch_size == 1:
            problems.append("--batch-size=1: KTO needs two examples in a step, whose answers it mismatches")
        if self.dpo_label_smoothing and self.dpo_loss != "RobustSigmoid":
            problems.append("--dpo-label-smoothing needs --dpo-loss=RobustSigmoid")
        if self.parent_adapter is None and (self.parent_adapter_name or self.parent_adapter_sha256):
            problems.append("--parent-adapter-name and --parent-adapter-sha256 need --parent-adapter")
        return problems

    def resolved(self) -> TrainSettings:
        """Return the settings with the defaults that depend on the method filled in.

        What comes from the parent adapter is filled in by whoever has read it; without a parent, LoRA's shape is
        filled in here.
        """
        defaults: dict[str, Any] = {
            "learning_rate": LEARNING_RATES[self.method],
            "lora_dropout_percent": DROPOUT_PERCENT[self.method],
        }
        if self.max_steps is None:
            defaults["epochs"] = 1
        if self.parent_adapter is None:
            defaults |= LORA_DEFAULTS
        return self.model_copy(update={k: v for k, v in defaults.items() if getattr(self, k) is None})

    @property
    def recorded_base_model(self) -> str:
        """What the adapter and the result name as the base model."""
        return self.base_model_name or self.base_model

    def registry(self) -> RunRegistry | None:
        """Return the client for the run's part of the registry, None without a registry."""
        if self.registry_url is None or self.namespace is None:
            return None
        return RunRegistry(self.registry_url, self.namespace, self.run_uid, self.registry_token_file)

    def document(self) -> dict[str, Any]:
        """Return the settings in their JSON form, without those of a method that is not used."""
        unused = (DPO_FIELDS | KTO_FIELDS) - {"DPO": DPO_FIELDS, "KTO": KTO_FIELDS}.get(self.method, frozenset())
        return self.model_dump(mode="json", by_alias=True, exclude=set(unused))
