"""Datasets with columns or keys beside the texts that would change what is learned, and cannot be used."""

from __future__ import annotations

from typing import Any

from tests.unit.corpus.cases import ANSWER, CALLING, PAIR, PREFERENCE, RESULT, SYSTEM, USER, Case, chat, rows

PAIRS = {"chosen": [USER, ANSWER], "rejected": [USER, {**ANSWER, "content": "No."}]}


def flagged(**keys: Any) -> bytes:
    """Return a row whose first answer has further keys."""
    return chat(USER, {**ANSWER, **keys}, USER, ANSWER)


CASES = (
    Case(
        "a flag that is no flag",
        flagged(train="maybe"),
        "train.jsonl row 1: messages[1].train: must be 0 or 1, is 'maybe'",
        row=1,
    ),
    Case("half a turn's loss", flagged(loss=0.5), "train.jsonl row 1: messages[1].loss: must be 0 or 1, is 0.5", row=1),
    Case(
        "a loss mask of tokens",
        flagged(loss_mask=[0, 0, 1]),
        "train.jsonl row 1: messages[1].loss_mask: must be 0 or 1, is [0, 0, 1]",
        row=1,
    ),
    Case(
        "a scale of a turn's loss",
        flagged(**{"Loss-Scale": 2}),
        "train.jsonl row 1: messages[1].Loss-Scale: must be 0 or 1, is 2",
        row=1,
    ),
    Case(
        "flags that contradict each other",
        flagged(train=True, weight=0),
        "train.jsonl row 1: messages[1].weight: contradicts train beside it: keep one",
        row=1,
    ),
    Case(
        "flags that contradict each other, one the other way round",
        flagged(train=True, masked=True),
        "train.jsonl row 1: messages[1].masked: contradicts train beside it: keep one",
        row=1,
    ),
    Case(
        "a mask, which may mean either",
        flagged(mask=1),
        "train.jsonl row 1: messages[1].mask: is not read, since tools read it in both ways: write weight: 0 where "
        "the turn is not learned, else 1",
        row=1,
    ),
    Case(
        "a part of a turn to train on",
        flagged(train_detail=[{"begin": 0, "end": 3, "train": True}]),
        "train.jsonl row 1: messages[1].train_detail: is not read: a turn is learned as a whole or not at all, write "
        "weight: 1 or weight: 0",
        row=1,
    ),
    Case(
        "all turns marked not to be trained on",
        chat(USER, {**ANSWER, "train": False}),
        "train.jsonl row 1: messages: has no assistant turn to learn from: all are of weight 0",
        row=1,
    ),
    Case(
        "all turns masked",
        chat(USER, {**ANSWER, "Masked": "true"}),
        "train.jsonl row 1: messages: has no assistant turn to learn from: all are of weight 0",
        row=1,
    ),
    Case(
        "a trained turn of an answer that is compared",
        rows({"prompt": "a", "chosen": [{**ANSWER, "train": False}], "rejected": [ANSWER | {"content": "No."}]}),
        "train.jsonl row 1: chosen: has a turn of weight 0, but an answer is judged as a whole: leave the weights out",
        row=1,
        flags=("--method=DPO",),
    ),
    Case(
        "ShareGPT: a flag that is no flag",
        rows(
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "trainable": "no idea"}]}
        ),
        "train.jsonl row 1: conversations[1].trainable: must be 0 or 1, is 'no idea'",
        row=1,
    ),
    Case(
        "images beside messages",
        chat(USER, ANSWER, images=["a.png"]),
        "train.jsonl row 1: images: holds a list, but only text is trained on: use rows without it, or leave the "
        "column out with --ignore-column=images (ignoredColumns in a TrainingRun)",
        row=1,
    ),
    Case(
        "an image beside texts",
        rows({**PAIR, "image": {"bytes": None, "path": "a.png"}}),
        "train.jsonl row 1: image: holds an object, but only text is trained on: use rows without it, or leave the "
        "column out with --ignore-column=image (ignoredColumns in a TrainingRun)",
        row=1,
    ),
    Case(
        "videos beside preferences",
        rows({**PREFERENCE, "videos": ["a.mp4"]}),
        "train.jsonl row 1: videos: holds a list, but only text is trained on: use rows without it, or leave the "
        "column out with --ignore-column=videos (ignoredColumns in a TrainingRun)",
        row=1,
        flags=("--method=DPO",),
    ),
    Case(
        "audio beside a conversation",
        rows({"conversations": [USER, ANSWER], "audios": ["a.wav"]}),
        "train.jsonl row 1: audios: holds a list, but only text is trained on: use rows without it, or leave the "
        "column out with --ignore-column=audios (ignoredColumns in a TrainingRun)",
        row=1,
    ),
    Case(
        "an image's path",
        rows({"instruction": "a", "output": "b", "image_path": "a.png"}),
        "train.jsonl row 1: image_path: holds a string, but only text is trained on: use rows without it, or leave "
        "the column out with --ignore-column=image_path (ignoredColumns in a TrainingRun)",
        row=1,
    ),
    Case(
        "images in a turn",
        chat({**USER, "images": ["a.png"]}, ANSWER),
        "train.jsonl row 1: messages[0].images: holds images or sound, but only text is trained on: leave the row out",
        row=1,
    ),
    Case(
        "a place for an image",
        chat({"role": "user", "content": "<image>\nWhat is it?"}, ANSWER),
        "train.jsonl row 1: messages[0].content: holds <image>, in whose place a model sees a picture or hears a "
        "sound, but only text is trained on: leave the row out",
        row=1,
    ),
    Case(
        "places for images at the end",
        rows({**PAIR, "prompt": "What is it?\n<image><image>\n"}),
        "train.jsonl row 1: prompt: holds <image><image>, in whose place a model sees a picture or hears a sound, "
        "but only text is trained on: leave the row out",
        row=1,
    ),
    Case(
        "a place for a video",
        rows({**PAIR, "prompt": "<video>What moves?"}),
        "train.jsonl row 1: prompt: holds <video>, in whose place a model sees a picture or hears a sound, but only "
        "text is trained on: leave the row out",
        row=1,
    ),
    Case(
        "a place for audio in an instruction",
        rows({"instruction": "<audio>\nWho speaks?", "output": "b"}),
        "train.jsonl row 1: instruction: holds <audio>, in whose place a model sees a picture or hears a sound, but "
        "only text is trained on: leave the row out",
        row=1,
    ),
    Case(
        "a token for an image",
        rows({**PREFERENCE, "prompt": "See <|vision_start|><|image_pad|><|vision_end|>?"}),
        "train.jsonl row 1: prompt: holds <|vision_start|>, in whose place a model sees a picture or hears a sound, "
        "but only text is trained on: leave the row out",
        row=1,
        flags=("--method=DPO",),
    ),
    Case(
        "a system prompt that is no text",
        rows({**PAIR, "system": ["Be brief."]}),
        "train.jsonl row 1: system: must be a string, is a list: mend it, "
        "or leave the column out with --ignore-column=system (ignoredColumns in a TrainingRun)",
        row=1,
    ),
    Case(
        "two system prompts in columns",
        rows({**PAIR, "system": "a", "system_prompt": "b"}),
        "train.jsonl row 1: system_prompt: differs from system beside it: keep one",
        row=1,
    ),
    Case(
        "a system prompt beside a developer's turn",
        chat({**SYSTEM, "role": "developer"}, USER, ANSWER, system="a"),
        "train.jsonl row 1: system: is given beside a developer turn in messages: keep one",
        row=1,
    ),
    Case(
        "a developer after the start",
        chat(USER, {**SYSTEM, "role": "developer"}, ANSWER),
        "train.jsonl row 1: messages[1].role: is developer, but only the first turn may be",
        row=1,
    ),
    Case(
        "history that is text",
        rows({**PAIR, "history": "before"}),
        "train.jsonl row 1: history: must be a list, is a string: mend it, "
        "or leave the column out with --ignore-column=history (ignoredColumns in a TrainingRun)",
        row=1,
    ),
    Case(
        "history of three",
        rows({**PAIR, "history": [["a", "b", "c"]]}),
        "train.jsonl row 1: history[0]: must be a pair of question and answer, is ['a', 'b', 'c']",
        row=1,
    ),
    Case(
        "history with a number",
        rows({**PAIR, "history": [["a", 1]]}),
        "train.jsonl row 1: history[0][1]: must be a string, is a number",
        row=1,
    ),
    Case(
        "history that ends with a question",
        rows({**PAIR, "history": [USER]}),
        "train.jsonl row 1: history: ends with a turn of user, must end with a turn of assistant",
        row=1,
    ),
    Case(
        "history that begins with an answer",
        rows({**PAIR, "history": [ANSWER, USER, ANSWER]}),
        "train.jsonl row 1: history[0].role: is assistant, but a conversation starts with system, developer or user",
        row=1,
    ),
    Case(
        "history of plain texts",
        rows({**PAIR, "history": ["a", "b"]}),
        "train.jsonl row 1: history: must hold pairs of question and answer, or turns with role and content: mend it, "
        "or leave the column out with --ignore-column=history (ignoredColumns in a TrainingRun)",
        row=1,
    ),
    Case(
        "tools beside texts that are none",
        rows({**PAIR, "tools": ["search"]}),
        "train.jsonl row 1: tools[0]: must be an object, is a string",
        row=1,
    ),
    Case(
        "template variables that are a list",
        rows({**PAIR, "chat_template_kwargs": ["a"]}),
        "train.jsonl row 1: chat_template_kwargs: must be an object, is a list: mend it, "
        "or leave the column out with --ignore-column=chat_template_kwargs (ignoredColumns in a TrainingRun)",
        row=1,
    ),
    Case(
        "template variables that are broken JSON",
        rows({**PAIR, "chat_template_kwargs": "{a}"}),
        "train.jsonl row 1: chat_template_kwargs: must be an object, or one as JSON: not valid JSON: Expecting "
        "property name enclosed in double quotes at character 2: mend it, "
        "or leave the column out with --ignore-column=chat_template_kwargs (ignoredColumns in a TrainingRun)",
        row=1,
    ),
    Case(
        "a template variable that is the trainer's",
        rows({**PAIR, "chat_template_kwargs": {"tokenize": False}}),
        "train.jsonl row 1: chat_template_kwargs.tokenize: is the trainer's, no variable of a template: leave it out",
        row=1,
    ),
    Case(
        "tools among the template's variables",
        chat(USER, ANSWER, chat_template_kwargs={"tools": [{"name": "f"}]}),
        "train.jsonl row 1: chat_template_kwargs.tools: is the trainer's, no variable of a template: write them into "
        "a column tools",
        row=1,
    ),
    Case(
        "a row of half a weight",
        rows({**PAIR, "weight": 0.5}),
        "train.jsonl row 1: weight: is 0.5, but rows of a weight of their own are not read: leave out those of 0, or "
        "leave the column out with --ignore-column=weight (ignoredColumns in a TrainingRun)",
        row=1,
    ),
    Case(
        "a row of weight 0",
        rows({**PAIR, "sample_weight": 0}),
        "train.jsonl row 1: sample_weight: is 0, but rows of a weight of their own are not read: leave out those of "
        "0, or leave the column out with --ignore-column=sample_weight (ignoredColumns in a TrainingRun)",
        row=1,
    ),
    Case(
        "a loss mask beside messages",
        chat(USER, ANSWER, loss_mask=[0, 1]),
        "train.jsonl row 1: loss_mask: is a list: masks of tokens are not read, mark the turns to learn with weight, "
        "or leave the column out with --ignore-column=loss_mask (ignoredColumns in a TrainingRun)",
        row=1,
    ),
    Case(
        "labels of tokens",
        rows({**PAIR, "labels": [-100, -100, 5]}),
        "train.jsonl row 1: labels: is a list: masks of tokens are not read, mark the turns to learn with weight, or "
        "leave the column out with --ignore-column=labels (ignoredColumns in a TrainingRun)",
        row=1,
    ),
    Case(
        "a bad answer of KTO, for SFT",
        rows({**PAIR, "label": True}, {**PAIR, "prompt": "c", "label": False}),
        "train.jsonl row 2: label: is false, which marks a bad answer, and SFT would learn it: leave the row out, or "
        "leave the column out with --ignore-column=label (ignoredColumns in a TrainingRun)",
        row=2,
    ),
    Case(
        "a bad answer of KTO, as text",
        rows({**PAIR, "label": "False"}),
        "train.jsonl row 1: label: is false, which marks a bad answer, and SFT would learn it: leave the row out, or "
        "leave the column out with --ignore-column=label (ignoredColumns in a TrainingRun)",
        row=1,
    ),
    Case(
        "thoughts beside two answers",
        chat(USER, ANSWER, USER, ANSWER, reasoning="Well."),
        "train.jsonl row 1: reasoning: is given beside 2 answers: write it as reasoning_content of its turn, or "
        "leave the column out with --ignore-column=reasoning (ignoredColumns in a TrainingRun)",
        row=1,
    ),
    Case(
        "thoughts beside an answer that has others",
        chat(USER, {**ANSWER, "thinking": "So."}, thinking="Well."),
        "train.jsonl row 1: thinking: differs from the answer's thoughts: write it as reasoning_content of its turn, "
        "or leave the column out with --ignore-column=thinking (ignoredColumns in a TrainingRun)",
        row=1,
    ),
    Case(
        "thoughts beside a preference",
        rows({**PREFERENCE, "reasoning": "Well."}),
        "train.jsonl row 1: reasoning: is given beside two answers, and says not whose it is: write it as "
        "reasoning_content of their turns",
        row=1,
        flags=("--method=DPO",),
    ),
    Case(
        "thoughts beside preferred conversations",
        rows({**PAIRS, "thinking": "Well."}),
        "train.jsonl row 1: thinking: is given beside two answers, and says not whose it is: write it as "
        "reasoning_content of their turns",
        row=1,
        flags=("--method=DPO",),
    ),
    Case(
        "thoughts in a column, and a number",
        rows({**PAIR, "reasoning_content": 5}),
        "train.jsonl row 1: reasoning_content: must be a string, is a number: mend it, "
        "or leave the column out with --ignore-column=reasoning_content (ignoredColumns in a TrainingRun)",
        row=1,
    ),
    Case(
        "a column mapped and ignored",
        rows(PAIR),
        "--ignore-column=s: --column maps it, do one of the two",
        code=2,
        flags=("--column=system=s", "--ignore-column=s"),
    ),
    Case(
        "a needed column ignored",
        rows(PAIR),
        "train.jsonl row 1: completion: is missing",
        row=1,
        flags=("--ignore-column=completion",),
    ),
    Case(
        "turns of other weight to merge",
        chat(USER, {**ANSWER, "weight": 0}, ANSWER),
        "train.jsonl row 1: messages[2]: cannot be merged with the turn before it: only one of the two is learned",
        row=1,
        flags=("--turns=Merge",),
    ),
    Case(
        "tools that answer twice, to merge",
        chat(USER, CALLING, RESULT, USER, ANSWER),
        "train.jsonl row 1: messages[3].role: is user, but after a turn of tool comes tool or assistant",
        row=1,
        flags=("--turns=Merge",),
    ),
    Case(
        "no such way to merge", rows(PAIR), "--turns=Join: must be 'Strict' or 'Merge'", code=2, flags=("--turns=Join",)
    ),
    Case(
        "a tool that answers a user",
        chat(USER, RESULT, ANSWER),
        "train.jsonl row 1: messages[1].role: is tool, but after a turn of user comes assistant",
        row=1,
    ),
    Case(
        "a tool first",
        chat(RESULT, ANSWER),
        "train.jsonl row 1: messages[0].role: is tool, but a conversation starts with system, developer or user",
        row=1,
    ),
    Case(
        "a call as a role, with broken JSON",
        chat(USER, {"role": "tool_call", "content": "{add}"}),
        "train.jsonl row 1: messages[1].content: must hold a call as JSON: not valid JSON: Expecting property name "
        "enclosed in double quotes at character 2",
        row=1,
    ),
    Case(
        "a system prompt and nothing else",
        chat(SYSTEM),
        "train.jsonl row 1: messages: has no assistant turn to learn from",
        row=1,
    ),
    Case(
        "an array that is not separated",
        b'[{"prompt": "a", "completion": "b"} {"prompt": "c", "completion": "d"}]',
        "rows.json row 1 is followed by '{': separate the rows with commas",
        row=1,
        file="rows.json",
    ),
    Case(
        "a place for an image after the question",
        rows({**PAIR, "prompt": "What is it? <image>"}),
        "train.jsonl row 1: prompt: holds <image>, in whose place a model sees a picture or hears a sound, but only "
        "text is trained on: leave the row out",
        row=1,
    ),
    Case(
        "a place for an image in an input",
        rows({"instruction": "a", "input": "<image>", "output": "b"}),
        "train.jsonl row 1: input: holds <image>, in whose place a model sees a picture or hears a sound, but only "
        "text is trained on: leave the row out",
        row=1,
    ),
    Case(
        "a place for an image in the history",
        rows({**PAIR, "history": [["<image>\nWhat?", "b"]]}),
        "train.jsonl row 1: history[0][0]: holds <image>, in whose place a model sees a picture or hears a sound, "
        "but only text is trained on: leave the row out",
        row=1,
    ),
    Case(
        "paths of images",
        rows({**PAIR, "Image-Paths": ["a.png"]}),
        "train.jsonl row 1: Image-Paths: holds a list, but only text is trained on: use rows without it, or leave "
        "the column out with --ignore-column=Image-Paths (ignoredColumns in a TrainingRun)",
        row=1,
    ),
)
