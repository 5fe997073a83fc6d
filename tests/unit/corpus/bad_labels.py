"""Texts that are learned as they stand, and labelled answers (KTO): rows that are refused, and why."""

from __future__ import annotations

from typing import Any

from tests.unit.corpus.cases import ANSWER, PAIR, PREFERENCE, SYSTEM, USER, Case, rows

KTO = ("--method=KTO",)
GOOD = {**PAIR, "label": True}
BAD = {"prompt": "a", "completion": "c", "label": False}
MUST = "must be true, for a good answer, or false, for a bad one"
WHY = ": KTO asks of each answer whether it is a good one, true, or a bad one, false; without labels use SFT"
IGNORE = "or leave the column out with --ignore-column={} (ignoredColumns in a TrainingRun)"
NEEDS = (
    "prompt, completion and label, or messages and label, or conversations and label, or instruction, output and label"
)


def labelled(label: Any) -> bytes:
    """Return a good row, and one with another label."""
    return rows(GOOD, {**BAD, "label": label})


def beside(column: str) -> str:
    """Return why a column beside a text is refused that only turns have."""
    return (
        f"train.jsonl row 1: {column}: is given beside text, which is learned as it stands: write it into text, "
        f"{IGNORE.format(column)}"
    )


def other(column: str) -> str:
    """Return why a field of another shape beside a text is refused."""
    return (
        f"train.jsonl row 1: {column}: is given beside text, and a row is one or the other: map the text that is "
        f"meant (text=text), {IGNORE.format(column)}"
    )


TEXTS = (
    Case("an empty text", rows({"text": ""}), "train.jsonl row 1: text: is empty", row=1),
    Case("a blank text", rows({"text": "a"}, {"text": " \n\u3000"}), "train.jsonl row 2: text: is empty", row=2),
    Case("a text that is null", rows({"text": None}), "train.jsonl row 1: text: must not be null", row=1),
    Case("no text", rows({"text": "a"}, {"id": 7}),
        "train.jsonl row 2: has id, but row 1 has text: use the same fields in all rows", row=2),
    Case("a text that is a number", rows({"text": 7}), "train.jsonl row 1: text: must be a string, is a number", row=1),
    Case("a text that is a list", rows({"text": ["a", "b"]}), "train.jsonl row 1: text: must be a string, is a list",
        row=1),
    Case("a text that is an object", rows({"text": {"en": "a"}}),
        "train.jsonl row 1: text: must be a string, is an object", row=1),
    Case("a text that is true", rows({"text": True}), "train.jsonl row 1: text: must be a string, is true or false",
        row=1),
    Case("a text with a NUL character", rows({"text": "a\0"}),
        "train.jsonl row 1: text: holds a NUL character, at character 2", row=1),
    Case("a text with half a surrogate pair", b'{"text": "\\ud800"}\n',
        "train.jsonl row 1: text: holds half of a surrogate pair, which is no character", row=1),
    Case("a text around a picture", rows({"text": "Look: <|image_pad|>"}),
        "train.jsonl row 1: text: holds <|image_pad|>, in whose place a model sees a picture or hears a sound, but "
        "only text is trained on: leave the row out", row=1),
    Case("a system prompt beside a text", rows({"text": "a", "system": "Be brief."}), beside("system"), row=1),
    Case("tools beside a text", rows({"text": "a", "tools": [{"name": "add"}]}), beside("tools"), row=1),
    Case("thoughts beside a text", rows({"text": "a", "reasoning": "Well."}), beside("reasoning"), row=1),
    Case("variables of a template beside a text", rows({"text": "a", "chat_template_kwargs": {"x": 1}}),
        beside("chat_template_kwargs"), row=1),
    Case("a prompt beside a text", rows({"prompt": "a", "text": "b"}), other("prompt"), row=1),
    Case("an answer beside a text", rows({"output": "a", "text": "b"}), other("output"), row=1),
    Case("a bad answer beside a text", rows({"text": "a", "rejected": "b"}), other("rejected"), row=1),
    Case("a text among prompts", rows(PAIR, {"text": "a"}),
        "train.jsonl row 2: has text, but row 1 has prompt and completion: use one of the two", row=2),
    Case("prompts among texts", rows({"text": "a"}, PAIR),
        "train.jsonl row 2: has prompt and completion, but row 1 has text: use one of the two", row=2),
    Case("texts for DPO", rows({"text": "a"}),
        "train.jsonl row 1: has text: that is for method SFT; DPO needs prompt, chosen and rejected, or chosen and "
        "rejected, or messages, chosen and rejected, or conversations, chosen and rejected, or instruction, chosen and "
        "rejected", flags=("--method=DPO",), row=1),
    Case("texts for KTO", rows({"text": "a"}),
        f"train.jsonl row 1: has text: that is for method SFT; KTO needs {NEEDS}", flags=KTO, row=1),
    Case("all texts the same", rows(*[{"text": "a"}] * 3),
        "train.jsonl has 3 usable rows, all of them the same: check the source"),
)  # fmt: skip

