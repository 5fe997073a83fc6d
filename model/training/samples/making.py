"""Asks a trained model a few held-out prompts, with its adapter and without."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from model.files import RunDirectory
from model.training.config import TrainSettings
from model.training.loop import generators
from model.training.rows.making import encoder_for
from model.training.samples.answers import answers
from model.training.samples.questions import NEW_TOKENS, Question, Reader
from model.training.weights.adapters import Reference


def make(
    trainer: Any, directory: RunDirectory, manifest: dict[str, Any], moment: datetime, ends: Sequence[int]
) -> list[dict[str, Any]]:
    """Return the answers to held-out prompts, see `Question.answered`; the training's random numbers stay as they are.

    The base's are those of the model that `baseEvaluationLoss` is of: the plain base, for DPO the reference.

    Parameters
    ----------
    trainer
        The run's, with the adapter that is its result.
    directory
        The run's directory, with the exported rows.
    manifest
        What the export wrote about them.
    moment
        When the rows were rendered.
    ends
        Tokens that end an answer.
    """
    questions = _questions(trainer, directory, manifest, moment)
    if not questions:
        return []
    prompts = [question.ids for question in questions]
    tokenizer, model = trainer.processing_class, trainer.model
    training = model.training
    model.eval()
    try:
        with generators.untouched(), trainer.compute_loss_context_manager():
            with Reference(model)():
                base = answers(model, prompts, ends=ends, most=NEW_TOKENS)
            adapter = answers(model, prompts, ends=ends, most=NEW_TOKENS)
    finally:
        model.train(training)
    return [
        question.answered(
            _text(tokenizer, its_base[0]),
            _text(tokenizer, its_adapter[0]),
            [name for name, (_, ended) in (("base", its_base), ("adapter", its_adapter)) if not ended],
        )
        for question, its_base, its_adapter in zip(questions, base, adapter, strict=True)
    ]


def _questions(trainer: Any, directory: RunDirectory, manifest: dict[str, Any], moment: datetime) -> list[Question]:
    settings: TrainSettings = trainer.parts.settings
    tokenizer = trainer.processing_class
    reader = Reader(
        encoder_for(settings, manifest, tokenizer, moment),
        lambda tokens: _text(tokenizer, tokens),
        pairs=settings.method == "DPO",
        positions=getattr(trainer.model.config.get_text_config(), "max_position_embeddings", None),
    )
    return reader.choose(directory.evaluation_rows, settings.samples, manifest["evaluationRows"])


def _text(tokenizer: Any, tokens: Sequence[int]) -> str:
    text: str = tokenizer.decode(tokens, skip_special_tokens=True)
    return text.strip()
