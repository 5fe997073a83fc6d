"""The good datasets of the corpus with chat templates that people use: what is learned of each row, token by token."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from model.training.rows.tokens import RowEncoder
from tests.training.chat_templates import SHIPPED, shipped_tokenizer
from tests.training.test_rows_shipped import AS_TEXT, MOMENT, NO_SYSTEM, expected, learned
from tests.unit.corpus import good, good_spellings

ROLES = {"gemma", "gemma3", "cohere", "cohere2"}
NO_TOOLS = {"llama3", "phi3", "phi3_5", "deepseek_r1_distill"}
NO_CALLS = {*NO_TOOLS, "lfm2"}
ONE_CALL = {"llama3_1", "llama3_2"}
THINKS = {"qwen3", "qwen3_5_think", "qwen3_8", "glm4moe", "gptoss", "nemotron_3_nano"}
SWITCHES_THINKING = THINKS - {"gptoss"}
HAS_DEVELOPER = {"gptoss"}
ALL = set(SHIPPED)

ALTERNATE = ("roles must alternate", ROLES)
NO_CALL_OF_ADD = ("does not show the call of add", NO_CALLS)
CALLS_AS_TEXT = (
    ALTERNATE,
    ("does not show what tool says here", {"phi3", "phi3_5"}),
    ("no previous assistant message with a tool call", {"gptoss"}),
)
SEVERAL_CALLS = (
    NO_CALL_OF_ADD,
    ("only supports single tool-calls", ONE_CALL),
    ALTERNATE,
    ("does not show the call of sub", {"gptoss"}),
)
NO_USER = (
    ("No user query found", {"qwen3_5_think", "qwen3_8"}),
    ("System role not supported", {"gemma"}),
    ("roles must alternate", ROLES - {"gemma"}),
)
TOOLS_BESIDE = (
    ("does not show the tool add", NO_TOOLS | ROLES | AS_TEXT),
    ("has no attribute 'description'", {"gptoss"}),
)
WITHOUT_THOUGHTS = (("reasoning_content: the base model's chat template does not show it", ALL - THINKS),)
NO_SUCH_VARIABLE = (("has no such variable", ALL),)

REFUSED: dict[str, tuple[tuple[str, set[str]], ...]] = {
    "tools beside texts": TOOLS_BESIDE,
    "thoughts beside texts": WITHOUT_THOUGHTS,
    "thoughts beside turns": WITHOUT_THOUGHTS,
    "thoughts that the answer holds already": (
        ("does not show what assistant thinks", {"deepseekv3", "deepseek_r1_distill"}),
    ),
    "the template's variables": (("enable_thinking: the base model's", ALL - SWITCHES_THINKING),),
    "the template's variables as JSON beside texts": NO_SUCH_VARIABLE,
    "Parquet: variables of the template that other rows have": NO_SUCH_VARIABLE,
    "a system prompt alone before the answer": NO_USER,
    "Hermes: calls as text": CALLS_AS_TEXT,
    "Hermes: marks around what tools answer": CALLS_AS_TEXT,
    "ToolACE: calls in brackets": CALLS_AS_TEXT,
    "glaive: a role of two words": CALLS_AS_TEXT,
    "several calls in turns of their own": SEVERAL_CALLS,
    "several calls in one turn, as text": SEVERAL_CALLS,
    "ms-swift: tool_call and tool_response": (NO_CALL_OF_ADD, ALTERNATE),
    "a call in OpenAI's old form": (NO_CALL_OF_ADD, ALTERNATE),
    "numbers as names of calls": (NO_CALL_OF_ADD, ALTERNATE),
    "a text and its call, merged": (
        NO_CALL_OF_ADD,
        ("does not show what assistant says here", ONE_CALL),
        ALTERNATE,
        ("renders what precedes it differently", {"gptoss"}),
    ),
}
"""Where a template cannot show a row: the words in which it is refused, and with which templates."""


def conversations() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the corpus's rows for SFT with a chat template, each different one once, under its first case's name."""
    seen = set()
    for case in (*good.CASES, *good_spellings.CASES):
        if any(flag.startswith("--method") for flag in case.flags):
            continue
        for row in case.expected:
            key = json.dumps(row, sort_keys=True)
            if "text" not in row and key not in seen:
                seen.add(key)
                yield case.name, row


def as_template_wants(name: str, row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row's messages as someone would write them for this very template."""
    if "messages" not in row:
        return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
    messages: list[dict[str, Any]] = json.loads(json.dumps(row["messages"]))
    for message in messages:
        message.pop("weight", None)
        if message["role"] == "developer" and name not in HAS_DEVELOPER:
            message["role"] = "system"
        for call in message.get("tool_calls", ()) if name in AS_TEXT else ():
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    if name in NO_SYSTEM and messages[0]["role"] == "system":
        system, user, *rest = messages
        messages = [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *rest]
    return messages


def refusal(case: str, name: str) -> str | None:
    """Return the words in which the template refuses a row of the case."""
    return next((words for words, names in REFUSED.get(case, ()) if name in names), None)


@pytest.mark.parametrize("name", SHIPPED)
def test_each_row_of_the_corpus_is_learned_as_inference_asks_for_it_or_refused_with_the_reason(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, _zone: Any = None) -> Any:
            return MOMENT

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)
    tokenizer = shipped_tokenizer(name)
    encoder = RowEncoder(tokenizer, max_length=9999, too_long="Fail", drops_refused=True, moment=MOMENT)
    for case, row in conversations():
        rows = encoder.encode([json.dumps({"row": 7, **row}).encode()], "the dataset's")
        words = refusal(case, name)
        assert rows.outcomes.refused.count == (words is not None), (case, rows.outcomes.reasons)
        if words is not None:
            assert words in rows.outcomes.reasons[0], case
            continue
        given = row.get("chat_template_kwargs", {}) | ({"tools": row["tools"]} if "tools" in row else {})
        answers = expected(name, tokenizer, as_template_wants(name, row), **given)
        turns = [turn for turn in row.get("messages", ()) if turn["role"] == "assistant"] or [{}]
        wanted = [answer for turn, answer in zip(turns, answers, strict=True) if "weight" not in turn]
        assert list(learned(tokenizer, rows)) == wanted, case


def test_the_table_of_refusals_names_cases_and_templates_that_there_are() -> None:
    assert {case for case, _ in conversations()} >= REFUSED.keys()
    assert all(names and names <= ALL for reasons in REFUSED.values() for _, names in reasons)
