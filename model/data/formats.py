"""The ways to write a row, each turned into one of the shapes that the trainer knows.

Each `normalise_*` function returns a row's content or raises `InvalidRowError` with everything that is wrong with it.
What stands beside the texts (a system prompt, earlier turns, tools) makes turns of texts.
"""

from __future__ import annotations

from typing import Any, Literal

from model.data import keys
from model.data.beside import Beside, check_history, read_beside, with_thoughts
from model.data.conversations import check_learned, check_order, read_turns, seen_only, without_weights
from model.data.fields import Fields
from model.data.records import InvalidRowError, Problem
from model.data.texts import as_turns, check_text, media_in, short
from model.data.turns import OPENING, Message

Shape = Literal[
    "text", "prompt-completion", "messages", "preference", "preference-messages", "unpaired", "unpaired-messages"
]
Content = dict[str, Any]

_ASKED = ("prompt", "instruction")
_NO_INPUT = (keys.NOTHING - {"[]", "{}"}) | {"<noinput>", "noinput", "n/a", "no input"}
"""What stands in Alpaca's `input` where an instruction needs none; an empty list may be what is asked about."""
_SAYS_NOTHING = frozenset({"null", "nan", "<na>", r"\n"})
PROMPT_ENDS = ("user", "tool", *OPENING)
_OF_OTHER_SHAPES = (
    "prompt", "completion", "messages", "conversations", "instruction", "output", "chosen", "rejected",
)  # fmt: skip
"""Fields that say, beside `text`, that it may be another one's."""


def _texts(row: Fields, problems: list[Problem], *fields: str) -> Content:
    """Return fields that are text; the prompt must be one that a text model can read."""
    content = {field: row.get(field) for field in fields}
    for field, text in content.items():
        check_text(text, row.name(field), problems)
        if isinstance(text, str) and text.strip().lower() in _SAYS_NOTHING:
            row.note(f"{row.name(field)} is {text.strip()}, as tables write where nothing is, and learned as it stands")
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
    return (
        f"{instruction}\n\n{added}"
        if isinstance(added, str) and added.strip().lower() not in _NO_INPUT
        else instruction
    )


def normalise_text(row: Fields) -> Content:
    """Return a text as it is; all of it is learned, so that nothing can be asked, called or thought beside it."""
    problems: list[Problem] = []
    content = _texts(row, problems, "text")
    beside = read_beside(row, problems)
    name, ignore = row.name("text"), "or leave the column out with --ignore-column={} (ignoredColumns in a TrainingRun)"
    for column in beside.columns:
        text = f"is given beside {name}, which is learned as it stands: write it into {name}, {ignore.format(column)}"
        problems.append(Problem(column, text, "beside"))
    if "text" not in row.reading.columns:
        for column in (row.name(field) for field in _OF_OTHER_SHAPES if row.has(field)):
            text = f"is given beside {name}, and a row is one or the other: map the text that is meant (text={name})"
            problems.append(Problem(column, f"{text}, {ignore.format(column)}", "beside"))
    _raise(problems)
    return content


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
    beside, prompt = read_beside(row, problems), _turns(row, "prompt", "user", problems)
    completion = _turns(row, "completion", "assistant", problems)
    _raise(problems)
    check_history(beside, problems)
    _check_turns(prompt, "prompt", row, problems, beside=beside, last=PROMPT_ENDS)
    check_order(completion, row.name("completion"), problems, before=prompt)
    if not problems:
        check_learned(completion, row.name("completion"), problems)
    completion = with_thoughts(beside, completion, problems)
    _raise(problems)
    return {"messages": beside.before + seen_only(prompt) + completion, **beside.further}


def normalise_labelled(row: Fields) -> Content:
    """Return prompt, completion and label as they are, or as turns when there is more than these."""
    problems: list[Problem] = []
    return _labelled(row, _texts(row, problems, "prompt", "completion"), problems)


def normalise_labelled_instruction(row: Fields) -> Content:
    """Return an Alpaca row with a label."""
    problems: list[Problem] = []
    prompt = _instruction(row, problems)
    return _labelled(row, {"prompt": prompt, "completion": _texts(row, problems, "output")["output"]}, problems)


def _labelled(row: Fields, content: Content, problems: list[Problem]) -> Content:
    """Return a prompt and its labelled completion with what stands beside them."""
    label = _label(row, problems)
    beside = read_beside(row, problems)
    check_history(beside, problems)
    _raise(problems)
    if not beside.makes_turns:
        return {**content, "label": label, **beside.template}
    prompt = [*without_weights(beside.before), {"role": "user", "content": content["prompt"]}]
    return {"prompt": prompt, "completion": [beside.answer(content["completion"])], "label": label, **beside.further}


def normalise_labelled_turns(row: Fields) -> Content:
    """Return a prompt and a labelled completion that are lists of turns."""
    problems: list[Problem] = []
    prompt = _turns(row, "prompt", "user", problems)
    return _labelled_turns(row, prompt, "completion", problems)


def normalise_labelled_messages(row: Fields) -> Content:
    """Return a conversation whose last answer is labelled: what follows the last user's turn."""
    return _labelled_turns(row, None, "messages", [])


