"""Variables that a row gives its chat template."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from model.exits import FailureError
from model.training.rows.report import render_mask
from model.training.rows.tokens import RowEncoder
from tests.training.chat_templates import make_tokenizer

TEMPLATE = (
    "{% if note %}<|im_start|>system\n{{ note }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NOTE = {"chat_template_kwargs": {"note": "Be brief."}}
SYSTEM, HI = "<|im_start|>system\nBe brief.<|im_end|>\n", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def tokenizer() -> Any:
    made = copy.deepcopy(make_tokenizer("thinking"))
    made.chat_template = TEMPLATE
    return made


def encoder(tokenizer: Any) -> RowEncoder:
    return RowEncoder(tokenizer, max_length=4096, too_long="Fail")


def lines(*contents: dict[str, Any]) -> Any:
    return iter([json.dumps({**content, "row": row}).encode() for row, content in enumerate(contents, 1)])


def test_a_row_is_rendered_with_its_variables_and_others_without(tokenizer: Any) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    rows = encoder(tokenizer).encode(
        lines({"prompt": "Hi", "completion": "Yes?", **NOTE}, {"messages": turns, **NOTE}, {"messages": turns}), "the"
    )
    shown = [render_mask(tokenizer, *rows.row(index)) for index in range(3)]
    assert shown[0] == shown[1]
    assert shown[1].startswith(SYSTEM + HI)
    assert shown[1].removeprefix(SYSTEM) == shown[2]


def test_both_sides_of_a_pair_are_rendered_with_the_variables(tokenizer: Any) -> None:
    pair = {"prompt": "Hi", "chosen": "Yes?", "rejected": "No."}
    rows = encoder(tokenizer).encode_preferences(lines({**pair, **NOTE}), "the dataset's")
    for side in (rows.chosen, rows.rejected):
        assert render_mask(tokenizer, *side.row(0)).startswith(SYSTEM + HI)


def test_a_variable_that_the_template_does_not_read_is_refused(tokenizer: Any) -> None:
    row = {"prompt": "Hi", "completion": "Yes?", "chat_template_kwargs": {"note": "Be brief.", "enable_thinking": True}}
    with pytest.raises(FailureError, match=r"row 1: chat_template_kwargs\.enable_thinking: .* has no such variable: "):
        encoder(tokenizer).encode(lines(row), "the dataset's")


def test_variables_need_a_template(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    with pytest.raises(FailureError, match=r"row 1: chat_template_kwargs: the base model has no chat template: leave"):
        encoder(tokenizer).encode(lines({"prompt": "Hi", "completion": "Yes?", **NOTE}), "the dataset's")
