"""Asks the base model and the adapter the same questions, to see what the training has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from model import exits
from model.exits import FailureError
from model.training import stopping
from model.training.commands import verify
from model.training.processes import process
from model.training.weights import adapters, basemodel

Message = dict[str, str]

HELP = "/clear forgets the conversation, /quit or Ctrl-D ends"


@dataclass
class Conversation:
    """The turns so far, as the base and as the adapter have answered them."""

    base: list[Message] = field(default_factory=list)
    adapter: list[Message] = field(default_factory=list)
    forgotten: int = 0
    """Questions that no longer fit what the model reads at once, by the side that had to forget more."""


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
        When the base model or the adapter cannot be loaded, or a system message has no place.
    """

    def __init__(self, base_model: str | None, adapter: Path, *, max_new_tokens: int, system: str | None) -> None:
        directory = verify.find_adapter(adapter)
        name, revision = verify.choose_base_model(base_model, adapter, directory)
        import torch

        cuda = torch.cuda.is_available()
        bfloat16 = cuda or process.cpu_has_bfloat16()
        if not cuda:
            basemodel.leave_out_bitsandbytes()
        self._tokenizer = basemodel.load_tokenizer(name, revision, adapters.own_template(directory))
        self._ends = stopping.find(self._tokenizer, name, revision).all
        if system is not None and not self._tokenizer.chat_template:
            raise FailureError(
                exits.INVALID_CONFIGURATION,
                "InvalidSpec",
                f"--system: the tokenizer of {name} has no chat template, and without one the model gets the question "
                "alone: leave it out, or write it into the question",
            )
        model = verify.load_adapter(basemodel.load_model(name, revision, bfloat16=bfloat16), name, directory)
        self._model = model.to("cuda" if cuda else "cpu").eval()
        self._positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._max_new_tokens = max_new_tokens
        self._start = [] if system is None else [{"role": "system", "content": system}]

    def ask(self, prompt: str, conversation: Conversation) -> dict[str, str]:
        """Return `{prompt, base, adapter}`, the likeliest answers, and add them to the conversation.

        The oldest questions and answers are forgotten when they leave no room for the answer.

        Raises
        ------
        FailureError
            When the question alone leaves none; the conversation is as it was.
        """
        turn = {"role": "user", "content": prompt}
        base_turns, base_ids = self._fit([*conversation.base, turn])
        adapter_turns, adapter_ids = self._fit([*conversation.adapter, turn])
        with self._model.disable_adapter():
            base = self._generate(base_ids)
        tuned = self._generate(adapter_ids)
        kept = min(len(base_turns), len(adapter_turns)) // 2
        conversation.forgotten += max(len(conversation.base), len(conversation.adapter)) // 2 - kept
        conversation.base = [*base_turns, {"role": "assistant", "content": base}]
        conversation.adapter = [*adapter_turns, {"role": "assistant", "content": tuned}]
        return {"prompt": prompt, "base": base, "adapter": tuned}

    def _fit(self, messages: list[Message]) -> tuple[list[Message], list[int]]:
        """Return the newest messages after which the answer has room, and their tokens."""
        ids = self._encode(messages)
        while self._positions is not None and len(ids) + self._max_new_tokens > self._positions:
            if len(messages) < 3:
                raise FailureError(
                    exits.INVALID_CONFIGURATION,
                    "InvalidSpec",
                    f"the question has {len(ids)} tokens with its template, the answer may have "
                    f"{self._max_new_tokens}, and the model reads {self._positions} in all: ask a shorter one, or "
                    "lower --max-new-tokens",
                )
            messages = messages[2:]
            ids = self._encode(messages)
        return messages, ids

    def _encode(self, messages: list[Message]) -> list[int]:
        tokenizer = self._tokenizer
        if tokenizer.chat_template:
            text = tokenizer.apply_chat_template([*self._start, *messages], tokenize=False, add_generation_prompt=True)
            inputs = tokenizer(text, add_special_tokens=False)
        else:
            inputs = tokenizer(messages[-1]["content"])
        ids: list[int] = inputs["input_ids"]
        return ids

    def _generate(self, ids: list[int]) -> str:
        from model.training.samples.answers import answers

        ((tokens, _),) = answers(self._model, [ids], ends=self._ends, most=self._max_new_tokens)
        answered: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
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
            print(_answer_in(conversation, pair, prompt), file=output, flush=True)


def _answer_in(conversation: Conversation, pair: Pair, prompt: str) -> str:
    before = conversation.forgotten
    try:
        answers = pair.ask(prompt, conversation)
    except FailureError as failure:  # the next question may be shorter
        return failure.message
    new = conversation.forgotten - before
    note = f"\n(the oldest {new} questions and answers are forgotten: the model reads no more at once)" if new else ""
    return note + side_by_side(answers)


def _indent(text: str) -> str:
    return text.replace("\n", "\n" + " " * 9) or "(nothing)"
