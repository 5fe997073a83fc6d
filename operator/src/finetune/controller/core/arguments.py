"""Command-line arguments of export and trainer, rendered from the run (docs/contract.md).

Only what the spec says is rendered: a default that depends on the method or on the parent adapter is the trainer's.
"""

from __future__ import annotations

import json

from finetune.api.sources import DatasetSource, MixedDataset
from finetune.api.status import ResumeStatus
from finetune.api.trainingrun import TrainingRun

from . import names
from .settings import Settings
from .storage import parent_directory, resume_directory, source_places
from .views import ParentView


def export_arguments(run: TrainingRun, settings: Settings) -> list[str]:
    """Arguments of `python -m model.data.export`."""
    dataset = run.spec.dataset
    flags: dict[str, object] = {
        "run-directory": _run_directory(run),
        "run-uid": run.metadata.uid,
        "method": run.spec.method,
        "seed": run.spec.training.seed,
        "invalid-rows": dataset.invalid_rows,
        "turns": dataset.turns if dataset.turns != "Strict" else None,
        "evaluation-percent": dataset.evaluation.percent if dataset.evaluation else None,
        "evaluation-max-rows": dataset.evaluation.max_rows if dataset.evaluation else None,
        **({} if dataset.mix else _source_flags(dataset, names.SOURCE_MOUNT)),
        **(_registry_flags(run, settings) if dataset.registered else {}),
    }
    renamed = dataset.columns.renamed() if dataset.columns else {}
    places = source_places(run)
    return [
        *_render(flags),
        *(f"--mix={_mixed(mixed, place.path)}" for mixed, (place, _) in zip(dataset.mix or (), places, strict=False)),
        *(f"--column={ours}={theirs}" for ours, theirs in renamed.items()),
        *(f"--ignore-column={column}" for column in dataset.ignored_columns or ()),
    ]


def trainer_arguments(
    run: TrainingRun, settings: Settings, parent: ParentView | None = None, resume: ResumeStatus | None = None
) -> list[str]:
    """Arguments of `python -m model.training.cli`.

    `parent` is what the registry recorded for `spec.parentAdapter`, `resume` the run of `spec.resumeFrom`.
    """
    training = run.spec.training
    flags: dict[str, object] = {
        "method": run.spec.method,
        "run-directory": _run_directory(run),
        "run-uid": run.metadata.uid,
        **_base_model_flags(run),
        **(_parent_flags(run, parent) if parent else {}),
        **({names.RESUME_FLAG: resume_directory(run, resume), names.RESUME_RUN_FLAG: resume.run} if resume else {}),
        "epochs": training.epochs,
        "max-steps": training.max_steps,
        "batch-size": training.batch_size,
        "micro-batch-size": training.micro_batch_size,
        "learning-rate": training.learning_rate,
        "schedule": training.schedule,
        "warmup-percent": training.warmup_percent,
        "weight-decay": training.weight_decay,
        "max-gradient-norm": training.max_gradient_norm,
        "max-length": training.max_length,
        "packing": training.packing,
        "precision": training.precision,
        "gradient-checkpointing": training.gradient_checkpointing,
        "seed": training.seed,
        "checkpoint-steps": training.checkpoint_steps,
        "evaluation-steps": training.evaluation_steps,
        "early-stopping-patience": training.early_stopping_patience,
        "samples": training.samples,
        "too-long": run.spec.dataset.too_long,
        **_method_flags(run),
        "quantization": run.spec.quantization,
        "gpus": run.spec.resources.gpus,
        "image": settings.trainer_image,
        **_registry_flags(run, settings),
    }
    pretended = ["--pretended-gpus"] if settings.pretended_gpus else []
    return ["train", *_render(flags), *pretended]


def collect_arguments(run: TrainingRun) -> list[str]:
    """Arguments of the command that repeats a finished run's last words."""
    return ["collect", *_render({"run-directory": _run_directory(run)})]


def send_arguments(run: TrainingRun, settings: Settings) -> list[str]:
    """Arguments of the command that sends a finished run's adapter to the registry."""
    return ["send", *_render({"run-directory": _run_directory(run), **_registry_flags(run, settings)})]


def _mixed(mixed: MixedDataset, mount: str) -> str:
    """A source of a mix as the export reads it: JSON of its flags, in camelCase."""
    given: dict[str, object] = {
        **_source_flags(mixed, mount),
        "name": mixed.name,
        "weight": mixed.weight,
        "maxRows": mixed.max_rows,
        "column": mixed.columns.renamed() if mixed.columns else None,
        "ignoreColumn": mixed.ignored_columns,
        "turns": mixed.turns,
    }
    return json.dumps({key: value for key, value in given.items() if value is not None}, ensure_ascii=False)


def _source_flags(source: DatasetSource, mount: str) -> dict[str, object]:
    if source.registry:
        return {"source": "registry"}
    if source.sql:
        return {"source": "sql", "query": source.sql.query}
    if source.hub:
        hub = source.hub
        return {
            "source": "hub",
            "repository": hub.repository,
            "revision": hub.revision,
            "configuration": hub.configuration,
            "split": hub.split,
        }
    if source.object_store:
        return {"source": "objectStore", "uri": source.object_store.uri, "endpoint": source.object_store.endpoint}
    if source.volume:
        return {"source": "volume", "path": f"{mount}/{source.volume.path}"}
    if source.config_map:
        return {"source": "configMap", "path": f"{mount}/{source.config_map.key}"}
    return {}


def _base_model_flags(run: TrainingRun) -> dict[str, object]:
    base = run.spec.base_model
    flags: dict[str, object] = {}
    if base.hub:
        flags = {
            "base-model": base.hub.repository,
            "base-model-revision": base.hub.revision,
            "base-model-name": base.hub.repository,
        }
    elif base.volume:
        path = f"{names.BASE_MODEL_MOUNT}/{base.volume.path or ''}".rstrip("/")
        flags = {"base-model": path, "base-model-name": base.display_name}
    if base.chat_template:
        flags["chat-template"] = f"{names.CHAT_TEMPLATE_MOUNT}/{base.chat_template.config_map.key}"
    return flags


def _parent_flags(run: TrainingRun, parent: ParentView) -> dict[str, object]:
    return {
        "parent-adapter": parent_directory(run, parent),
        names.PARENT_NAME_FLAG: f"{parent.name}/{parent.version}",
        names.PARENT_SHA256_FLAG: parent.sha256,
    }


def _method_flags(run: TrainingRun) -> dict[str, object]:
    dpo, kto, lora = run.spec.dpo, run.spec.kto, run.spec.lora
    preference = (
        {
            "dpo-beta": dpo.beta,
            "dpo-loss": dpo.loss,
            "dpo-label-smoothing": dpo.label_smoothing,
            "dpo-sft-weight": dpo.sft_weight,
        }
        if dpo
        else {}
    )
    labelled = (
        {
            "kto-beta": kto.beta,
            "kto-desirable-weight": kto.desirable_weight,
            "kto-undesirable-weight": kto.undesirable_weight,
        }
        if kto
        else {}
    )
    return {
        **preference,
        **labelled,
        "lora-rank": lora.rank,
        "lora-alpha": lora.alpha,
        "lora-dropout-percent": lora.dropout_percent,
        "lora-target-modules": ",".join(lora.target_modules) if lora.target_modules else None,
        "lora-variant": lora.variant,
    }


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
