"""What a row has beside its texts, and how that becomes part of what the model sees: see `keys` for the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from model.data import keys
from model.data.conversations import check_order, read_turns, seen_only
from model.data.decode import decode_text
from model.data.fields import Fields
from model.data.records import InvalidRowError, Problem
from model.data.texts import as_list, check_json, check_mapping, check_text, kind, media_in, short
from model.data.tools import read_tools
from model.data.turns import Message

Content = dict[str, Any]

TEMPLATE = "chat_template_kwargs"
"""Under which a written row holds the variables of its chat template."""

_THE_TRAINERS = frozenset(
    {
        "conversation", "messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message",
        "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict",
        "return_assistant_tokens_mask", "tokenizer_kwargs",
    }
)  # fmt: skip
"""Parameters of `apply_chat_template` that are no variables of a template's own."""


@dataclass
class Beside:
    """What stands beside a row's texts.

    Attributes: the `system` turn, the earlier turns in `history`, the `tools` and the `template`'s variables under
    their keys, the only answer's `thoughts`; and in which column some of these are, as `system_in`, and the `columns`
    of all.
    """

    system: list[Message] = field(default_factory=list)
    system_in: str = ""
    history: list[Message] = field(default_factory=list)
    history_in: str = ""
    tools: Content = field(default_factory=dict)
    thoughts: str | None = None
    thoughts_in: str = ""
    template: Content = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)

    @property
    def before(self) -> list[Message]:
        """The turns that come before the row's own."""
        return self.system + self.history

    @property
    def further(self) -> Content:
        """What a written row holds beside its turns."""
        return {**self.tools, **self.template}

    @property
    def makes_turns(self) -> bool:
        """Whether texts must be written as turns, since something stands beside them that only turns have."""
        return bool(self.system or self.history or self.tools or self.thoughts)

    def answer(self, text: str) -> Message:
        """Return the assistant's turn that says a text, with its thoughts."""
        turn = {"role": "assistant", "content": text}
        if self.thoughts is None or _says(turn, self.thoughts):
            return turn
        return {**turn, "reasoning_content": self.thoughts}


def read_beside(row: Fields, problems: list[Problem]) -> Beside:
    """Return what the row has beside its texts; what is wrong with it is added to the problems."""
    beside = Beside()
    given: dict[str, str] = {}
    for column, value in row.value.items():
        rule = row.reading.rule(column)
        if rule is None or keys.is_null(value):
            continue
        if rule.kind in ("system", "history", "tools", "thoughts", "template") and not keys.is_empty(value):
            if (other := given.setdefault(rule.kind, column)) == column:
                beside.columns.append(column)
                found: list[Problem] = []
                _READERS[rule.kind](value, column, beside, found)
                problems += [_ignorable(problem, column) for problem in found]
            elif row.value[other] != value:
                problems.append(Problem(column, f"differs from {other} beside it: keep one", "order"))
        elif (text := _refusal(rule, column, value, row)) is not None:
            problems.append(Problem(column, text, "media" if rule.kind == "media" else "weight"))
    return beside


def _ignorable(problem: Problem, column: str) -> Problem:
    """Return a problem with the way out where a column is of another type: it may be about something else."""
    if problem.kind != "wrongType" or problem.field != column:
        return problem
    return replace(problem, text=f"{problem.text}: mend it, {keys.IGNORE.format(key=column)}")


def check_history(beside: Beside, problems: list[Problem]) -> None:
    """Check that the earlier turns follow upon each other, up to one of the assistant."""
    history, column = beside.history, beside.history_in
    if history and history[-1]["role"] != "assistant":
        text = f"ends with a turn of {history[-1]['role']}, must end with a turn of assistant"
        problems.append(Problem(column, text, "order"))
    else:
        check_order(history, column, problems, before=beside.system)


def with_thoughts(beside: Beside, turns: Sequence[Message], problems: list[Problem]) -> list[Message]:
    """Return the turns, the only learned answer with the thoughts of the row's column."""
    if beside.thoughts is None:
        return list(turns)
    text, column = beside.thoughts, beside.thoughts_in
    answers = [index for index, turn in enumerate(turns) if turn["role"] == "assistant" and "weight" not in turn]
    if any(_says(turns[index], text) for index in answers):
        return list(turns)
    if len(answers) != 1 or "reasoning_content" in turns[answers[0]]:
        what = f"is given beside {len(answers)} answers" if len(answers) != 1 else "differs from the answer's thoughts"
        remedy = f"write it as reasoning_content of its turn, {keys.IGNORE.format(key=column)}"
        problems.append(Problem(column, f"{what}: {remedy}", "reasoning"))
        return list(turns)
    return [{**turn, "reasoning_content": text} if index == answers[0] else turn for index, turn in enumerate(turns)]


def _says(turn: Message, thoughts: str) -> bool:
    """Whether a turn's thoughts are written into it already."""
    return thoughts.strip() in turn["content"] or thoughts.strip() == turn.get("reasoning_content", "").strip()


