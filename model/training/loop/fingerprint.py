"""What must be the same for a checkpoint to be continued, and what people call it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.training.config import TrainSettings

ORDER = "random rows in each step"
"""How `batches.StepBatches` orders the rows: a checkpoint that was made in another order cannot be continued."""

_SETTINGS: dict[str, tuple[str, str]] = {
    "method": ("spec.method", "--method"),
    "batch_size": ("spec.training.batchSize", "--batch-size"),
    "learning_rate": ("spec.training.learningRate", "--learning-rate"),
    "schedule": ("spec.training.schedule", "--schedule"),
    "warmup_percent": ("spec.training.warmupPercent", "--warmup-percent"),
    "weight_decay": ("spec.training.weightDecay", "--weight-decay"),
    "max_gradient_norm": ("spec.training.maxGradientNorm", "--max-gradient-norm"),
    "max_length": ("spec.training.maxLength", "--max-length"),
    "too_long": ("spec.dataset.tooLong", "--too-long"),
    "seed": ("spec.training.seed", "--seed"),
    "lora_rank": ("spec.lora.rank", "--lora-rank"),
    "lora_alpha": ("spec.lora.alpha", "--lora-alpha"),
    "lora_dropout_percent": ("spec.lora.dropoutPercent", "--lora-dropout-percent"),
    "lora_target_modules": ("spec.lora.targetModules", "--lora-target-modules"),
    "lora_variant": ("spec.lora.variant", "--lora-variant"),
    "base_model_revision": ("spec.baseModel.hub.revision", "--base-model-revision"),
    "quantization": ("spec.quantization", "--quantization"),
    "parent_adapter_sha256": ("the digest of spec.parentAdapter", "--parent-adapter"),
    "dpo_beta": ("spec.dpo.beta", "--dpo-beta"),
    "dpo_loss": ("spec.dpo.loss", "--dpo-loss"),
    "dpo_label_smoothing": ("spec.dpo.labelSmoothing", "--dpo-label-smoothing"),
    "dpo_sft_weight": ("spec.dpo.sftWeight", "--dpo-sft-weight"),
    "kto_beta": ("spec.kto.beta", "--kto-beta"),
    "kto_desirable_weight": ("spec.kto.desirableWeight", "--kto-desirable-weight"),
    "kto_undesirable_weight": ("spec.kto.undesirableWeight", "--kto-undesirable-weight"),
}
"""Settings that enter as they are: what the API and the command line call them."""

_FOUND: dict[str, tuple[str, str]] = {
    "base_model": ("spec.baseModel", "--base-model"),
    "base_model_files": ("the digest of spec.baseModel's files", "--base-model"),
    "dataset": ("the digest of spec.dataset's rows", "--dataset"),
    "tokens": ("the digest of the rows as tokens", "--base-model, its tokenizer; --chat-template"),
    "order": ("the order of the rows", "--seed, or another version of the trainer"),
    "total_steps": ("the number of steps by spec.training.epochs or maxSteps", "--epochs, --max-steps"),
    "early_stopping": (
        "spec.training.earlyStoppingPatience with evaluationSteps",
        "--early-stopping-patience, --evaluation-steps",
    ),
    "processes": ("spec.resources.gpus", "--gpus, --processes"),
}
"""What is found out, or follows from several settings."""

_EXPLAINED_BY: dict[str, frozenset[str]] = {
    "tokens": frozenset({"dataset", "max_length", "too_long", "base_model", "base_model_files", "base_model_revision"}),
    "base_model_files": frozenset({"base_model"}),
}
"""What differs of necessity when something else does: nobody needs to be told of both."""

_BEFORE_THEM: dict[str, Any] = {
    "weight_decay": 0.0,
    "max_gradient_norm": 1.0,
    "kto_beta": 0.1,
    "kto_desirable_weight": 1.0,
    "kto_undesirable_weight": 1.0,
}
"""What a checkpoint was made with that is older than the setting."""

BEFORE_ROWS = tuple(name for name in _SETTINGS if name not in ("base_model_revision", "parent_adapter_sha256"))
"""What is known of a run before its rows and its base model have been looked at."""


def of_settings(settings: TrainSettings) -> dict[str, Any]:
    """Return the part of the fingerprint that the settings make, in the form of JSON."""
    return settings.model_dump(mode="json", include=set(_SETTINGS))


def changed(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """Return the names of what `here` holds and a checkpoint's fingerprint has otherwise."""
    return [name for name in here if here[name] != there.get(name, _BEFORE_THEM.get(name))]


def differences(here: Mapping[str, Any], there: Mapping[str, Any], other: str) -> list[str]:
    """Return what differs between the fingerprint of a run and that of another's checkpoint, a phrase for each.

    Parameters
    ----------
    here, there
        The fingerprints; what `here` does not hold is not compared.
    other
        What to call the other run, as in `run support-7`.
    """
    found = changed(here, there)
    told = [name for name in found if _EXPLAINED_BY.get(name, frozenset()).isdisjoint(found)]
    names = _SETTINGS | _FOUND
    return [
        f"{names[name][0]} ({names[name][1]}) is {_shown(here[name])} here and {_shown(there.get(name))} in {other}"
        for name in told
    ]


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
