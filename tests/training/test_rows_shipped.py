"""Chat templates of models that people fine-tune: what is learned is what inference asks for, whatever they do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import pytest

from model.training.rows.outcomes import Outcomes
from model.training.rows.tokens import IGNORED, RowEncoder, TokenRows
from tests.training.chat_templates import SHIPPED, shipped_tokenizer

MOMENT = datetime(2024, 2, 3, 4, 5, tzinfo=UTC)
USER, ANSWER = {"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes?"}
SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [USER, ANSWER, {"role": "user", "content": "What?"}, {"role": "assistant", "content": "No, why."}]
THOUGHT = {"role": "assistant", "content": "Because.", "reasoning_content": "what is it"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells it.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
NO_SYSTEM = {"gemma"}
CALLS = {"qwen2_5", "qwen3", "qwen3_instruct_2507", "qwen3_5_think", "qwen3_8", "llama3_1", "llama3_2", "glm4moe",
         "gptoss", "deepseekv3", "nemotron_3_nano"}  # fmt: skip
AS_TEXT = {"deepseekv3"}
THINKS = ["qwen3", "qwen3_5_think", "qwen3_8", "glm4moe", "gptoss", "nemotron_3_nano"]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The moment that the library shows to templates."""

    class Clock(datetime):
        @classmethod
        def now(cls, _zone: Any = None) -> Any:
            return MOMENT

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)


def encode(tokenizer: Any, *contents: dict[str, Any]) -> TokenRows:
    lines = [json.dumps({"row": number, **content}).encode() for number, content in enumerate(contents, 7)]
    return RowEncoder(tokenizer, max_length=9999, too_long="Fail", moment=MOMENT).encode(lines, "the dataset's")


def learned(tokenizer: Any, rows: TokenRows) -> Iterator[tuple[str, str]]:
    """Yield what precedes each learned span, and the span."""
    for number in range(len(rows)):
        ids, labels = rows.row(number)
        end = 0
        for is_learned, stretch in groupby(labels, lambda label: label != IGNORED):
            start, end = end, end + len(list(stretch))
            if is_learned:
                yield tokenizer.decode(list(ids[:start])), tokenizer.decode(list(ids[start:end]))


def expected(name: str, tokenizer: Any, messages: list[dict[str, Any]], **given: Any) -> list[tuple[str, str]]:
    """What inference asks for each assistant turn, and the answer with its end token."""
    found = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = tokenizer.apply_chat_template(messages[:index], tokenize=False, add_generation_prompt=True, **given)
        through = tokenizer.apply_chat_template(messages[: index + 1], tokenize=False, **given)
        if not through.startswith(prompt):  # it begins to think, and the turn does not: asked for is what both have
            prompt = tokenizer.apply_chat_template(messages[:index], tokenize=False, **given)
            while through.startswith(prompt) and (more := through[len(prompt) :]).startswith(HEADERS[name]):
                prompt += HEADERS[name]
                assert more
                break
        answer = through[len(prompt) :].rstrip()
        closing = CALL_ENDS.get(name) if message.get("tool_calls") else None
        closing = closing or SHIPPED[name].closing
        found.append((prompt, answer + tokenizer.eos_token if closing is None else ended(answer, closing)))
    return found


CALL_ENDS = {"gptoss": "<|call|>"}
"""What ends a turn that calls, where it is not what ends an answer."""

HEADERS = {
    "deepseekv3": "<\uff5cAssistant\uff5c>",
    "deepseek_r1_distill": "<\uff5cAssistant\uff5c>",
    "gptoss": "<|start|>assistant",
    "nemotron_3_nano": "<|im_start|>assistant\n<think>",
}
"""What begins a turn where the generation prompt goes on otherwise."""


def ended(answer: str, closing: str) -> str:
    return answer[: answer.rindex(closing) + len(closing)]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_conversation_is_learned_turn_by_turn_as_inference_asks_for_them(name: str) -> None:
    tokenizer = shipped_tokenizer(name)
    rows = encode(tokenizer, {"messages": TURNS})
    assert list(learned(tokenizer, rows)) == expected(name, tokenizer, TURNS)
    assert len(rows) == 1 or rows.outcomes.split.count == 1


@pytest.mark.parametrize("name", SHIPPED)
def test_what_the_system_says_is_seen_in_its_own_turn_or_in_the_first_question(name: str) -> None:
    tokenizer = shipped_tokenizer(name)
    rows = encode(tokenizer, {"messages": [SYSTEM, *TURNS]})
    turns = [SYSTEM, *TURNS]
    if name in NO_SYSTEM:
        turns = [{"role": "user", "content": "Be brief.\n\nHi."}, *TURNS[1:]]
    assert list(learned(tokenizer, rows)) == expected(name, tokenizer, turns)
    assert rows.outcomes.system_folded.count == (name in NO_SYSTEM)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_developer_says_what_a_system_would_where_the_template_knows_none(name: str) -> None:
    tokenizer = shipped_tokenizer(name)
    developer = encode(tokenizer, {"messages": [{**SYSTEM, "role": "developer"}, *TURNS]})
    if name == "gptoss":
        turns = [{**SYSTEM, "role": "developer"}, *TURNS]
        assert list(learned(tokenizer, developer)) == expected(name, tokenizer, turns)
    else:
        assert developer.ids == encode(tokenizer, {"messages": [SYSTEM, *TURNS]}).ids