def normalise_labelled_conversations(row: Fields) -> Content:
    """Return a conversation as ShareGPT writes it, whose last answer is labelled."""
    return _labelled_turns(row, None, "conversations", [])


def _labelled_turns(row: Fields, prompt: list[Message] | None, field: str, problems: list[Problem]) -> Content:
    """Return a labelled answer in turns; without a prompt of its own it ends a conversation that begins with one."""
    label = _label(row, problems)
    beside = read_beside(row, problems)
    turns = _turns(row, field, "assistant", problems)
    _raise(problems)
    check_history(beside, problems)
    start = 0
    if prompt is None:
        _check_turns(turns, field, row, problems, beside=beside)
        start = 1 + max((i for i, turn in enumerate(turns) if turn["role"] in ("user", *OPENING)), default=-1)
        prompt, turns = turns[:start], turns[start:]
    else:
        _check_turns(prompt, "prompt", row, problems, beside=beside, last=PROMPT_ENDS)
        check_order(turns, row.name(field), problems, before=prompt)
    if not problems:
        _check_all_learned(row, {field: turns}, problems)
    completion = with_thoughts(beside, turns, problems)
    _raise(problems)
    before = without_weights(beside.before + prompt)
    return {"prompt": before, "completion": completion, "label": label, **beside.further}


def _label(row: Fields, problems: list[Problem]) -> bool:
    """Return whether a row's answer is a good one; databases and CSV files write that as a number or as text."""
    value = row.get("label")
    label = keys.truth(value)
    if label is None:
        text = f"must be true, for a good answer, or false, for a bad one, is {short(value)}"
        problems.append(Problem(row.name("label"), text, "label"))
    return bool(label)


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
    """Return a preference between conversations, their common beginning as the prompt."""
    return _preferred_turns(row, "prompt")


def normalise_preference_messages(row: Fields) -> Content:
    """Return a preference between the answers to a conversation in `messages`."""
    return _preferred_turns(row, "messages")


def normalise_preference_conversations(row: Fields) -> Content:
    """Return a preference between the answers to a conversation as ShareGPT writes it."""
    return _preferred_turns(row, "conversations")


def _preferred_turns(row: Fields, asked: str) -> Content:
    """Return a preference in turns, with the prompt in the field `asked`.

    Without a prompt, or with one that both answers repeat, the prompt is what the answers have in common.
    """
    problems: list[Problem] = []
    beside = read_beside(row, problems)
    _check_no_thoughts(beside, problems)
    prompt = without_weights(_turns(row, asked, "user", problems)) if row.has(asked) else []
    chosen, rejected = (_turns(row, field, "assistant", problems) for field in ("chosen", "rejected"))
    _raise(problems)
    unweighted = {"chosen": without_weights(chosen), "rejected": without_weights(rejected)}
    _check_different(unweighted, row)
    start = 0
    if chosen[0]["role"] != "assistant" or not prompt:
        given, prompt = prompt, _common(**unweighted)
        start = len(prompt)
        chosen, rejected = chosen[start:], rejected[start:]
        _check_common(prompt, given, asked, row)
    field = asked if row.has(asked) else "chosen"
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
            text = "has a turn of weight 0, but an answer is judged as a whole: leave the weights out"
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


def _turns(row: Fields, field: str, role: str, problems: list[Problem]) -> list[Message]:
    """Return a field's turns; plain text is one turn, of the role given."""
    value = as_turns(row.get(field))
    if isinstance(value, str):
        return [{"role": role, "content": _texts(row, problems, field)[field]}]
    return read_turns(value, row.name(field), problems, row.reading)


def _common(chosen: list[Message], rejected: list[Message]) -> list[Message]:
    """Return the turns that two conversations begin with, short of the last of either."""
    length = 0
    for first, second in zip(chosen[:-1], rejected[:-1], strict=False):
        if first != second:
            break
        length += 1
    return chosen[:length]


def _check_common(prompt: list[Message], given: list[Message], asked: str, row: Fields) -> None:
    chosen, rejected = row.name("chosen"), row.name("rejected")
    if not prompt:
        text = f"shares no first turn with {rejected}: a row needs a prompt, or two conversations that begin alike"
        raise InvalidRowError([Problem(chosen, text, "prompt")])
    if not all(turn in prompt for turn in given):
        text = f"is not among the turns that {chosen} and {rejected} begin with"
        raise InvalidRowError([Problem(row.name(asked), text, "prompt")])


def _check_different(content: Content, row: Fields) -> None:
    if _stripped(content["chosen"]) == _stripped(content["rejected"]):
        text = f"is equal to {row.name('rejected')}: nothing can be learned from that"
        raise InvalidRowError([Problem(row.name("chosen"), text, "chosenEqualsRejected")])


def _stripped(answer: Any) -> Any:
    """Return an answer without the spaces around its texts, which templates take off."""
    if isinstance(answer, str):
        return answer.strip()
    return [{**turn, "content": turn["content"].strip()} for turn in answer]


def _raise(problems: list[Problem]) -> None:
    if problems:
        raise InvalidRowError(problems)
