"""Datasets of conversations and of preferences that are wrong."""

from __future__ import annotations

from tests.unit.corpus.cases import ANSWER, CALLING, OTHER, PAIR, PREFERENCE, RESULT, SYSTEM, USER, Case, chat, rows

ROLES = "must be system, developer, user, assistant or tool, or another name of theirs, such as human and gpt"
MERGE = "join the two, or have it done with --turns=Merge (turns in a TrainingRun)"

CASES = (
    Case(
        "shapes mixed",
        rows(PAIR, {"messages": [USER, ANSWER]}, PREFERENCE),
        "train.jsonl has 2 problems in 2 rows: row 2: has messages, but row 1 has prompt and completion: "
        "use one of the two; row 3: has prompt, chosen and rejected, but row 1 has prompt and completion:"
        " use one of the two",
        row=2,
    ),
    Case(
        "two shapes in a row",
        rows({**PAIR, "messages": [USER, ANSWER]}),
        "train.jsonl row 1: has prompt and completion, and also messages: leave one out, or map the one "
        "that is meant, as in completion=completion",
        row=1,
    ),
    Case(
        "preferences for SFT",
        rows(PREFERENCE),
        "train.jsonl row 1: has prompt, chosen and rejected: that is for method DPO; SFT needs prompt and"
        " completion, or messages, or conversations, or instruction and output, or text",
        row=1,
    ),
    Case(
        "chat preferences for SFT",
        rows({"chosen": [USER, ANSWER], "rejected": [USER, OTHER]}),
        "train.jsonl row 1: has chosen and rejected conversations, whose common beginning is the prompt: "
        "that is for method DPO; SFT needs prompt and completion, or messages, or conversations, or "
        "instruction and output, or text",
        row=1,
    ),
    Case(
        "messages for DPO",
        chat(USER, ANSWER),
        "train.jsonl row 1: has messages: that is for method SFT; DPO needs prompt, chosen and rejected, "
        "or chosen and rejected, or messages, chosen and rejected, or conversations, chosen and rejected, or "
        "instruction, chosen and rejected",
        flags=("--method=DPO",),
        row=1,
    ),
    Case(
        "messages is a string",
        rows({"messages": "a"}),
        "train.jsonl row 1: messages: must be a list, is a string",
        row=1,
    ),
    Case("no messages", chat(), "train.jsonl row 1: messages: is empty", row=1),
    Case(
        "a message that is a string",
        chat("a", ANSWER),
        "train.jsonl row 1: messages[0]: must be an object, is a string",
        row=1,
    ),
    Case(
        "no role",
        chat({"content": "a"}, ANSWER),
        "train.jsonl row 1: messages[0].role: is missing: the turn has content; write role and content in all turns",
        row=1,
    ),
    Case(
        "an unknown role",
        chat({"role": "narrator", "content": "a"}, ANSWER),
        f"train.jsonl row 1: messages[0].role: {ROLES}, is 'narrator'",
        row=1,
    ),
    Case(
        "a role that is no string",
        chat({"role": 1, "content": "a"}, ANSWER),
        f"train.jsonl row 1: messages[0].role: {ROLES}, is 1",
        row=1,
    ),
    Case(
        "no content",
        chat(USER, {"role": "assistant"}),
        "train.jsonl row 1: messages[1].content: is missing: the turn has role",
        row=1,
    ),
    Case(
        "null content without a call",
        chat(USER, {"role": "assistant", "content": None}),
        "train.jsonl row 1: messages[1].content: must be a string, is null",
        row=1,
    ),
    Case(
        "empty content",
        chat({"role": "user", "content": ""}, ANSWER),
        "train.jsonl row 1: messages[0].content: is empty",
        row=1,
    ),
    Case(
        "an image",
        chat({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, ANSWER),
        "train.jsonl row 1: messages[0].content[0].type: must be 'text', is 'image_url': other content "
        "cannot be trained on",
        row=1,
    ),
    Case(
        "system after the start",
        chat(USER, SYSTEM, ANSWER),
        "train.jsonl row 1: messages[1].role: is system, but only the first turn may be",
        row=1,
    ),
    Case(
        "two system turns",
        chat(SYSTEM, SYSTEM, USER, ANSWER),
        "train.jsonl row 1: messages[1].role: is system, but only the first turn may be",
        row=1,
    ),
    Case(
        "assistant first",
        chat(ANSWER, USER, ANSWER),
        "train.jsonl row 1: messages[0].role: is assistant, but a conversation starts with system, developer or user",
        row=1,
    ),
    Case(
        "two user turns",
        chat(USER, USER, ANSWER),
        f"train.jsonl row 1: messages[1].role: is user, but after a turn of user comes assistant: {MERGE}",
        row=1,
    ),
    Case(
        "two assistant turns",
        chat(USER, ANSWER, ANSWER),
        f"train.jsonl row 1: messages[2].role: is assistant, but after a turn of assistant comes user: {MERGE}",
        row=1,
    ),
    Case(
        "user last",
        chat(USER, ANSWER, USER),
        "train.jsonl row 1: messages: ends with a turn of user, must end with a turn of assistant",
        row=1,
    ),
    Case("no assistant", chat(SYSTEM, USER), "train.jsonl row 1: messages: has no assistant turn to learn from", row=1),
    Case(
        "a tool's answer without a call, in a conversation that has calls",
        chat(USER, ANSWER, RESULT, ANSWER, USER, CALLING, RESULT, ANSWER),
        "train.jsonl row 1: messages[2].role: is tool, but the assistant turn before it has no tool_calls to answer",
        row=1,
    ),
    Case(
        "a call without an answer",
        chat(USER, CALLING, USER, ANSWER),
        "train.jsonl row 1: messages[2].role: is user, but after an assistant turn with tool_calls comes tool",
        row=1,
    ),
    Case(
        "a call by the user",
        chat({**USER, "tool_calls": CALLING["tool_calls"]}, ANSWER),
        "train.jsonl row 1: messages[0].tool_calls: is given for a turn of user, only assistants call",
        row=1,
    ),
    Case(
        "a call without a name",
        chat(USER, {**CALLING, "tool_calls": [{"function": {"arguments": {}}}]}),
        "train.jsonl row 1: messages[1].tool_calls[0].function.name: is missing",
        row=1,
    ),
    Case(
        "a call with broken arguments",
        chat(USER, {**CALLING, "tool_calls": [{"function": {"name": "f", "arguments": "{a}"}}]}),
        "train.jsonl row 1: messages[1].tool_calls[0].function.arguments: must be an object, or one as "
        "JSON: not valid JSON: Expecting property name enclosed in double quotes at character 2",
        row=1,
    ),
    Case(
        "a call with arguments twice",
        chat(USER, {**CALLING, "tool_calls": [{"name": "f", "arguments": '{"a": 1}{"b": 2}'}]}),
        "train.jsonl row 1: messages[1].tool_calls[0].arguments: must be an object, or one as JSON: not valid JSON: "
        "Extra data at character 9",
        row=1,
    ),
    Case(
        "a call with a comma after its arguments",
        chat(USER, {**CALLING, "tool_calls": [{"name": "f", "arguments": '{"a": 1},'}]}),
        "train.jsonl row 1: messages[1].tool_calls[0].arguments: must be an object, or one as JSON: not valid JSON: "
        "Extra data at character 9",
        row=1,
    ),
    Case(
        "a call with a list as arguments",
        chat(USER, {**CALLING, "tool_calls": [{"name": "f", "arguments": [1]}]}),
        "train.jsonl row 1: messages[1].tool_calls[0].arguments: must be an object, is a list",
        row=1,
    ),
    Case(
        "calls that are no list",
        chat(USER, {**CALLING, "tool_calls": "add(1)"}),
        "train.jsonl row 1: messages[1].tool_calls: must be a list of calls, is a string",
        row=1,
    ),
    Case(
        "tools that are no list",
        chat(USER, ANSWER, tools={"name": "f"}),
        "train.jsonl row 1: tools: must be a list of tools, is an object: mend it, "
        "or leave the column out with --ignore-column=tools (ignoredColumns in a TrainingRun)",
        row=1,
    ),
    Case(
        "a tool without a name",
        chat(USER, ANSWER, tools=[{"type": "function", "function": {}}]),
        "train.jsonl row 1: tools[0].function.name: is missing",
        row=1,
    ),
    Case(
        "all turns of weight 0",
        chat(USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "weight": 0}),
        "train.jsonl row 1: messages: has no assistant turn to learn from: all are of weight 0",
        row=1,
    ),
    Case(
        "half a weight",
        chat(USER, {**ANSWER, "weight": 0.5}),
        "train.jsonl row 1: messages[1].weight: must be 0 or 1, is 0.5",
        row=1,
    ),
    Case(
        "a completion of weight 0",
        rows({"prompt": [USER], "completion": [{**ANSWER, "weight": 0}]}),
        "train.jsonl row 1: completion: has no assistant turn to learn from: all are of weight 0",
        row=1,
    ),
    Case(
        "an answer of weight 0, for DPO",
        rows({"prompt": [USER], "chosen": [ANSWER], "rejected": [{**OTHER, "weight": 0}]}),
        "train.jsonl row 1: rejected: has a turn of weight 0, but an answer is judged as a whole: leave the weights "
        "out",
        flags=("--method=DPO",),
        row=1,
    ),
    Case(
        "thoughts that are no text",
        chat(USER, {**ANSWER, "reasoning_content": ["a"]}),
        "train.jsonl row 1: messages[1].reasoning_content: must be a string, is a list",
        row=1,
    ),
    Case(
        "a call in the old form and another",
        chat(USER, {**CALLING, "function_call": {"name": "f", "arguments": "{}"}}),
        "train.jsonl row 1: messages[1].function_call: is given beside tool_calls: keep one",
        row=1,
    ),
    Case(
        "a call in the old form by the user",
        chat({**USER, "function_call": {"name": "f", "arguments": "{}"}}, ANSWER),
        "train.jsonl row 1: messages[0].function_call: is given for a turn of user, only assistants call",
        row=1,
    ),
    Case(
        "a user who thinks",
        chat({**USER, "thinking": "Hm."}, ANSWER),
        "train.jsonl row 1: messages[0].thinking: is given for a turn of user, only assistants think: leave it out",
        row=1,
    ),
    Case(
        "thoughts in two versions",
        chat(USER, {**ANSWER, "reasoning_content": "Hm.", "thinking": "Ah."}),
        "train.jsonl row 1: messages[1].thinking: differs from reasoning_content beside it: keep one",
        row=1,
    ),
    Case(
        "system twice",
        rows({"system": "Be brief.", "messages": [SYSTEM, USER, ANSWER]}),
        "train.jsonl row 1: system: is given beside a system turn in messages: keep one",
        row=1,
    ),
    Case(
        "ShareGPT: an unknown speaker",
        rows({"conversations": [{"from": "narrator", "value": "a"}]}),
        f"train.jsonl row 1: conversations[0].from: {ROLES}, is 'narrator'",
        row=1,
    ),
    Case(
        "ShareGPT: no value",
        rows({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "text": "b"}]}),
        "train.jsonl row 1: conversations[1].value: is missing: the turn has from, text",
        row=1,
    ),
    Case(
        "ShareGPT: a broken function call",
        rows({"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "add(1)"}]}),
        "train.jsonl row 1: conversations[1].value: must hold a call as JSON: not valid JSON: Expecting "
        "value at character 1: an object goes from { to }",
        row=1,
    ),
    Case("Alpaca: no output", rows({"instruction": "a", "input": ""}), "train.jsonl row 1: output: is missing", row=1),
    Case(
        "Alpaca: input is a number",
        rows({"instruction": "a", "input": 3, "output": "b"}),
        "train.jsonl row 1: input: must be a string, is a number",
        row=1,
    ),
    Case(
        "chosen equal to rejected",
        rows(PREFERENCE, {"prompt": "a", "chosen": "b", "rejected": "b "}),
        "train.jsonl row 2: chosen: is equal to rejected: nothing can be learned from that",
        flags=("--method=DPO",),
        row=2,
    ),
    Case(
        "chat: chosen equal to rejected",
        rows({"prompt": [USER], "chosen": [ANSWER], "rejected": [ANSWER]}),
        "train.jsonl row 1: chosen: is equal to rejected: nothing can be learned from that",
        flags=("--method=DPO",),
        row=1,
    ),
    Case(
        "chat: chosen equal to rejected but for weights",
        rows({"chosen": [USER, {**ANSWER, "weight": 0}, USER, ANSWER], "rejected": [USER, ANSWER, USER, ANSWER]}),
        "train.jsonl row 1: chosen: is equal to rejected: nothing can be learned from that",
        flags=("--method=DPO",),
        row=1,
    ),
    Case(
        "no rejected",
        rows({"prompt": "a", "chosen": "b"}),
        "train.jsonl row 1: rejected: is missing",
        flags=("--method=DPO",),
        row=1,
    ),
    Case(
        "empty rejected",
        rows({"prompt": "a", "chosen": "b", "rejected": ""}),
        "train.jsonl row 1: rejected: is empty",
        flags=("--method=DPO",),
        row=1,
    ),
    Case(
        "no prompt",
        rows({"chosen": "b", "rejected": "c"}),
        "train.jsonl row 1: prompt: is missing: two answers that are texts need a prompt of their own; split a text "
        "that holds a whole conversation into turns",
        flags=("--method=DPO",),
        row=1,
    ),
    Case(
        "no prompt in common",
        rows({"chosen": [USER, ANSWER], "rejected": [{**USER, "content": "How?"}, OTHER]}),
        "train.jsonl row 1: chosen: shares no first turn with rejected: a row needs a prompt, or two "
        "conversations that begin alike",
        flags=("--method=DPO",),
        row=1,
    ),
    Case(
        "a prompt of another conversation",
        rows({"prompt": "How?", "chosen": [USER, ANSWER], "rejected": [USER, OTHER]}),
        "train.jsonl row 1: prompt: is not among the turns that chosen and rejected begin with",
        flags=("--method=DPO",),
        row=1,
    ),
    Case(
        "a prompt with a system turn that the answers lack",
        rows({"prompt": [SYSTEM, USER], "chosen": [USER, ANSWER], "rejected": [USER, OTHER]}),
        "train.jsonl row 1: prompt: is not among the turns that chosen and rejected begin with",
        flags=("--method=DPO",),
        row=1,
    ),
    Case(
        "a prompt that ends with the assistant",
        rows({"prompt": [USER, ANSWER], "chosen": [ANSWER], "rejected": [OTHER]}),
        "train.jsonl row 1: prompt: ends with a turn of assistant, must end with a turn of user or tool",
        flags=("--method=DPO",),
        row=1,
    ),
    Case(
        "chosen ends with the user",
        rows({"prompt": [USER], "chosen": [ANSWER, USER], "rejected": [OTHER]}),
        "train.jsonl row 1: chosen: ends with a turn of user, must end with a turn of assistant",
        flags=("--method=DPO",),
        row=1,
    ),
    Case(
        "several rejected answers",
        rows({"prompt": "a", "chosen": "b", "rejected": ["c", "d"]}),
        "train.jsonl row 1: rejected: must be a string, is a list",
        flags=("--method=DPO",),
        row=1,
    ),
    Case(
        "an instruction mapped, beside turns",
        rows({"q": "a", "chosen": "b", "rejected": [OTHER]}),
        "train.jsonl row 1: rejected: must be text, is a list: only rows of text have instruction, which --column maps "
        "(columns in a TrainingRun)",
        flags=("--method=DPO", "--column=instruction=q"),
        row=1,
    ),
    Case(
        "turns as Python writes them",
        b"messages\n\"[{'role': 'user'}]\"\n",
        "train.csv row 1: messages: must be a list, is a string that holds none: not valid JSON: Expecting property "
        "name enclosed in double quotes at character 3: this is Python's way to write it, use json.dumps",
        file="train.csv",
        row=1,
    ),
)
