"""Datasets as people have them that are taken, each with the rows that the trainer gets."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from tests.unit.corpus.cases import ANSWER, BOM, OTHER, PAIR, PREFERENCE, SYSTEM, USER, chat, rows, zstd


@dataclass(frozen=True)
class Good:
    """A dataset that is taken.

    Parameters
    ----------
    name
        What is special about it.
    content
        Of its only file.
    expected
        What is written of each row, without its place.
    """

    name: str
    content: bytes
    expected: list[dict[str, Any]]
    file: str = "train.jsonl"
    flags: tuple[str, ...] = ()


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
SECOND_CALL = {"type": "function", "function": {"name": "sub", "arguments": {"b": 2}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
TOOL = {"type": "function", "function": {"name": "add"}}
SEEN = {**ANSWER, "weight": 0}
SEEN_OTHER = {**OTHER, "weight": 0}
ASKED = {"role": "user", "content": "a"}
ANSWERED: dict[str, Any] = {"role": "assistant", "content": "b"}
PLAIN = {"messages": [USER, ANSWER]}
BEFORE = [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "weight": 0}]
INSTRUCTED = {"messages": [SYSTEM, ASKED, ANSWERED]}
REMEMBERED = {"messages": [*BEFORE, ASKED, ANSWERED]}
HALF = {"messages": [USER, SEEN, USER, OTHER]}


def parquet(**columns: Any) -> bytes:
    """Return a Parquet file of the columns given."""
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def arrow(opened: Callable[[Any, pa.Schema], Any], **columns: Any) -> bytes:
    """Return an Arrow file or stream of the columns given."""
    table, buffer = pa.table(columns), io.BytesIO()
    with opened(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()


def tool(content: str) -> dict[str, Any]:
    """Return what a tool answers."""
    return {"role": "tool", "content": content}


def flagged(**keys: Any) -> bytes:
    """Return a row of two answers, the first with further keys."""
    return chat(USER, {**ANSWER, **keys}, USER, OTHER)


def sharegpt(*turns: tuple[str, str], **fields: Any) -> bytes:
    """Return a row with turns as ShareGPT writes them."""
    return rows({"conversations": [{"from": role, "value": value} for role, value in turns], **fields})


TEXT_CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
JSON_CALL = '{"name": "add", "arguments": {"a": 1}}'
SECOND_JSON_CALL = '{"name": "sub", "arguments": {"b": 2}}'

FLAGS = (
    Good("axolotl: train", flagged(train=False), [HALF]),
    Good("ms-swift: loss", flagged(loss=False), [HALF]),
    Good("verl: trainable", flagged(trainable=False), [HALF]),
    Good("verl: loss_mask", flagged(loss_mask=0), [HALF]),
    Good("training, in capitals", flagged(Training=False), [HALF]),
    Good("a flag with a hyphen", flagged(**{"loss-mask": 0.0}), [HALF]),
    Good("a flag in camel case", flagged(lossMask="0"), [HALF]),
    Good("a flag as text", flagged(train="False"), [HALF]),
    Good("torchtune: masked", flagged(masked=True), [HALF]),
    Good("masked, as text", flagged(masked="true"), [HALF]),
    Good("two flags that agree", flagged(weight=0, masked=1), [HALF]),
    Good("flags that are null", flagged(train=None, loss=None, mask=None), [{"messages": [USER, ANSWER, USER, OTHER]}]),
    Good("all flags set", chat({**USER, "train": False}, {**ANSWER, "train": True}), [PLAIN]),
    Good("users marked, too", chat({**USER, "train": True}, {**ANSWER, "train": True}), [PLAIN]),
    Good("flags in ShareGPT's turns", rows({"conversations": [{"from": "human", "value": "Why?"},
        {"from": "gpt", "value": "Because.", "train": "0"}, {"from": "human", "value": "Why?"},
        {"from": "gpt", "value": "Go away."}]}), [HALF]),
)  # fmt: skip

BESIDE = (
    Good("a system prompt beside texts", rows({**PAIR, "system": "Be brief."}), [INSTRUCTED]),
    Good("a system prompt in one of two rows", rows(PAIR, {"prompt": "e", "completion": "f", "system": "Be brief."}),
        [PAIR, {"messages": [SYSTEM, {"role": "user", "content": "e"}, {"role": "assistant", "content": "f"}]}]),
    Good("an empty system prompt", rows({**PAIR, "system": "", "history": [], "tools": None}), [PAIR]),
    Good("a system prompt of another name", rows({**PAIR, "System-Prompt": "Be brief."}),
        [INSTRUCTED]),
    Good("a system prompt in a mapped column", rows({**PAIR, "s": "Be brief."}),
        [INSTRUCTED], flags=("--column=system=s",)),
    Good("the same system prompt twice", rows({**PAIR, "system": "Be brief.", "system_message": "Be brief."}),
        [INSTRUCTED]),
    Good("a system prompt in a column, beside turns", chat(USER, ANSWER, system_prompt="Be brief."),
        [{"messages": [SYSTEM, USER, ANSWER]}]),
    Good("LLaMA-Factory: system and history", rows({"system": "Be brief.", "instruction": "a", "input": "",
        "output": "b", "history": [["c", "d"]]}), [{"messages": [SYSTEM, *BEFORE, ASKED, ANSWERED]}]),
    Good("history as JSON in a text", rows({**PAIR, "history": '[["c", "d"]]'}), [REMEMBERED]),
    Good("history as turns", rows({**PAIR, "history": [{"from": "human", "value": "c"},
        {"from": "gpt", "value": "d"}]}), [REMEMBERED]),
    Good("history beside turns", chat(USER, ANSWER, history=[["c", "d"]]), [{"messages": [*BEFORE, USER, ANSWER]}]),
    Good("orca_dpo_pairs: a system prompt beside a preference", rows({"system": "Be brief.", "question": "a",
        "chosen": "b", "rejected": "c"}), [{"prompt": [SYSTEM, ASKED], "chosen": [ANSWERED],
        "rejected": [{"role": "assistant", "content": "c"}]}], flags=("--method=DPO", "--column=prompt=question")),
    Good("history beside a preference", rows({**PREFERENCE, "history": [["c", "d"]]}), [{"prompt": [BEFORE[0],
        {"role": "assistant", "content": "d"}, ASKED], "chosen": [ANSWERED],
        "rejected": [{"role": "assistant", "content": "c"}]}], flags=("--method=DPO",)),
    Good("tools beside texts", rows({**PAIR, "tools": [{"name": "add"}]}),
        [{"messages": [ASKED, ANSWERED], "tools": [TOOL]}]),
    Good("functions as JSON beside texts", rows({**PAIR, "functions": '[{"name": "add"}]'}),
        [{"messages": [ASKED, ANSWERED], "tools": [TOOL]}]),
    Good("thoughts beside texts", rows({**PAIR, "reasoning": "Well."}),
        [{"messages": [ASKED, {**ANSWERED, "reasoning_content": "Well."}]}]),
    Good("thoughts beside turns", chat(USER, ANSWER, thinking="Well."),
        [{"messages": [USER, {**ANSWER, "reasoning_content": "Well."}]}]),
    Good("thoughts that the answer holds already", rows({"prompt": "a", "completion": "<think>Well.</think>b",
        "reasoning": "Well."}), [{"messages": [ASKED, {**ANSWERED, "content": "<think>Well.</think>b"}]}]),
    Good("a chat history and a system instruction", rows({**PAIR, "chat_history": [["c", "d"]],
        "System Instruction": "Be brief."}), [{"messages": [SYSTEM, *BEFORE, ASKED, ANSWERED]}]),
    Good("the template's variables", chat(USER, ANSWER, chat_template_kwargs={"enable_thinking": False, "x": None}),
        [{**PLAIN, "chat_template_kwargs": {"enable_thinking": False}}]),
    Good("the template's variables as JSON beside texts", rows({**PAIR, "chat_template_kwargs": '{"day": "Monday"}'}),
        [{**PAIR, "chat_template_kwargs": {"day": "Monday"}}]),
    Good("no variables of the template", chat(USER, ANSWER, chat_template_kwargs={"x": None}), [PLAIN]),
    Good("no images", chat(USER, ANSWER, images=[], image=None, videos="[]", audio={"bytes": None}), [PLAIN]),
    Good("images that do not matter", chat(USER, ANSWER, images=["a.png"]), [PLAIN], flags=("--ignore-column=images",)),
    Good("rows of weight 1", rows({**PAIR, "weight": 1.0}), [PAIR]),
    Good("KTO's good answers, for SFT", rows({**PAIR, "label": True}), [PAIR]),
    Good("labels of classes", rows({**PAIR, "label": 0, "labels": [0, 3]}), [PAIR]),
    Good("a context that nobody maps", rows({**PAIR, "context": "Once upon a time."}), [PAIR]),
    Good("a mapped context", rows({"question": "a", "answer": "b", "context": "c"}),
        [{"prompt": "a\n\nc", "completion": "b"}],
        flags=("--column=instruction=question", "--column=output=answer", "--column=input=context")),
)  # fmt: skip

ROLES = (
    Good("capital letters", chat({**USER, "role": "User"}, {**ANSWER, "role": "ASSISTANT"}), [PLAIN]),
    Good("Human and Assistant", chat({**USER, "role": "Human"}, {**ANSWER, "role": "Assistant"}), [PLAIN]),
    Good("bot and ai", sharegpt(("User", "Why?"), ("Bot", "Because."), ("user", "Why?"), ("AI", "Go away.")),
        [{"messages": [USER, ANSWER, USER, OTHER]}]),
    Good("a developer", chat({**SYSTEM, "role": "developer"}, USER, ANSWER),
        [{"messages": [{**SYSTEM, "role": "developer"}, USER, ANSWER]}]),
    Good("a system prompt alone before the answer", chat(SYSTEM, ANSWER), [{"messages": [SYSTEM, ANSWER]}]),
    Good("a system prompt as the whole prompt", rows({"prompt": [SYSTEM], "completion": [ANSWER]}),
        [{"messages": [SYSTEM, ANSWER]}]),
    Good("Hermes: calls as text", sharegpt(("human", "Why?"), ("gpt", TEXT_CALL), ("tool", "2"), ("gpt", "Because.")),
        [{"messages": [USER, {**ANSWER, "content": TEXT_CALL}, tool("2"), ANSWER]}]),
    Good("Hermes: marks around what tools answer", sharegpt(("human", "Why?"), ("gpt", TEXT_CALL),
        ("tool", "<tool_response>\n2\n</tool_response>\n<tool_response>\n3\n</tool_response>"), ("gpt", "Because.")),
        [{"messages": [USER, {**ANSWER, "content": TEXT_CALL}, tool("2"), tool("3"), ANSWER]}]),
    Good("ToolACE: calls in brackets", sharegpt(("user", "Why?"), ("assistant", "[add(a=1)]"), ("tool", "[2]"),
        ("assistant", "Because."), system="Be brief."),
        [{"messages": [SYSTEM, USER, {**ANSWER, "content": "[add(a=1)]"}, tool("[2]"), ANSWER]}]),
    Good("glaive: a role of two words", chat(USER, {**ANSWER, "content": "<functioncall> {}"},
        {"role": "FUNCTION RESPONSE", "content": "2"}, ANSWER),
        [{"messages": [USER, {**ANSWER, "content": "<functioncall> {}"}, tool("2"), ANSWER]}]),
    Good("several calls in turns of their own", sharegpt(("human", "Why?"), ("function_call", JSON_CALL),
        ("function_call", SECOND_JSON_CALL), ("observation", "2"), ("observation", "3"), ("gpt", "Because.")),
        [{"messages": [USER, {**CALLING, "tool_calls": [CALL, SECOND_CALL]}, tool("2"), tool("3"), ANSWER]}]),
    Good("ms-swift: tool_call and tool_response", chat(USER, {"role": "tool_call", "content": JSON_CALL},
        {"role": "tool_response", "content": "2"}, ANSWER), [{"messages": [USER, CALLING, tool("2"), ANSWER]}]),
    Good("several calls in one turn, as text", sharegpt(("human", "Why?"),
        ("function_call", f"[{JSON_CALL}, {SECOND_JSON_CALL}]"), ("observation", "2"), ("gpt", "Because.")),
        [{"messages": [USER, {**CALLING, "tool_calls": [CALL, SECOND_CALL]}, tool("2"), ANSWER]}]),
    Good("users in a row, merged", chat(USER, {**USER, "content": "Tell me."}, ANSWER),
        [{"messages": [{**USER, "content": "Why?\n\nTell me."}, ANSWER]}], flags=("--turns=Merge",)),
    Good("answers in a row, merged", chat(USER, ANSWER, OTHER, USER, ANSWER),
        [{"messages": [USER, {**ANSWER, "content": "Because.\n\nGo away."}, USER, ANSWER]}], flags=("--turns=Merge",)),
    Good("a text and its call, merged", sharegpt(("human", "Why?"), ("gpt", "Because."), ("function_call", JSON_CALL),
        ("observation", "2"), ("gpt", "Go away.")), [{"messages": [USER, {**ANSWER, "tool_calls": [CALL]}, tool("2"),
        OTHER]}], flags=("--turns=Merge",)),
    Good("two system turns, merged", chat(SYSTEM, SYSTEM, USER, ANSWER),
        [{"messages": [{**SYSTEM, "content": "Be brief.\n\nBe brief."}, USER, ANSWER]}], flags=("--turns=Merge",)),
    Good("nothing to merge", chat(USER, ANSWER, USER, OTHER), [{"messages": [USER, ANSWER, USER, OTHER]}],
        flags=("--turns=Merge",)),
)  # fmt: skip

TEXTS = (
    Good("texts that speak of pictures", rows({"prompt": "How do I show <image> in HTML? docker run <image>",
        "completion": "<image>\nis no tag."}), [{"prompt": "How do I show <image> in HTML? docker run <image>",
        "completion": "<image>\nis no tag."}]),
    Good("an element that is called image", rows({"prompt": "<image>\n<url>x</url>\n</image>\nWhat is it?",
        "completion": "RSS"}), [{"prompt": "<image>\n<url>x</url>\n</image>\nWhat is it?", "completion": "RSS"}]),
    Good("an answer that is JSON", rows({"prompt": "a", "completion": json.dumps([{"name": "f"}])}),
        [{"prompt": "a", "completion": '[{"name": "f"}]'}]),
    Good("characters beyond the first plane", rows({"prompt": "😀", "completion": "ü\u2028\t"}),
        [{"prompt": "😀", "completion": "ü\u2028\t"}]),
    Good("a byte order mark", b"\xef\xbb\xbf" + rows(PAIR), [PAIR]),
    Good("carriage returns and blank lines", b'\r\n{"prompt": "a", "completion": "b"}\r\n\r\n', [PAIR]),
    Good("no line break at the end", rows(PAIR).rstrip(), [PAIR]),
    Good("Alpaca without input", rows({"instruction": "a", "output": "b"}), [PAIR]),
    Good("Alpaca with input", rows({"instruction": "a", "input": "c", "output": "b"}),
        [{"prompt": "a\n\nc", "completion": "b"}]),
    Good("content in parts", chat({"role": "user", "content": [{"type": "text", "text": "Why?"}]}, ANSWER), [PLAIN]),
    Good("messages as JSON", rows({"messages": json.dumps([USER, ANSWER])}), [PLAIN]),
    Good("one invalid row of three, dropped", rows(PAIR, {"prompt": ""}, {"prompt": "c", "completion": "d"}),
        [PAIR, {"prompt": "c", "completion": "d"}], flags=("--invalid-rows=Drop",)),
    Good("a preference", rows(PREFERENCE), [PREFERENCE], flags=("--method=DPO",)),
    Good("a preference between conversations", rows({"chosen": [USER, ANSWER], "rejected": [USER, OTHER]}),
        [{"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]}], flags=("--method=DPO",)),
)  # fmt: skip

CSV = b"prompt;completion\na;b\n"

FILES = (
    Good("NaN in a column that is not used", b'{"prompt": "a", "completion": "b", "score": NaN}\n', [PAIR]),
    Good("infinity in a column that is not used", b'{"prompt": "a", "completion": "b", "score": -Infinity}\n', [PAIR]),
    Good("NaN for what is not there", b'{"instruction": "a", "input": NaN, "output": "b", "system": NaN}\n', [PAIR]),
    Good("zstd", zstd(rows(PAIR)), [PAIR], file="train.jsonl.zst"),
    Good("an array with gzip", gzip.compress(json.dumps([PAIR]).encode()), [PAIR], file="train.json.gz"),
    Good("a table with zstd", zstd(CSV), [PAIR], file="TRAIN.CSV.ZST"),
    Good("a table with semicolons", CSV, [PAIR], file="train.csv"),
    Good("a table with commas in a header of semicolons", b'prompt;completion;"note, if any, here"\na;b;x\n', [PAIR],
        file="train.csv"),
    Good("a table with bare commas in a header of semicolons", b"prompt;completion;a, or b;c\na;b;x;y\n", [PAIR],
        file="train.csv"),
    Good("a table with tabs", CSV.replace(b";", b"\t"), [PAIR], file="train.tsv"),
    Good("a table with tabs, called CSV", CSV.replace(b";", b"\t"), [PAIR], file="train.csv"),
    Good("a table with a byte order mark and quotes", BOM + b'"prompt";"completion"\r\n"a";"b"\r\n', [PAIR],
        file="train.csv"),
    Good("a table that says its separator", b"sep=;\r\n" + CSV, [PAIR], file="train.csv"),
    Good("a table with columns and rows that are empty", b"prompt;completion;;\na;b;;\n;;;\nc;d;;\n",
        [PAIR, {"prompt": "c", "completion": "d"}], file="train.csv"),
    Good("a table with empty fields beyond the header", b"prompt,completion\na,b,,\n", [PAIR], file="train.csv"),
    Good("a table with an index as pandas writes it", b",prompt,completion\n0,a,b\n", [PAIR], file="train.csv"),
    Good("a table with line breaks in its fields", b'prompt,completion\n"a\nb","c, ""d"""\n',
        [{"prompt": "a\nb", "completion": 'c, "d"'}], file="train.csv"),
    Good("Parquet: nulls that the columns of other rows add", parquet(messages=[[USER, {**ANSWER, "train": False},
        {**USER, "train": None}, OTHER], [USER, {**ANSWER, "train": None}]]), [HALF, PLAIN], file="train.parquet"),
    Good("Parquet: variables of the template that other rows have", parquet(prompt=["a", "c"], completion=["b", "d"],
        chat_template_kwargs=[{"x": 1, "y": None}, {"x": None, "y": None}]),
        [{**PAIR, "chat_template_kwargs": {"x": 1}}, {"prompt": "c", "completion": "d"}], file="train.parquet"),
    Good("Arrow: a stream, as a saved dataset has it", arrow(pa.ipc.new_stream, prompt=["a"], completion=["b"]), [PAIR],
        file="data-00000-of-00001.arrow"),
    Good("Arrow: a file", arrow(pa.ipc.new_file, prompt=["a"], completion=["b"]), [PAIR], file="train.arrow"),
)  # fmt: skip

