"""Puts a trainer together: the rows as tokens, the devices, the precision, the newest checkpoint."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model import exits, gpus
from model.exits import FailureError
from model.files import RunDirectory
from model.training.config import TrainSettings
from model.training.loop import takeover
from model.training.loop.checkpoint import Checkpoint, CheckpointStore, RunState
from model.training.loop.fingerprint import ORDER, of_settings
from model.training.loop.schedule import evaluation_interval, evaluation_warning
from model.training.output.progress import PeerLog, ProgressLog, StatusPoster
from model.training.processes import parallel, process
from model.training.rows import making, store
from model.training.rows.report import token_report
from model.training.rows.store import Tokens
from model.training.rows.tokens import PreferenceRows, TokenRows, sequences_of
from model.training.weights import adapters, basemodel, origin

if TYPE_CHECKING:
    from model.training.loop.parts import TrainerParts
    from model.training.processes.laps import Laps

MANIFEST_KEYS = ("version", "bytes", "sha256", "sources")
METHODS = {"preference": "DPO", "preference-messages": "DPO", "unpaired": "KTO", "unpaired-messages": "KTO"}
"""Which method trains on rows of a shape; SFT trains on the others."""


@dataclass(frozen=True)
class Data:
    """The run's examples, and what the result says about them."""

    rows: TokenRows | PreferenceRows
    held_out: TokenRows | PreferenceRows
    document: dict[str, Any]
    tokens: Tokens | None = None

    @property
    def sequences(self) -> list[TokenRows]:
        """What goes through the model in training: a pair's rows go one by one."""
        return sequences_of(self.rows)

    @property
    def longest_sequence(self) -> int:
        """The tokens of the longest of them."""
        return max(max(rows.lengths) for rows in self.sequences)

    @property
    def all_sequences(self) -> list[TokenRows]:
        """What goes through the model in training and in evaluations, without what is empty."""
        return [rows for rows in (*self.sequences, *sequences_of(self.held_out)) if len(rows)]

    @property
    def longest_row(self) -> int:
        """The tokens of the longest of those."""
        return max(max(rows.lengths) for rows in self.all_sequences)

    @property
    def shortest_row(self) -> int:
        """The tokens of the shortest of those."""
        return min(min(rows.lengths) for rows in self.all_sequences)

    @property
    def largest_token(self) -> int:
        """The largest token in them."""
        return self.tokens.largest if self.tokens else max(max(rows.ids) for rows in self.all_sequences)


