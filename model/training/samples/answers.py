"""What a model answers: always the likeliest token, whatever its files say about sampling."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria

from model.training.processes import hang

_TOLERANCE = 0.1
"""How far a prompt's logits may be from those that it gets alone, in standard deviations: bfloat16 rounds that much."""


def answers(
    model: Any, prompts: Sequence[Sequence[int]], *, ends: Sequence[int], most: int
) -> list[tuple[list[int], bool]]:
    """Return for each prompt the likeliest tokens after it, and whether they came to an end.

    All prompts are answered at once, padded on the left, where the model gives each what it would get alone; else one
    after the other. Greedy: no setting of the model's own generation configuration counts. No random numbers are drawn;
    to be called in evaluation mode.

    Parameters
    ----------
    model
        A causal language model, with adapters or without.
    prompts
        Their tokens.
    ends
        Tokens that end an answer; the one that does is part of it.
    most
        The longest answer.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    groups = [prompts] if _as_alone(inner, prompts) else [[prompt] for prompt in prompts]
    return [answer for group in groups for answer in _generate(inner, group, ends=ends, most=most)]


def _generate(
    model: Any, prompts: Sequence[Sequence[int]], *, ends: Sequence[int], most: int
) -> list[tuple[list[int], bool]]:
    inputs = _padded(model, prompts)
    with torch.no_grad(), _without_configuration(model):
        output = model.generate(
            **inputs,
            generation_config=GenerationConfig(
                do_sample=False,
                num_beams=1,
                max_new_tokens=most,
                use_cache=True,
                eos_token_id=list(ends) or None,
                pad_token_id=ends[0] if ends else 0,
            ),
            stopping_criteria=[_Alive()],
        )
    return [_up_to_end(row, ends) for row in output[:, inputs["input_ids"].shape[1] :].tolist()]


def _up_to_end(tokens: list[int], ends: Sequence[int]) -> tuple[list[int], bool]:
    """Return an answer without what fills it up to the longest one's length, and whether it came to an end."""
    last = next((index for index, token in enumerate(tokens) if token in ends), None)
    return (tokens, False) if last is None else (tokens[: last + 1], True)


def _padded(model: Any, prompts: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """Return the prompts as a batch, (prompts, tokens of the longest), each at the end of its row."""
    longest = max(map(len, prompts))
    ids = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    device = model.get_input_embeddings().weight.device
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


def _as_alone(model: Any, prompts: Sequence[Sequence[int]]) -> bool:
    """Whether the prompt with the most padding before it gets the logits that it gets alone.

    A recurrent model reads the padding, too, and some models count positions from the row's beginning.
    """
    shortest = min(range(len(prompts)), key=lambda index: len(prompts[index]))
    if len(prompts[shortest]) == max(map(len, prompts)):
        return True
    padded, alone = (_first_logits(model, some)[-1] for some in (_last(prompts, shortest), [prompts[shortest]]))
    return bool((padded - alone).abs().max() <= _TOLERANCE * alone.std())


def _last(prompts: Sequence[Sequence[int]], index: int) -> list[Sequence[int]]:
    """Return the longest prompt and the one meant, which comes last."""
    return [max(prompts, key=len), prompts[index]]


def _first_logits(model: Any, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the logits of the first answered token, (prompts, vocabulary), as generation computes them."""
    with torch.no_grad(), _without_configuration(model):
        found = model.generate(
            **_padded(model, prompts),
            generation_config=GenerationConfig(
                do_sample=False,
                num_beams=1,
                max_new_tokens=1,
                use_cache=True,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_logits=True,
            ),
        )
    logits: torch.Tensor = found.logits[0].float()
    return logits


@contextlib.contextmanager
def _without_configuration(model: Any) -> Iterator[None]:
    """Keep away what the model's files say about generation: it would fill in whatever is not set."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


class _Alive(StoppingCriteria):
    """Tells of each token that something happens, and stops nothing."""

    def __call__(self, input_ids: torch.Tensor, _scores: Any, **_options: Any) -> torch.Tensor:
        hang.alive()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
