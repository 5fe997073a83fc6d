"""One training run from its first line to its last: load, train, evaluate, save, verify, record, tell."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from model import disks, exits, upload
from model.exits import FailureError
from model.files import RunDirectory
from model.registry import RegistryRefusedError, RegistryUnavailableError, retry
from model.result import as_failure, result_document, write_termination_message
from model.training import build
from model.training.config import TrainSettings
from model.training.loop import guessing
from model.training.loop.checkpoint import Checkpoint, CheckpointStore, RunState
from model.training.output.interim import InterimSender
from model.training.output.progress import PeerLog, ProgressLog
from model.training.processes import hang, interruption, parallel, process
from model.training.processes.laps import Laps
from model.training.serving import look
from model.training.weights import adapters, basemodel, hub, origin, precision


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
    settings = settings.resolved()
    directory = RunDirectory(settings.run_directory)
    disks.writes_to(directory.path)
    try:
        log = ProgressLog(output, directory.metrics) if parallel.world().first else PeerLog(directory.metrics)
    except OSError as error:
        raise as_failure(error) from error
    place = parallel.world()
    who = f"process {place.rank} of {place.size}" if place.size > 1 else ""
    with hang.watch(log.emit, who=who):
        _train_and_tell(settings, directory, log)


def _train_and_tell(settings: TrainSettings, directory: RunDirectory, log: ProgressLog | PeerLog) -> None:
    try:
        document = finished_document(directory, settings, log) or _train(settings, directory, log)
    except BaseException as error:
        failure = _as_interrupted(as_failure(error))
        if failure.code != exits.LOST_PEERS:  # else another process is to blame, and says why
            with contextlib.suppress(OSError):  # the failure may be that nothing can be written any more
                log.emit("error", reason=failure.reason, message=failure.message, exitCode=failure.code)
        raise failure from error
    if not parallel.world().first:
        return
    write_termination_message(result_document(document))
    interruption.finish()
    for sample in document.get("samples", ()):
        log.emit("sample", **sample)
    log.emit("end", **result_document(document)["result"])
    _publish(settings, document)


def finished_document(
    directory: RunDirectory, settings: TrainSettings, log: ProgressLog | PeerLog
) -> dict[str, Any] | None:
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


def _train(settings: TrainSettings, directory: RunDirectory, log: ProgressLog | PeerLog) -> dict[str, Any]:
    laps = Laps(process.start_time())
    _clean_up(directory)
    settings = adapters.with_parent(settings)
    base_directory = origin.check(settings.base_model)
    if base_directory is not None:
        hub.check_base(settings)
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        basemodel.read_ahead(base_directory)
    manifest = build.read_manifest(directory)
    laps.lap("process")
    build.check_devices(settings)
    arithmetic = precision.choose(settings.precision, precision.device(settings.gpus))
    parallel.connect(cuda=process.uses_cuda(settings.gpus))
    settings = _pinned(settings)
    if settings.gpus == 0:
        basemodel.leave_out_bitsandbytes()
    if process.uses_cuda(settings.gpus):
        process.give_memory_back()
    laps.lap("torch")
    tokenizer, settings = build.load_tokenizer(settings, directory, log)
    data = build.read_data(settings, directory, manifest, tokenizer, log)
    _check_early_stopping(settings, len(data.held_out))
    settings = build.with_evaluation_steps(settings, data)
    laps.lap("tokens")
    past = build.look_back(settings, directory, data, log)  # before the weights are there: it may end the run
    interruption.note_saved(past.step)  # not that of a checkpoint which cannot be gone on from
    settings = settings.model_copy(update={"precision": arithmetic.precision})
    model = build.load_model(settings, data)
    model_loaded = process.timestamp()
    laps.lap("weights")
    from model.training.ending import finish  # torch comes with it, as with the model

    serving = look(settings, tokenizer, model, texts=manifest["shape"] == "text")
    trainer = build.build_trainer(
        settings=settings,
        directory=directory,
        log=log,
        data=data,
        tokenizer=tokenizer,
        model=model,
        past=past,
        laps=laps,
    )
    trainer.interim_sender = _interim_sender(settings, directory, log, past.step, serving.files)
    for warning in (*arithmetic.warnings, *serving.warnings):
        log.emit("warning", step=past.step, message=warning)
    if past.checkpoint is None:
        guessing.check(trainer.model, data.sequences[0], settings.base_model)
    trainer.run_state.timings = {
        "startTime": process.timestamp(process.start_time()),
        "modelLoadedTime": model_loaded,
    } | trainer.run_state.timings
    process.settle()
    _run_loop(trainer, past.checkpoint)
    if trainer.interim_sender is not None:
        trainer.interim_sender.close()
    return finish(trainer, directory, data, past, serving)


def _interim_sender(
    settings: TrainSettings,
    directory: RunDirectory,
    log: ProgressLog | PeerLog,
    step: int,
    beside: Mapping[str, str],
) -> InterimSender | None:
    """Return what sends the adapters of evaluations: from the first process, where there is a registry."""
    from model.training.result import copied_adapter

    registry = settings.registry() if parallel.world().first else None
    if registry is None:
        return None
    return InterimSender(
        registry,
        directory.path,
        attempt=log.attempt,
        start_step=step,
        copy=lambda model: copied_adapter(model, settings, beside),
        warn=_warn,
    )


def _pinned(settings: TrainSettings) -> TrainSettings:
    """Return the settings with the commit that the first process has found on the hub."""
    revision = hub.pin(settings).base_model_revision if parallel.world().first else None
    return settings.model_copy(update={"base_model_revision": parallel.gather(revision)[0]})


def _clean_up(directory: RunDirectory) -> None:
    """Remove what a killed attempt left half done, and note how far it had come."""
    store = CheckpointStore(directory.checkpoints, {})
    interruption.note_saved(store.newest_step())
    if not parallel.world().first:
        return
    store.remove_leftovers()
    for path in directory.path.glob("*.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _run_loop(trainer: Any, checkpoint: Checkpoint | None) -> None:
    """Train until the last step, an early stop, or SIGTERM, after which the process does not return."""
    state: RunState = trainer.run_state
    step = checkpoint.step if checkpoint else 0
    trainer.parts.log.rewind(step, evaluated=not state.evaluation_due)
    interruption.defer(saved_step=step)
    if checkpoint is not None:
        hang.goes_on_from(step)
    if checkpoint is not None and state.evaluation_due:
        trainer.restore(checkpoint)
        trainer.evaluate()
    if not parallel.interrupted():
        if step < trainer.parts.total_steps and not state.stopped_early:
            trainer.train_from(checkpoint)
        elif checkpoint is not None:
            trainer.restore(checkpoint)
    if parallel.interrupted():
        trainer.parts.log.emit("interrupted", step=trainer.state.global_step)
    interruption.stop_at_once()


def _check_early_stopping(settings: TrainSettings, held_out: int) -> None:
    if settings.early_stopping_patience is not None and not held_out:
        raise FailureError(
            exits.INVALID_CONFIGURATION,
            "InvalidSpec",
            "early stopping (training.earlyStoppingPatience, --early-stopping-patience) compares losses on held-out "
            "rows, and there are none: hold out some with dataset.evaluation.percent (--evaluation-percent), or leave "
            "early stopping out",
        )


def _as_interrupted(failure: FailureError) -> FailureError:
    """Tell a failure to save after SIGTERM from a crash: the next attempt goes on from the checkpoint before."""
    if failure.code == exits.CRASH and interruption.requested():
        return FailureError(
            exits.TERMINATED, "InternalError", f"SIGTERM was received, and saving failed: {failure.message}"
        )
    return failure


def _publish(settings: TrainSettings, document: dict[str, Any]) -> None:
    """Put the result into the registry; without that the operator reads it from the pod or the claim."""
    registry = settings.registry()
    if registry is None:
        return
    try:
        retry(lambda: registry.put_result(document), warn=_warn)
    except (RegistryUnavailableError, RegistryRefusedError) as error:
        _warn(f"cannot put the result into the registry: {error}")
    with hang.during("while the adapter is sent to the registry"):
        upload.send(
            registry, RunDirectory(settings.run_directory).adapter, document["result"]["adapter"]["files"], warn=_warn
        )


def _warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
