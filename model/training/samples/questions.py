"""Which held-out rows are asked, what the model sees of them, and how a person reads them.

A question's tokens are those that the row has in an evaluation, up to the answer: the template, the tools and the
earlier turns are what the model was trained to answer to.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.training.rows.encoding import IGNORED
from model.training.rows.outcomes import Place
from model.training.rows.tokens import PreferenceRows, RowEncoder, TokenRows, method_of, sequences_of

NEW_TOKENS = 128
"""The longest answer."""
OPENING_TOKENS = 64
"""How much of a text to be continued is shown, or half of a shorter one."""
TEXT_BYTES = 2000
"""UTF-8 bytes of a text that are kept: a registry and a model card hold all of them."""
TRIED = 4
"""Rows that are looked at for each question: some leave no room for an answer, or were left out."""

_NAME = "the dataset's"

Ids = list[int]
Content = Mapping[str, Any]
Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Question:
    """A held-out prompt.

    Attributes
    ----------
    place
        The row that it comes from.
    prompt
        The prompt as a person reads it.
    reference
        The row's own answer; None when the row says only which answer would be a bad one.
    ids
        The prompt's tokens.
    cut
        Which of the two texts are not whole.
    """

    place: Place
    prompt: str
    reference: str | None
    ids: Ids
    cut: tuple[str, ...] = ()

    def answered(self, base: str, adapter: str, unfinished: Sequence[str]) -> dict[str, Any]:
        """Return what is kept of the question and its answers.

        Parameters
        ----------
        base, adapter
            The two answers.
        unfinished
            Which of them did not come to an end.

        Returns
        -------
        `{row, file?, prompt, reference?, base, adapter, truncated}`, the last the names of texts that are not whole.
        """
        texts = {"prompt": self.prompt, "reference": self.reference, "base": base, "adapter": adapter}
        kept = {name: fit(clean(text), end=name == "prompt") for name, text in texts.items() if text is not None}
        cut = {*self.cut, *unfinished, *(name for name, (_, whole) in kept.items() if not whole)}
        return {
            "row": self.place.row,
            **({"file": clean(self.place.file)} if self.place.file is not None else {}),
            **{name: text for name, (text, _) in kept.items()},
            "truncated": [name for name in texts if name in cut],
        }


@dataclass(frozen=True)
class Reader:
    """Makes questions of exported rows.

    Parameters
    ----------
    encoder
        What made the run's tokens: the same settings, the same moment.
    decode
        From tokens to text, without special tokens.
    pairs
        Whether the rows are preference pairs.
    positions
        The tokens that the model reads at once; None where that is not bounded.
    """

    encoder: RowEncoder
    decode: Decode
    pairs: bool
    positions: int | None

    def choose(self, path: Path, count: int, rows: int) -> list[Question]:
        """Return at most `count` questions from a file of `rows` exported rows: always the same, spread over it."""
        order = candidates(count, rows)
        lines = _lines(path, frozenset(order))
        chosen: dict[int, Question] = {}
        for number in order:
            if len(chosen) < count and (question := self.read(lines[number])) is not None:
                chosen[number] = question
        return [chosen[number] for number in sorted(chosen)]

    def read(self, line: bytes) -> Question | None:
        """Return what an exported row asks, None when it was left out or leaves no room for an answer."""
        content = json.loads(line)
        rows: TokenRows | PreferenceRows = PreferenceRows() if self.pairs else TokenRows()
        self.encoder.add(rows, [line], _NAME, method=method_of(content) or "SFT")
        sequence = sequences_of(rows)[0]
        if not len(sequence):
            return None
        place = Place.of(content, _NAME)
        is_text = "text" in content
        ids, labels = sequence.row(0 if is_text else len(sequence) - 1)
        start, end = opening(len(ids)) if is_text else last_learned(labels)
        if not start or (self.positions is not None and start + NEW_TOKENS > self.positions):
            return None
        asked, answered = ids[:start].tolist(), ids[start:end].tolist()
        if is_text:
            return Question(place, self.decode(asked), self.decode(answered), asked, ("prompt", "reference"))
        before = prompt_turns(content)
        if not before:
            return None
        cut: tuple[str, ...] = ()
        if rows.truncated:
            of_one_answer = self.pairs or "label" in content  # these lose the beginning of the prompt
            if not of_one_answer and learned_turns(content) > 1:
                return None  # the turn that is answered is not the row's last one
            cut = ("prompt",) if of_one_answer else ("reference",)
        reference = None if content.get("label") is False else self.decode(answered)
        return Question(place, before, reference, asked, cut)


def candidates(count: int, rows: int) -> list[int]:
    """Return the numbers of the rows to look at, counted from 0: the first `count` of them lie evenly over all rows."""
    total = min(rows, TRIED * count)
    spread = [(2 * index + 1) * rows // (2 * total) for index in range(total)]
    return [number for first in range(TRIED) for number in spread[first::TRIED]]


def last_learned(labels: Sequence[int]) -> tuple[int, int]:
    """Return where the last learned tokens begin and end; nothing is learned: 0 and 0."""
    end = len(labels)
    while end and labels[end - 1] == IGNORED:
        end -= 1
    start = end
    while start and labels[start - 1] != IGNORED:
        start -= 1
    return start, end


def opening(length: int) -> tuple[int, int]:
    """Return how many tokens of a text are shown, and up to where the text itself goes on for as long as an answer."""
    start = min(OPENING_TOKENS, length // 2)
    return start, min(length, start + NEW_TOKENS)


def prompt_turns(content: Content) -> str:
    """Return the prompt of a row as a person reads it: a single question alone, else each turn under its role."""
    turns = _turns(content)
    if isinstance(turns, str):
        return turns
    learned = [index for index, turn in enumerate(turns) if _is_learned(turn)]
    before = turns[: learned[-1]] if learned else turns
    if [turn["role"] for turn in before] == ["user"]:
        return _said(before[0])
    return "\n\n".join(f"{turn['role']}: {_said(turn)}" for turn in before)


def learned_turns(content: Content) -> int:
    """Return how many turns of a row are learned."""
    turns = _turns(content)
    return 1 if isinstance(turns, str) else sum(map(_is_learned, turns))


def clean(text: str) -> str:
    """Return a text without what a terminal, a database or a reader of JSON would choke on.

    Line breaks become newlines; other control characters and halves of surrogate pairs become replacement characters.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(one) in ("Cc", "Cs") and one not in "\n\t" else one
        for one in lines
    )


