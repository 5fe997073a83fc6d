"""Answers to a prompt as tokens: the two of a preference pair or one alone, and what is kept of what is too long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model.training.rows.encoding import IGNORED, Encoded
from model.training.rows.template import common_prefix_length


@dataclass(frozen=True)
class Answer:
    """What follows the prompt, and the labels of it."""

    ids: list[int]
    labels: list[int]

    def cut(self, length: int) -> Answer:
        """Return its first `length` tokens."""
        return Answer(self.ids[:length], self.labels[:length])

    @property
    def learns(self) -> bool:
        """Whether anything of it is learned."""
        return any(label != IGNORED for label in self.labels)


@dataclass(frozen=True)
class Answered:
    """A prompt's tokens and the answers to it: the chosen and the rejected one of a pair, or a single one."""

    prompt: list[int]
    answers: tuple[Answer, ...]

    @classmethod
    def of(cls, *conversations: Encoded) -> Answered:
        """Split conversations where their first answer begins: at the same token in all, after the same tokens.

        Where a tokenizer merges the end of the prompt with the beginning of an answer, the prompt is shorter by
        that token in all, and the token belongs to the answers.
        """
        border = min(one.learned[0][0] for one in conversations)
        shortest = conversations[0].ids[:border]
        for one in conversations[1:]:
            border = min(border, common_prefix_length(shortest, one.ids[:border]))
        return cls(shortest[:border], tuple(_answer(one, border) for one in conversations))

    @property
    def length(self) -> int:
        """Tokens of the longest sequence."""
        return len(self.prompt) + self._longest

    @property
    def _longest(self) -> int:
        return max(len(answer.ids) for answer in self.answers)

    def cut(self, max_length: int, special_ids: frozenset[int]) -> Answered:
        """Return the same with no sequence over `max_length`.

        The prompt loses its beginning, but not a special token that it starts with; all answers see the same
        rest of it. Only an answer that leaves no room for a prompt is cut itself, at its end.
        """
        lead = self.prompt[:1] if self.prompt and self.prompt[0] in special_ids else []
        least = min(len(self.prompt), len(lead) + 1)
        room = min(len(self.prompt), max(max_length - self._longest, least))
        rest = room - len(lead)
        prompt = self.prompt if room == len(self.prompt) else [*lead, *self.prompt[len(self.prompt) - rest :]]
        left = max_length - len(prompt)
        return Answered(prompt, tuple(answer.cut(left) for answer in self.answers))

    @property
    def learns(self) -> bool:
        """Whether something of each answer is learned."""
        return all(answer.learns for answer in self.answers)

    def sequences(self) -> list[tuple[list[int], list[int]]]:
        """Return ids and labels of each answer's sequence; a sequence's first token has no label."""
        ignored = [IGNORED] * len(self.prompt)
        return [(self.prompt + answer.ids, _without_first(ignored + answer.labels)) for answer in self.answers]


def _answer(encoded: Encoded, border: int) -> Answer:
    labels = encoded.labels()
    start = encoded.learned[0][0]
    labels[border:start] = encoded.ids[border:start]
    return Answer(encoded.ids[border:], labels[border:])


def _without_first(labels: Sequence[int]) -> list[int]:
    return [IGNORED, *labels[1:]]
