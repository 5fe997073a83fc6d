"""Asks the base model and the adapter the same questions, to see what the training has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from model.training.commands import verify
from model.training.processes import process
from model.training.weights import basemodel

Message = dict[str, str]

HELP = "/clear forgets the conversation, /quit or Ctrl-D ends"


@dataclass
class Conversation:
    """The turns so far, as the base and as the adapter have answered them."""

    base: list[Message] = field(default_factory=list)
    adapter: list[Message] = field(default_factory=list)


class Pair:
    """A base model with an adapter that can be switched off.

    Parameters
    ----------
    base_model
        Directory or hub name; None for the one that the adapter's run names.
    adapter
        Directory of the adapter, or of its run.
    max_new_tokens
        Length of an answer.
    system
        A system message in front of each conversation, None for the template's own.

    Raises
    ------
    FailureError
        When the base model or the adapter cannot be loaded.
    """

    def __init__(self, base_model: str | None, adapter: Path, *, max_new_tokens: int, system: str | None) -> None:
        directory = verify.find_adapter(adapter)
        name, revision = verify.choose_base_model(base_model, adapter, directory)
        import torch

        cuda = torch.cuda.is_available()
        bfloat16 = cuda or process.cpu_has_bfloat16()
        self._tokenizer = basemodel.load_tokenizer(name, revision)
        model = verify.load_adapter(basemodel.load_model(name, revision, bfloat16=bfloat16), name, directory)
        self._model = model.to("cuda" if cuda else "cpu").eval()
        self._max_new_tokens = max_new_tokens
        self._start = [] if system is None else [{"role": "system", "content": system}]

    def ask(self, prompt: str, conversation: Conversation) -> dict[str, str]:
        """Return `{prompt, base, adapter}`, the likeliest answers, and add them to the conversation."""
        turn = {"role": "user", "content": prompt}
        conversation.base.append(turn)
        conversation.adapter.append(turn)
        with self._model.disable_adapter():
            base = self._generate(conversation.base)
        tuned = self._generate(conversation.adapter)
        conversation.base.append({"role": "assistant", "content": base})
        conversation.adapter.append({"role": "assistant", "content": tuned})
        return {"prompt": prompt, "base": base, "adapter": tuned}

    def _generate(self, messages: list[Message]) -> str:
        import torch

        tokenizer = self._tokenizer
        if tokenizer.chat_template:
            text = tokenizer.apply_chat_template([*self._start, *messages], tokenize=False, add_generation_prompt=True)
            inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        else:
            inputs = tokenizer(messages[-1]["content"], return_tensors="pt")
        ids = inputs["input_ids"].to(self._model.device)
        with torch.no_grad():
            output = self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=self._max_new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.eos_token_id,
            )
        answered: str = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        return answered.strip()


def answer(pair: Pair, prompts: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield the answers to prompts that have nothing to do with each other."""
    for prompt in prompts:
        yield pair.ask(prompt, Conversation())


def side_by_side(answers: dict[str, str]) -> str:
    """Return the two answers as text for a person."""
    return f"\nbase     {_indent(answers['base'])}\nadapter  {_indent(answers['adapter'])}\n"


def converse(pair: Pair, output: TextIO, read: Callable[[str], str] = input) -> None:
    """Talk with a person until they end it."""
    print(HELP, file=output, flush=True)
    conversation = Conversation()
    while True:
        try:
            prompt = read("> ").strip()
        except EOFError:
            print(file=output, flush=True)
            return
        if prompt == "/quit":
            return
        if prompt == "/clear":
            conversation = Conversation()
        elif prompt.startswith("/"):
            print(HELP, file=output, flush=True)
        elif prompt:
            print(side_by_side(pair.ask(prompt, conversation)), file=output, flush=True)


def _indent(text: str) -> str:
    return text.replace("\n", "\n" + " " * 9) or "(nothing)"
