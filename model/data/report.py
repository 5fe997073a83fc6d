"""What is known about a dataset once every row was seen: `dataset/report.json`, and the same for people."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from model.data.checks import Problems
from model.data.duplicates import Duplicates
from model.data.formats import Content, Shape
from model.data.lengths import Lengths
from model.data.parts import Part
from model.data.records import printable
from model.data.shapes import family
from model.files import SCHEMA_VERSION

EXAMPLE_CHARACTERS = 2000
KINDS = {
    "beside": "something beside a text that is learned as it stands",
    "character": "a character that cannot be used",
    "chosenEqualsRejected": "chosen equal to rejected",
    "duplicateKey": "a key twice in one object",
    "empty": "empty text",
    "missing": "a missing field",
    "mixedShapes": "another shape than the rows before",
    "notJson": "not valid JSON",
    "notUtf8": "not UTF-8",
    "number": "a number that cannot be used",
    "order": "turns out of order",
    "prompt": "no common prompt",
    "reasoning": "thoughts in two versions",
    "role": "an unknown or misplaced role",
    "template": "a variable that no template may have",
    "tooDeep": "nested too deep",
    "tooLong": "a row too long to read",
    "label": "a label that is neither true nor false",
    "media": "pictures or sound",
    "toolCall": "a tool call that cannot be read",
    "unknownShape": "no known shape",
    "unreadable": "cannot be read",
    "weight": "a weight that cannot be used",
    "wrongType": "a value of the wrong type",
}


class Report:
    """Gathers the facts about a dataset while its rows stream past.

    Parameters
    ----------
    parts
        Its sources.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        mixed = parts[0].index is not None
        self.name = f"mix of {len(parts)} sources" if mixed else parts[0].source.name
        self.problems = Problems(self.name, placed=mixed)
        self.duplicates = Duplicates()
        self.labels: Counter[bool] = Counter()
        """Of rows with labels: how many say that the answer is good, and how many that it is bad."""
        self.characters: dict[str, Lengths] = {}
        self.counts: Sequence[Sequence[int]] = [(0, 0)] * len(parts)
        """By source how many rows are trained on, and how many are held out."""
        self.example: Content | None = None
        self.warnings: list[str] = []

    @property
    def rows(self) -> int:
        """How many rows are trained on."""
        return sum(rows for rows, _ in self.counts)

    @property
    def evaluation_rows(self) -> int:
        """How many rows are held out."""
        return sum(held_out for _, held_out in self.counts)

    @property
    def shape(self) -> Shape | None:
        """The shape of the rows, None before the first whole row; that of turns as soon as one row has turns."""
        shapes = [part.shaper.shape for part in self.parts if part.shaper.shape is not None]
        return next((shape for shape in shapes if shape == family(shape)), shapes[0] if shapes else None)

    @property
    def detected(self) -> str:
        """What was found, in words."""
        told = [(part.label, part.shaper.detected) for part in self.parts if part.shaper.detected]
        return ". ".join(f"{label}: {text}" if label else text for label, text in told)

    @property
    def passed_over(self) -> list[str]:
        """Files that were asked for and hold no rows."""
        return [f"{part.label} {file}".strip() for part in self.parts for file in part.source.passed_over]

    def sources(self) -> list[dict[str, Any]]:
        """Return for each source how many rows were found, are taken, and are held out of these."""
        return [part.document(*counts) for part, counts in zip(self.parts, self.counts, strict=True)]

    def measure(self, content: Content) -> None:
        """Take the lengths of a valid row's texts into account."""
        for name, length in _lengths(content).items():
            if (lengths := self.characters.get(name)) is None:
                lengths = self.characters[name] = Lengths()
            lengths.add(length)
        if "label" in content:
            self.labels[content["label"]] += 1

    def document(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "schemaVersion": SCHEMA_VERSION,
            "source": printable(self.name),
            "shape": self.shape,
            "detected": self.detected,
            "rows": self.rows,
            "evaluationRows": self.evaluation_rows,
            "dropped": self.problems.invalid_rows,
            "problems": dict(self.problems.kinds.most_common()),
            "shownProblems": self.problems.shown,
            "duplicates": self.duplicates.count,
            "duplicatesAtLeast": self.duplicates.is_lower_bound,
            "shownDuplicates": self.duplicates.examples(),
            **({"labels": {"true": self.labels[True], "false": self.labels[False]}} if self.labels else {}),
            "characters": {name: lengths.summary() for name, lengths in self.characters.items()},
            "example": None if self.example is None else _cut(self.example),
            "passedOver": self.passed_over,
            "warnings": [warning for part in self.parts for warning in part.shaper.warnings] + self.warnings,
            **({"sources": self.sources()} if self.parts[0].index is not None else {}),
        }


