"""The ways to write a row, each turned into one of the four shapes that the trainer knows.

A `Fields` is a row seen through the column mapping; each `normalise_*` function returns the row's content or raises
`InvalidRowError` with everything that is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from model.data.conversations import Message, check_learned, check_order, read_turns, seen_only, without_weights
from model.data.records import InvalidRowError, Problem
from model.data.texts import as_turns, check_text
from model.data.tools import read_tools

Shape = Literal["prompt-completion", "messages", "preference", "preference-messages"]
Content = dict[str, Any]

PROMPT_ENDS = ("user", "tool")


class Fields:
    """The fields of one row under their canonical names.

    Parameters
    ----------
    value
        The row as its source gave it.
    columns
        Canonical name to the source's name, where the two differ.
    """

    __slots__ = ("_columns", "value")

    def __init__(self, value: Mapping[str, Any], columns: Mapping[str, str]) -> None:
        self.value = value
        self._columns = columns

    def name(self, field: str) -> str:
        """Return what the source calls a field."""
        return self._columns.get(field, field)

    def get(self, field: str) -> Any:
        """Return a field's value, None when it is null or not there."""
        return self.value.get(self._columns.get(field, field))

    def has(self, field: str) -> bool:
        """Whether the field is there and not null."""
        return self.get(field) is not None

    def has_turns(self, field: str) -> bool:
        """Whether the field is a list of objects, or holds turns as JSON."""
        value = as_turns(self.get(field))
        return isinstance(value, list) and (not value or isinstance(value[0], Mapping))


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
        """All fields that its rows may have."""
        return self.required + self.optional

    @property
    def answers(self) -> tuple[str, ...]:
        """The fields that say whether a row's texts are turns."""
        return self.required[-1:] if "completion" in self.required else ("chosen", "rejected")

    def fits(self, row: Fields) -> bool:
        """Whether a row has all that this form requires."""
        if not all(row.has(field) for field in self.required):
            return False
        return self.conversations is None or self.conversations == any(map(row.has_turns, self.answers))


def _texts(row: Fields, *fields: str) -> Content:
    problems: list[Problem] = []
    content = {field: row.get(field) for field in fields}
    for field, text in content.items():
        check_text(text, row.name(field), problems)
    _raise(problems)
    return content


def normalise_prompt_completion(row: Fields) -> Content:
    """Return prompt and completion as they are."""
    return _texts(row, "prompt", "completion")


def _instruction(row: Fields, problems: list[Problem]) -> str:
    """Return the instruction, followed by its input when there is one."""
    instruction, added = row.get("instruction"), row.get("input")
    check_text(instruction, row.name("instruction"), problems)
    if added is not None:
        check_text(added, row.name("input"), problems, empty=True)
    return f"{instruction}\n\n{added}" if isinstance(added, str) and added.strip() else instruction


def normalise_instruction(row: Fields) -> Content:
    """Return an Alpaca row as prompt and completion."""
    problems: list[Problem] = []
    prompt = _instruction(row, problems)
    check_text(row.get("output"), row.name("output"), problems)
    _raise(problems)
    return {"prompt": prompt, "completion": row.get("output")}


def normalise_messages(row: Fields) -> Content:
    """Return the conversation in `messages`, learned in all assistant turns whose weight is not 0."""
    return _conversation(row, "messages")


def normalise_conversations(row: Fields) -> Content:
    """Return the conversation in `conversations`, as ShareGPT writes it."""
    return _conversation(row, "conversations")


def _conversation(row: Fields, field: str) -> Content:
    problems: list[Problem] = []
    system, turns = _system(row, problems), read_turns(row.get(field), row.name(field), problems)
    tools = _tools(row, problems)
    _raise(problems)
    _check_turns(turns, field, row, problems, system=system)
    if not problems:
        check_learned(turns, row.name(field), problems)
    _raise(problems)
    return {"messages": system + turns, **tools}


def normalise_completion_turns(row: Fields) -> Content:
    """Return a prompt and a completion that are lists of turns as one conversation; only the completion is learned."""
    problems: list[Problem] = []
    system, prompt = _system(row, problems), _prompt_turns(row, problems)
    completion = read_turns(row.get("completion"), row.name("completion"), problems)
    tools = _tools(row, problems)
    _raise(problems)
    _check_turns(prompt, "prompt", row, problems, system=system, last=PROMPT_ENDS)
    check_order(completion, row.name("completion"), problems, before=prompt)
    if not problems:
        check_learned(completion, row.name("completion"), problems)
    _raise(problems)
    return {"messages": system + seen_only(prompt) + completion, **tools}


