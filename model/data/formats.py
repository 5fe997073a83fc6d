"""The ways to write a row, each turned into one of the four shapes that the trainer knows.

Each `normalise_*` function returns a row's content or raises `InvalidRowError` with everything that is wrong with it.
What stands beside the texts (a system prompt, earlier turns, tools) makes turns of texts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from model.data.beside import Beside, check_history, read_beside, with_thoughts
from model.data.conversations import check_learned, check_order, read_turns, seen_only, without_weights
from model.data.fields import Fields
from model.data.keys import COLUMNS
from model.data.records import InvalidRowError, Problem
from model.data.texts import as_turns, check_text, media_in
from model.data.turns import OPENING, Message

Shape = Literal["prompt-completion", "messages", "preference", "preference-messages"]
Content = dict[str, Any]

_ASKED = ("prompt", "instruction")
PROMPT_ENDS = ("user", "tool", *OPENING)


@dataclass(frozen=True)
class Form:
    """One way to write a row.

    Parameters
    ----------
    words
        What to call it in messages.
    shape
        What its rows become.
    required, optional
        Canonical fields.
    conversations
        Whether its texts are lists of turns; None when no other form has the same fields.
    """

    words: str
    shape: Shape
    required: tuple[str, ...]
    optional: tuple[str, ...]
    conversations: bool | None
    normalise: Callable[[Fields], Content]

    @property
    def fields(self) -> tuple[str, ...]:
        """All fields that its rows may have, and a mapping may name."""
        return self.required + self.optional + BESIDE

    @property
    def answers(self) -> tuple[str, ...]:
        """The fields that say whether a row's texts are turns."""
        return self.required[-1:] if "completion" in self.required else ("chosen", "rejected")

    def fits(self, row: Fields) -> bool:
        """Whether a row has all that this form requires."""
        if not all(row.has(field) for field in self.required):
            return False
        return self.conversations is None or self.conversations == any(map(row.has_turns, self.answers))


def _texts(row: Fields, problems: list[Problem], *fields: str) -> Content:
    """Return fields that are text; the prompt must be one that a text model can read."""
    content = {field: row.get(field) for field in fields}
    for field, text in content.items():
        check_text(text, row.name(field), problems)
        if (mark := media_in(text, prompt=field in _ASKED)) is not None:
            problems.append(Problem(row.name(field), mark, "media"))
    return content


def _instruction(row: Fields, problems: list[Problem]) -> str:
    """Return the instruction, followed by its input when there is one."""
    instruction, added = _texts(row, problems, "instruction")["instruction"], row.get("input")
    if added is not None:
        check_text(added, row.name("input"), problems, empty=True)
        if (mark := media_in(added, prompt=True)) is not None:
            problems.append(Problem(row.name("input"), mark, "media"))
    return f"{instruction}\n\n{added}" if isinstance(added, str) and added.strip() else instruction


def normalise_prompt_completion(row: Fields) -> Content:
    """Return prompt and completion as they are, or as turns when there is more than these."""
    problems: list[Problem] = []
    return _completed(row, _texts(row, problems, "prompt", "completion"), problems)


def normalise_instruction(row: Fields) -> Content:
    """Return an Alpaca row as prompt and completion."""
    problems: list[Problem] = []
    prompt = _instruction(row, problems)
    return _completed(row, {"prompt": prompt, "completion": _texts(row, problems, "output")["output"]}, problems)


def _completed(row: Fields, content: Content, problems: list[Problem]) -> Content:
    """Return a prompt and its completion with what stands beside them."""
    beside = read_beside(row, problems)
    check_history(beside, problems)
    _raise(problems)
    if not beside.makes_turns:
        return {**content, **beside.template}
    turns = [{"role": "user", "content": content["prompt"]}, beside.answer(content["completion"])]
    return {"messages": beside.before + turns, **beside.further}


def normalise_messages(row: Fields) -> Content:
    """Return the conversation in `messages`, learned in all assistant turns whose weight is not 0."""
    return _conversation(row, "messages")


def normalise_conversations(row: Fields) -> Content:
    """Return the conversation in `conversations`, as ShareGPT writes it."""
    return _conversation(row, "conversations")