def _system(value: Any, column: str, beside: Beside, problems: list[Problem]) -> None:
    check_text(value, column, problems)
    beside.system_in = column
    beside.system = [{"role": "system", "content": value}]


def _history(value: Any, column: str, beside: Beside, problems: list[Problem]) -> None:
    """Read earlier turns: as turns, or as pairs of question and answer."""
    value = as_list(value)
    beside.history_in = column
    if isinstance(value, list) and not all(isinstance(item, Mapping | list | tuple) for item in value):
        text = "must hold pairs of question and answer, or turns with role and content"
        problems.append(Problem(column, text, "wrongType"))
    elif isinstance(value, list) and value and isinstance(value[0], list | tuple):
        turns: list[Message] = []
        for index, pair in enumerate(value):
            where = f"{column}[{index}]"
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                problems.append(Problem(where, f"must be a pair of question and answer, is {short(pair)}", "wrongType"))
                continue
            for place, (role, text) in enumerate(zip(("user", "assistant"), pair, strict=True)):
                check_text(text, f"{where}[{place}]", problems)
                if (mark := media_in(text, prompt=role == "user")) is not None:
                    problems.append(Problem(f"{where}[{place}]", mark, "media"))
                turns.append({"role": role, "content": text})
        beside.history = seen_only(turns)
    elif value != []:
        beside.history = seen_only(read_turns(value, column, problems))


def _tools(value: Any, column: str, beside: Beside, problems: list[Problem]) -> None:
    if tools := read_tools(value, column, problems):
        beside.tools = {"tools": tools}


def _thoughts(value: Any, column: str, beside: Beside, problems: list[Problem]) -> None:
    check_text(value, column, problems)
    beside.thoughts, beside.thoughts_in = value, column


def _template(value: Any, column: str, beside: Beside, problems: list[Problem]) -> None:
    """Read the variables of the row's chat template: an object, or one as JSON."""
    if isinstance(value, str):
        try:
            value = decode_text(value)
        except InvalidRowError as error:
            problems.append(Problem(column, f"must be an object, or one as JSON: {error}", "wrongType"))
            return
    if not check_mapping(value, column, problems):
        return
    variables = {str(key): held for key, held in value.items() if not keys.is_null(held)}
    for key in sorted(_THE_TRAINERS & variables.keys()):
        remedy = "write them into a column tools" if key == "tools" else "leave it out"
        problems.append(
            Problem(f"{column}.{key}", f"is the trainer's, no variable of a template: {remedy}", "template")
        )
    check_json(variables, column, problems)
    beside.template = {TEMPLATE: variables} if variables else {}


_READERS = {"system": _system, "history": _history, "tools": _tools, "thoughts": _thoughts, "template": _template}


def _refusal(rule: keys.Rule, column: str, value: Any, row: Fields) -> str | None:
    """Return why a column that cannot be used is refused; None when it changes nothing."""
    ignore = keys.IGNORE.format(key=column)
    if rule.kind == "media" and not keys.is_empty(value):
        return f"holds {kind(value)}, but only text is trained on: use rows without it, {ignore}"
    if rule.kind == "weight" and keys.truth(value) is not True:
        return f"is {short(value)}, but rows of a weight of their own are not read: leave out those of 0, {ignore}"
    if rule.kind in ("mask", "flag", "notFlag") and _is_mask(column, value):
        return f"is a list: masks of tokens are not read, mark the turns to learn with weight, {ignore}"
    if rule.kind in ("flag", "notFlag") and keys.truth(value) is (rule.kind == "notFlag"):
        return f"is {short(value)}, which marks a row that is not to be learned: leave the row out, {ignore}"
    if rule.kind == "label" and row.reading.method == "SFT" and _is_bad(column, value):
        return f"is {str(value).lower()}, which marks a bad answer, and SFT would learn it: leave the row out, {ignore}"
    if rule.kind == "split":
        _note_split(column, value, row, ignore)
    if rule.kind == "context" and not keys.is_empty(value):
        row.note(
            f"the column {column} is not used, though the answers may need it: map it (input={column} beside "
            f"instruction and output), write it into the prompt, {ignore}"
        )
    return None


def _note_split(column: str, value: Any, row: Fields, ignore: str) -> None:
    split = keys.SPLIT_WORDS.get(str(value).strip().lower())
    if split not in (None, "train"):
        row.note(f"rows whose {column} is {value} are trained on like all others: leave them out, {ignore}")


def _is_mask(column: str, value: Any) -> bool:
    value = as_list(value)
    if not isinstance(value, list) or not value:
        return False
    if keys.plain(column) == "labels":
        return -100 in value  # else they may be classes
    return all(isinstance(item, bool | int | float | list) for item in value)


def _is_bad(column: str, value: Any) -> bool:
    """Whether a label marks a bad answer: one that is called label may be a class, unless it is false itself."""
    if keys.plain(column) != "label":
        return keys.truth(value) is False
    return value is False or (isinstance(value, str) and value.strip().lower() == "false")