def normalise_preference(row: Fields) -> Content:
    """Return prompt, chosen and rejected as they are."""
    content = _texts(row, "prompt", "chosen", "rejected")
    _check_different(content, row)
    return content


def normalise_instruction_preference(row: Fields) -> Content:
    """Return an instruction with a chosen and a rejected answer."""
    problems: list[Problem] = []
    prompt = _instruction(row, problems)
    answers = {field: row.get(field) for field in ("chosen", "rejected")}
    for field, text in answers.items():
        check_text(text, row.name(field), problems)
    _raise(problems)
    content = {"prompt": prompt, **answers}
    _check_different(content, row)
    return content


def normalise_preference_turns(row: Fields) -> Content:
    """Return a preference between conversations, their common beginning as the prompt.

    Without a prompt, or with one that both answers repeat, the prompt is what the answers have in common.
    """
    problems: list[Problem] = []
    system = _system(row, problems)
    prompt = without_weights(_prompt_turns(row, problems)) if row.has("prompt") else []
    chosen, rejected = (read_turns(row.get(field), row.name(field), problems) for field in ("chosen", "rejected"))
    tools = _tools(row, problems)
    _raise(problems)
    unweighted = {"chosen": without_weights(chosen), "rejected": without_weights(rejected)}
    _check_different(unweighted, row)
    if chosen[0]["role"] != "assistant" or not prompt:
        given, prompt = prompt, _common(**unweighted)
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
        _check_common(prompt, given, row)
    field = "prompt" if row.has("prompt") else "chosen"
    _check_turns(prompt, field, row, problems, system=system, last=PROMPT_ENDS)
    if not problems:
        check_order(chosen, row.name("chosen"), problems, before=prompt)
        check_order(rejected, row.name("rejected"), problems, before=prompt)
        _check_all_learned(row, {"chosen": chosen, "rejected": rejected}, problems)
    _raise(problems)
    return {"prompt": system + prompt, "chosen": chosen, "rejected": rejected, **tools}


def _check_all_learned(row: Fields, answers: dict[str, list[Message]], problems: list[Problem]) -> None:
    for field, turns in answers.items():
        if any("weight" in turn for turn in turns):
            text = "has a turn of weight 0, but answers are compared as a whole: leave the weights out"
            problems.append(Problem(row.name(field), text, "weight"))


def _system(row: Fields, problems: list[Problem]) -> list[Message]:
    """Return the system turn that a column of its own holds; none when it is empty."""
    text = row.get("system")
    if text is None or text == "":
        return []
    check_text(text, row.name("system"), problems)
    return [{"role": "system", "content": text}]


def _check_turns(
    turns: list[Message],
    field: str,
    row: Fields,
    problems: list[Problem],
    *,
    system: list[Message],
    last: tuple[str, ...] = ("assistant",),
) -> None:
    """Check the order of a conversation's first turns, and that it has one system turn at most."""
    if system and turns[0]["role"] == "system":
        text = f"is given beside a system turn in {row.name(field)}: keep one"
        problems.append(Problem(row.name("system"), text, "order"))
    else:
        check_order(turns, row.name(field), problems, before=system, last=last)


def _prompt_turns(row: Fields, problems: list[Problem]) -> list[Message]:
    """Return the prompt's turns; a prompt that is plain text is one turn of the user."""
    prompt = as_turns(row.get("prompt"))
    if isinstance(prompt, str):
        check_text(prompt, row.name("prompt"), problems)
        return [{"role": "user", "content": prompt}]
    return read_turns(prompt, row.name("prompt"), problems)


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


def _tools(row: Fields, problems: list[Problem]) -> Content:
    tools = read_tools(row.get("tools"), row.name("tools"), problems)
    return {"tools": tools} if tools else {}


def _raise(problems: list[Problem]) -> None:
    if problems:
        raise InvalidRowError(problems)


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
            ("tools", "system"),
            conversations=True,
            normalise=normalise_completion_turns,
        ),
        Form(
            "messages", "messages", ("messages",), ("tools", "system"), conversations=None, normalise=normalise_messages
        ),
        Form(
            "conversations (ShareGPT)",
            "messages",
            ("conversations",),
            ("tools", "system"),
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
            ("tools", "system"),
            conversations=True,
            normalise=normalise_preference_turns,
        ),
        Form(
            "chosen and rejected conversations, whose common beginning is the prompt",
            "preference-messages",
            ("chosen", "rejected"),
            ("tools", "system"),
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