def render(document: Mapping[str, Any]) -> str:
    """Return the report for a terminal."""
    at_least = "at least " if document["duplicatesAtLeast"] else ""
    lines = [
        f"Dataset     {document['source']}",
        f"Detected    {document['detected'] or 'nothing that is known'}",
        *([f"Passed over {', '.join(document['passedOver'])}"] if document.get("passedOver") else []),
        f"Rows        {document['rows']} to train on, {document['evaluationRows']} held out",
        *(f"            {source_line(index, source)}" for index, source in enumerate(document.get("sources", ()))),
        f"Left out    {document['dropped']} invalid",
        *(f"            {count} x {KINDS.get(kind, kind)}" for kind, count in document["problems"].items()),
        *(f"            {problem}" for problem in document["shownProblems"]),
        f"Duplicates  {at_least}{document['duplicates']}",
        *(f"            {text}" for text in document["shownDuplicates"]),
    ]
    if labels := document.get("labels"):
        lines.append(f"Labels      {labels['true']} good answers (true), {labels['false']} bad ones (false)")
    if characters := document["characters"]:
        lines += ["", "Characters         p50      p90      p99      max"]
        lines += [
            f"  {name:<12}" + "".join(f"{values[key]:>9}" for key in ("p50", "p90", "p99", "max"))
            for name, values in characters.items()
        ]
    if document["example"] is not None:
        lines += ["", f"A row as the trainer sees it ({document['shape']})"]
        text = json.dumps(document["example"], ensure_ascii=False, indent=2)
        lines += [textwrap.indent("\n".join(map(printable, text.splitlines())), "  ")]
    lines += [f"Warning: {warning}" for warning in document["warnings"]]
    return "\n".join(lines)


def source_line(index: int, source: Mapping[str, Any]) -> str:
    """Return what became of a mix's source, in words."""
    return (
        f"mix[{index}] ({source['name']}): {source['rows'] + source['evaluationRows']} of {source['found']} rows are "
        f"taken, {source['evaluationRows']} of them held out"
    )


def _lengths(content: Content) -> dict[str, int]:
    """Return the characters of each part of a row; of a conversation, what is learned is the completion."""
    if (turns := content.get("messages")) is None:
        names = ("text", "prompt", "completion", "chosen", "rejected")
        return {name: _size(content[name]) for name in names if name in content}
    sizes = {"prompt": 0, "completion": 0}
    for turn in turns:
        learned = turn["role"] == "assistant" and "weight" not in turn
        sizes["completion" if learned else "prompt"] += _turn_size(turn)
    return sizes


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str) else sum(map(_turn_size, value))


def _turn_size(turn: Mapping[str, Any]) -> int:
    return len(turn["content"]) + len(turn.get("reasoning_content", ""))


def _cut(value: Any) -> Any:
    """Return a copy in which no text is longer than a page."""
    if isinstance(value, str):
        left_out = len(value) - EXAMPLE_CHARACTERS
        return value if left_out <= 0 else f"{value[:EXAMPLE_CHARACTERS]}... ({left_out} characters more)"
    if isinstance(value, Mapping):
        return {key: _cut(item) for key, item in value.items()}
    return [_cut(item) for item in value] if isinstance(value, list) else value
