"""Which way of writing rows a dataset uses: found out from its first whole row, the same for all others, and told.

A row decides when it has every field that one of the method's forms requires. Rows before it that have not are
invalid like any other row with a missing field.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from model import exits
from model.data.conversations import unread_keys
from model.data.fields import Fields, Reading
from model.data.formats import Content, Shape
from model.data.forms import BESIDE, FORMS, Form
from model.data.records import InvalidRowError, Problem, Record, printable
from model.data.texts import SHOWN_CHARACTERS, kind, listed, names, not_a_list
from model.exits import FailureError

_LIKELY = {
    "prompt": ("question", "query", "input", "source", "problem", "user", "request"),
    "completion": ("answer", "response", "output", "target", "solution", "assistant", "reply"),
    "instruction": ("question", "query", "task"),
    "output": ("response", "answer", "completion", "target"),
    "messages": ("conversation", "turns", "dialog", "dialogue", "chat"),
    "chosen": ("preferred", "accepted", "good", "winner", "chosen_response", "preferred_output"),
    "rejected": ("dispreferred", "refused", "bad", "loser", "rejected_response", "non_preferred_output"),
    "label": ("kto_tag", "desirable", "is_good", "thumbs_up", "liked", "feedback"),
}
"""Names under which fields often go, for a proposal of what to map."""

_WHY_A_PROMPT = (
    ": two answers that are texts need a prompt of their own; split a text that holds a whole conversation into turns"
)
_WHY_A_LABEL = ": KTO asks of each answer whether it is a good one, true, or a bad one, false; without labels use SFT"

LIKELY_NAMES = frozenset(name for names in _LIKELY.values() for name in names)


class Shaper:
    """Turns rows into content of one shape.

    Parameters
    ----------
    source
        What the dataset is called in messages; empty where its rows' places say that.
    method
        SFT, DPO or KTO, which decides what a row must have.
    columns
        Where a field is found when the source calls it otherwise: canonical name to the source's name.
    ignored
        Columns that are as good as not there.
    merge
        Whether turns of one role that follow upon each other become one.
    """

    def __init__(
        self,
        source: str,
        method: str,
        columns: Mapping[str, str],
        *,
        ignored: Collection[str] = (),
        merge: bool = False,
    ) -> None:
        self._source = source
        self._method = method
        self._columns = columns
        self._reading = Reading(columns, frozenset(ignored), merge, method)
        self._noted: dict[str, str] = {}
        self._forms = candidates(method, columns)
        self._others = [form for other in FORMS if other != method for form in FORMS[other]]
        self._form: Form | None = None
        self._decided_by = ""
        self.detected = ""
        """What was found, in words; empty before the first whole row."""
        self.shape: Shape | None = None
        """The shape of the rows, None before the first whole row; that of turns as soon as one row has turns."""

    @property
    def warnings(self) -> list[str]:
        """What people may believe to be learned otherwise, each with the first row and the number of rows."""
        notes = self._reading.notes
        return [
            f"{text} ({place}{f' and {notes[text] - 1} more' if notes[text] > 1 else ''})"
            for text, place in self._noted.items()
        ]

    def content(self, record: Record) -> Content:
        """Return the normalised content of a row.

        Raises
        ------
        InvalidRowError
            With every problem of the row.
        FailureError
            When the rows are for another method, or could be read in two ways.
        """
        value = record.value
        if isinstance(value, InvalidRowError):
            raise value
        if type(value) is not dict and not isinstance(value, Mapping):
            raise InvalidRowError([Problem("", f"must be a JSON object, is {kind(value)}", "wrongType")])
        row = Fields(value, self._reading)
        form = self._form or self._detect(row, record)
        if not form.fits(row):
            self._check_complete(form, row)
        content = form.normalise(row)
        if self.shape in _TURNS and _has_turns(content):
            self.shape = _TURNS[self.shape]
        if len(self._reading.notes) > len(self._noted):
            self._noted |= {text: _where(record) for text in self._reading.notes if text not in self._noted}
        return content

    def _detect(self, row: Fields, record: Record) -> Form:
        fitting = _most_specific([form for form in self._forms if form.fits(row)])
        if len(fitting) > 1:  # a text beside other fields mostly is these, rendered
            fitting = [form for form in fitting if form.shape != "text"]
        if len(fitting) > 1:
            raise self._failure(record, f"has {_choice(fitting, self._columns, 'and also')}: {_remedy(fitting)}")
        if fitting:
            self._form = fitting[0]
            self._decided_by = _where(record)
            self.shape = fitting[0].shape
            self.detected = self._words(fitting[0], row)
            return fitting[0]
        if unlabelled := next((form for form in self._forms if _lacks_the_label(form, row)), None):
            raise InvalidRowError(_missing(unlabelled, row))
        if other := next(iter(_most_specific([form for form in self._others if form.fits(row)])), None):
            raise self._failure(record, self._for_another_method(other))
        form, found = max(((form, _found(form, row)) for form in self._forms), key=lambda pair: pair[1])
        if found:
            raise InvalidRowError(_missing(form, row) or _of_the_other_kind(form, row, self._columns))
        raise InvalidRowError([Problem("", self._unknown(row), "unknownShape")])

    def _check_complete(self, form: Form, row: Fields) -> None:
        """Raise unless only the types of the fields are wrong, about which the normalising says more."""
        if _lacks_the_label(form, row):
            raise InvalidRowError(_missing(form, row))
        if (other := next((other for other in (*self._forms, *self._others) if other.fits(row)), None)) is not None:
            text = f"has {other.words}, but {self._decided_by} has {form.words}: use one of the two"
            raise InvalidRowError([Problem("", text, "mixedShapes")])
        if not _found(form, row):
            has = names(row.value) or "no fields"
            text = f"has {has}, but {self._decided_by} has {form.words}: use the same fields in all rows"
            raise InvalidRowError([Problem("", text, "mixedShapes")])
        if missing := _missing(form, row):
            raise InvalidRowError(missing)

    def _words(self, form: Form, row: Fields) -> str:
        words = form.words
        if form.shape != words.replace(" and ", "-"):
            words += f", read as {form.shape}"
        used = {row.name(field): field for field in form.fields if row.name(field) in row.value}
        used |= {
            key: rule.names[0] for key in row.value if (rule := self._reading.rule(key)) and rule.names[0] in BESIDE
        }
        words += "".join(f"; {field} is the column {name}" for name, field in used.items() if name != field)
        if form.shape in _TURNS and (beside := [key for key, field in used.items() if field in BESIDE]):
            words += f"; as turns where there is {listed(beside, 'or')}"
        unused = [key for key in row.value if key not in used]
        words += f"; not used: {names(unused)}" if unused else ""
        if form.shape in _TURNS.values():
            texts = [row.get(field) for field in form.required]
            unread = list(dict.fromkeys(key for text in texts for key in unread_keys(text)))
            words += f"; not used in turns: {names(unread)}" if unread else ""
        return printable(words)

    def _for_another_method(self, form: Form) -> str:
        other = next(name for name, forms in FORMS.items() if form in forms)
        needed = _choice(self._forms, self._columns)
        return f"has {form.words}: that is for method {other}; {self._method} needs {needed}"

    def _unknown(self, row: Fields) -> str:
        needed = _choice(self._forms, self._columns)
        has = names(row.value) or "no fields"
        text = f"has {has}, but {self._method} needs {needed}: map the columns with --column (columns in a TrainingRun)"
        short = (key for key in row.value if len(key) <= SHOWN_CHARACTERS)
        if inner := next((key for key in short if self._holds_rows(row.value[key])), None):
            quoted = json.dumps(inner).replace("'", r"\u0027")  # for a shell within single quotes
            return f"{text}; or, if {inner} holds the rows, write these alone, as `jq -c '.[{quoted}][]'` does"
        found = [f"{field}={name}" for field in self._forms[0].fields if (name := _guess(field, row.value))]
        return f"{text}, perhaps {' and '.join(found)}" if found else text

    def _holds_rows(self, value: Any) -> bool:
        first = value[0] if isinstance(value, list) and value else None
        return isinstance(first, Mapping) and any(form.fits(Fields(first, Reading())) for form in self._forms)

    def _failure(self, record: Record, text: str) -> FailureError:
        message = printable(f"{self._source} {_where(record)}: {text}".lstrip())
        return FailureError(exits.DATASET_INVALID, "DatasetInvalid", message, row=record.number)


_TURNS: dict[Shape | None, Shape] = {
    "prompt-completion": "messages",
    "preference": "preference-messages",
    "unpaired": "unpaired-messages",
}
"""The shape that rows of texts have once something stands beside them that only turns have."""


def family(shape: Shape | None) -> Shape | None:
    """Return what rows of a shape become beside rows of turns: those of one family may stand in one dataset."""
    return _TURNS.get(shape, shape)


def _has_turns(content: Content) -> bool:
    return "messages" in content or isinstance(content.get("prompt"), list)


def _guess(field: str, there: Mapping[str, Any]) -> str | None:
    likely = (field, *_LIKELY.get(field, ()))
    return next((name for name in there if str(name).lower() in likely), None)


def candidates(method: str, columns: Mapping[str, str]) -> list[Form]:
    """Return the forms of a method that use every column that is mapped; none when no form uses them all."""
    return [form for form in FORMS[method] if set(columns) <= set(form.fields)]


def _most_specific(forms: Sequence[Form]) -> list[Form]:
    """Leave out the forms whose required fields are part of another's."""
    return [form for form in forms if not any(set(form.required) < set(other.required) for other in forms)]


