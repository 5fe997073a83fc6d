"""Datasets that say what others say in other words: names of flags, columns, calls and turns, and forms of files."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.feather

from tests.unit.corpus.cases import ANSWER, OTHER, PAIR, PREFERENCE, SYSTEM, USER, chat, rows, zstd
from tests.unit.corpus.good import (
    ANSWERED,
    ASKED,
    ASKED_AND_ANSWERED,
    ASKED_OTHERWISE,
    BEFORE,
    CALL,
    CALLING,
    DISLIKED,
    HALF,
    INSTRUCTED,
    KTO,
    LIKED,
    PLAIN,
    REMEMBERED,
    Good,
    flagged,
    parquet,
    tool,
)

DPO = ("--method=DPO",)
FLAGS = (
    *(
        Good(f"a turn that is not learned: {key}", flagged(**{key: value}), [HALF])
        for key, value in (
            ("learnable", False),
            ("should_train", 0),
            ("is_trained", "N"),
            ("includeInLoss", False),
            ("calculate-loss", "off"),
            ("weight", "0.0"),
            ("train", "f"),
            ("no_train", True),
            ("skip_loss", 1),
            ("excludeFromLoss", "yes"),
            ("is_masked", True),
            ("ignored_in_loss", "t"),
        )
    ),
    Good("keys that speak of something else", flagged(trained_at="Monday", mask="of a fox", skip="a beat", wait=0),
        [{"messages": [USER, ANSWER, USER, OTHER]}]),
    Good("a channel for everybody", flagged(channel="final", recipient="all"),
        [{"messages": [USER, ANSWER, USER, OTHER]}]),
    Good("an answer for the user", flagged(recipient="user"), [{"messages": [USER, ANSWER, USER, OTHER]}]),
    Good("channels of other turns", chat({**USER, "channel": "web", "recipient": "Bob"}, ANSWER), [PLAIN]),
    Good("rows that are to be learned", rows({**PAIR, "train": True, "skip_loss": 0, "is_good": "yes"}), [PAIR]),
    Good("numbers and words about training", rows({**PAIR, "loss": 0.12, "training": "2023", "attention_mask": [1],
        "body_weight": 70, "weights": []}), [PAIR]),
    Good("a row of a test split", rows({**PAIR, "split": "test"}), [PAIR]),
)  # fmt: skip

BESIDE = (
    *(
        Good(f"a system prompt: {key}", rows({**PAIR, key: "Be brief."}), [INSTRUCTED])
        for key in ("sys", "systemPrompt", "system_instructions", "developer_message")
    ),
    *(
        Good(f"earlier turns: {key}", rows({**PAIR, key: [["c", "d"]]}), [REMEMBERED])
        for key in ("dialogue_history", "previous_messages", "Past-Turns")
    ),
    Good("earlier turns without anything in them", rows({**PAIR, "history": [["", None]]}), [PAIR]),
    Good("a column of chains of thought", rows({**PAIR, "Complex_CoT": "Well."}),
        [{"messages": [ASKED, {**ANSWERED, "reasoning_content": "Well."}]}]),
    Good("what tables write where nothing is", rows({**PAIR, "system": "nan", "image": "None", "history": r"\N"}),
        [PAIR]),
    Good("pictures without anything in them", parquet(prompt=["a"], completion=["b"], images=pa.array(
        [[{"bytes": None, "path": None}]], pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())])))),
        [PAIR], file="train.parquet"),
    Good("Alpaca: words for no input", rows(*({"instruction": "a", "input": added, "output": str(number)}
        for number, added in enumerate(("<noinput>", "nan", "N/A", "None", "[]", "{}")))),
        [*({"prompt": "a", "completion": str(number)} for number in range(4)),
         {"prompt": "a\n\n[]", "completion": "4"}, {"prompt": "a\n\n{}", "completion": "5"}]),
)  # fmt: skip


def called(**keys: Any) -> bytes:
    """Return a row with a call that is written with other keys."""
    call = {"role": "assistant", "content": None, **keys}
    return chat(USER, call, {"role": "tool", "content": "2"}, ANSWER)


WITH_A_CALL = [{"messages": [USER, CALLING, tool("2"), ANSWER]}]
WITH_ITS_NAME = {"messages": [USER, CALLING, {**tool("2"), "name": "add"}, ANSWER]}
WITH_AN_ID = {"messages": [USER, {**CALLING, "tool_calls": [{"id": "7", **CALL}]}, {**tool("2"), "tool_call_id": "7"},
    ANSWER]}  # fmt: skip
ADD = {"name": "add", "arguments": {"a": 1}}

TURNS = (
    *(
        Good(f"arguments of a call: {key}", called(tool_calls=[{"name": "add", key: {"a": 1}}]), WITH_A_CALL)
        for key in ("parameters", "args", "kwargs", "input")
    ),
    Good("arguments beside the function", called(tool_calls=[{"function": {"name": "add"}, "arguments": {"a": 1}}]),
        WITH_A_CALL),
    Good("one call without a list", called(tool_calls=ADD), WITH_A_CALL),
    Good("one call as text", called(tool_calls=json.dumps(ADD)), WITH_A_CALL),
    Good("calls as texts", called(tool_calls=[json.dumps(ADD)]), WITH_A_CALL),
    Good("a function as text", called(tool_calls=[{"type": "function", "function": json.dumps(ADD)}]), WITH_A_CALL),
    Good("a call in OpenAI's old form", chat(USER, {"role": "assistant", "content": None, "function_call": {
        "name": "add", "arguments": '{"a": 1}'}}, {"role": "function", "name": "add", "content": "2"}, ANSWER),
        [WITH_ITS_NAME]),
    Good("numbers as names of calls", chat(USER, {**CALLING, "tool_calls": [{"id": 7, **CALL}]},
        {**tool("2"), "tool_call_id": 7}, ANSWER), [WITH_AN_ID]),
    Good("a call and its result with names without anything in them", chat(USER, {**CALLING, "tool_calls": [{"id": "",
        **CALL}]}, {**tool("2"), "tool_call_id": ""}, ANSWER), WITH_A_CALL),
    Good("a call without anything in it", chat(USER, {**ANSWER, "tool_calls": [{"id": None, "function": None}]}),
        [PLAIN]),
    Good("content in parts of other types", chat({"role": "user", "content": [{"type": "input_text", "text": "Wh"},
        {"text": "y?"}]}, {"role": "assistant", "content": [{"type": "output_text", "text": "Because."}]}), [PLAIN]),
    *(
        Good(f"turns of {role} and {text}", chat({role: "user", text: "Why?"}, {role: "assistant", text: "Because."}),
            [PLAIN])
        for role, text in (("role", "value"), ("from", "content"), ("speaker", "text"), ("sender", "message"))
    ),
    Good("roles in one list and texts in another", rows({"conversations": {"from": ["human", "gpt"],
        "value": ["Why?", "Because."]}}), [PLAIN]),
    Good("Parquet: roles in one list and texts in another", parquet(messages=[{"role": ["user", "assistant"],
        "content": ["Why?", "Because."]}]), [PLAIN], file="train.parquet"),
    Good("a prompt and an answer, each with roles in one list and texts in another", rows({
        "prompt": {"role": ["user"], "content": ["Why?"]},
        "completion": {"role": ["assistant"], "content": ["Because."]}}), [PLAIN]),
    Good("names of turns without anything in them", chat({**USER, "name": "", "tool_call_id": ""}, ANSWER), [PLAIN]),
    Good("a prompt as turns and an answer as text", rows({"prompt": [USER], "completion": "Because."}), [PLAIN]),
    Good("an answer that is one turn", rows({"prompt": "Why?", "completion": ANSWER}), [PLAIN]),
)  # fmt: skip

COMPARED = {"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]}
ASKED_BY_HUMAN = [{"from": "human", "value": "Why?"}]
BETTER, WORSE = ({"from": "gpt", "value": turn["content"]} for turn in (ANSWER, OTHER))

ANSWERS = (
    Good("LLaMA-Factory: answers to a conversation", rows({"conversations": ASKED_BY_HUMAN, "chosen": BETTER,
        "rejected": WORSE}), [COMPARED], flags=DPO),
    Good("answers as text to messages", rows({"messages": [USER], "chosen": "Because.", "rejected": "Go away."}),
        [COMPARED], flags=DPO),
    Good("answers to messages, of which each is one turn", rows({"prompt": "Why?", "chosen": ANSWER,
        "rejected": OTHER}), [COMPARED], flags=DPO),
    Good("answers with roles in one list and texts in another", rows({
        "chosen": {"role": ["user", "assistant"], "content": ["Why?", "Because."]},
        "rejected": {"role": ["user", "assistant"], "content": ["Why?", "Go away."]}}), [COMPARED], flags=DPO),
    Good("an answer as turns and one as text", rows({"prompt": [USER], "chosen": [ANSWER], "rejected": "Go away."}),
        [COMPARED], flags=DPO),
    Good("UltraFeedback: the messages that were chosen beside both", rows({"prompt": "Why?", "chosen": [USER, ANSWER],
        "rejected": [USER, OTHER], "messages": [USER, ANSWER], "score_chosen": 8.0}), [COMPARED], flags=DPO),
    Good("an answer that begins like the other", rows({**PREFERENCE, "rejected": "b, c"}),
        [{**PREFERENCE, "rejected": "b, c"}], flags=DPO),
    Good("answers of which one goes on", rows({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER, USER, OTHER]}),
        [{"prompt": [USER], "chosen": [ANSWER], "rejected": [ANSWER, USER, OTHER]}], flags=DPO),
    Good("earlier turns beside answers to messages", rows({"messages": [USER], "chosen": "Because.",
        "rejected": "Go away.", "history": [["c", "d"]], "system": "Be brief."}), [{**COMPARED,
        "prompt": [SYSTEM, BEFORE[0], {"role": "assistant", "content": "d"}, USER]}], flags=DPO),
    *(
        Good(f"labels: {good} and {bad}", rows({**LIKED, "label": good}, {**DISLIKED, "label": bad}),
            [LIKED, DISLIKED], flags=KTO)
        for good, bad in (("t", "f"), ("Y", "N"), ("on", "off"), ("1.0", "0.0"), (1.0, False))
    ),
    Good("a labelled answer as text after turns", rows({"prompt": [USER], "completion": "Because.", "label": True},
        ASKED_OTHERWISE), [ASKED_AND_ANSWERED, ASKED_OTHERWISE], flags=KTO),
)  # fmt: skip


def feather(compression: str) -> bytes:
    """Return a Feather file."""
    buffer = io.BytesIO()
    pyarrow.feather.write_feather(pa.table({"prompt": ["a"], "completion": ["b"]}), buffer, compression=compression)
    return buffer.getvalue()


FILES = (
    Good("Feather", feather("lz4"), [PAIR], file="train.feather"),
    Good("Feather with zstd", feather("zstd"), [PAIR], file="train.arrow"),
    Good("zstd under its long name", zstd(rows(PAIR)), [PAIR], file="train.jsonl.zstd"),
    Good("a table of Markdown", b"| prompt | completion |\n|:---|---:|\n|a|b|\n", [PAIR], file="train.csv"),
    Good("Parquet: a dictionary of texts", parquet(prompt=pa.array(["a", "a"]).dictionary_encode(),
        completion=pa.array(["b", "c"]).dictionary_encode()), [PAIR, {"prompt": "a", "completion": "c"}],
        file="train.parquet"),
    Good("words for nothing as answers", rows({"prompt": "a", "completion": "NULL"}, PAIR),
        [{"prompt": "a", "completion": "NULL"}, PAIR]),
)  # fmt: skip

CASES = (*FLAGS, *BESIDE, *TURNS, *ANSWERS, *FILES)