def _conversation(row: Fields, field: str) -> Content:
    problems: list[Problem] = []
    beside = read_beside(row, problems)
    turns = read_turns(row.get(field), row.name(field), problems, row.reading)
    _raise(problems)
    check_history(beside, problems)
    _check_turns(turns, field, row, problems, beside=beside)
    if not problems:
        check_learned(turns, row.name(field), problems)
    turns = with_thoughts(beside, turns, problems)
    _raise(problems)
    return {"messages": beside.before + turns, **beside.further}


def normalise_completion_turns(row: Fields) -> Content:
    """Return a prompt and a completion that are lists of turns as one conversation; only the completion is learned."""
    problems: list[Problem] = []
    beside, prompt = read_beside(row, problems), _prompt_turns(row, problems)
    completion = read_turns(row.get("completion"), row.name("completion"), problems, row.reading)
    _raise(problems)
    check_history(beside, problems)
    _check_turns(prompt, "prompt", row, problems, beside=beside, last=PROMPT_ENDS)
    check_order(completion, row.name("completion"), problems, before=prompt)
    if not problems:
        check_learned(completion, row.name("completion"), problems)
    completion = with_thoughts(beside, completion, problems)
    _raise(problems)
    return {"messages": beside.before + seen_only(prompt) + completion, **beside.further}


def normalise_preference(row: Fields) -> Content:
    """Return prompt, chosen and rejected as they are, or as turns when there is more than these."""
    problems: list[Problem] = []
    return _preferred(row, _texts(row, problems, "prompt", "chosen", "rejected"), problems)


def normalise_instruction_preference(row: Fields) -> Content:
    """Return an instruction with a chosen and a rejected answer."""
    problems: list[Problem] = []
    prompt = _instruction(row, problems)
    return _preferred(row, {"prompt": prompt, **_texts(row, problems, "chosen", "rejected")}, problems)


def _preferred(row: Fields, content: Content, problems: list[Problem]) -> Content:
    """Return a prompt and its two answers with what stands beside them."""
    beside = read_beside(row, problems)
    check_history(beside, problems)
    _check_no_thoughts(beside, problems)
    _raise(problems)
    _check_different(content, row)
    if not beside.makes_turns:
        return {**content, **beside.template}
    prompt = [*without_weights(beside.before), {"role": "user", "content": content["prompt"]}]
    answers = {side: [{"role": "assistant", "content": content[side]}] for side in ("chosen", "rejected")}
    return {"prompt": prompt, **answers, **beside.further}


def normalise_preference_turns(row: Fields) -> Content:
    """Return a preference between conversations, their common beginning as the prompt.

    Without a prompt, or with one that both answers repeat, the prompt is what the answers have in common.
    """
    problems: list[Problem] = []
    beside = read_beside(row, problems)
    _check_no_thoughts(beside, problems)
    prompt = without_weights(_prompt_turns(row, problems)) if row.has("prompt") else []
    chosen, rejected = (
        read_turns(row.get(field), row.name(field), problems, row.reading) for field in ("chosen", "rejected")
    )
    _raise(problems)
    unweighted = {"chosen": without_weights(chosen), "rejected": without_weights(rejected)}
    _check_different(unweighted, row)
    start = 0
    if chosen[0]["role"] != "assistant" or not prompt:
        given, prompt = prompt, _common(**unweighted)
        start = len(prompt)
        chosen, rejected = chosen[start:], rejected[start:]
        _check_common(prompt, given, row)
    field = "prompt" if row.has("prompt") else "chosen"
    check_history(beside, problems)
    _check_turns(prompt, field, row, problems, beside=beside, last=PROMPT_ENDS)
    if not problems:
        for side, turns in (("chosen", chosen), ("rejected", rejected)):
            check_order(turns, row.name(side), problems, before=prompt, start=start)
        _check_all_learned(row, {"chosen": chosen, "rejected": rejected}, problems)
    _raise(problems)
    return {"prompt": without_weights(beside.before) + prompt, "chosen": chosen, "rejected": rejected, **beside.further}


def _check_all_learned(row: Fields, answers: dict[str, list[Message]], problems: list[Problem]) -> None:
    for field, turns in answers.items():
        if any("weight" in turn for turn in turns):
            text = "has a turn of weight 0, but answers are compared as a whole: leave the weights out"
            problems.append(Problem(row.name(field), text, "weight"))


def _check_no_thoughts(beside: Beside, problems: list[Problem]) -> None:
    if beside.thoughts is not None:
        text = "is given beside two answers, and says not whose it is: write it as reasoning_content of their turns"
        problems.append(Problem(beside.thoughts_in, text, "reasoning"))