def _lacks_the_label(form: Form, row: Fields) -> bool:
    """Whether nothing but the label keeps a row from having the form, as a row for another method has, too."""
    return "label" in form.required and form.fits(row, but="label") and not row.has("label")


def _missing(form: Form, row: Fields) -> list[Problem]:
    problems = []
    for field in form.required:
        name = row.name(field)
        if name not in row.value:
            mapped = "" if name == field else f" (it is mapped to {field})"
            problems.append(Problem(name, f"is missing{mapped}{_why(field, form, row)}", "missing"))
        elif not row.has(field):
            problems.append(Problem(name, "must not be null", "missing"))
    return problems


def _why(field: str, form: Form, row: Fields) -> str:
    """Say what to do about a field that is missing."""
    free = [name for name in row.value if name not in map(row.name, form.required)]
    if field not in row.reading.columns and (likely := _guess(field, dict.fromkeys(free))) is not None:
        return f": if it is {likely}, map it with --column={field}={likely} (columns in a TrainingRun)"
    if field == "label":
        return _WHY_A_LABEL
    return _WHY_A_PROMPT if field == "prompt" and "chosen" in form.required else ""


def _of_the_other_kind(form: Form, row: Fields, columns: Mapping[str, str]) -> list[Problem]:
    """Return what is wrong with a row that has all fields, its answer as text where the form has turns or reversed."""
    field = next(field for field in form.texts if row.has_turns(field) != form.conversations)
    value, needed = row.get(field), ("a list of turns", "turns") if form.conversations else ("text", "text")
    text = f"must be {needed[0]}, is {not_a_list(value) if form.conversations else kind(value)}"
    mapped = [name for name in columns if name in form.optional] or columns
    why = f"only rows of {needed[1]} have {', '.join(mapped)}, which --column maps (columns in a TrainingRun)"
    return [Problem(row.name(field), f"{text}: {why}", "wrongType")]


def _found(form: Form, row: Fields) -> int:
    return sum(row.name(field) in row.value for field in form.required)


def _choice(forms: Sequence[Form], columns: Mapping[str, str], word: str = "or") -> str:
    """Return the fields of several forms, as the source calls them."""
    lists = dict.fromkeys(tuple(columns.get(field, field) for field in form.required) for form in forms)
    return f", {word} ".join(listed(names, "and") for names in lists)


def _remedy(forms: Sequence[Form]) -> str:
    first = forms[0].required[-1]
    return f"leave one out, or map the one that is meant, as in {first}={first}"


def _where(record: Record) -> str:
    return f"{record.file} row {record.number}" if record.file else f"row {record.number}"


def unknown_columns(method: str, columns: Mapping[str, Any]) -> list[str]:
    """Return the mapped fields that no form of the method has."""
    known = {field for form in FORMS[method] for field in form.fields}
    return sorted(set(columns) - known)
