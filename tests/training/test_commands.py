"""The commands where a conversation grows, a branch of the hub moves, or another launcher starts the processes."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from model.exits import FailureError
from model.training.commands.chat import Conversation, Pair, converse


@pytest.fixture(scope="module")
def lora(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with random weights, which answers otherwise than its base."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(2)
    directory = tmp_path_factory.mktemp("lora")
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base_model), config).save_pretrained(directory)
    return directory


def test_a_long_conversation_forgets_its_oldest_turns(base_model: Path, lora: Path) -> None:
    pair = Pair(str(base_model), lora, max_new_tokens=32, system=None)
    questions = [f"What is {'very ' * 10}{number}?" for number in range(12)]
    conversation = Conversation()
    for number, question in enumerate(questions):
        pair.ask(question, conversation)
        for turns in (conversation.base, conversation.adapter):
            assert [turn["role"] for turn in turns[:2]] == ["user", "assistant"]
            assert turns[-2]["content"] == questions[number]
            assert len(turns) // 2 + conversation.forgotten >= number + 1
    assert 0 < conversation.forgotten < len(questions) - 1
    assert min(len(conversation.base), len(conversation.adapter)) == 2 * (len(questions) - conversation.forgotten)


def test_a_question_that_leaves_no_room_for_an_answer_is_refused(base_model: Path, lora: Path) -> None:
    pair = Pair(str(base_model), lora, max_new_tokens=32, system=None)
    conversation = Conversation()
    pair.ask("What is 1?", conversation)
    before = list(conversation.base)
    with pytest.raises(FailureError, match="the model reads 512 in all: ask a shorter one, or lower --max-new-tokens"):
        pair.ask("why " * 600, conversation)
    assert conversation.base == before


def test_a_conversation_says_what_it_forgets_and_goes_on_after_a_refusal(base_model: Path, lora: Path) -> None:
    pair = Pair(str(base_model), lora, max_new_tokens=32, system=None)
    typed = iter(["why " * 600, *["What is " + "very " * 40 + f"{n}?" for n in range(4)], "/quit"])
    output = io.StringIO()
    converse(pair, output, read=lambda _prompt: next(typed))
    assert "ask a shorter one" in output.getvalue()
    assert "(the oldest 1 questions and answers are forgotten: the model reads no more at once)" in output.getvalue()
    assert output.getvalue().count("adapter  ") == 4
