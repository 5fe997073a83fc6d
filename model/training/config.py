"""The settings of a training run: one model, from which flags, the YAML file and the JSON schema follow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from model import flags
from model.registry import RunRegistry

Positive = Annotated[int, Field(ge=1)]


def _check_method(value: Any) -> Any:
    if value != "SFT":
        raise ValueError("this version trains with SFT only; use SFT, or a version that has the other method")
    return value


class TrainSettings(flags.Settings):
    """Everything that decides what a run trains, and how."""

    method: Annotated[Literal["SFT"], BeforeValidator(_check_method)] = Field(description="Training method")
    run_directory: Path = Field(description="The run's directory on the output volume")
    run_uid: str = Field(min_length=1, description="The run's uid")
    base_model: str = Field(min_length=1, description="Directory of the base model, or its name on the hub")
    base_model_revision: str | None = Field(None, description="Tag or commit on the hub")
    base_model_name: str | None = Field(
        None, description="What the adapter names as its base; the value of --base-model when left out"
    )

    epochs: Positive | None = Field(None, description="Passes over the rows; 1 when nothing else is said")
    max_steps: Positive | None = Field(None, description="Optimizer steps, in place of --epochs")
    batch_size: int = Field(16, ge=1, le=65536, description="Examples per optimizer step")
    micro_batch_size: Positive | None = Field(
        None, description="Examples per forward pass; found from the rows' lengths when left out"
    )
    learning_rate: float = Field(2e-4, gt=0, le=1, description="Peak learning rate")
    schedule: Literal["Cosine", "Linear", "Constant"] = Field("Cosine", description="How the learning rate falls")
    warmup_percent: int = Field(3, ge=0, le=100, description="Share of the steps in which it rises")
    max_length: int = Field(1024, ge=8, description="Tokens per example")
    too_long: Literal["Truncate", "Drop", "Fail"] = Field("Truncate", description="What to do with a longer example")
    packing: Literal["Auto", "Enabled", "Disabled"] = Field(
        "Auto", description="Join a forward pass's examples into one sequence instead of padding them"
    )
    precision: Literal["Auto", "BFloat16", "Float32"] = Field("Auto", description="Type of the base's weights")
    gradient_checkpointing: Literal["Auto", "Enabled", "Disabled"] = Field(
        "Auto", description="Compute activations twice to save memory; Auto: on with a GPU"
    )
    seed: int = Field(42, ge=0, lt=2**32, description="Seed of everything random")
    checkpoint_steps: Positive = Field(200, description="Steps between checkpoints")
    evaluation_steps: Positive = Field(200, description="Steps between evaluations on the held-out rows")
    early_stopping_patience: Positive | None = Field(
        None, description="Stop after that many evaluations without a new best"
    )

    lora_rank: int = Field(16, ge=1, le=1024, description="Rank of the adapter")
    lora_alpha: int = Field(32, ge=1, le=65536, description="Scale of the adapter, times its rank")
    lora_dropout_percent: int = Field(5, ge=0, le=99, description="Dropout in front of the adapter")
    lora_target_modules: list[str] = Field(
        ["all-linear"], min_length=1, description="Names of the layers to adapt; all-linear: all but the head"
    )
    lora_variant: Literal["LoRA", "RSLoRA", "DoRA"] = Field("LoRA", description="Kind of adapter")

    gpus: int = Field(0, ge=0, description="GPUs to train on; 0: the CPU")
    pretended_gpus: bool = Field(
        False, description="The GPUs of this cluster are pretended ones: train on the CPU when there is none"
    )
    image: str | None = Field(None, description="The trainer's image, for the record")
    registry_url: str | None = Field(None, description="Base URL of the registry, to post progress to")
    registry_token_file: Path | None = Field(None, description="File with the token for the registry")
    namespace: str | None = Field(None, description="The run's namespace, with --registry-url")

    @model_validator(mode="after")
    def _check_together(self) -> TrainSettings:
        problems = []
        if self.epochs is not None and self.max_steps is not None:
            problems.append("give --epochs or --max-steps, not both")
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            problems.append(f"--micro-batch-size={self.micro_batch_size} is larger than --batch-size={self.batch_size}")
        if "all-linear" in self.lora_target_modules and len(self.lora_target_modules) > 1:
            problems.append("--lora-target-modules: all-linear stands alone")
        if "lm_head" in self.lora_target_modules:
            problems.append("--lora-target-modules: the output layer lm_head cannot be adapted")
        if self.registry_url is not None and self.namespace is None:
            problems.append("--registry-url needs --namespace")
        if problems:
            raise ValueError("; ".join(problems))
        return self

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
        """Return the settings in their JSON form."""
        return self.model_dump(mode="json", by_alias=True)
