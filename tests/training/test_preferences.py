"""Preference pairs: one prompt, two whole answers, and what is kept of them when they are too long."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from model.exits import FailureError
from model.training.rows.encoding import Encoded
from model.training.rows.outcomes import Place
from model.training.rows.preferences import Answer, Answered
from model.training.rows.report import render_mask
from model.training.rows.tokens import IGNORED, PreferenceRows, RowEncoder
from tests.training.chat_templates import STYLES, make_tokenizer

PAIR = {"prompt": "Hi.", "chosen": "Yes?", "rejected": "No."}
TURNS = [{"role": "user", "content": "Hi."}]


def encode(
    tokenizer: Any, *contents: dict[str, Any], max_length: int = 512, too_long: str = "Truncate"
) -> PreferenceRows:
    lines = (json.dumps({"row": number, **content}).encode() for number, content in enumerate(contents, 7))
    return RowEncoder(tokenizer, max_length=max_length, too_long=too_long).encode_preferences(lines, "the dataset's")


def masked(tokenizer: Any, rows: PreferenceRows, index: int = 0) -> tuple[str, str]:
    return (
        render_mask(tokenizer, *rows.chosen.row(index), limit=9999),
        render_mask(tokenizer, *rows.rejected.row(index), limit=9999),
    )


def prompts(rows: PreferenceRows, index: int = 0) -> tuple[list[int], list[int]]:
    chosen, rejected = (
        list(ids[: next(at for at, label in enumerate(labels) if label != IGNORED)])
        for ids, labels in (rows.chosen.row(index), rows.rejected.row(index))
    )
    return chosen, rejected


@pytest.mark.parametrize("name", STYLES)
def test_both_answers_are_learned_whole_after_the_same_prompt(name: str) -> None:
    tokenizer = make_tokenizer(name)
    rows = encode(tokenizer, PAIR)
    chosen, rejected = masked(tokenizer, rows)
    assert chosen.count("⟦") == rejected.count("⟦") == 1
    assert rejected == chosen.replace("Yes?", "No.")
    shown, also_shown = prompts(rows)
    assert shown == also_shown
    assert rows.lengths == [len(rows.chosen.ids) + len(rows.rejected.ids)]


def test_the_sequences_are_those_of_a_conversation() -> None:
    tokenizer = make_tokenizer("llama3")
    rows = encode(tokenizer, PAIR)
    encoder = RowEncoder(tokenizer, max_length=512, too_long="Fail")
    for part, answer in ((rows.chosen, "chosen"), (rows.rejected, "rejected")):
        line = json.dumps({"prompt": "Hi.", "completion": PAIR[answer], "row": 1}).encode()
        assert part.row(0) == encoder.encode(iter([line]), "").row(0)


def test_turns_of_the_prompt_are_not_learned_and_all_turns_of_an_answer_are() -> None:
    tokenizer = make_tokenizer("marked")
    prompt = [*TURNS, {"role": "assistant", "content": "what"}, *TURNS]
    chosen = [
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]
    row = {"prompt": prompt, "chosen": chosen, "rejected": chosen[:1]}
    first, second = masked(tokenizer, encode(tokenizer, row))
    assert second.endswith(
        "assistant\nwhat<|im_end|><|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n⟦a<|im_end|>⟧"
    )
    assert first == second + "<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n⟦c<|im_end|>⟧"


def test_tools_are_shown_to_both_answers() -> None:
    tokenizer = make_tokenizer("tools")
    tool = {"type": "function", "function": {"name": "weather"}}
    call = {"type": "function", "function": {"name": "weather", "arguments": {}}}
    row = {
        "prompt": TURNS,
        "chosen": [{"role": "assistant", "content": "", "tool_calls": [call]}],
        "rejected": [{"role": "assistant", "content": "No."}],
        "tools": [tool],
    }
    chosen, rejected = masked(tokenizer, encode(tokenizer, row))
    assert '⟦<tool_call>\n{"name": "weather"' in chosen
    assert rejected.endswith("⟦No.<|im_end|>⟧")
    assert chosen.split("⟦")[0] == rejected.split("⟦")[0]
    assert "weather" in rejected


def test_where_one_answer_merges_with_the_prompt_both_begin_a_token_earlier() -> None:
    tokenizer = make_tokenizer("plain")
    rows = encode(tokenizer, {"prompt": "the answer is y", "chosen": "es", "rejected": "ou!"})
    alone = tokenizer("the answer is y")["input_ids"]
    chosen, rejected = prompts(rows)
    assert chosen == rejected == alone[: len(chosen)]
    assert len(chosen) < len(alone)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"chosen": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]},
            "chosen: must begin with",
        ),
        ({"rejected": []}, "rejected: must begin with"),
        ({"prompt": []}, "chosen: must begin with"),
    ],
)
def test_answers_to_different_prompts_are_refused(change: dict[str, Any], words: str) -> None:
    answer = [{"role": "assistant", "content": "b"}]
    row = {"prompt": TURNS, "chosen": answer, "rejected": answer} | change
    with pytest.raises(FailureError, match=f"row 7: {words} the assistant's turn"):
        encode(make_tokenizer("chatml"), row)


def test_a_prompt_whose_tokens_differ_ends_where_they_part() -> None:
    place = Place("", None, 1)
    pair = Answered.of(Encoded([1, 2, 3, 4], [(3, 4)], place), Encoded([1, 5, 3, 6], [(2, 4)], place))
    assert pair.sequences() == [([1, 2, 3, 4], [IGNORED, 2, 3, 4]), ([1, 5, 3, 6], [IGNORED, 5, 3, 6])]


def test_a_failure_of_the_template_names_the_field() -> None:
    row = {
        "prompt": TURNS,
        "chosen": [{"role": "assistant", "content": "a"}, *TURNS, {"role": "assistant", "content": "c"}],
        "rejected": [{"role": "assistant", "content": "b"}],
    }
    with pytest.raises(FailureError, match=r"row 7: chosen\[0\]: .*differently once later turns follow"):
        encode(make_tokenizer("thinking"), row)


def test_messages_need_a_template() -> None:
    answer = [{"role": "assistant", "content": "b"}]
    with pytest.raises(FailureError, match=r"row 7: it has messages, but the base model has no chat template"):
        encode(make_tokenizer("plain"), {"prompt": TURNS, "chosen": answer, "rejected": answer})


def test_conversations_are_refused_where_pairs_are_expected() -> None:
    with pytest.raises(FailureError, match=r"row 7: method DPO needs .*set method \(--method\) to SFT"):
        encode(make_tokenizer("chatml"), {"prompt": "a", "completion": "b"})


def test_a_long_prompt_loses_its_beginning_but_not_the_begin_token() -> None:
    tokenizer = make_tokenizer("llama3")
    whole = encode(tokenizer, PAIR | {"prompt": "b " * 100 + "Hi."})
    limit = whole.chosen.lengths[0] - 20
    rows = encode(tokenizer, PAIR | {"prompt": "b " * 100 + "Hi."}, max_length=limit)
    chosen, rejected = masked(tokenizer, rows)
    assert (len(rows), rows.truncated, rows.dropped) == (1, 1, 0)
    assert chosen.startswith("<|begin_of_text|>b b")
    assert chosen.endswith("Hi.<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n⟦Yes?<|eot_id|>⟧")
    assert rejected == chosen.replace("Yes?", "No.")
    assert max(*rows.chosen.lengths, *rows.rejected.lengths) == limit


def test_an_answer_over_the_limit_is_cut_at_its_end() -> None:
    tokenizer = make_tokenizer("mistral")
    rows = encode(tokenizer, {"prompt": "what " * 9, "chosen": "b " * 100, "rejected": "No."}, max_length=24)
    chosen, rejected = masked(tokenizer, rows)
    assert rows.chosen.lengths == [24]
    assert "</s>" not in chosen
    assert rejected.endswith("No.</s>⟧")
    assert prompts(rows)[0] == prompts(rows)[1]
    assert prompts(rows)[0][0] == tokenizer.bos_token_id


def test_pairs_over_the_limit_are_dropped_on_request() -> None:
    rows = encode(make_tokenizer("mistral"), PAIR | {"prompt": "b " * 100}, PAIR, max_length=40, too_long="Drop")
    assert (len(rows), rows.truncated, rows.dropped) == (1, 0, 1)
    assert rows.outcomes.too_long.first == ["row 7"]


def test_a_pair_over_the_limit_fails_the_run_on_request() -> None:
    with pytest.raises(FailureError, match=r"row 8: has \d+ tokens, more than the 40 of maxLength") as caught:
        encode(make_tokenizer("mistral"), PAIR, PAIR | {"rejected": "b " * 100}, max_length=40, too_long="Fail")
    assert caught.value.row == 8


def test_answers_that_are_the_same_after_the_cut_are_left_out_and_counted() -> None:
    same = {"prompt": "Hi.", "chosen": "b " * 100 + "yes", "rejected": "b " * 100 + "no"}
    rows = encode(make_tokenizer("mistral"), PAIR, same, max_length=40)
    assert (len(rows), rows.truncated, rows.dropped) == (1, 0, 1)
    assert rows.outcomes.equal_answers.document() == {"rows": 1, "first": ["row 8"]}
    assert len(encode(make_tokenizer("mistral"), same)) == 1


def test_answers_that_the_template_makes_equal_are_left_out_or_fail_the_run() -> None:
    same = {"prompt": "Hi.", "chosen": "Yes?", "rejected": "Yes? \n"}
    tokenizer = make_tokenizer("llama3")
    assert encode(tokenizer, same).outcomes.equal_answers.count == 1
    with pytest.raises(FailureError, match="row 7: chosen and rejected are the same tokens"):
        encode(tokenizer, same, too_long="Fail")


def test_without_a_usable_pair_it_is_said_why_and_what_would_help() -> None:
    same = {"prompt": "Hi.", "chosen": "b " * 100 + "yes", "rejected": "b " * 100 + "no"}
    outcomes = encode(make_tokenizer("mistral"), same, max_length=40).outcomes
    assert outcomes.nothing_left(40).message == (
        "none of the dataset's 1 rows can be trained on; 1 with chosen and rejected the same tokens (first row 7): "
        f"raise training.maxLength (--max-length) from 40 to {outcomes.longest}, the tokens of the longest row"
    )


@pytest.mark.parametrize("seed", range(100))
def test_a_cut_keeps_the_prompts_end_and_the_answers_beginnings(seed: int) -> None:
    chance = random.Random(seed)
    prompt, chosen, rejected = (
        [chance.randint(10, 30) for _ in range(chance.choice((least, least + 1, chance.randint(least, 40))))]
        for least in (0, 1, 1)
    )
    lead, limit = chance.random() < 0.5, chance.randint(3, 60)
    prompt = [1, *prompt] if lead else prompt
    pair = Answered(prompt, (Answer(chosen, chosen), Answer(rejected, rejected)))
    cut = pair.cut(limit, frozenset({1}))
    assert cut.length <= limit
    assert cut.length == min(pair.length, limit)
    rest = cut.prompt[1:] if lead else cut.prompt
    first, second = cut.answers
    assert prompt[len(prompt) - len(rest) :] == rest
    assert not lead or cut.prompt[0] == 1
    assert len(cut.prompt) >= min(len(prompt), 1 + lead)
    assert first.ids == chosen[: len(first.ids)]
    assert second.ids == rejected[: len(second.ids)]
    longer = max(len(chosen), len(rejected))
    if len(first.ids) < len(chosen) or len(second.ids) < len(rejected):
        assert longer + min(len(prompt), 1 + lead) > limit  # answers are cut only when they leave no room for a prompt
