"""What the rows of a batch begin with alike is tokenised once, and no row gets other tokens for that."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from model.training.rows.beginnings import Beginnings

MARKERS = ("<s>", "<turn>", "</turn>", "user<turn>", "<turn>!", "\n<turn>")
LETTERS = "abustern AB!\n▁<>/"


def make_tokenizer(added: Sequence[AddedToken], *, prepends: bool) -> Any:
    """Letters as tokens, and the markers; or as Llama's, which writes a word's beginning before a text's first."""
    vocabulary = {text: index for index, text in enumerate([*LETTERS, "ab", "er"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b"), ("e", "r")]))
    if prepends:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        backend.normalizer = normalizers.Lowercase()
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.add_tokens(list(added))
    return tokenizer


def ids_of(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return [found.ids for found in tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)]


def in_two(tokenizer: Any, texts: list[str]) -> tuple[list[list[int]], str]:
    """The tokens of the texts by way of what they begin with, and that."""
    beginning, first = Beginnings(tokenizer, lambda some: ids_of(tokenizer, some)).of(texts)
    return [first + ids for ids in ids_of(tokenizer, [text[len(beginning) :] for text in texts])], beginning


@pytest.mark.parametrize("prepends", [False, True])
@pytest.mark.parametrize("flags", [{}, {"lstrip": True}, {"rstrip": True}, {"single_word": True}, {"normalized": True}])
def test_no_row_gets_other_tokens(flags: dict[str, bool], prepends: bool) -> None:
    """Texts of markers, white space and letters, for tokenizers with ever other markers."""
    draw = random.Random(5)
    cut = 0
    for _ in range(40):
        chosen = draw.sample(MARKERS, draw.randrange(1, 4))
        added = [AddedToken(text, **({"normalized": False} | flags)) for text in chosen]
        tokenizer = make_tokenizer(added, prepends=prepends)
        parts = [*chosen, *MARKERS, *LETTERS, " ", "\n"]
        shared = "".join(draw.choices(parts, k=draw.randrange(12)))
        texts = [shared + "".join(draw.choices(parts, k=draw.randrange(6))) for _ in range(20)]
        found, beginning = in_two(tokenizer, texts)
        assert found == ids_of(tokenizer, texts), (chosen, shared)
        cut += bool(beginning)
    assert (cut > 0) == (not flags.keys() & {"lstrip", "single_word", "normalized"})


def test_what_all_begin_with_ends_before_the_last_marker_that_they_share() -> None:
    tokenizer = make_tokenizer([AddedToken("<turn>", normalized=False)], prepends=False)
    texts = [f"<turn>be<turn>u {letter}" for letter in "aabbss" * 3]
    assert in_two(tokenizer, texts)[1] == "<turn>be"
    assert not in_two(tokenizer, texts[:3])[1]  # too few
    assert not in_two(tokenizer, ["", *texts])[1]
    longer = make_tokenizer([AddedToken(text, normalized=False) for text in ("<turn>", "e<turn>u s")], prepends=False)
    assert not in_two(longer, texts)[1]  # one row's marker begins before


def test_what_texts_begin_with_is_tried_again_before_another_marker() -> None:
    markers = ("<turn>", "<s>", "e<s>")
    tokenizer = make_tokenizer([AddedToken(text, normalized=False) for text in markers], prepends=False)
    beginnings = Beginnings(tokenizer, lambda some: ids_of(tokenizer, some))
    assert beginnings.of([f"abe<turn>{letter}" for letter in "abstu" * 4])[0] == "abe"
    assert not beginnings.of([f"abe<s>{letter}" for letter in "abstu" * 4])[0]  # here e belongs to the marker
