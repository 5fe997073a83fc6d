"""What the model sees of a row and what it learns from it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest

from model.exits import FailureError
from model.training.rows.tokens import IGNORED, DigestedLines, RowEncoder, TokenRows

SYSTEM = "<|im_start|>system\nBe brief.<|im_end|>\n"


def encode(tokenizer: Any, *contents: dict[str, Any], max_length: int = 512, too_long: str = "Truncate") -> TokenRows:
    encoder = RowEncoder(tokenizer, max_length=max_length, too_long=too_long)
    lines = [json.dumps({**content, "row": 10 + index}).encode() for index, content in enumerate(contents)]
    return encoder.encode(iter(lines), "the dataset's")


def seen(tokenizer: Any, rows: TokenRows, index: int = 0) -> str:
    return str(tokenizer.decode(rows.ids[rows.offsets[index] : rows.offsets[index + 1]]))


def learned(tokenizer: Any, rows: TokenRows, index: int = 0) -> str:
    labels: Iterable[int] = rows.labels[rows.offsets[index] : rows.offsets[index + 1]]
    return str(tokenizer.decode([label for label in labels if label != IGNORED]))


@pytest.fixture
def plain(tokenizer: Any) -> Any:
    import copy

    without = copy.deepcopy(tokenizer)
    without.chat_template = None
    return without


def test_a_completion_is_one_assistant_turn(tokenizer: Any) -> None:
    rows = encode(tokenizer, {"prompt": "What is 2 times 2?", "completion": "It is 4."})
    turns = "<|im_start|>user\nWhat is 2 times 2?<|im_end|>\n<|im_start|>assistant\n"
    assert seen(tokenizer, rows) == SYSTEM + turns + "It is 4.<|im_end|>"
    assert learned(tokenizer, rows) == "It is 4.<|im_end|>"


def test_what_precedes_the_answer_is_what_inference_shows(tokenizer: Any) -> None:
    rows = encode(tokenizer, {"prompt": "Why?", "completion": "Because."})
    question = [{"role": "user", "content": "Why?"}]
    shown = tokenizer.apply_chat_template(question, add_generation_prompt=True)["input_ids"]
    first = next(index for index, label in enumerate(rows.labels) if label != IGNORED)
    assert list(rows.ids[:first]) == shown


def test_every_assistant_turn_is_learned_and_nothing_else(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "Count."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Three?"},
        {"role": "assistant", "content": "Four."},
        {"role": "user", "content": "Thanks."},
    ]
    rows = encode(tokenizer, {"messages": messages})
    assert learned(tokenizer, rows) == "Two.<|im_end|>Four.<|im_end|>"
    assert seen(tokenizer, rows).endswith("Four.<|im_end|>")


def test_without_a_template_the_end_token_closes_the_completion(plain: Any) -> None:
    rows = encode(plain, {"prompt": "2 + 2 =", "completion": " 4"})
    assert seen(plain, rows) == "2 + 2 = 4<|im_end|>"
    assert learned(plain, rows) == " 4<|im_end|>"


def test_the_first_token_is_never_learned(plain: Any) -> None:
    rows = encode(plain, {"prompt": "", "completion": "4 and 5"})
    assert [label == IGNORED for label in rows.labels] == [True] + [False] * (len(rows.ids) - 1)


def test_a_row_without_a_token_has_nothing_to_learn(plain: Any) -> None:
    rows = encode(plain, {"prompt": "", "completion": ""})
    assert (len(rows), rows.outcomes.no_learnable_token.count) == (0, 1)


def test_messages_need_a_template(plain: Any) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(
        FailureError, match=r"row 10: it has messages, but the base model has no chat template"
    ) as caught:
        encode(plain, {"messages": messages})
    assert (caught.value.code, caught.value.row) == (3, 10)


def test_long_rows_are_truncated_and_counted(tokenizer: Any) -> None:
    short, long = {"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "so " * 100}
    rows = encode(tokenizer, short, long, max_length=60)
    assert (len(rows), rows.truncated, rows.dropped) == (2, 1, 0)
    assert rows.lengths[1] == 60


def test_a_prompt_that_leaves_nothing_to_learn_is_left_out_and_counted_by_itself(tokenizer: Any) -> None:
    rows = encode(tokenizer, {"prompt": "so " * 100, "completion": "b"}, max_length=60)
    assert (len(rows), rows.truncated, rows.dropped) == (0, 0, 1)
    assert rows.outcomes.no_learnable_token.document() == {"rows": 1, "first": ["row 10"]}
    assert rows.outcomes.too_long.count == 0


def test_a_row_that_just_fits_stays_whole(tokenizer: Any) -> None:
    row = {"prompt": "a", "completion": "so so"}
    length = encode(tokenizer, row).lengths[0]
    for too_long in ("Truncate", "Drop", "Fail"):
        rows = encode(tokenizer, row, max_length=length, too_long=too_long)
        assert (rows.lengths, rows.truncated, rows.dropped) == ([length], 0, 0)
    cut = encode(tokenizer, row, max_length=length - 1)
    assert (cut.lengths, cut.truncated) == ([length - 1], 1)


def test_long_rows_are_dropped_on_request(tokenizer: Any) -> None:
    rows = encode(tokenizer, {"prompt": "a", "completion": "so " * 100}, max_length=60, too_long="Drop")
    assert (len(rows), rows.dropped, rows.outcomes.too_long.count) == (0, 1, 1)


def test_a_long_row_fails_the_run_on_request(tokenizer: Any) -> None:
    length = encode(tokenizer, {"prompt": "a", "completion": "so " * 100}).lengths[0]
    with pytest.raises(
        FailureError,
        match=rf"row 11: has {length} tokens, more than the 60 of maxLength: raise training\.maxLength "
        rf"\(--max-length\) to {length}, or set dataset\.tooLong \(--too-long\) to Truncate or Drop",
    ) as caught:
        encode(
            tokenizer,
            {"prompt": "a", "completion": "b"},
            {"prompt": "a", "completion": "so " * 100},
            max_length=60,
            too_long="Fail",
        )
    assert caught.value.row == 11


def test_without_a_usable_row_it_is_said_why_and_what_would_help(tokenizer: Any) -> None:
    long, longer = {"prompt": "so " * 100, "completion": "b"}, {"prompt": "so " * 120, "completion": "b"}
    longest = encode(tokenizer, longer, max_length=4096).lengths[0]
    rows = encode(tokenizer, long, longer, max_length=60)
    failure = rows.outcomes.nothing_left(60)
    assert (failure.code, failure.reason) == (3, "DatasetInvalid")
    assert failure.message == (
        "none of the dataset's 2 rows can be trained on; 2 with nothing left to learn within 60 tokens "
        f"(first row 10, row 11): raise training.maxLength (--max-length) from 60 to {longest}, the tokens of the "
        "longest row"
    )


def test_only_the_first_places_are_kept(tokenizer: Any) -> None:
    rows = encode(tokenizer, *[{"prompt": "a", "completion": "so " * 100}] * 8, max_length=60)
    assert rows.outcomes.truncated.document() == {"rows": 8, "first": [f"row {n}" for n in range(10, 15)]}


def test_rows_of_several_files_are_named_by_file(tokenizer: Any) -> None:
    rows = encode(tokenizer, {"prompt": "a", "completion": "so " * 100, "file": "b.jsonl"}, max_length=60)
    assert rows.outcomes.truncated.first == ["b.jsonl row 10"]


def test_more_rows_than_are_tokenised_at_once_keep_their_order(tokenizer: Any) -> None:
    contents = [{"prompt": str(number), "completion": "b"} for number in range(1100)]
    rows = encode(tokenizer, *contents)
    assert len(rows) == 1100
    assert "user\n1099<" in seen(tokenizer, rows, 1099)


@pytest.mark.parametrize(
    "line", [b"{", b"[1]", b'{"prompt": "a", "completion": "b"}', b'{"row": 1, "body": "a"}', b"\xff"]
)
def test_a_line_that_the_export_did_not_write_is_told_from_an_invalid_row(tokenizer: Any, line: bytes) -> None:
    encoder = RowEncoder(tokenizer, max_length=64, too_long="Fail")
    good = b'{"prompt": "a", "completion": "b", "row": 1}'
    with pytest.raises(FailureError, match=r"exported line 2 is not what .* writes: export the dataset again"):
        encoder.encode(iter([good, line]), "the dataset's")


def test_pairs_are_refused_where_conversations_are_expected(tokenizer: Any) -> None:
    with pytest.raises(FailureError, match=r"row 10: method SFT needs .*set method \(--method\) to DPO"):
        encode(tokenizer, {"prompt": "a", "chosen": "b", "rejected": "c"})


def test_the_rows_are_the_same_in_a_dataset(tokenizer: Any, rows: list[dict[str, Any]]) -> None:
    encoded = encode(tokenizer, *rows)
    dataset = encoded.as_dataset()
    assert [row["input_ids"] for row in dataset] == [
        list(encoded.ids[a:b]) for a, b in zip(encoded.offsets, encoded.offsets[1:], strict=False)
    ]
    assert sum(len(row["labels"]) for row in dataset) == len(encoded.labels)


def test_lines_are_digested_over_all_files(tmp_path: Any) -> None:
    import hashlib

    for name, text in (("a", b"1\n2\n"), ("b", b"3\n")):
        (tmp_path / name).write_bytes(text)
    lines = DigestedLines()
    assert [*lines.read(tmp_path / "a"), *lines.read(tmp_path / "b")] == [b"1\n", b"2\n", b"3\n"]
    assert lines.sha256() == hashlib.sha256(b"1\n2\n3\n").hexdigest()