def read_manifest(directory: RunDirectory) -> dict[str, Any]:
    """Return what the export wrote about the rows."""
    try:
        manifest: dict[str, Any] = json.loads(directory.manifest.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FailureError(
            exits.DOES_NOT_EXIST,
            "DatasetUnavailable",
            f"{directory.manifest} does not exist: export the dataset first with python -m model.data.export",
        ) from error
    return manifest


def check_devices(settings: TrainSettings) -> None:
    """Refuse GPUs that were asked for and are not there, and a base that cannot be quantized here."""
    import torch

    usable = torch.cuda.is_available()
    if settings.gpus > 0 and not usable and not settings.pretended_gpus:
        raise exits.no_usable_gpu(settings.gpus, f"torch says: {gpus.torch_says()}")
    basemodel.check_quantization(settings.quantization, cuda=settings.gpus > 0 and usable)


def load_tokenizer(
    settings: TrainSettings, directory: RunDirectory, log: ProgressLog | PeerLog
) -> tuple[Any, TrainSettings]:
    """Return the base's tokenizer, and the settings with the chat template that the run began with.

    Once there is a checkpoint, a template that was edited between two attempts changes nothing more: the run goes on to
    the bits that it would have come to.
    """
    step = CheckpointStore(directory.checkpoints, {}).newest_step()
    folder = store.tokens_directory(directory)
    kept = store.kept_template(folder) if step else None
    try:
        tokenizer = basemodel.load_tokenizer(settings.base_model, settings.base_model_revision, settings.chat_template)
        if kept is None or tokenizer.chat_template == kept:
            return tokenizer, settings
    except FailureError:
        if kept is None or settings.chat_template is None:
            raise
        tokenizer = basemodel.load_tokenizer(settings.base_model, settings.base_model_revision)
    path = folder / store.TEMPLATE
    log.emit(
        "warning",
        step=step,
        message="the chat template was changed after the run began: the run goes on with the one that it began with, "
        f"{path}; to train with the new one, start a new run",
    )
    tokenizer.chat_template = kept
    return tokenizer, settings.model_copy(update={"chat_template": path})


def read_data(
    settings: TrainSettings,
    directory: RunDirectory,
    manifest: dict[str, Any],
    tokenizer: Any,
    log: ProgressLog | PeerLog | None = None,
) -> Data:
    """Return the exported rows as tokens: the first process makes them, unless an earlier attempt has.

    Raises
    ------
    FailureError
        When they are not those that were exported, or cannot be trained on.
    """
    _check_shape(settings, manifest)
    tokens: Tokens | None = None
    if parallel.world().first:
        tokens = making.make(settings, directory, manifest, tokenizer, log.emit if log else _untold)
    parallel.wait()
    if tokens is None:
        folder = store.tokens_directory(directory)
        tokens = store.read(folder, making.key_for(settings, manifest, tokenizer), whole=False)
    if tokens is None:
        raise FailureError(exits.CRASH, "InternalError", f"the tokens that the first process made are not in {folder}")
    rows, held_out = tokens.rows, tokens.held_out
    document = {key: manifest[key] for key in MANIFEST_KEYS if manifest.get(key) is not None} | {
        "rows": len(rows),
        "evaluationRows": len(held_out),
        "dropped": manifest["dropped"] + rows.dropped + held_out.dropped,
        "truncated": rows.truncated + held_out.truncated,
        "tokens": sum(rows.lengths),
        "renderedTime": tokens.moment.isoformat(),
    }
    return Data(rows, held_out, document, tokens)


def _untold(_event: str, **_fields: Any) -> None:
    """Tell nobody."""


def _check_shape(settings: TrainSettings, manifest: dict[str, Any]) -> None:
    shape = manifest["shape"]
    other = METHODS.get(shape, "SFT")
    if settings.method == other:
        return
    raise FailureError(
        exits.DATASET_INVALID,
        "DatasetInvalid",
        f"--method={settings.method} cannot train on rows of the shape {shape}, which were exported for {other}: "
        f"export rows for {settings.method}, or set the method to {other}",
    )


def load_model(settings: TrainSettings, data: Data) -> Any:
    """Return the base model, checked against the rows, with the parent adapter on it if there is one."""
    model = basemodel.load_model(
        settings.base_model,
        settings.base_model_revision,
        bfloat16=settings.precision == "BFloat16",
        quantization=settings.quantization,
    )
    basemodel.check_fit(
        model,
        settings,
        largest_token=data.largest_token,
        longest_row=data.longest_row,
    )
    text = model.config.get_text_config()
    if hasattr(text, "output_router_logits"):
        text.output_router_logits = False  # for a loss that balances experts, which are not trained here
    return model if settings.parent_adapter is None else adapters.attach_parent(model, settings)


@dataclass(frozen=True)
class Resumption:
    """What earlier attempts have left.

    Attributes
    ----------
    store
        The run's checkpoints.
    checkpoint
        The newest whole one, to go on from.
    skipped
        Names of others that cannot be gone on from, each with the reason.
    origin
        Which other run's checkpoint the run began with, see `takeover.read_record`.
    """

    store: CheckpointStore
    checkpoint: Checkpoint | None
    skipped: list[tuple[str, str]]
    origin: dict[str, Any] | None

    @property
    def step(self) -> int:
        """The step that was made last."""
        return self.checkpoint.step if self.checkpoint else 0


def count_steps(settings: TrainSettings, data: Data) -> int:
    """Return how many optimizer steps the whole run has."""
    return settings.max_steps or (settings.epochs or 1) * math.ceil(len(data.rows) / settings.batch_size)


def with_evaluation_steps(settings: TrainSettings, data: Data) -> TrainSettings:
    """Return the settings with the steps between evaluations, which follow from the length of the run."""
    interval = settings.evaluation_steps or evaluation_interval(count_steps(settings, data))
    return settings.model_copy(update={"evaluation_steps": interval})


def evaluation_cost(settings: TrainSettings, data: Data) -> str | None:
    """Return a warning when evaluations take more of the time than they are worth."""
    if not len(data.held_out):
        return None
    steps = count_steps(settings, data)
    return evaluation_warning(
        trained_tokens=sum(data.rows.lengths) * steps * settings.batch_size / len(data.rows),
        held_out_tokens=sum(data.held_out.lengths),
        held_out_rows=len(data.held_out),
        steps=steps,
        interval=settings.evaluation_steps or steps,
    )


def look_back(settings: TrainSettings, directory: RunDirectory, data: Data, log: ProgressLog | PeerLog) -> Resumption:
    """Return what earlier attempts have left of the same run, or of the run that this one goes on from."""
    here, processes = fingerprint(settings, data), parallel.world().size
    parallel.same(here)
    store = CheckpointStore(directory.checkpoints, here, processes=processes)
    skipped: list[tuple[str, str]] = []

    def skip(name: str, reason: str) -> None:
        skipped.append((name, reason))

    checkpoint = store.newest(skip)
    other = takeover.other_run(settings)
    if checkpoint is None and other is not None:
        parallel.wait()  # until nobody looks any more
        if parallel.world().first:
            step = takeover.take_over(
                other, directory, here, processes, lambda name, reason: skip(f"{other.title}: {name}", reason)
            )
            log.carry_over(other.directory.metrics, step)
        parallel.wait()
        checkpoint = store.newest(skip)
    return Resumption(store, checkpoint, skipped, takeover.read_record(directory))


def build_trainer(
    *,
    settings: TrainSettings,
    directory: RunDirectory,
    log: ProgressLog | PeerLog,
    data: Data,
    tokenizer: Any,
    model: Any,
    past: Resumption,
    laps: Laps,
) -> Any:
    """Return the trainer, which goes on from what earlier attempts have left; the `start` line has the laps."""
    from model.training.loop import computing, rotary
    from model.training.loop.batches import StepBatches
    from model.training.loop.examples import positions
    from model.training.loop.parts import TrainerParts

    state = past.checkpoint.state if past.checkpoint else RunState()
    cuda = process.uses_cuda(settings.gpus)
    collator = computing.make_collator(model, settings, tokenizer, data.longest_row, cuda=cuda)
    lengths = positions(data.rows, joined=collator.joins)
    batches = StepBatches(
        lengths,
        batch_size=settings.batch_size,
        micro_batch=computing.first_micro_batch(
            settings, state, lengths, width=collator.width * len(data.sequences), cuda=cuda
        ),
        seed=settings.seed,
        world=parallel.world(),
    )
    registry = settings.registry() if parallel.world().first else None
    parts = TrainerParts(
        settings=settings,
        total_steps=count_steps(settings, data),
        batches=batches,
        collator=collator,
        checkpoints=past.store,
        log=log,
        poster=StatusPoster(registry.post_status) if registry else None,
        state=state,
    )
    trainer = trainer_class(settings)(model, tokenizer, data.rows, data.held_out, parts)
    warnings = [
        computing.fit(trainer, cuda=cuda, resumed=past.checkpoint is not None),
        computing.compare_arithmetic(trainer, cuda=cuda),
        evaluation_cost(settings, data),
        rotary.warning(model.config.get_text_config(), settings, data.shortest_row, data.longest_row),
    ]
    report = token_report(
        settings,
        tokenizer,
        data.rows,
        data.held_out,
        batches=None if collator.joins else batches.of_all(),
        figures=data.tokens.figures if data.tokens else None,
        moment=data.tokens.moment if data.tokens else None,
    )
    if parallel.world().first:
        report.write(directory)
    parallel.same(
        {
            "the step gone on from": past.step,
            "the number of steps": parts.total_steps,
            "the micro-batch": [batches.micro_batch.rows, batches.micro_batch.tokens],
            "what is computed again": state.recompute,
            "the layout": str(collator.layout),
            "the precision": settings.precision,
        }
    )
    laps.lap("trainer")
    _announce(trainer, data, past, report.document(), [warning for warning in warnings if warning], laps)
    return trainer


def _announce(  # noqa: PLR0917 - what is told, in its order
    trainer: Any, data: Data, past: Resumption, token_document: dict[str, Any], warnings: list[str], laps: Laps
) -> None:
    """Tell what is going to be trained on, how, and from where."""
    from model.training.loop import computing

    parts: TrainerParts = trainer.parts
    if past.skipped and past.checkpoint is None:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in past.skipped)
        warnings = [f"no checkpoint can be gone on from, so the training begins with step 1: {reasons}", *warnings]
    parts.log.emit(
        "start",
        totalSteps=parts.total_steps,
        rows=len(data.rows),
        evaluationRows=len(data.held_out),
        tokens=sum(data.rows.lengths),
        longestRow=data.longest_sequence,
        **computing.how_computed(parts.state),
        startSeconds=laps.seconds,
        tokenReport=token_document,
    )
    for name, reason in past.skipped:
        parts.log.emit("resume", skipped=name, reason=reason)
    for warning in warnings:
        parts.log.emit("warning", step=past.step, message=warning)
    if past.checkpoint is not None:
        other = past.origin or {}
        parts.log.emit("resume", step=past.step, **({"run": other["run"]} if other.get("step") == past.step else {}))