def _check_turns(
    turns: list[Message],
    field: str,
    row: Fields,
    problems: list[Problem],
    *,
    beside: Beside,
    last: tuple[str, ...] = ("assistant",),
) -> None:
    """Check the order of a conversation's first turns, and that it has one system turn at most."""
    if beside.system and turns[0]["role"] in OPENING:
        text = f"is given beside a {turns[0]['role']} turn in {row.name(field)}: keep one"
        problems.append(Problem(beside.system_in, text, "order"))
    else:
        check_order(turns, row.name(field), problems, before=beside.before, last=last)


def _prompt_turns(row: Fields, problems: list[Problem]) -> list[Message]:
    """Return the prompt's turns; a prompt that is plain text is one turn of the user."""
    prompt = as_turns(row.get("prompt"))
    if isinstance(prompt, str):
        return [{"role": "user", "content": _texts(row, problems, "prompt")["prompt"]}]
    return read_turns(prompt, row.name("prompt"), problems, row.reading)


def _common(chosen: list[Message], rejected: list[Message]) -> list[Message]:
    """Return the turns that two conversations begin with, short of the last of either."""
    length = 0
    for first, second in zip(chosen[:-1], rejected[:-1], strict=False):
        if first != second:
            break
        length += 1
    return chosen[:length]


def _check_common(prompt: list[Message], given: list[Message], row: Fields) -> None:
    chosen, rejected = row.name("chosen"), row.name("rejected")
    if not prompt:
        text = f"shares no first turn with {rejected}: a row needs a prompt, or two conversations that begin alike"
        raise InvalidRowError([Problem(chosen, text, "prompt")])
    if not all(turn in prompt for turn in given):
        text = f"is not among the turns that {chosen} and {rejected} begin with"
        raise InvalidRowError([Problem(row.name("prompt"), text, "prompt")])


def _check_different(content: Content, row: Fields) -> None:
    chosen, rejected = content["chosen"], content["rejected"]
    same = chosen.strip() == rejected.strip() if isinstance(chosen, str) else chosen == rejected
    if same:
        text = f"is equal to {row.name('rejected')}: nothing can be learned from that"
        raise InvalidRowError([Problem(row.name("chosen"), text, "chosenEqualsRejected")])


def _raise(problems: list[Problem]) -> None:
    if problems:
        raise InvalidRowError(problems)


BESIDE = tuple(rule.names[0] for rule in COLUMNS if rule.kind in ("system", "history", "tools", "thoughts", "template"))
"""Fields that may stand beside all texts."""

PREFERENCE = ("prompt", "chosen", "rejected")
FORMS = {
    "SFT": (
        Form(
            "prompt and completion",
            "prompt-completion",
            ("prompt", "completion"),
            (),
            conversations=False,
            normalise=normalise_prompt_completion,
        ),
        Form(
            "prompt and completion as turns",
            "messages",
            ("prompt", "completion"),
            (),
            conversations=True,
            normalise=normalise_completion_turns,
        ),
        Form("messages", "messages", ("messages",), (), conversations=None, normalise=normalise_messages),
        Form(
            "conversations (ShareGPT)",
            "messages",
            ("conversations",),
            (),
            conversations=None,
            normalise=normalise_conversations,
        ),
        Form(
            "instruction, input and output (Alpaca)",
            "prompt-completion",
            ("instruction", "output"),
            ("input",),
            conversations=None,
            normalise=normalise_instruction,
        ),
    ),
    "DPO": (
        Form(
            "prompt, chosen and rejected",
            "preference",
            PREFERENCE,
            (),
            conversations=False,
            normalise=normalise_preference,
        ),
        Form(
            "prompt, chosen and rejected as turns",
            "preference-messages",
            PREFERENCE,
            (),
            conversations=True,
            normalise=normalise_preference_turns,
        ),
        Form(
            "chosen and rejected conversations, whose common beginning is the prompt",
            "preference-messages",
            ("chosen", "rejected"),
            (),
            conversations=True,
            normalise=normalise_preference_turns,
        ),
        Form(
            "instruction, input, chosen and rejected",
            "preference",
            ("instruction", "chosen", "rejected"),
            ("input",),
            conversations=False,
            normalise=normalise_instruction_preference,
        ),
    ),
}
CANONICAL_FIELDS = tuple(dict.fromkeys(field for forms in FORMS.values() for form in forms for field in form.fields))