@pytest.mark.parametrize("name", THINKS)
def test_every_turn_is_learned_with_its_thoughts(name: str) -> None:
    tokenizer = shipped_tokenizer(name)
    turns = [USER, THOUGHT, USER, {**THOUGHT, "reasoning_content": "so and so"}]
    rows = encode(tokenizer, {"messages": turns})
    found = list(learned(tokenizer, rows))
    assert found == expected(name, tokenizer, turns)
    assert ["what is it" in found[0][1], "so and so" in found[1][1]] == [True, True]
    assert (len(rows), rows.outcomes.split_rows) == ((1, 0) if name == "qwen3_8" else (2, 2))


@pytest.mark.parametrize("name", THINKS)
def test_a_turn_of_weight_0_gets_no_row(name: str) -> None:
    tokenizer = shipped_tokenizer(name)
    rows = encode(tokenizer, {"messages": [USER, {**THOUGHT, "weight": 0}, USER, THOUGHT]})
    assert list(learned(tokenizer, rows)) == expected(name, tokenizer, [USER, THOUGHT, USER, THOUGHT])[1:]
    assert rows.outcomes.split.count == 0


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("name", sorted(CALLS))
def test_a_call_is_learned_with_its_arguments_however_they_are_written(name: str, *, as_text: bool) -> None:
    tokenizer = shipped_tokenizer(name)
    arguments = json.dumps(CALL["function"]["arguments"]) if as_text else CALL["function"]["arguments"]  # type: ignore[index]
    call = {**CALL, "function": {"name": "weather", "arguments": arguments}}
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    rows = encode(tokenizer, {"messages": [USER, answer]})
    shown = json.dumps({"city": "Oslo"}) if name in AS_TEXT else {"city": "Oslo"}
    turns = [USER, {**answer, "tool_calls": [{**CALL, "function": {"name": "weather", "arguments": shown}}]}]
    ((before, text),) = learned(tokenizer, rows)
    assert "weather" in text
    assert "Oslo" in text
    assert "'city'" not in text
    assert '\\"' not in text
    assert before + text.removesuffix(tokenizer.eos_token) in tokenizer.apply_chat_template(turns, tokenize=False)


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "qwen3_instruct_2507", "llama3_1", "gptoss", "glm4moe"])
def test_a_call_its_answer_and_the_last_word_are_learned(name: str) -> None:
    tokenizer = shipped_tokenizer(name)
    turns = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "weather", "tool_call_id": "call00001", "content": "Snow."},
        {"role": "assistant", "content": "It snows."},
    ]
    rows = encode(tokenizer, {"messages": turns, "tools": [WEATHER]})
    found = list(learned(tokenizer, rows))
    assert ["Oslo" in text for _, text in found] == [True, False]
    assert "Snow." in found[1][0]
    assert "It snows." in found[1][1]


@pytest.mark.parametrize("name", ["llama3_2", "gptoss"])
def test_the_day_is_that_of_the_moment_given(name: str) -> None:
    tokenizer = shipped_tokenizer(name)
    (before, _), *_ = learned(tokenizer, encode(tokenizer, {"messages": TURNS[:2]}))
    assert ("03 Feb 2024" if name == "llama3_2" else "2024-02-03") in before


@pytest.mark.parametrize("name", SHIPPED)
def test_a_prompt_that_is_rendered_already_is_refused(name: str) -> None:
    tokenizer = shipped_tokenizer(name)
    text = tokenizer.apply_chat_template([USER], tokenize=False, add_generation_prompt=True)
    for prompt in (text, text.removeprefix(tokenizer.bos_token or "")):
        outcomes = refused(tokenizer, {"prompt": prompt, "completion": "Yes?"}, {"prompt": "Hi.", "completion": "Yes?"})
        assert outcomes.refused.first == ["row 7"], prompt
        assert "is rendered already" in outcomes.reasons[0]


@pytest.mark.parametrize("name", sorted(set(SHIPPED) - {"glm4moe"}))
def test_an_end_token_within_a_text_is_told(name: str) -> None:
    closing = SHIPPED[name].closing
    outcomes = refused(
        shipped_tokenizer(name),
        {"prompt": f"What is {closing}?", "completion": "Yes?"},
        {"prompt": "Hi.", "completion": f"Yes?{closing}"},
    )
    assert (outcomes.special_tokens.first, outcomes.refused.count) == (["row 7"], 0)


def refused(tokenizer: Any, *contents: dict[str, Any]) -> Outcomes:
    lines = [json.dumps({"row": number, **content}).encode() for number, content in enumerate(contents, 7)]
    encoder = RowEncoder(tokenizer, max_length=9999, too_long="Fail", drops_refused=True, moment=MOMENT)
    return encoder.encode(lines, "the dataset's").outcomes
