"""Whether a base model knows anything of the rows: one that is read wrongly says less than blind guessing does."""

from __future__ import annotations

import functools
import math
import statistics
from typing import Any

from model import exits
from model.exits import FailureError
from model.training.rows.tokens import TokenRows

ROWS = 4
TOKENS = 256
"""How many of the first rows are looked at, and how many tokens of each: on a CPU, a fraction of a step."""
DIFFERENT = 16
"""How many different tokens it takes to judge by; rows that repeat one or two say nothing about a model."""
MARGIN = 2.0
"""How much worse than guessing a model may be, in nats: one with random weights, as tests take, is a little worse."""


def check(model: Any, rows: TokenRows, base_model: str) -> None:
    """Refuse a model that gives the rows' tokens, all of them, less probability than guessing would.

    Guessing gives each token of the vocabulary the same, a loss of ln(vocabulary). A model that gives no numbers at all
    is left to the training, which says for which rows. The model is left as it was and draws no random numbers.

    Parameters
    ----------
    model
        The base, or with an adapter on it that changes nothing yet, or a parent's.
    rows
        Rows to try.
    base_model
        What to call it.

    Raises
    ------
    FailureError
        With both losses.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    measured, guessed = typical_loss(model, rows), math.log(vocabulary)
    if measured > guessed + MARGIN:
        raise FailureError(
            exits.DOES_NOT_EXIST,
            "BaseModelUnavailable",
            f"the base model {base_model} has a loss of {measured:.2f} on a token of the first rows (the median), more "
            f"than the {guessed:.2f} of blind guessing among its {vocabulary:,} tokens: its weights or its tokenizer "
            "are not what they should be (mixed up, or stored in a form that was not understood): get its files again, "
            "or name another model",
        )


def typical_loss(model: Any, rows: TokenRows) -> float:
    """Return the median loss of the tokens of the first rows, learned or not, in nats; NaN when they are too few.

    The median, for some tokens may be new to a good base: a template's headers, or a vocabulary that was extended.
    """
    import torch

    from model.training.loop import head
    from model.training.weights import trial

    device = model.get_input_embeddings().weight.device
    chosen = [rows.row(index)[0][:TOKENS].tolist() for index in range(min(ROWS, len(rows)))]
    if len(set().union(*chosen)) < DIFFERENT:
        return math.nan
    losses: list[float] = []
    with trial.evaluating(model), torch.no_grad():
        for row in chosen:
            ids = torch.tensor(row, device=device)
            places = torch.arange(len(row) - 1, device=device)
            losses += head.losses(model, ids[1:], places, functools.partial(model, ids[None], use_cache=False)).tolist()
    return statistics.median(losses) if losses else math.nan
