"""Texts that are learned as they stand: every token once, however the text is cut."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from model.exits import FailureError
from model.training.rows.documents import chunks
from model.training.rows.tokens import IGNORED, RowEncoder, TokenRows
from tests.training.chat_templates import make_tokenizer


def encode(tokenizer: Any, *texts: str, max_length: int = 512, too_long: str = "Truncate") -> TokenRows:
    encoder = RowEncoder(tokenizer, max_length=max_length, too_long=too_long)
    lines = [json.dumps({"text": text, "row": 10 + index}).encode() for index, text in enumerate(texts)]
    return encoder.encode(iter(lines), "the dataset's")


def ids(rows: TokenRows) -> list[list[int]]:
    return [list(rows.row(index)[0]) for index in range(len(rows))]


def learned(rows: TokenRows) -> list[int]:
    return [label for label in rows.labels if label != IGNORED]


@pytest.mark.parametrize("name", ["chatml", "plain", "llama3", "mistral"])
def test_a_text_is_what_the_tokenizer_makes_of_it_with_one_end_token(name: str) -> None:
    tokenizer = make_tokenizer(name)
    rows = encode(tokenizer, "Once upon a time. ")
    (row,) = ids(rows)
    assert row == [*tokenizer("Once upon a time. ")["input_ids"], tokenizer.eos_token_id]
    assert (row[0] == tokenizer.bos_token_id) == (tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id)
    assert list(rows.labels) == [IGNORED, *row[1:]]


def test_no_chat_template_has_a_part_in_it() -> None:
    tokenizer = make_tokenizer("chatml")
    shown = tokenizer.decode(encode(tokenizer, "Once upon a time.").ids)
    assert shown == f"Once upon a time.{tokenizer.eos_token}"


@pytest.mark.parametrize("name", ["chatml", "llama3"])
def test_begin_and_end_tokens_of_the_text_are_not_doubled(name: str) -> None:
    tokenizer = make_tokenizer(name)
    begin = tokenizer.bos_token if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id else ""
    rows = encode(tokenizer, "Why?", f"{begin}Why?{tokenizer.eos_token}")
    first, second = ids(rows)
    assert first == second
    assert rows.outcomes.special_tokens.first == ["row 11"]


@pytest.mark.parametrize("name", ["plain", "mistral"])
@pytest.mark.parametrize("max_length", [8, 9, 13, 64])
def test_each_token_of_a_long_text_is_learned_once(name: str, max_length: int) -> None:
    tokenizer = make_tokenizer(name)
    draw = random.Random(max_length)
    for words in range(1, 60):
        text = " ".join(draw.choice("abcdefgh") for _ in range(words))
        (whole,) = ids(encode(tokenizer, text, max_length=4096))
        rows = encode(tokenizer, text, max_length=max_length)
        assert learned(rows) == whole[1:]
        assert max(rows.lengths) <= max_length
        assert all(length == max_length for length in rows.lengths[:-1])
        for before, after in zip(ids(rows), ids(rows)[1:], strict=False):
            assert after[0] == before[-1]
        assert (rows.dropped, rows.truncated) == (0, 0)


@pytest.mark.parametrize("length", range(1, 40))
def test_a_chunk_has_something_to_learn_and_nothing_is_lost(length: int) -> None:
    found = list(chunks(range(length), 8))
    assert [token for chunk in found for token in chunk[1:]] == list(range(1, length))
    assert length == 1 or min(map(len, found)) >= 2


def test_it_is_told_how_many_texts_became_how_many_rows() -> None:
    rows = encode(make_tokenizer("plain"), "a", "b " * 30, "c " * 30, max_length=16)
    assert rows.outcomes.chunked.document() == {"rows": 2, "first": ["row 11", "row 12"]}
    assert rows.outcomes.chunked_rows == len(rows) - 1
    assert type(rows.outcomes).read(rows.outcomes.document()).chunked_rows == rows.outcomes.chunked_rows


def test_long_texts_can_be_left_out_or_fail_the_run() -> None:
    tokenizer = make_tokenizer("plain")
    rows = encode(tokenizer, "a", "b " * 30, max_length=16, too_long="Drop")
    assert (len(rows), rows.outcomes.too_long.first) == (1, ["row 11"])
    with pytest.raises(FailureError, match=r"row 11: has \d+ tokens, more than the 16 of maxLength"):
        encode(tokenizer, "a", "b " * 30, max_length=16, too_long="Fail")


def test_of_long_texts_few_are_in_memory_at_once() -> None:
    encoder = RowEncoder(make_tokenizer("plain"), max_length=512, too_long="Truncate")
    rows, made = TokenRows(), []

    def lines() -> Iterator[bytes]:
        for number in range(12):
            made.append(len(rows))
            yield json.dumps({"text": "a" * 1_000_000, "row": number}).encode()

    encoder.add(rows, lines(), "the dataset's", method="SFT")
    assert 0 < made[8] < made[-1] < len(rows)
    assert rows.outcomes.chunked.count == 12


def test_a_tokenizer_without_an_end_token_is_refused() -> None:
    tokenizer = make_tokenizer("plain")
    tokenizer.eos_token = None
    with pytest.raises(FailureError, match="has no end token"):
        encode(tokenizer, "a")


@pytest.mark.parametrize(
    ("line", "words"),
    [({"text": "a", "row": 7}, "method DPO needs prompt, chosen and rejected; these rows are for SFT"),
     ({"prompt": "a", "completion": "b", "label": True, "row": 7}, "these rows are for KTO: set method"),
     ({"text": "a"}, "is not what python -m model.data.export writes")],
)  # fmt: skip
def test_lines_of_another_method_are_refused(line: dict[str, Any], words: str) -> None:
    encoder = RowEncoder(make_tokenizer("chatml"), max_length=64, too_long="Truncate")
    with pytest.raises(FailureError, match=words):
        encoder.encode_preferences(iter([json.dumps(line).encode()]), "the dataset's")