DOCUMENTS = (
    Good("texts", rows({"text": "Once upon a time."}, {"text": "b", "url": "x"}), [{"text": "Once upon a time."},
        {"text": "b"}]),
    Good("a text with spaces and line breaks at its ends", rows({"text": "\n a\n"}), [{"text": "\n a\n"}]),
    Good("a text in a mapped column", rows({"content": "a"}), [{"text": "a"}], flags=("--column=text=content",)),
    Good("texts beside nothing that matters", rows({"text": "a", "system": "", "tools": None, "prompt": None}),
        [{"text": "a"}]),
    Good("Alpaca with the rendered text beside", rows({"instruction": "a", "input": "", "output": "b",
        "text": "### Instruction: a ### Response: b"}), [PAIR]),
    Good("messages with the rendered text beside", chat(USER, ANSWER, text="user: Why?"), [PLAIN]),
    Good("the rendered text, mapped, beside messages", chat(USER, ANSWER, text="user: Why?"), [{"text": "user: Why?"}],
        flags=("--column=text=text",)),
    Good("a prompt beside a text, left out", rows({"prompt": "a", "text": "b"}), [{"text": "b"}],
        flags=("--ignore-column=prompt",)),
    Good("texts that hold JSON", rows({"text": '[{"role": "user", "content": "a"}]'}),
        [{"text": '[{"role": "user", "content": "a"}]'}]),
    Good("a class beside a text", rows({"text": "a", "label": 0}), [{"text": "a"}]),
    Good("texts as CSV", b"id,text\n1,a\n2,\"b\nc\"\n", [{"text": "a"}, {"text": "b\nc"}], file="train.csv"),
    Good("texts as Parquet", parquet(text=["a", "b"], id=[1, 2]), [{"text": "a"}, {"text": "b"}], file="train.parquet"),
    Good("an empty text of three, dropped", rows({"text": "a"}, {"text": " "}, {"text": "b"}), [{"text": "a"},
        {"text": "b"}], flags=("--invalid-rows=Drop",)),
)  # fmt: skip

