"""Command-line arguments of export and trainer, rendered from the run (docs/contract.md)."""

from __future__ import annotations

from finetune.api.trainingrun import TrainingRun

from . import names
from .settings import Settings


def export_arguments(run: TrainingRun, settings: Settings) -> list[str]:
    """Arguments of `python -m model.data.export`."""
    dataset = run.spec.dataset
    flags: dict[str, object] = {
        "run-directory": _run_directory(run),
        "run-uid": run.metadata.uid,
        "method": run.spec.method,
        "seed": run.spec.training.seed,
        "invalid-rows": dataset.invalid_rows,
        "evaluation-percent": dataset.evaluation.percent,
        "evaluation-max-rows": dataset.evaluation.max_rows,
    }
    if dataset.registry:
        flags |= {"source": "registry", **_registry_flags(run, settings)}
    elif dataset.config_map:
        flags |= {"source": "configMap", "path": f"{names.SOURCE_MOUNT}/{dataset.config_map.key}"}
    elif dataset.volume:
        flags |= {"source": "volume", "path": f"{names.SOURCE_MOUNT}/{dataset.volume.path}"}
    renamed = dataset.columns.renamed() if dataset.columns else {}
    return [*_render(flags), *(f"--column={ours}={theirs}" for ours, theirs in renamed.items())]


def trainer_arguments(run: TrainingRun, settings: Settings) -> list[str]:
    """Arguments of `python -m model.training.cli`."""
    training, lora = run.spec.training, run.spec.lora
    flags: dict[str, object] = {
        "method": run.spec.method,
        "run-directory": _run_directory(run),
        "run-uid": run.metadata.uid,
        **_base_model_flags(run),
        "epochs": run.epochs,
        "max-steps": training.max_steps,
        "batch-size": training.batch_size,
        "micro-batch-size": training.micro_batch_size,
        "learning-rate": run.learning_rate,
        "schedule": training.schedule,
        "warmup-percent": training.warmup_percent,
        "max-length": training.max_length,
        "packing": training.packing,
        "precision": training.precision,
        "gradient-checkpointing": training.gradient_checkpointing,
        "seed": training.seed,
        "checkpoint-steps": training.checkpoint_steps,
        "evaluation-steps": training.evaluation_steps,
        "early-stopping-patience": training.early_stopping_patience,
        "too-long": run.spec.dataset.too_long,
        "lora-rank": lora.rank,
        "lora-alpha": lora.alpha,
        "lora-dropout-percent": lora.dropout_percent,
        "lora-target-modules": ",".join(lora.target_modules),
        "lora-variant": lora.variant,
        "gpus": run.spec.resources.gpus,
        "image": settings.trainer_image,
        **_registry_flags(run, settings),
    }
    pretended = ["--pretended-gpus"] if settings.pretended_gpus else []
    return ["train", *_render(flags), *pretended]


def _base_model_flags(run: TrainingRun) -> dict[str, object]:
    base = run.spec.base_model
    if base.hub:
        return {
            "base-model": base.hub.repository,
            "base-model-revision": base.hub.revision,
            "base-model-name": base.hub.repository,
        }
    if base.volume:
        path = f"{names.BASE_MODEL_MOUNT}/{base.volume.path or ''}".rstrip("/")
        return {"base-model": path, "base-model-name": base.display_name}
    return {}


def _registry_flags(run: TrainingRun, settings: Settings) -> dict[str, object]:
    return {
        "registry-url": settings.registry_url,
        "registry-token-file": names.TOKEN_FILE,
        "namespace": run.metadata.namespace,
        "run-uid": run.metadata.uid,
    }


def _run_directory(run: TrainingRun) -> str:
    return f"{names.OUTPUT_MOUNT}/{names.output_path(run.experiment, run.metadata.uid)}"


def _render(flags: dict[str, object]) -> list[str]:
    return [f"--{name}={value}" for name, value in flags.items() if value is not None]
