"""One training run from its first line to its last: load, train, evaluate, save, verify, record, tell."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from dataclasses import dataclass
from typing import Any, TextIO

from model import exits
from model.exits import FailureError
from model.files import RunDirectory, write_json
from model.registry import RegistryRefusedError, RegistryUnavailableError, retry
from model.result import as_failure, decimal, result_document, write_termination_message
from model.training import basemodel, interruption, process
from model.training.checkpoint import Checkpoint, CheckpointStore, RunState
from model.training.config import TrainSettings
from model.training.progress import ProgressLog, StatusPoster
from model.training.rows import DigestedLines, RowEncoder, TokenRows

MANIFEST_KEYS = ("version", "bytes", "sha256")


@dataclass(frozen=True)
class Data:
    """The run's rows, and what the result says about them."""

    rows: TokenRows
    held_out: TokenRows
    document: dict[str, Any]


def train(settings: TrainSettings, output: TextIO) -> None:
    """Train a run to its end, or do nothing when an earlier attempt has.

    Parameters
    ----------
    settings
        The run's settings.
    output
        Stream for the JSON lines.

    Raises
    ------
    FailureError
        When the run cannot go on; the same is the last JSON line.
    """
    directory = RunDirectory(settings.run_directory)
    try:
        log = ProgressLog(output, directory.metrics)
    except OSError as error:
        raise as_failure(error) from error
    try:
        document = finished_document(directory, settings, log) or _train(settings, directory, log)
    except BaseException as error:
        failure = as_failure(error)
        with contextlib.suppress(OSError):  # the failure may be that nothing can be written any more
            log.emit("error", reason=failure.reason, message=failure.message, exitCode=failure.code)
        raise failure from error
    write_termination_message(result_document(document))
    log.emit("end", **result_document(document)["result"])
    _publish(settings, document)


def finished_document(directory: RunDirectory, settings: TrainSettings, log: ProgressLog) -> dict[str, Any] | None:
    """Return the record of an earlier attempt that finished this run, None when there is none to trust."""
    from model.training.result import read_training_config

    if not directory.training_config.exists():
        return None
    try:
        document = read_training_config(directory)
        if document["result"]["runUid"] == settings.run_uid:
            return document
        reason = f"it belongs to the run {document['result']['runUid']}"
    except FailureError as failure:
        reason = failure.message
    log.emit("start", ignored="training_config.json", reason=reason)
    return None


def _train(settings: TrainSettings, directory: RunDirectory, log: ProgressLog) -> dict[str, Any]:
    base_directory = basemodel.check(settings.base_model)
    if base_directory is not None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        basemodel.read_ahead(base_directory)
    manifest = _read_manifest(directory)
    _check_devices(settings)
    base, revision = settings.base_model, settings.base_model_revision
    tokenizer = basemodel.load_tokenizer(base, revision)
    data = read_data(settings, directory, manifest, tokenizer)
    settings = settings.model_copy(update={"precision": _choose_precision(settings)})
    model = basemodel.load_model(base, revision, bfloat16=settings.precision == "BFloat16")
    basemodel.check_fit(model, settings, largest_token=max(data.rows.ids), longest_row=max(data.rows.lengths))
    model_loaded = process.timestamp()
    trainer, checkpoint = _build_trainer(
        settings=settings, directory=directory, log=log, data=data, tokenizer=tokenizer, model=model
    )
    trainer.run_state.timings = {
        "startTime": process.timestamp(process.start_time()),
        "modelLoadedTime": model_loaded,
    } | trainer.run_state.timings
    _run_loop(trainer, checkpoint)
    return _finish(trainer, directory, data, checkpoint.step if checkpoint else 0)