KTO = ("--method=KTO",)
LIKED = {**PAIR, "label": True}
DISLIKED = {"prompt": "a", "completion": "c", "label": False}
ASKED_AND_ANSWERED = {"prompt": [USER], "completion": [ANSWER], "label": True}
ASKED_OTHERWISE = {"prompt": [USER], "completion": [OTHER], "label": False}

LABELLED = (
    Good("labelled answers", rows(LIKED, DISLIKED), [LIKED, DISLIKED], flags=KTO),
    Good("labels as text", rows({**LIKED, "label": "true"}, {**DISLIKED, "label": "False"}), [LIKED, DISLIKED],
        flags=KTO),
    Good("labels as numbers", rows({**LIKED, "label": 1}, {**DISLIKED, "label": 0.0}), [LIKED, DISLIKED], flags=KTO),
    Good("labels as CSV", b"prompt,completion,label\na,b,TRUE\na,c,0\n", [LIKED, DISLIKED], file="train.csv",
        flags=KTO),
    Good("labels as Parquet", parquet(prompt=["a", "a"], completion=["b", "c"], label=[True, False]),
        [LIKED, DISLIKED], file="train.parquet", flags=KTO),
    Good("LLaMA-Factory: a tag for KTO", rows({**PAIR, "kto_tag": True}, {"prompt": "a", "completion": "c",
        "kto_tag": False}), [LIKED, DISLIKED], flags=(*KTO, "--column=label=kto_tag")),
    Good("labelled answers as turns", rows(ASKED_AND_ANSWERED, ASKED_OTHERWISE), [ASKED_AND_ANSWERED, ASKED_OTHERWISE],
        flags=KTO),
    Good("a prompt as text and a labelled answer in turns", rows({"prompt": "Why?", "completion": [ANSWER],
        "label": True}, ASKED_OTHERWISE), [ASKED_AND_ANSWERED, ASKED_OTHERWISE], flags=KTO),
    Good("labelled messages", rows({"messages": [USER, ANSWER], "label": True},
        {"messages": [USER, OTHER], "label": False}), [ASKED_AND_ANSWERED, ASKED_OTHERWISE], flags=KTO),
    Good("labelled messages of several turns", rows({"messages": [SYSTEM, USER, OTHER, USER, ANSWER], "label": True},
        {"messages": [USER, OTHER], "label": False}), [{"prompt": [SYSTEM, USER, OTHER, USER], "completion": [ANSWER],
        "label": True}, ASKED_OTHERWISE], flags=KTO),
    Good("labelled messages with a tool", rows({"messages": [USER, CALLING, tool("2"), ANSWER], "label": 1},
        {"messages": [USER, OTHER], "label": 0}), [{"prompt": [USER], "completion": [CALLING, tool("2"), ANSWER],
        "label": True}, ASKED_OTHERWISE], flags=KTO),
    Good("labelled messages whose earlier turns have weights", rows({"messages": [USER, SEEN, USER, ANSWER],
        "label": True}, {"messages": [USER, OTHER], "label": False}), [{"prompt": [USER, ANSWER, USER],
        "completion": [ANSWER], "label": True}, ASKED_OTHERWISE], flags=KTO),
    Good("labelled ShareGPT", rows({"conversations": [{"from": "human", "value": "Why?"},
        {"from": "gpt", "value": "Because."}], "label": True}, {"conversations": [{"from": "human", "value": "Why?"},
        {"from": "gpt", "value": "Go away."}], "label": False}), [ASKED_AND_ANSWERED, ASKED_OTHERWISE], flags=KTO),
    Good("labelled Alpaca", rows({"instruction": "a", "input": "", "output": "b", "label": True},
        {"instruction": "a", "output": "c", "label": False}), [LIKED, DISLIKED], flags=KTO),
    Good("a system prompt beside labelled answers", rows({**LIKED, "system": "Be brief."}, DISLIKED),
        [{"prompt": [SYSTEM, ASKED], "completion": [ANSWERED], "label": True}, DISLIKED], flags=KTO),
    Good("thoughts beside a labelled answer", rows({**LIKED, "reasoning": "Well."}, DISLIKED), [{"prompt": [ASKED],
        "completion": [{**ANSWERED, "reasoning_content": "Well."}], "label": True}, DISLIKED], flags=KTO),
    Good("one label of three that says nothing, dropped", rows({**PAIR, "label": None}, LIKED, DISLIKED),
        [LIKED, DISLIKED], flags=(*KTO, "--invalid-rows=Drop")),
)  # fmt: skip

CASES = (*FLAGS, *BESIDE, *ROLES, *TEXTS, *FILES, *DOCUMENTS, *LABELLED)
