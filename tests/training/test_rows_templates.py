"""Whatever the chat template: the assistant's turns are learned with their end token, and nothing else."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from model.exits import FailureError
from model.training.rows.report import render_mask
from model.training.rows.tokens import IGNORED
from tests.training.chat_templates import STYLES, encode, make_tokenizer

SINGLE = {"prompt": "Hi.", "completion": "Yes?"}
CONVERSATION = {
    "messages": [
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "No."},
        {"role": "assistant", "content": "Why?"},
        {"role": "user", "content": "Because."},
    ]
}
IM_USER, IM_ASSISTANT = "<|im_start|>user\n", "<|im_start|>assistant\n"
SEEN = {
    "chatml": f"<|im_start|>system\nBe brief.<|im_end|>\n{IM_USER}Hi.<|im_end|>\n{IM_ASSISTANT}⟦Yes?<|im_end|>⟧",
    "llama3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi.<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Yes?<|eot_id|>⟧",
    "mistral": "<s>[INST] Hi. [/INST]⟦ Yes?</s>⟧",
    "mistral-metaspace": "<s> [INST] Hi. [/INST]⟦ Yes?</s>⟧",
    "gemma": "<bos><start_of_turn>user\nHi.<end_of_turn>\n<start_of_turn>model\n⟦Yes?<end_of_turn>⟧",
    "zephyr": "<|user|>\nHi.</s>\n<|assistant|>\n⟦Yes?</s>⟧",
    "phi": "<|user|>Hi.<|end|><|assistant|>⟦Yes?<|end|>⟧",
    "thinking": f"{IM_USER}Hi.<|im_end|>\n{IM_ASSISTANT}⟦<think>\n\n</think>\n\nYes?<|im_end|>⟧",
    "marked": f"{IM_USER}Hi.<|im_end|>\n{IM_ASSISTANT}⟦Yes?<|im_end|>⟧",
    "tools": f"{IM_USER}Hi.<|im_end|>\n{IM_ASSISTANT}⟦Yes?<|im_end|>⟧",
    "begins-thinking": f"{IM_USER}Hi.<|im_end|>\n{IM_ASSISTANT}⟦Yes?<|im_end|>⟧",
    "no-end": "### user:\nHi.\n\n### assistant:\n⟦Yes?</s>⟧",
    "plain": "<s>Hi.⟦Yes?</s>⟧",
}
SEEN_AFTER = {
    "chatml": f"\n{IM_USER}No.<|im_end|>\n{IM_ASSISTANT}⟦Why?<|im_end|>⟧",
    "llama3": "<|start_header_id|>user<|end_header_id|>\n\nNo.<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Why?<|eot_id|>⟧",
    "mistral": "[INST] No. [/INST]⟦ Why?</s>⟧",
    "mistral-metaspace": " [INST] No. [/INST]⟦ Why?</s>⟧",
    "gemma": "\n<start_of_turn>user\nNo.<end_of_turn>\n<start_of_turn>model\n⟦Why?<end_of_turn>⟧",
    "zephyr": "\n<|user|>\nNo.</s>\n<|assistant|>\n⟦Why?</s>⟧",
    "phi": "<|user|>No.<|end|><|assistant|>⟦Why?<|end|>⟧",
    "marked": f"{IM_USER}No.<|im_end|>\n{IM_ASSISTANT}⟦Why?<|im_end|>⟧",
    "tools": f"\n{IM_USER}No.<|im_end|>\n{IM_ASSISTANT}⟦Why?<|im_end|>⟧",
    "begins-thinking": f"\n{IM_USER}No.<|im_end|>\n{IM_ASSISTANT}⟦Why?<|im_end|>⟧",
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def masked(tokenizer: Any, content: dict[str, Any]) -> str:
    return render_mask(tokenizer, *encode(tokenizer, content).row(0))


def with_template(name: str, template: str) -> Any:
    tokenizer = copy.deepcopy(make_tokenizer(name))
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("name", STYLES)
def test_an_answer_is_learned_with_its_end_token(name: str) -> None:
    assert masked(make_tokenizer(name), SINGLE) == SEEN[name]


@pytest.mark.parametrize("name", SEEN_AFTER)
def test_each_answer_of_a_conversation_is_learned_and_nothing_between_or_after_them(name: str) -> None:
    assert masked(make_tokenizer(name), CONVERSATION) == SEEN[name] + SEEN_AFTER[name]


@pytest.mark.parametrize("name", [name for name in STYLES if name not in ("plain", "begins-thinking")])
def test_before_the_answer_stands_what_inference_shows(name: str) -> None:
    tokenizer = make_tokenizer(name)
    ids, labels = encode(tokenizer, SINGLE).row(0)
    question = [{"role": "user", "content": "Hi."}]
    shown = tokenizer.apply_chat_template(question, add_generation_prompt=True)["input_ids"]
    first = next(index for index, label in enumerate(labels) if label != IGNORED)
    assert list(ids[:first]) == shown


@pytest.mark.parametrize("name", [name for name, style in STYLES.items() if style.begins_by_itself])
def test_the_begin_token_stands_once(name: str) -> None:
    tokenizer = make_tokenizer(name)
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id  # it would add a second one
    ids, _ = encode(tokenizer, SINGLE).row(0)
    assert list(ids).count(tokenizer.bos_token_id) == (0 if name == "zephyr" else 1)


def test_a_begin_token_in_a_plain_prompt_is_not_doubled() -> None:
    tokenizer = make_tokenizer("plain")
    assert masked(tokenizer, {"prompt": "<s>Hi.", "completion": "Yes?"}) == SEEN["plain"]


def test_a_token_that_only_the_tokenizer_adds_does_not_shift_the_border() -> None:
    row = {"prompt": "a</s>b", "completion": "Yes?"}
    assert masked(make_tokenizer("plain"), row) == "<s>a</s>b⟦Yes?</s>⟧"


def test_an_end_token_in_a_plain_completion_is_not_doubled() -> None:
    tokenizer = make_tokenizer("plain")
    assert masked(tokenizer, {"prompt": "Hi.", "completion": "Yes?</s>"}) == SEEN["plain"]


def test_an_end_token_in_an_answer_is_not_doubled() -> None:
    tokenizer = make_tokenizer("chatml")
    assert masked(tokenizer, {"prompt": "Hi.", "completion": "Yes?<|im_end|>"}) == SEEN["chatml"]


def test_a_tokenizer_that_closes_the_text_itself_closes_it_once() -> None:
    from tokenizers import processors

    tokenizer = copy.deepcopy(make_tokenizer("plain"))
    ends = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=ends
    )
    assert masked(tokenizer, SINGLE) == SEEN["plain"]


def test_a_template_that_rewrites_earlier_turns_gets_a_row_for_each_of_them() -> None:
    tokenizer = make_tokenizer("thinking")
    rows = encode(tokenizer, SINGLE, CONVERSATION, SINGLE)
    first = SEEN["thinking"]
    earlier = first.replace("⟦<think>\n\n</think>\n\nYes?<|im_end|>⟧", "Yes?<|im_end|>\n")
    second = f"{earlier}{IM_USER}No.<|im_end|>\n{IM_ASSISTANT}⟦<think>\n\n</think>\n\nWhy?<|im_end|>⟧"
    assert [render_mask(tokenizer, *rows.row(index)) for index in range(len(rows))] == [first, first, second, first]
    assert (rows.outcomes.split.document(), rows.outcomes.split_rows) == ({"rows": 1, "first": ["row 8"]}, 2)


def test_the_last_turn_of_such_a_template_can_be_learned_with_its_thoughts() -> None:
    row = {"prompt": "Hi.", "completion": "<think>the</think>Yes?"}
    expected = SEEN["thinking"].replace("<think>\n\n</think>", "<think>\nthe\n</think>")
    assert masked(make_tokenizer("thinking"), row) == expected


@pytest.mark.parametrize(
    ("answer", "end"),
    [("<tool>x", "⟦<tool>x<|im_end|>⟧"), ("<think>\nx</think>Yes?", "<think>\n⟦x</think>Yes?<|im_end|>⟧")],
)
def test_what_the_generation_prompt_begins_is_learned_where_an_answer_differs(answer: str, end: str) -> None:
    row = {"prompt": "Hi.", "completion": answer}
    assert masked(make_tokenizer("begins-thinking"), row) == f"{IM_USER}Hi.<|im_end|>\n{IM_ASSISTANT}{end}"


def test_a_template_that_moves_the_system_message_to_the_last_question_shows_it_before_each_answer() -> None:
    tokenizer = with_template(
        "chatml",
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'user' and (loop.last or loop.index == "
        "messages | length - 1 and messages[-1].role == 'assistant') %}Be brief. "
        "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    )
    rows = encode(tokenizer, CONVERSATION)
    brief = f"{IM_USER}Be brief. "
    assert [render_mask(tokenizer, *rows.row(index)) for index in range(len(rows))] == [
        f"{brief}Hi.<|im_end|>\n{IM_ASSISTANT}⟦Yes?<|im_end|>⟧",
        f"{IM_USER}Hi.<|im_end|>\n{IM_ASSISTANT}Yes?<|im_end|>\n{brief}No.<|im_end|>\n{IM_ASSISTANT}⟦Why?<|im_end|>⟧",
    ]


def test_a_template_that_asks_otherwise_once_the_answer_is_there_is_refused() -> None:
    tokenizer = with_template(
        "chatml",
        "{% for m in messages %}{{ m.content }}{% if loop.last and m.role == 'user' %} Answer:{% endif %}<|im_end|>"
        "{% endfor %}",
    )
    with pytest.raises(FailureError, match=r"row 7: completion: .*differently once later turns follow"):
        encode(tokenizer, SINGLE)


def test_a_template_that_writes_no_end_token_gets_the_tokenizers_after_each_turn() -> None:
    tokenizer = make_tokenizer("no-end")
    rows = encode(tokenizer, CONVERSATION)
    earlier = "### user:\nHi.\n\n### assistant:\nYes?\n\n"
    assert [render_mask(tokenizer, *rows.row(index)) for index in range(len(rows))] == [
        SEEN["no-end"],
        f"{earlier}### user:\nNo.\n\n### assistant:\n⟦Why?</s>⟧",
    ]


def test_without_any_end_token_nothing_can_be_trained() -> None:
    tokenizer = copy.deepcopy(make_tokenizer("no-end"))
    tokenizer.eos_token = None
    with pytest.raises(FailureError, match=r"has no end token \(eos_token\)") as caught:
        encode(tokenizer, SINGLE)
    assert caught.value.reason == "BaseModelUnavailable"


def test_a_template_without_a_system_role_gets_what_it_says_in_the_first_question() -> None:
    tokenizer = make_tokenizer("gemma")
    system = {
        "messages": [{"role": "system", "content": "Be brief."}, *CONVERSATION["messages"][:2]],
        "file": "b.jsonl",
    }
    rows = encode(tokenizer, SINGLE, system)
    assert render_mask(tokenizer, *rows.row(1)) == SEEN["gemma"].replace("Hi.", "Be brief.\n\nHi.")
    assert rows.outcomes.system_folded.document() == {"rows": 1, "first": ["b.jsonl row 8"]}


def test_a_system_turn_that_no_question_follows_is_left_to_the_template() -> None:
    only = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "Yes?"}]}
    text = masked(make_tokenizer("marked"), only)
    assert text == f"<|im_start|>system\nBe brief.<|im_end|>\n{IM_ASSISTANT}⟦Yes?<|im_end|>⟧"
    with pytest.raises(FailureError, match=r"row 7: .*template refuses it: System role not supported"):
        encode(make_tokenizer("gemma"), only)


def test_roles_that_must_alternate_name_the_row() -> None:
    twice = {"messages": [CONVERSATION["messages"][0], *CONVERSATION["messages"]]}
    with pytest.raises(FailureError, match=r"row 8: .*template refuses it: .*roles must alternate"):
        encode(make_tokenizer("mistral"), SINGLE, twice)


def test_a_message_that_the_template_cannot_read_names_the_row() -> None:
    named = with_template("chatml", "{% for m in messages %}{{ m.content + m.name }}<|im_end|>{% endfor %}")
    with pytest.raises(FailureError, match=r"row 7: the base model's chat template refuses it: .*no attribute 'name'"):
        encode(named, SINGLE)


def test_tools_and_calls_are_rendered_and_the_calls_are_learned() -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    messages = [
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "Snow."},
        {"role": "assistant", "content": "No."},
    ]
    text = masked(make_tokenizer("tools"), {"messages": messages, "tools": [TOOL]})
    assert re.findall("⟦.*?⟧", text, re.DOTALL) == [
        '⟦<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>⟧',
        "⟦No.<|im_end|>⟧",
    ]
    assert text.startswith('<|im_start|>system\n<tools>{"type": "function", "function": {"name": "weather"')


def test_rows_with_and_without_tools_can_stand_together() -> None:
    tokenizer = make_tokenizer("tools")
    rows = encode(tokenizer, SINGLE, {**CONVERSATION, "tools": [TOOL]}, SINGLE)
    shown = [render_mask(tokenizer, *rows.row(index)) for index in range(3)]
    assert shown[0] == shown[2] == SEEN["tools"]
    assert "weather" in shown[1]


def test_a_template_that_leaves_out_tool_calls_is_refused() -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {}}}
    messages = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    with pytest.raises(FailureError, match=r"row 7: messages\[1\]\.tool_calls: .*does not show the call of weather"):
        encode(make_tokenizer("chatml"), {"messages": messages})


def test_a_template_that_leaves_out_tools_is_refused() -> None:
    with pytest.raises(FailureError, match=r"row 7: tools: .*does not show the tool weather"):
        encode(make_tokenizer("chatml"), {**CONVERSATION, "tools": [TOOL]})


def test_a_template_that_leaves_out_what_a_turn_says_is_refused() -> None:
    silent = with_template(
        "chatml",
        "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n"
        "{{ m.content.split('</think>')[-1] | trim | tojson }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    )
    question, answer = CONVERSATION["messages"][0], {"role": "assistant", "content": '"No."'}
    assert "⟦" in masked(silent, {"messages": [question, answer]})  # escaped, but there
    folded = masked(silent, {"messages": [{"role": "system", "content": "Answer in French."}, question, answer]})
    assert folded.startswith(f'{IM_USER}"Answer in French.\\n\\nHi."<|im_end|>')
    parsing = with_template(
        "chatml",
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content.split('=')[1].upper() if m.role == 'user' else m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    )
    assert "user\nWHY<|im_end|>" in masked(parsing, {"messages": [{"role": "user", "content": "q=why"}, answer]})
    thinking = {"role": "assistant", "content": "<think>Hm.</think>No."}
    with pytest.raises(FailureError, match=r"row 7: messages\[1\]: .*does not show what assistant thinks here"):
        encode(silent, {"messages": [question, thinking]})


IM_SEEN = [
    f"{IM_USER}Hi.<|im_end|>\n{IM_ASSISTANT}⟦Yes?<|im_end|>⟧",
    f"\n{IM_USER}No.<|im_end|>\n{IM_ASSISTANT}⟦Why?<|im_end|>⟧",
]


def turns(content: str, before: str = "") -> str:
    """Return a template in the manner of ChatML that writes texts in a way of its own."""
    return (
        f"{before}{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n{content}<|im_end|>\n{{% endfor %}}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("{{ m.content | upper }}", "BECAUSE IT IS SO."),
        ("{{ m.content | replace('it', 'that') }}", "Because that is so."),
        ("{{ m.content | tojson }}", '"Because it is so."'),
        ("{{ m.content[:9] }}", None),
        ("{{ m.content | truncate(9) }}", None),
        ("{{ m.content.split()[:2] | join(' ') }}", None),
        ("{% if m.role != 'user' %}{{ m.content }}{% else %}{{ m.content[:9] }}{% endif %}", None),
    ],
)
def test_a_template_may_write_texts_otherwise_but_not_cut_them(content: str, answer: str | None) -> None:
    row = {"prompt": "Why is it so, and what?", "completion": "Because it is so."}
    if answer is not None:
        assert masked(with_template("chatml", turns(content)), row).endswith(f"⟦{answer}<|im_end|>⟧")
        return
    with pytest.raises(FailureError, match=r"row 7: (prompt|completion): .*does not show all of what \w+ says here"):
        encode(with_template("chatml", turns(content)), row)


@pytest.mark.parametrize(
    ("name", "template", "seen"),
    [
        (
            "chatml",
            turns("{{ m.content }}").replace("{% if add_generation_prompt %}", "{% if true %}"),
            IM_SEEN,
        ),
        (
            "chatml",
            turns("{{ m.content }}") + "{% if not add_generation_prompt %}<|im_start|>user\nRate.<|im_end|>{% endif %}",
            IM_SEEN,
        ),
        (
            "no-end",
            "{% for m in messages %}### {{ m.role }}: {{ m.content }}\n\n{% endfor %}### assistant:",
            [
                "### user: Hi.\n\n### assistant:⟦ Yes?</s>⟧",
                "### user: Hi.\n\n### assistant: Yes?\n\n### user: No.\n\n### assistant:⟦ Why?</s>⟧",
            ],
        ),
        (
            "chatml",
            (
                f"{IM_USER}{{% for m in messages %}}{{{{ m.content }}}}<|im_end|>\n"
                f"{{% if m.role == 'user' %}}{IM_ASSISTANT}{{% else %}}{IM_USER}{{% endif %}}{{% endfor %}}"
            ),
            IM_SEEN,
        ),
        (
            "zephyr",
            (
                "<|user|>\n{% for m in messages %}{{ m.content }}{% if m.role == 'user' %}<|assistant|>\n"
                "{% else %}</s>\n<|user|>\n{% endif %}{% endfor %}"
            ),
            ["<|user|>\nHi.<|assistant|>\n⟦Yes?</s>⟧", "\n<|user|>\nNo.<|assistant|>\n⟦Why?</s>⟧"],
        ),
        (
            "no-end",
            (
                "### User:\n{% for m in messages %}{{ m.content }}\n### {% if m.role == 'user' %}Assistant:\n{% else %}"
                "User:\n{% endif %}{% endfor %}"
            ),
            [
                "### User:\nHi.\n### Assistant:\n⟦Yes?</s>⟧",
                "### User:\nHi.\n### Assistant:\nYes?\n### User:\nNo.\n### Assistant:\n⟦Why?</s>⟧",
            ],
        ),
    ],
)
def test_what_a_template_writes_behind_the_last_turn_is_not_learned(name: str, template: str, seen: list[str]) -> None:
    """As some do that write the header of the next answer whether or not they are asked for it."""
    tokenizer = with_template(name, template)
    rows = encode(tokenizer, CONVERSATION)
    assert [render_mask(tokenizer, *rows.row(number)) for number in range(len(rows))] in (["".join(seen)], seen)


@pytest.mark.parametrize("what", ["range(1000) | random", "['a', 'b'] | random", "lipsum(1, false)"])
def test_a_template_that_writes_something_random_is_refused(what: str) -> None:
    always = with_template("chatml", turns("{{ m.content }}", f"{{{{ {what} }}}}"))
    with pytest.raises(FailureError, match=r"row 7: .*refuses it: it writes something random here, .*--chat-template"):
        encode(always, SINGLE)
    never = with_template(
        "chatml", turns("{{ m.content }}", f"{{% if messages | length > 9 %}}{{{{ {what} }}}}{{% endif %}}")
    )
    assert "⟦Yes?<|im_end|>⟧" in masked(never, SINGLE)


def test_arguments_that_are_not_json_name_the_row() -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": "{city"}}
    messages = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    with pytest.raises(FailureError, match=r"row 7: tool_calls: the arguments of weather are not JSON"):
        encode(make_tokenizer("tools"), {"messages": messages})


def test_a_greeting_that_nothing_precedes_is_seen_and_not_learned() -> None:
    greeted = {"messages": [{"role": "assistant", "content": "Hi!"}, *CONVERSATION["messages"][:2]]}
    text = masked(make_tokenizer("marked"), greeted)
    assert text == f"{IM_ASSISTANT}Hi!<|im_end|>{SEEN['marked']}"


def test_a_conversation_without_an_answer_is_refused() -> None:
    with pytest.raises(FailureError, match="row 7: messages: no assistant turn follows"):
        encode(make_tokenizer("chatml"), {"messages": CONVERSATION["messages"][:1]})


class Slow:
    """A tokenizer that is written in Python, like those of some models: it has no inner one."""

    is_fast = False

    def __init__(self, inner: Any, *, split_special_tokens: bool = False) -> None:
        self.inner = inner
        self.split_special_tokens = split_special_tokens

    def __getattr__(self, name: str) -> Any:
        if name == "backend_tokenizer":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __call__(self, texts: list[str], **options: Any) -> Any:
        return self.inner(texts, split_special_tokens=self.split_special_tokens, **options)


@pytest.mark.parametrize("name", STYLES)
def test_a_tokenizer_in_python_gives_the_same(name: str) -> None:
    tokenizer = make_tokenizer(name)
    fast, slow = encode(tokenizer, SINGLE, SINGLE), encode(Slow(tokenizer), SINGLE, SINGLE)
    assert (fast.ids, fast.labels, fast.offsets) == (slow.ids, slow.labels, slow.offsets)


def test_an_end_token_that_the_tokenizer_takes_apart_is_refused() -> None:
    tokenizer = copy.deepcopy(make_tokenizer("chatml"))
    for splitting in (Slow(tokenizer, split_special_tokens=True), tokenizer):
        tokenizer.split_special_tokens = True
        with pytest.raises(FailureError, match=r"row 7: .*does not keep the end token"):
            encode(splitting, SINGLE)


def test_a_tokenizer_that_was_set_to_cut_and_pad_does_neither() -> None:
    tokenizer = copy.deepcopy(make_tokenizer("chatml"))
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=99)
    assert masked(tokenizer, SINGLE) == SEEN["chatml"]