def _read_manifest(directory: RunDirectory) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads(directory.manifest.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FailureError(
            exits.DOES_NOT_EXIST,
            "DatasetUnavailable",
            f"{directory.manifest} does not exist: export the dataset first with python -m model.data.export",
        ) from error
    return manifest


def _check_devices(settings: TrainSettings) -> None:
    import torch

    if settings.gpus == 0:
        return
    if not torch.cuda.is_available():
        if settings.pretended_gpus:
            return
        raise FailureError(
            exits.GPU_UNAVAILABLE,
            "GPUUnavailable",
            f"{settings.gpus} GPUs were requested and none is usable: check the node's driver and the pod's runtime "
            "class, or set resources.gpus to 0 to train on the CPU",
        )
    if torch.cuda.device_count() > 1:
        raise FailureError(
            exits.INVALID_CONFIGURATION,
            "InvalidSpec",
            f"this version trains on one GPU, the pod has {torch.cuda.device_count()}: set resources.gpus to 1",
        )


def _choose_precision(settings: TrainSettings) -> str:
    import torch

    if settings.precision != "Auto":
        return settings.precision
    if settings.gpus > 0 and torch.cuda.is_available():
        return "BFloat16" if torch.cuda.is_bf16_supported() else "Float32"
    return "BFloat16" if process.cpu_has_bfloat16() else "Float32"


def read_data(settings: TrainSettings, directory: RunDirectory, manifest: dict[str, Any], tokenizer: Any) -> Data:
    """Tokenise the exported rows.

    Raises
    ------
    FailureError
        When they are not those that were exported, or none can be trained on.
    """
    encoder = RowEncoder(tokenizer, max_length=settings.max_length, too_long=settings.too_long)
    lines = DigestedLines()
    rows = encoder.encode(lines.read(directory.train_rows), "the dataset's")
    held_out = encoder.encode(lines.read(directory.evaluation_rows), "the dataset's")
    if lines.sha256() != manifest["sha256"]:
        raise FailureError(
            exits.DATASET_INVALID, "DatasetInvalid", f"the files in {directory.dataset} were changed after the export"
        )
    if not len(rows):
        raise FailureError(
            exits.DATASET_INVALID,
            "DatasetInvalid",
            f"the dataset has no rows that fit: all {rows.dropped} are longer than maxLength {settings.max_length}",
        )
    document = {key: manifest[key] for key in MANIFEST_KEYS if manifest[key] is not None} | {
        "rows": len(rows),
        "evaluationRows": len(held_out),
        "dropped": manifest["dropped"] + rows.dropped + held_out.dropped,
        "truncated": rows.truncated + held_out.truncated,
        "tokens": len(rows.ids),
    }
    return Data(rows, held_out, document)


def _build_trainer(
    *, settings: TrainSettings, directory: RunDirectory, log: ProgressLog, data: Data, tokenizer: Any, model: Any
) -> tuple[Any, Checkpoint | None]:
    import torch

    from model.training.batches import Collator, LengthGroupedBatches, choose_micro_batch_size
    from model.training.sft import SupervisedTrainer, TrainerParts

    lengths = data.rows.lengths
    cuda = settings.gpus > 0 and torch.cuda.is_available()
    micro_batch_size = settings.micro_batch_size or choose_micro_batch_size(
        settings.batch_size, max(lengths), cuda=cuda
    )
    settings = settings.model_copy(update={"micro_batch_size": micro_batch_size})
    batches = LengthGroupedBatches(
        lengths, batch_size=settings.batch_size, micro_batch_size=micro_batch_size, seed=settings.seed
    )
    total_steps = settings.max_steps or (settings.epochs or 1) * batches.steps_per_epoch
    store = CheckpointStore(directory.checkpoints, fingerprint(settings, data, total_steps))
    log.emit(
        "start",
        totalSteps=total_steps,
        rows=len(data.rows),
        evaluationRows=len(data.held_out),
        tokens=len(data.rows.ids),
        longestRow=max(lengths),
        microBatchSize=micro_batch_size,
        precision=settings.precision,
        threads=torch.get_num_threads(),
    )
    checkpoint = store.newest(lambda name, reason: log.emit("resume", skipped=name, reason=reason))
    registry = settings.registry()
    parts = TrainerParts(
        settings=settings,
        total_steps=total_steps,
        batches=batches,
        collator=Collator(_pad_token_id(tokenizer), packed=settings.packing == "Enabled"),
        checkpoints=store,
        log=log,
        poster=StatusPoster(registry.post_status) if registry else None,
        state=checkpoint.state if checkpoint else RunState(),
    )
    trainer = SupervisedTrainer(model, tokenizer, data.rows, data.held_out, parts)
    if checkpoint is not None:
        log.emit("resume", step=checkpoint.step)
    return trainer, checkpoint


def fingerprint(settings: TrainSettings, data: Data, total_steps: int) -> dict[str, Any]:
    """Return what must be the same for a checkpoint to be continued."""
    names = (
        "method", "batch_size", "learning_rate", "schedule", "warmup_percent", "max_length", "too_long",
        "seed", "lora_rank", "lora_alpha", "lora_dropout_percent", "lora_target_modules", "lora_variant",
        "base_model_revision",
    )  # fmt: skip
    values = settings.model_dump(mode="json", include=set(names))
    return values | {
        "base_model": settings.recorded_base_model,
        "dataset": data.document["sha256"],
        "total_steps": total_steps,
    }


def _run_loop(trainer: Any, checkpoint: Checkpoint | None) -> None:
    """Train until the last step, an early stop, or SIGTERM, after which the process does not return."""
    step = checkpoint.step if checkpoint else 0
    interruption.defer(saved_step=step)
    path = str(checkpoint.path) if checkpoint else None
    if checkpoint is not None and trainer.run_state.evaluation_due:
        trainer.restore(checkpoint)
        trainer.evaluate()
    if step < trainer.parts.total_steps and not trainer.run_state.stopped_early:
        trainer.train(resume_from_checkpoint=path)
    elif checkpoint is not None:
        trainer.restore(checkpoint)
    if interruption.requested():
        trainer.parts.log.emit("interrupted", step=trainer.state.global_step)
    interruption.stop_at_once()


def _finish(trainer: Any, directory: RunDirectory, data: Data, resumed_from: int) -> dict[str, Any]:
    """Evaluate, save the adapter, verify it, and write `training_config.json` last."""
    from model.training.result import build_document, model_card, save_adapter

    settings: TrainSettings = trainer.parts.settings
    state: RunState = trainer.run_state
    result: dict[str, Any] = {"runUid": settings.run_uid, "finalLoss": decimal(state.final_loss())}
    if len(data.held_out):
        loss = trainer.held_out_loss()
        with trainer.model.disable_adapter():
            base_loss = trainer.held_out_loss()
        trainer.parts.log.emit("evaluation", step=trainer.state.global_step, loss=loss, baseLoss=base_loss)
        _check_finite(loss)
        result |= {"evaluationLoss": decimal(loss), "baseEvaluationLoss": decimal(base_loss)}
    result |= {"steps": trainer.state.global_step, "tokens": state.tokens, "resumedFromStep": resumed_from}
    card = model_card(settings, result, data.document)
    files = save_adapter(trainer.model, settings, directory, card)
    document = build_document(
        settings, result=result, files=files, dataset=data.document, timings=state.timings, history=state.history()
    )
    write_json(directory.training_config, document)
    if trainer.parts.poster is not None:
        trainer.parts.poster.close()
    return document


def _check_finite(loss: float) -> None:
    if not math.isfinite(loss):
        raise FailureError(
            exits.DIVERGED, "Diverged", f"the loss on the held-out rows is {loss}: lower the learning rate"
        )


def _publish(settings: TrainSettings, document: dict[str, Any]) -> None:
    """Put the result into the registry; without that the operator reads it from the pod or the claim."""
    registry = settings.registry()
    if registry is None:
        return
    try:
        retry(lambda: registry.put_result(document), warn=_warn)
    except (RegistryUnavailableError, RegistryRefusedError) as error:
        _warn(f"cannot put the result into the registry: {error}")


def _pad_token_id(tokenizer: Any) -> int:
    token = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return int(token or 0)


def _warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
