"""What a row is by its keys.

What its fields hold is for a run's export to check: that depends on the run's method, the columns it maps and its
trainer's version.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from finetune.api.registry import Shape

from .strictjson import decode

_FIELDS: tuple[tuple[Shape, tuple[str, ...]], ...] = (  # the first match wins
    ("preference", ("prompt", "chosen", "rejected")),
    ("prompt-completion", ("prompt", "completion")),
    ("messages", ("messages",)),
)
_OTHERS = (("conversations",), ("instruction", "output"), ("chosen", "rejected"))
"""Rows that a run may read although fields of the shapes above are there, and null."""


@dataclass(frozen=True)
class Form:
    """What all rows of a dataset have in common.

    Attributes: `shape`, `fields` that make a row so, and whether their texts are lists of `turns`. A label changes the
    shape, and nothing else: which rows need one is a run's to say.
    """

    shape: Shape = dataclasses.field(compare=False)
    fields: tuple[str, ...] = ()
    turns: bool = False

    @property
    def words(self) -> str:
        """What to call a row of it."""
        if not self.fields:
            return "a row of another shape"
        *first, last = self.fields
        names = f"{', '.join(first)} and {last}" if first else last
        return f"a row with {names}" + (" as lists of messages" if self.turns and first else "")


def form_of(row: Mapping[str, Any]) -> Form:
    """The form of a row, by its fields and whether its answers are text or lists; further fields are allowed."""
    form = _unlabelled_form_of(row)
    if isinstance(row.get("label"), bool) and form.shape in ("prompt-completion", "messages"):
        return replace(form, shape="unpaired-messages" if form.turns else "unpaired")
    return form


def _unlabelled_form_of(row: Mapping[str, Any]) -> Form:
    for shape, fields in _FIELDS:
        if _has(row, fields):
            return _form(row, shape, fields)
    if not any(_has(row, fields) for fields in _OTHERS):
        if row.get("text") is not None:  # beside all others it is these, rendered
            return Form("text", ("text",))
        for shape, fields in _FIELDS:
            if all(field in row for field in fields):
                return _form(row, shape, fields)
    return Form("other")


def _has(row: Mapping[str, Any], fields: tuple[str, ...]) -> bool:
    return all(row.get(field) is not None for field in fields)


def _form(row: Mapping[str, Any], shape: Shape, fields: tuple[str, ...]) -> Form:
    if shape == "messages":
        return Form(shape, fields, turns=True)
    turns = any(_holds_turns(row[field]) for field in fields[1:])
    return Form("preference-messages" if shape == "preference" and turns else shape, fields, turns)


def _holds_turns(value: Any) -> bool:
    """Whether a value is a list of objects, or a text that holds turns as JSON, as rows from tables do."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            decoded = decode(value.encode())
        except ValueError:  # also half of a surrogate pair
            return False
        first = decoded[0] if isinstance(decoded, list) and decoded else None
        return isinstance(first, dict) and ("role" in first or "from" in first)
    return isinstance(value, list) and (not value or isinstance(value[0], dict))
