"""Datasets that say in other words what cannot be used, and files in other forms."""

from __future__ import annotations

import bz2
import json
import lzma
from typing import Any

from tests.unit.corpus.cases import ANSWER, PAIR, RESULT, USER, Case, chat, rows


def flagged(**keys: Any) -> bytes:
    """Return a row whose first answer has further keys."""
    return chat(USER, {**ANSWER, **keys}, USER, ANSWER)


def called(**keys: Any) -> bytes:
    """Return a row with a call that is written with other keys."""
    return chat(USER, {"role": "assistant", "content": None, **keys}, RESULT, ANSWER)


CALLED = {"role": "assistant", "content": "", "tool_calls": [{"id": "x", "name": "add", "arguments": {}}]}

CYRILLIC = "\u0432\u043e\u043f\u0440\u043e\u0441,\u043e\u0442\u0432\u0435\u0442\n\u0430,\u0431\n"

CASES = (
    Case(
        "a flag of a name that may mean either",
        flagged(mask_label=1),
        "train.jsonl row 1: messages[1].mask_label: is not read, since tools read it in both ways: write "
        "weight: 0 where the turn is not learned, else 1",
        row=1,
    ),
    Case(
        "a list of flags in a turn",
        flagged(loss_weights=[0, 1]),
        "train.jsonl row 1: messages[1].loss_weights: is not read, since tools read it in both ways: write "
        "weight: 0 where the turn is not learned, else 1",
        row=1,
    ),
    Case(
        "a turn to skip",
        flagged(skip=True),
        "train.jsonl row 1: messages[1].skip: is not read, since tools read it in both ways: write weight: 0 "
        "where the turn is not learned, else 1",
        row=1,
    ),
    Case(
        "flags of other names that contradict each other",
        flagged(should_train=True, skip_loss=True),
        "train.jsonl row 1: messages[1].skip_loss: contradicts should_train beside it: keep one",
        row=1,
    ),
    Case(
        "all turns without a loss",
        chat(USER, {**ANSWER, "no_loss": True}, USER, {**ANSWER, "skip_loss": "yes"}),
        "train.jsonl row 1: messages: has no assistant turn to learn from: all are of weight 0",
        row=1,
    ),
    Case(
        "a turn of thoughts on a channel",
        flagged(channel="analysis"),
        "train.jsonl row 1: messages[1].channel: is 'analysis', and only what is said to the user is read as "
        "content: write what is thought as reasoning_content of the answer, what is called as its tool_calls",
        row=1,
    ),
    Case(
        "a turn for a tool",
        flagged(recipient="functions.add"),
        "train.jsonl row 1: messages[1].recipient: is 'functions.add', and only what is said to the user is "
        "read as content: write what is thought as reasoning_content of the answer, what is called as its "
        "tool_calls",
        row=1,
    ),
    Case(
        "a row that is not to be learned",
        rows({**PAIR, "train": False}),
        "train.jsonl row 1: train: is False, which marks a row that is not to be learned: leave the row out, "
        "or leave the column out with --ignore-column=train (ignoredColumns in a TrainingRun)",
        row=1,
    ),
    Case(
        "a row that is not to be learned, the other way round",
        rows({**PAIR, "ExcludeFromLoss": "t"}),
        "train.jsonl row 1: ExcludeFromLoss: is 't', which marks a row that is not to be learned: leave the "
        "row out, or leave the column out with --ignore-column=ExcludeFromLoss (ignoredColumns in a "
        "TrainingRun)",
        row=1,
    ),
    Case(
        "a mask of turns beside messages",
        chat(USER, ANSWER, mask=[0, 1]),
        "train.jsonl row 1: mask: is a list: masks of tokens are not read, mark the turns to learn with "
        "weight, or leave the column out with --ignore-column=mask (ignoredColumns in a TrainingRun)",
        row=1,
    ),
    Case(
        "weights of turns beside messages",
        chat(USER, ANSWER, turn_weights=[0.0, 1.0]),
        "train.jsonl row 1: turn_weights: is a list: masks of tokens are not read, mark the turns to learn "
        "with weight, or leave the column out with --ignore-column=turn_weights (ignoredColumns in a "
        "TrainingRun)",
        row=1,
    ),
    Case(
        "turns to train on, as a list",
        chat(USER, ANSWER, trainOnTurns="[1]"),
        "train.jsonl row 1: trainOnTurns: is a list: masks of tokens are not read, mark the turns to learn "
        "with weight, or leave the column out with --ignore-column=trainOnTurns (ignoredColumns in a "
        "TrainingRun)",
        row=1,
    ),
    Case(
        "a bad answer by another name",
        rows({**PAIR, "kto_tag": 0}),
        "train.jsonl row 1: kto_tag: is 0, which marks a bad answer, and SFT would learn it: leave the row "
        "out, or leave the column out with --ignore-column=kto_tag (ignoredColumns in a TrainingRun)",
        row=1,
    ),
    Case(
        "an image of another name",
        chat(USER, ANSWER, img="a.png"),
        "train.jsonl row 1: img: holds a string, but only text is trained on: use rows without it, or leave "
        "the column out with --ignore-column=img (ignoredColumns in a TrainingRun)",
        row=1,
    ),
    Case(
        "an image as base64",
        rows({**PAIR, "imageBase64": "aGVsbG8="}),
        "train.jsonl row 1: imageBase64: holds a string, but only text is trained on: use rows without it, "
        "or leave the column out with --ignore-column=imageBase64 (ignoredColumns in a TrainingRun)",
        row=1,
    ),
    Case(
        "multimodal data",
        chat(USER, ANSWER, multi_modal_data={"image": ["a.png"]}),
        "train.jsonl row 1: multi_modal_data: holds an object, but only text is trained on: use rows without "
        "it, or leave the column out with --ignore-column=multi_modal_data (ignoredColumns in a TrainingRun)",
        row=1,
    ),
    Case(
        "a sound's bytes in a turn",
        chat({**USER, "audio_bytes": "aGVsbG8="}, ANSWER),
        "train.jsonl row 1: messages[0].audio_bytes: holds images or sound, but only text is trained on: "
        "leave the row out",
        row=1,
    ),
    *(
        Case(
            f"a place for a picture: {mark}",
            chat({"role": "user", "content": f"{mark} What is it?"}, ANSWER),
            f"train.jsonl row 1: messages[0].content: holds {mark}, in whose place a model sees a picture or "
            "hears a sound, but only text is trained on: leave the row out",
            row=1,
        )
        for mark in (
            "[IMG]",
            "<image_1>",
            "<image 2>",
            "<|image_1|>",
            "<|AUDIO|>",
            "<|audio_bos|>",
            "<ImageHere>",
            "<IMG_CONTEXT>",
            "<__media__>",
            "<img>a.png</img>",
            "<Image>",
        )
    ),
    Case(
        "places for pictures in the middle",
        rows({"prompt": "Compare <image><image> and tell.", "completion": "b"}),
        "train.jsonl row 1: prompt: holds <image><image>, in whose place a model sees a picture or hears a "
        "sound, but only text is trained on: leave the row out",
        row=1,
    ),
    Case(
        "a system prompt in two columns that differ",
        rows({**PAIR, "sys": "Be brief.", "system": "Be kind."}),
        "train.jsonl row 1: system: differs from sys beside it: keep one",
        row=1,
    ),
    Case(
        "history of objects of other keys",
        rows({**PAIR, "history": [{"user": "c", "assistant": "d"}]}),
        "train.jsonl has 3 problems in 1 row: row 1: history[0].role: is missing: the turn has user, "
        "assistant; write role and content in all turns; row 1: history[0].content: is missing: the turn has "
        "user, assistant; row 1: history: ends with a turn of unknown, must end with a turn of assistant",
        row=1,
    ),
    Case(
        "a call with arguments of an unknown name",
        called(tool_calls=[{"name": "add", "values": {"a": 1}}]),
        "train.jsonl row 1: messages[1].tool_calls[0]: has no arguments, but values: call them arguments",
        row=1,
    ),
    Case(
        "a call with arguments under two names",
        called(tool_calls=[{"name": "add", "args": {"a": 1}, "input": {"a": 2}}]),
        "train.jsonl row 1: messages[1].tool_calls[0]: has args, input: keep one of them as arguments",
        row=1,
    ),
    Case(
        "arguments in a text in a text",
        called(tool_calls=[{"name": "add", "arguments": json.dumps(json.dumps({"a": 1}))}]),
        "train.jsonl row 1: messages[1].tool_calls[0].arguments: must be an object, is a string",
        row=1,
    ),
    Case(
        "an answer to another call",
        chat(USER, CALLED, {**RESULT, "tool_call_id": "y"}, ANSWER),
        "train.jsonl row 1: messages[2].tool_call_id: is 'y', but what waits for an answer is x",
        row=1,
    ),
    Case(
        "a call that is answered twice",
        chat(USER, CALLED, *[{**RESULT, "tool_call_id": "x"}] * 2, ANSWER),
        "train.jsonl row 1: messages[3].tool_call_id: is 'x', but what waits for an answer is none of the "
        "calls before it",
        row=1,
    ),
    Case(
        "a tool's answer that is an object",
        chat(USER, CALLED, {"role": "tool", "content": {"sum": 2}}, ANSWER),
        "train.jsonl row 1: messages[2].content: must be a string, is an object: write it as JSON text",
        row=1,
    ),
    Case(
        "a part of thoughts",
        chat(USER, {"role": "assistant", "content": [{"type": "thinking", "thinking": "Well."}]}),
        "train.jsonl row 1: messages[1].content[0].type: must be 'text', is 'thinking': write it as "
        "reasoning_content of the turn",
        row=1,
    ),
    Case(
        "a part that calls a tool",
        chat(USER, {"role": "assistant", "content": [{"type": "tool_use", "name": "add", "input": {}}]}),
        "train.jsonl row 1: messages[1].content[0].type: must be 'text', is 'tool_use': write it as "
        "tool_calls of the turn",
        row=1,
    ),
    Case(
        "a part that a tool answers",
        chat({"role": "user", "content": [{"type": "tool_result", "content": "2"}]}, ANSWER),
        "train.jsonl row 1: messages[0].content[0].type: must be 'text', is 'tool_result': write it as a "
        "turn of role tool",
        row=1,
    ),
    Case(
        "turns of two spellings",
        chat(USER, {"from": "gpt", "value": "b"}),
        "train.jsonl has 2 problems in 1 row: row 1: messages[1].role: is missing: the turn has from, value; "
        "write role and content in all turns; row 1: messages[1].content: is missing: the turn has from, "
        "value",
        row=1,
    ),
    Case(
        "turns as pairs",
        rows({"messages": [["user", "a"], ["assistant", "b"]]}),
        "train.jsonl has 2 problems in 1 row: row 1: messages[0]: must be an object, is a list; row 1: "
        "messages[1]: must be an object, is a list",
        row=1,
    ),
    Case(
        "roles and texts of different number",
        rows({"messages": {"role": ["user", "assistant"], "content": ["a"]}}),
        "train.jsonl row 1: messages: must be a list, is an object",
        row=1,
    ),
    Case(
        "a turn that is null",
        chat(USER, ANSWER, None),
        "train.jsonl row 1: messages[2]: must be an object, is null",
        row=1,
    ),
    Case(
        "an answer of white space",
        chat(USER, {"role": "assistant", "content": " \n"}),
        "train.jsonl row 1: messages[1].content: is empty",
        row=1,
    ),
    Case(
        "chat: chosen equal to rejected but for spaces",
        rows({"prompt": [USER], "chosen": [ANSWER], "rejected": "Because.\n"}),
        "train.jsonl row 1: chosen: is equal to rejected: nothing can be learned from that",
        flags=("--method=DPO",),
        row=1,
    ),
    Case(
        "answers to a conversation that has one, without a prompt",
        rows({"messages": [USER, ANSWER], "chosen": "b", "rejected": "c"}),
        "train.jsonl row 1: has messages: that is for method SFT; DPO needs prompt, chosen and rejected, or "
        "chosen and rejected, or messages, chosen and rejected, or conversations, chosen and rejected, or "
        "instruction, chosen and rejected",
        flags=("--method=DPO",),
        row=1,
    ),
    Case(
        "Dolly: a response",
        rows({"instruction": "a", "context": "", "response": "b"}),
        "train.jsonl row 1: output: is missing: if it is response, map it with --column=output=response "
        "(columns in a TrainingRun)",
        row=1,
    ),
    Case(
        "answers of other names",
        rows({"prompt": "a", "chosen_response": "b", "rejected_response": "c"}),
        "train.jsonl has 2 problems in 1 row: row 1: chosen: is missing: if it is chosen_response, map it "
        "with --column=chosen=chosen_response (columns in a TrainingRun); row 1: rejected: is missing: if it "
        "is rejected_response, map it with --column=rejected=rejected_response (columns in a TrainingRun)",
        flags=("--method=DPO",),
        row=1,
    ),
    Case(
        "a label of another name",
        rows({**PAIR, "desirable": True}),
        "train.jsonl row 1: label: is missing: if it is desirable, map it with --column=label=desirable "
        "(columns in a TrainingRun)",
        flags=("--method=KTO",),
        row=1,
    ),
    *(
        Case(
            f"a label: {label!r}",
            rows({**PAIR, "label": label}),
            f"train.jsonl row 1: label: must be true, for a good answer, or false, for a bad one, is {label!r}",
            flags=("--method=KTO",),
            row=1,
        )
        for label in (2, -1, 0.5, "good", "thumbs_up", "", [True])
    ),
    Case(
        "JSON with a comment",
        b'// rows\n{"prompt": "a", "completion": "b"}\n',
        "train.jsonl row 1: not valid JSON: Expecting value at character 1: JSON has no comments, leave them out",
        row=1,
    ),
    Case(
        "JSON with a comment behind a hash",
        b'# rows\n{"prompt": "a", "completion": "b"}\n',
        "train.jsonl row 1: not valid JSON: Expecting value at character 1: JSON has no comments, leave them out",
        row=1,
    ),
    Case(
        "a comma before the object's end",
        b'{"prompt": "a", "completion": "b",}\n',
        "train.jsonl row 1: not valid JSON: Expecting property name enclosed in double quotes at character "
        "35: leave out the comma before }",
        row=1,
    ),
    Case(
        "an array with a comment",
        b'[{"prompt": "a", "completion": "b"}, /* more */ {"prompt": "c"}]',
        "train.json row 2: not valid JSON: Expecting value at character 1: JSON has no comments, leave them out",
        file="train.json",
        row=2,
    ),
    Case(
        "UTF-16 of other letters, without a byte order mark",
        CYRILLIC.encode("utf-16-le"),
        "train.csv is UTF-16 text: convert it with `iconv -f UTF-16 -t UTF-8`",
        file="train.csv",
    ),
    Case(
        "UTF-16 of other letters, the other way round",
        CYRILLIC.encode("utf-16-be"),
        "train.csv is UTF-16 text: convert it with `iconv -f UTF-16 -t UTF-8`",
        file="train.csv",
    ),
    Case(
        "bzip2",
        bz2.compress(rows(PAIR)),
        "train.jsonl.bz2 is compressed with bzip2: decompress it, or compress it with gzip or zstd",
        file="train.jsonl.bz2",
    ),
    Case(
        "xz under the name of JSON lines",
        lzma.compress(rows(PAIR)),
        "train.jsonl is compressed with xz: decompress it, or compress it with gzip or zstd",
    ),
    Case(
        "zstd under the name of its long end, and none",
        rows(PAIR),
        'train.jsonl.zstd is not zstd although its name says so: it begins with \'{"prompt": "a", '
        '"completion": "b"}\': name it after what it is',
        file="train.jsonl.zstd",
    ),
    Case(
        "a table of texts about a table",
        b"My table\n\nprompt,completion\na,b\n",
        "train.csv has 2 problems in 2 rows: row 1: has 2 fields, but the header names 1: quote fields that "
        "hold commas; row 2: has 2 fields, but the header names 1: quote fields that hold commas",
        file="train.csv",
        row=1,
    ),
    Case(
        "a table without a header",
        b"What?,Because.\nWho?,Me.\n",
        "train.csv row 1: has What?, Because., but SFT needs prompt and completion, or messages, or "
        "conversations, or instruction and output, or text: map the columns with --column (columns in a "
        "TrainingRun)",
        file="train.csv",
        row=1,
    ),
    Case(
        "rows by column",
        json.dumps({"prompt": ["a", "c"], "completion": ["b", "d"]}).encode(),
        "train.json has 2 problems in 1 row: row 1: prompt: must be a string, is a list; row 1: completion: "
        "must be a string, is a list",
        file="train.json",
        row=1,
    ),
)