LABELS = (
    Case("no label", rows(GOOD, PAIR), f"train.jsonl row 2: label: is missing{WHY}", flags=KTO, row=2),
    Case("no label anywhere", rows(PAIR, {"prompt": "c", "completion": "d"}),
        f"train.jsonl row 1: label: is missing{WHY} (also row 2)", flags=KTO, row=1),
    Case("no label beside messages", rows({"messages": [USER, ANSWER]}), f"train.jsonl row 1: label: is missing{WHY}",
        flags=KTO, row=1),
    Case("a mapped label that is not there", rows(PAIR),
        f"train.jsonl row 1: good: is missing (it is mapped to label){WHY}", flags=(*KTO, "--column=label=good"),
        row=1),
    Case("a label that is null, first", rows({**PAIR, "label": None}, GOOD),
        "train.jsonl row 1: label: must not be null", flags=KTO, row=1),
    Case("a label that is null", labelled(None), "train.jsonl row 2: label: must not be null", flags=KTO, row=2),
    Case("a label that is NaN", rows(GOOD) + b'{"prompt": "a", "completion": "c", "label": NaN}\n',
        "train.jsonl row 2: label: must not be null", flags=KTO, row=2),
    Case("a label in words", labelled("good"), f"train.jsonl row 2: label: {MUST}, is 'good'", flags=KTO, row=2),
    Case("an empty label", labelled(""), f"train.jsonl row 2: label: {MUST}, is ''", flags=KTO, row=2),
    Case("a label of minus one", labelled(-1), f"train.jsonl row 2: label: {MUST}, is -1", flags=KTO, row=2),
    Case("a label of two", labelled(2), f"train.jsonl row 2: label: {MUST}, is 2", flags=KTO, row=2),
    Case("half a label", labelled(0.5), f"train.jsonl row 2: label: {MUST}, is 0.5", flags=KTO, row=2),
    Case("a label in a list", labelled([True]), f"train.jsonl row 2: label: {MUST}, is [True]", flags=KTO, row=2),
    Case("all answers good", rows(GOOD, {**GOOD, "prompt": "c"}),
        "train.jsonl has 2 usable rows, all of them labelled true: KTO learns from good answers (true) and bad ones "
        "(false), and needs some of each; good ones alone can be learned with method SFT", flags=KTO),
    Case("all answers bad", rows(BAD, {**BAD, "prompt": "c"}),
        "train.jsonl has 2 usable rows, all of them labelled false: KTO learns from good answers (true) and bad ones "
        "(false), and needs some of each; good ones alone can be learned with method SFT", flags=KTO),
    Case("all good answers invalid and dropped", rows({**GOOD, "prompt": ""}, BAD, {**BAD, "prompt": "c"}),
        "train.jsonl has 2 usable rows, all of them labelled false: KTO learns from good answers (true) and bad ones "
        "(false), and needs some of each; good ones alone can be learned with method SFT",
        flags=(*KTO, "--invalid-rows=Drop")),
    Case("preferences for KTO", rows(PREFERENCE),
        f"train.jsonl row 1: has prompt, chosen and rejected: that is for method DPO; KTO needs {NEEDS}", flags=KTO,
        row=1),
    Case("labelled answers for DPO", rows(GOOD),
        "train.jsonl row 1: has prompt, completion and label: that is for method KTO; DPO needs prompt, chosen and "
        "rejected, or chosen and rejected, or messages, chosen and rejected, or conversations, chosen and rejected, or "
        "instruction, chosen and rejected", flags=("--method=DPO",), row=1),
    Case("an empty labelled answer", rows({**GOOD, "completion": " "}), "train.jsonl row 1: completion: is empty",
        flags=KTO, row=1),
    Case("a labelled answer that is null", rows({**GOOD, "completion": None}),
        "train.jsonl row 1: completion: must not be null", flags=KTO, row=1),
    Case("a labelled prompt that ends with the assistant", rows({"prompt": [USER, ANSWER], "completion": [ANSWER],
        "label": True}), "train.jsonl has 2 problems in 1 row: row 1: prompt: ends with a turn of assistant, must end "
        "with a turn of user or tool; row 1: completion[0].role: is assistant, but after a turn of assistant comes "
        "user: join the two, or have it done with --turns=Merge (turns in a TrainingRun)", flags=KTO, row=1),
    Case("a labelled conversation that ends with the user", rows({"messages": [USER, ANSWER, USER], "label": True}),
        "train.jsonl row 1: messages: ends with a turn of user, must end with a turn of assistant", flags=KTO, row=1),
    Case("a labelled conversation without a question", rows({"messages": [ANSWER], "label": True}),
        "train.jsonl row 1: messages[0].role: is assistant, but a conversation starts with system, developer or "
        "user", flags=KTO, row=1),
    Case("a labelled answer of weight 0", rows({"messages": [USER, {**ANSWER, "weight": 0}], "label": True}),
        "train.jsonl row 1: messages: has a turn of weight 0, but an answer is judged as a whole: leave the weights "
        "out", flags=KTO, row=1),
    Case("a labelled row with two system prompts", rows({"messages": [SYSTEM, USER, ANSWER], "label": False,
        "system": "Be kind."}), "train.jsonl row 1: system: is given beside a system turn in messages: keep one",
        flags=KTO, row=1),
    Case("a label and a mapped answer of DPO", rows(GOOD),
        "--column=chosen=...: no row for --method=KTO has that field", flags=(*KTO, "--column=chosen=completion"),
        code=2),
)  # fmt: skip

CASES = (*TEXTS, *LABELS)
