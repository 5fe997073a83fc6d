"""Where learned spans begin and end among the tokens, and what becomes of a token that would lie on a border."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from typing import Any

import pytest

from model.training.rows.tokens import IGNORED
from tests.training.chat_templates import STYLES, encode, make_tokenizer


def test_an_answer_whose_beginning_merges_with_the_prompt_is_learned_whole() -> None:
    tokenizer = make_tokenizer("plain")
    row = {"prompt": "the answer is y", "completion": "es and no"}
    ids, labels = encode(tokenizer, row).row(0)
    learned = tokenizer.decode([label for label in labels if label != IGNORED])
    alone = tokenizer(row["prompt"])["input_ids"]
    assert list(ids[: len(alone)]) != alone  # the tokenizer does merge them
    assert learned.endswith("es and no</s>")
    assert len(learned) < len("the answer is yes and no</s>")


MARKERS = ("<s>", "a<|im_start|>b", "<|end|> x", "é漢", "<think>a</think>b", "</s>")


def random_text(chance: random.Random) -> str:
    while not (text := "".join(chance.choices("ab .\n!?YeswhyH", k=chance.randint(1, 12)))).strip():
        pass
    return text


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("name", [name for name in STYLES if name not in ("thinking", "no-end", "plain")])
def test_the_spans_are_those_found_by_tokenising_every_prefix_alone(name: str, seed: int) -> None:
    chance = random.Random(seed)
    answers = [
        (chance.choice([random_text(chance), chance.choice(MARKERS)]), random_text(chance))
        for _ in range(chance.randint(1, 3))
    ]
    tokenizer = make_tokenizer(name)
    messages = [
        {"role": role, "content": text}
        for turn in answers
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    ids, labels = encode(tokenizer, {"messages": messages}).row(0)
    assert list(labels) == expected_labels(tokenizer, messages, list(ids))


def expected_labels(tokenizer: Any, messages: list[dict[str, str]], ids: list[int]) -> list[int]:
    def tokens(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    labels = [IGNORED] * len(ids)
    borders: list[str] = []
    for index in range(1, len(messages), 2):
        prompt = tokenizer.apply_chat_template(messages[:index], tokenize=False, add_generation_prompt=True)
        through = tokenizer.apply_chat_template(messages[: index + 1], tokenize=False)
        if not through.startswith(prompt):
            prompt = prompt.removesuffix("<think>\n")
        borders += [prompt, through.rstrip().removesuffix("<|endoftext|>").rstrip()]
    ends = [common(tokens(text), ids) for text in borders]
    if tokens(borders[-1]) != ids:  # an answer's beginning would be one token with the end of what asks for it
        cuts = [0, *map(len, borders)]
        pieces = [tokens(borders[-1][start:end]) for start, end in itertools.pairwise(cuts)]
        assert [token for piece in pieces for token in piece] == ids
        ends = list(itertools.accumulate(map(len, pieces)))
    for start, end in zip(ends[::2], ends[1::2], strict=True):
        labels[start:end] = ids[start:end]
    return labels


def test_an_answer_that_would_be_one_token_with_the_prompt_is_tokenised_apart_as_inference_does() -> None:
    tokenizer = make_tokenizer("chatml")
    ids, labels = encode(tokenizer, {"prompt": "Hi.", "completion": "\nYes?"}).row(0)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Hi."}], add_generation_prompt=True)[
        "input_ids"
    ]
    assert list(ids[: len(prompt)]) == prompt
    assert list(tokenizer("<|im_start|>assistant\n\nYes?")["input_ids"]) != [*prompt[-3:], *ids[len(prompt) : -1]]
    assert list(labels) == [IGNORED] * len(prompt) + list(ids[len(prompt) :])


def common(prefix: Iterable[int], ids: list[int]) -> int:
    return next((at for at, (a, b) in enumerate(zip(prefix, ids, strict=False)) if a != b), len(list(prefix)))
