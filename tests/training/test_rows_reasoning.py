"""Turns that are seen and not learned, and what assistants think beside what they say."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from model.exits import FailureError
from model.training.rows.report import render_mask
from model.training.rows.tokens import RowEncoder
from tests.training.chat_templates import STYLES, make_tokenizer

IM_USER, IM_ASSISTANT = "<|im_start|>user\n", "<|im_start|>assistant\n"
USER = {"role": "user", "content": "Hi."}
YES = {"role": "assistant", "content": "Yes?"}
NO = {"role": "assistant", "content": "No."}
SEEN = {**YES, "weight": 0}


def thinks(key: str, *, earlier: bool) -> str:
    """Return a template in the manner of Qwen3 and gpt-oss: thoughts under `key`, of all turns or of the last."""
    shown = f"message.{key}" + ("" if earlier else " and loop.last")
    return (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n"
        f"{{% if {shown} %}}<think>\n{{{{ message.{key} | trim }}}}\n</think>\n\n{{% endif %}}"
        "{{ message.content.split('</think>')[-1] | trim }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def thinking(key: str, *, earlier: bool = False) -> Any:
    tokenizer = copy.deepcopy(make_tokenizer("thinking"))
    tokenizer.chat_template = thinks(key, earlier=earlier)
    return tokenizer


def masked(tokenizer: Any, *turns: dict[str, Any]) -> str:
    return all_masked(tokenizer, *turns)[0]


def all_masked(tokenizer: Any, *turns: dict[str, Any]) -> list[str]:
    line = json.dumps({"row": 7, "messages": turns}).encode()
    rows = RowEncoder(tokenizer, max_length=4096, too_long="Fail").encode(iter([line]), "the dataset's")
    return [render_mask(tokenizer, *rows.row(index)) for index in range(len(rows))]


def masked_pair(tokenizer: Any, **fields: Any) -> list[str]:
    line = json.dumps({"row": 7, **fields}).encode()
    rows = RowEncoder(tokenizer, max_length=4096, too_long="Fail").encode_preferences(iter([line]), "the dataset's")
    return [render_mask(tokenizer, *side.row(0)) for side in (rows.chosen, rows.rejected)]


@pytest.mark.parametrize("name", [name for name in STYLES if name not in ("plain", "thinking", "no-end")])
def test_a_turn_of_weight_0_is_seen_as_it_is_and_not_learned(name: str) -> None:
    tokenizer = make_tokenizer(name)
    whole = masked(tokenizer, USER, YES, USER, NO)
    first, second, last = whole.split("⟦")
    assert masked(tokenizer, USER, SEEN, USER, NO) == first + second.replace("⟧", "") + "⟦" + last
    assert masked(tokenizer, USER, YES, USER, {**NO, "weight": 0}) == masked(tokenizer, USER, YES)


def test_a_template_without_an_end_token_takes_an_earlier_turn_that_is_only_seen() -> None:
    expected = "### user:\nHi.\n\n### assistant:\nYes?\n\n### user:\nHi.\n\n### assistant:\n⟦No.</s>⟧"
    assert masked(make_tokenizer("no-end"), USER, SEEN, USER, NO) == expected


def test_a_template_never_gets_the_weight() -> None:
    tokenizer = copy.deepcopy(make_tokenizer("chatml"))
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message | tojson }}{{ message.content }}<|im_end|>{% endfor %}"
    )
    assert "weight" not in masked(tokenizer, USER, SEEN, USER, NO)


def test_a_template_that_rewrites_earlier_turns_can_learn_the_last_one() -> None:
    thought = {**YES, "content": "<think>the</think>Yes?"}
    earlier = {**SEEN, "content": "<think>so</think>Yes?"}
    text = masked(make_tokenizer("thinking"), USER, earlier, USER, thought)
    assert text == (
        f"{IM_USER}Hi.<|im_end|>\n{IM_ASSISTANT}Yes?<|im_end|>\n"
        f"{IM_USER}Hi.<|im_end|>\n{IM_ASSISTANT}⟦<think>\nthe\n</think>\n\nYes?<|im_end|>⟧"
    )


def test_an_earlier_turn_that_says_nothing_to_the_template_is_refused() -> None:
    tokenizer = copy.deepcopy(make_tokenizer("chatml"))
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ message.content }}", "{{ message.content if loop.last or message.role == 'user' }}"
    )
    with pytest.raises(FailureError, match=r"row 7: messages\[1\]: .*does not show what assistant says here"):
        masked(tokenizer, USER, SEEN, USER, NO)


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_thoughts_are_learned_under_the_name_that_the_template_has_for_them(key: str) -> None:
    text = masked(thinking(key), USER, {**YES, "reasoning_content": " the answer "})
    expected = f"{IM_USER}Hi.<|im_end|>\n{IM_ASSISTANT}⟦<think>\nthe answer\n</think>\n\nYes?<|im_end|>⟧"
    assert text == expected


def test_a_template_that_begins_to_think_goes_on_with_the_thoughts() -> None:
    tokenizer = thinking("reasoning_content")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "<|im_start|>assistant\n{% endif", "<|im_start|>assistant\n<think>\n{% endif"
    )
    text = masked(tokenizer, USER, {**YES, "reasoning_content": "the"})
    assert text == f"{IM_USER}Hi.<|im_end|>\n{IM_ASSISTANT}<think>\n⟦the\n</think>\n\nYes?<|im_end|>⟧"


def test_thoughts_of_every_learned_turn_are_learned() -> None:
    tokenizer = thinking("reasoning_content", earlier=True)
    text = masked(tokenizer, USER, {**YES, "reasoning_content": "the"}, USER, {**NO, "reasoning_content": "so"})
    assert text == (
        f"{IM_USER}Hi.<|im_end|>\n{IM_ASSISTANT}⟦<think>\nthe\n</think>\n\nYes?<|im_end|>⟧\n"
        f"{IM_USER}Hi.<|im_end|>\n{IM_ASSISTANT}⟦<think>\nso\n</think>\n\nNo.<|im_end|>⟧"
    )


def test_thoughts_that_the_template_drops_of_earlier_turns_are_learned_in_rows_of_their_own_and_not_when_seen() -> None:
    tokenizer = thinking("reasoning_content")
    earlier, last = {**YES, "reasoning_content": "the"}, {**NO, "reasoning_content": "so"}
    after = (
        f"{IM_USER}Hi.<|im_end|>\n{IM_ASSISTANT}Yes?<|im_end|>\n"
        f"{IM_USER}Hi.<|im_end|>\n{IM_ASSISTANT}⟦<think>\nso\n</think>\n\nNo.<|im_end|>⟧"
    )
    assert all_masked(tokenizer, USER, earlier, USER, last) == [
        f"{IM_USER}Hi.<|im_end|>\n{IM_ASSISTANT}⟦<think>\nthe\n</think>\n\nYes?<|im_end|>⟧",
        after,
    ]
    assert all_masked(tokenizer, USER, {**earlier, "weight": 0}, USER, last) == [after]


@pytest.mark.parametrize("name", ["chatml", "thinking", "mistral", "tools"])
def test_thoughts_that_no_template_shows_are_refused_with_the_row_and_what_to_do(name: str) -> None:
    match = r"row 7: messages\[1\]\.reasoning_content: .*would learn to answer without a thought: use .*<think>"
    with pytest.raises(FailureError, match=match) as caught:
        masked(make_tokenizer(name), USER, {**YES, "reasoning_content": "the"})
    assert (caught.value.code, caught.value.row) == (3, 7)
    seen = masked(make_tokenizer(name), USER, {**SEEN, "reasoning_content": "the"}, USER, NO)
    assert seen == masked(make_tokenizer(name), USER, SEEN, USER, NO)


def test_thoughts_that_the_template_drops_in_this_row_alone_are_refused() -> None:
    tokenizer = thinking("reasoning_content")
    tokenizer.chat_template = tokenizer.chat_template.replace("and loop.last", "and messages | length == 2")
    assert "the" in masked(tokenizer, USER, {**YES, "reasoning_content": "the"})
    system = {"role": "system", "content": "so"}
    with pytest.raises(FailureError, match=r"row 7: messages\[2\]\.reasoning_content: .*does not show it here"):
        masked(tokenizer, system, USER, {**YES, "reasoning_content": "the"})


def test_thoughts_that_the_template_writes_otherwise_are_kept() -> None:
    tokenizer = thinking("reasoning_content")
    tokenizer.chat_template = tokenizer.chat_template.replace("reasoning_content | trim", "reasoning_content | tojson")
    assert '<think>\n"say \\"the\\""\n' in masked(tokenizer, USER, {**YES, "reasoning_content": 'say "the"'})


def test_preferences_compare_the_thoughts_too_and_see_those_of_the_prompt_as_the_template_has_them() -> None:
    prompt = [USER, {**YES, "reasoning_content": "what"}, USER]
    chosen, rejected = masked_pair(
        thinking("thinking"),
        prompt=prompt,
        chosen=[{**YES, "reasoning_content": "the"}],
        rejected=[{**YES, "reasoning_content": "so"}],
    )
    before = f"{IM_USER}Hi.<|im_end|>\n{IM_ASSISTANT}Yes?<|im_end|>\n{IM_USER}Hi.<|im_end|>\n{IM_ASSISTANT}"
    assert chosen == f"{before}⟦<think>\nthe\n</think>\n\nYes?<|im_end|>⟧"
    assert rejected == f"{before}⟦<think>\nso\n</think>\n\nYes?<|im_end|>⟧"
    with pytest.raises(FailureError, match=r"row 7: rejected\[0\]\.reasoning_content"):
        masked_pair(
            make_tokenizer("chatml"), prompt=[USER], chosen=[NO], rejected=[{**YES, "reasoning_content": "the"}]
        )