def fit(text: str, *, end: bool) -> tuple[str, bool]:
    """Return as much of a text as is kept, its end or else its beginning, and whether that is all of it."""
    encoded = text.encode()
    if len(encoded) <= TEXT_BYTES:
        return text, True
    part = encoded[-TEXT_BYTES:] if end else encoded[:TEXT_BYTES]
    return part.decode(errors="ignore"), False


def card_lines(samples: Sequence[Mapping[str, Any]], base: str) -> Iterator[str]:
    """Yield the lines of a model card that show the answers, indented, so that no text is taken for Markdown.

    Parameters
    ----------
    samples
        What `Question.answered` returned.
    base
        What to call the one that answers without the adapter.
    """
    if not samples:
        return
    yield from ("", "## Answers to held-out prompts", "")
    names = {"prompt": "Prompt", "reference": "The row's own answer", "base": base, "adapter": "The adapter"}
    for sample in samples:
        of_file = f" of {sample['file']}" if "file" in sample else ""
        yield from (f"### Row {sample['row']}{of_file}", "")
        for name, title in names.items():
            if name in sample:
                cut = " (cut)" if name in sample["truncated"] else ""
                yield from (f"{title}{cut}:", "", *(f"    {line}" for line in sample[name].split("\n")), "")


def _turns(content: Content) -> str | list[Mapping[str, Any]]:
    if "messages" in content:
        return list(content["messages"])
    prompt = content["prompt"]
    if isinstance(prompt, str):
        return prompt
    return [*prompt, *content["chosen" if "chosen" in content else "completion"]]


def _is_learned(turn: Mapping[str, Any]) -> bool:
    return turn["role"] == "assistant" and turn.get("weight") != 0


def _said(turn: Mapping[str, Any]) -> str:
    calls = turn.get("tool_calls")
    said = [turn.get("content") or "", json.dumps(calls, ensure_ascii=False) if calls else ""]
    return "\n".join(part for part in said if part)


def _lines(path: Path, numbers: frozenset[int]) -> dict[int, bytes]:
    with path.open("rb") as file:
        return {number: line for number, line in enumerate(file) if number in numbers}