def trainer_class(settings: TrainSettings) -> Any:
    """Return the class of the method's trainer."""
    if settings.method == "DPO":
        from model.training.loop.dpo import PreferenceTrainer

        return PreferenceTrainer
    if settings.method == "KTO":
        from model.training.loop.kto import LabelTrainer

        return LabelTrainer
    from model.training.loop.sft import SupervisedTrainer

    return SupervisedTrainer


def fingerprint(settings: TrainSettings, data: Data) -> dict[str, Any]:
    """Return what must be the same for a checkpoint to be continued."""
    base_directory = origin.check(settings.base_model)
    return of_settings(settings) | {
        "base_model": settings.recorded_base_model,
        "base_model_files": basemodel.digest_of_files(base_directory) if base_directory else None,
        "tokens": data.tokens.sha256[:16] if data.tokens else None,
        "order": ORDER,
        "dataset": data.document["sha256"],
        "total_steps": count_steps(settings, data),
        "early_stopping": _early_stopping(settings),
    }


def _early_stopping(settings: TrainSettings) -> str | None:
    """Return what decides when to stop; without early stopping, evaluations change nothing."""
    if settings.early_stopping_patience is None:
        return None
    return f"after {settings.early_stopping_patience} evaluations, one every {settings.evaluation_steps} steps"
