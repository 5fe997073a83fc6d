"""Rows of texts whose fields are not what a shape wants, and what is said of them."""

from __future__ import annotations

from tests.unit.corpus.cases import PAIR, Case, rows

CASES = (
    Case(
        "null completion",
        rows(PAIR, {"prompt": "a", "completion": None}),
        "train.jsonl row 2: completion: must not be null",
        row=2,
    ),
    Case(
        "a number as prompt",
        rows({"prompt": 1, "completion": "b"}),
        "train.jsonl row 1: prompt: must be a string, is a number",
        row=1,
    ),
    Case(
        "a list as completion",
        rows({"prompt": "a", "completion": ["b"]}),
        "train.jsonl row 1: completion: must be a string, is a list",
        row=1,
    ),
    Case(
        "an object as prompt",
        rows(PAIR, {"prompt": {"text": "a"}, "completion": "b"}),
        "train.jsonl row 2: prompt: must be a string, is an object",
        row=2,
    ),
    Case(
        "true as completion",
        rows(PAIR, {"prompt": "a", "completion": True}),
        "train.jsonl row 2: completion: must be a string, is true or false",
        row=2,
    ),
    Case(
        "empty completion",
        rows(PAIR, {"prompt": "a", "completion": ""}),
        "train.jsonl row 2: completion: is empty",
        row=2,
    ),
    Case(
        "white space as prompt",
        rows({"prompt": " \n\t", "completion": "b"}),
        "train.jsonl row 1: prompt: is empty",
        row=1,
    ),
    Case(
        "both fields wrong",
        rows({"prompt": "", "completion": 7}),
        "train.jsonl has 2 problems in 1 row: row 1: prompt: is empty; row 1: completion: must be a "
        "string, is a number",
        row=1,
    ),
    Case(
        "an empty object",
        rows({}),
        "train.jsonl row 1: has no fields, but SFT needs prompt and completion, or messages, or "
        "conversations, or instruction and output, or text: map the columns with --column (columns in a TrainingRun)",
        row=1,
    ),
    Case(
        "a field of another name",
        rows({"question": "a", "answer": "b"}),
        "train.jsonl row 1: has question, answer, but SFT needs prompt and completion, or messages, or "
        "conversations, or instruction and output, or text: map the columns with --column (columns in a "
        "TrainingRun), perhaps prompt=question and "
        "completion=answer",
        row=1,
    ),
    Case(
        "a mapped column that is not there",
        rows({"question": "a", "completion": "b"}),
        "train.jsonl row 1: ask: is missing (it is mapped to prompt)",
        flags=("--column=prompt=ask",),
        row=1,
    ),
    Case(
        "many problems",
        rows(*[{"prompt": "", "completion": ""}] * 30),
        "train.jsonl has 60 problems in 30 rows: row 1: prompt: is empty; row 1: completion: is empty; "
        "row 2: prompt: is empty; row 2: completion: is empty; row 3: prompt: is empty; row 3: "
        "completion: is empty; row 4: prompt: is empty; row 4: completion: is empty; row 5: prompt: is "
        "empty; row 5: completion: is empty; row 6: prompt: is empty; row 6: completion: is empty; row 7:"
        " prompt: is empty; row 7: completion: is empty; row 8: prompt: is empty; row 8: completion: is "
        "empty; row 9: prompt: is empty; row 9: completion: is empty; row 10: prompt: is empty; row 10: "
        "completion: is empty; and 40 more",
        row=1,
    ),
    Case(
        "all rows the same",
        rows(PAIR, PAIR, PAIR),
        "train.jsonl has 3 usable rows, all of them the same: check the source",
    ),
    Case(
        "all rows invalid and dropped",
        rows({"prompt": ""}, {"prompt": "a"}),
        "train.jsonl has no usable row, 2 invalid: row 1: completion: is missing (also row 2)",
        flags=("--invalid-rows=Drop",),
        row=1,
    ),
    Case(
        "all rows of a known shape, invalid and dropped",
        rows({"prompt": "", "completion": "b"}, {"prompt": "a", "completion": " "}),
        "train.jsonl has no usable row, 2 invalid: row 1: prompt: is empty; row 2: completion: is empty",
        flags=("--invalid-rows=Drop",),
        row=1,
    ),
    Case(
        "completions for DPO",
        rows(PAIR),
        "train.jsonl row 1: has prompt and completion: that is for method SFT; DPO needs prompt, chosen "
        "and rejected, or chosen and rejected, or messages, chosen and rejected, or conversations, chosen and "
        "rejected, or instruction, chosen and rejected",
        flags=("--method=DPO",),
        row=1,
    ),
    Case(
        "alpaca for DPO",
        rows({"instruction": "a", "output": "b"}),
        "train.jsonl row 1: has instruction, input and output (Alpaca): that is for method SFT; DPO needs"
        " prompt, chosen and rejected, or chosen and rejected, or messages, chosen and rejected, or conversations, "
        "chosen and rejected, or instruction, chosen and rejected",
        flags=("--method=DPO",),
        row=1,
    ),
)
