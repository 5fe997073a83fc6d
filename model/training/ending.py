"""The end of a run that has made its last step: evaluate, save the adapter, let it answer, record.

Sample answers are worth no second evaluation and no failed run: what was done before them lies in `trained.json`, so
that a process that is stopped in the middle of them makes them again and nothing else, and a run that cannot make them
ends without.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from model.files import FileDigest, RunDirectory, digest_directory, write_json, write_text
from model.result import as_failure, decimal
from model.training import build
from model.training.config import TrainSettings
from model.training.loop import computing
from model.training.loop.checkpoint import RunState
from model.training.loop.held_out import check_finite
from model.training.processes import hang, parallel
from model.training.result import CARD, build_document, model_card, save_adapter
from model.training.samples.making import make
from model.training.serving import Serving

EVALUATION_WORDS = {"evaluationLoss": "loss", "baseEvaluationLoss": "baseLoss"}
"""What a progress line calls the results' losses."""
ATTEMPTS = 3
"""How many processes may begin with the sample answers: so many that end in them end by them."""


@dataclass(frozen=True)
class Trained:
    """What has been done when the sample answers begin.

    Attributes
    ----------
    run_uid, step
        The run, and its last step.
    measured
        What the last evaluation has found, by the result's keys; nothing without held-out rows.
    files
        The adapter's files.
    attempts
        How many processes have begun with the sample answers.
    """

    run_uid: str
    step: int
    measured: dict[str, float]
    files: list[FileDigest]
    attempts: int = 0

    @classmethod
    def read(cls, directory: RunDirectory, run_uid: str, step: int) -> Trained | None:
        """Return what an earlier attempt has done, None when that is nothing, or of another run or another step."""
        try:
            document = json.loads(directory.trained.read_text(encoding="utf-8"))
            found = cls(**document | {"files": [FileDigest(**file) for file in document["files"]]})
        except (OSError, ValueError, KeyError, TypeError):
            return None
        same = (found.run_uid, found.step) == (run_uid, step)
        return found if same and _no_card(found.files) == _no_card(digest_directory(directory.adapter)) else None

    def write(self, directory: RunDirectory) -> None:
        """Keep it for the next attempt."""
        write_json(directory.trained, dataclasses.asdict(self))


def finish(
    trainer: Any, directory: RunDirectory, data: build.Data, past: build.Resumption, serving: Serving
) -> dict[str, Any]:
    """Evaluate, save the adapter, verify it, and write `training_config.json` last; the first process does that.

    The others take part in the evaluation and return nothing.
    """
    settings: TrainSettings = trainer.parts.settings
    state: RunState = trainer.run_state
    steps, best, first = trainer.state.global_step, trainer.take_best(), parallel.world().first
    trained = Trained.read(directory, settings.run_uid, steps) if first and past.step == steps else None
    measured = trained.measured if trained else {}
    if not parallel.gather(trained is not None)[0] and len(data.held_out):
        measured = trainer.final_evaluation()
    if not first:
        return {}
    _tell(trainer, measured, best or steps)
    result = _result(trainer, measured, best, past.step)
    if trained is None:
        card = model_card(settings, result, data.document, serving.warnings)
        with hang.during("while the adapter is saved"):
            files = save_adapter(trainer.model, settings, directory, card, serving.files)
        trained = Trained(settings.run_uid, steps, measured, files)
    samples, files = _samples(trainer, directory, data, serving, trained), trained.files
    if samples:
        write_text(directory.adapter / CARD, model_card(settings, result, data.document, serving.warnings, samples))
        files = digest_directory(directory.adapter)
    document = build_document(
        settings, result=result, files=files, dataset=data.document, timings=state.timings, history=state.history()
    )
    document["arithmetic"] = computing.how_computed(state)
    if past.origin is not None:
        document["resumedFrom"] = past.origin
    if samples:
        document["samples"] = samples
    write_json(directory.training_config, document)
    directory.trained.unlink(missing_ok=True)
    if trainer.parts.poster is not None:
        trainer.parts.poster.close()
    return document


def _tell(trainer: Any, measured: dict[str, float], step: int) -> None:
    """Tell what the last evaluation has found, and refuse losses that are no numbers."""
    if not measured:
        return
    told = {EVALUATION_WORDS.get(name, name): value for name, value in measured.items()}
    trainer.parts.log.emit("evaluation", step=step, final=True, **told)
    for name in EVALUATION_WORDS:
        check_finite(measured[name], step)


def _result(trainer: Any, measured: dict[str, float], best: int | None, resumed_from: int) -> dict[str, Any]:
    """Return what the record says about the training, without the adapter."""
    state: RunState = trainer.run_state
    result: dict[str, Any] = {
        "runUid": trainer.parts.settings.run_uid,
        "finalLoss": decimal(state.final_loss()),
        **{name: decimal(value) for name, value in measured.items()},
        "steps": trainer.state.global_step,
    }
    if best is not None:
        result["bestStep"] = best
    if state.left_out:
        result["leftOutSteps"] = state.left_out
    return result | {
        "tokens": state.tokens,
        "learnedTokens": state.learned_tokens,
        "paddedTokens": state.padded_tokens,
        "resumedFromStep": resumed_from,
    }


def _samples(
    trainer: Any, directory: RunDirectory, data: build.Data, serving: Serving, trained: Trained
) -> list[dict[str, Any]]:
    """Return the sample answers; none where they are not wanted or cannot be made, which a warning says."""
    settings: TrainSettings = trainer.parts.settings
    if not settings.samples or not len(data.held_out) or data.tokens is None:
        return []
    if trained.attempts >= ATTEMPTS:
        return _without(trainer, f"{trained.attempts} attempts ended while they were made")
    dataclasses.replace(trained, attempts=trained.attempts + 1).write(directory)
    try:
        with hang.during("in the sample answers"):
            return make(trainer, directory, build.read_manifest(directory), data.tokens.moment, serving.ends)
    except Exception as error:  # noqa: BLE001 - whatever it is, the adapter is there
        return _without(trainer, as_failure(error).message)


def _without(trainer: Any, reason: str) -> list[dict[str, Any]]:
    message = f"the run ends without sample answers (training.samples, --samples): {reason}"
    trainer.parts.log.emit("warning", step=trainer.state.global_step, message=message)
    return []


def _no_card(files: Sequence[FileDigest]) -> list[FileDigest]:
    """Return the files without the model card, into which the sample answers go."""
    return [file for file in files if file.path != CARD]
