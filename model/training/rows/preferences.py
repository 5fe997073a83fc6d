"""Preference pairs as tokens: one prompt, two answers, and what of them is kept when they are too long."""

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
class Pair:
    """A prompt's tokens and both answers to it."""

    prompt: list[int]
    chosen: Answer
    rejected: Answer

    @classmethod
    def of(cls, chosen: Encoded, rejected: Encoded) -> Pair:
        """Split two conversations where their first answer begins: at the same token in both, after the same tokens.

        Where a tokenizer merges the end of the prompt with the beginning of an answer, the prompt is shorter by
        that token in both, and the token belongs to the answers.
        """
        first = min(chosen.learned[0][0], rejected.learned[0][0])
        border = common_prefix_length(chosen.ids[:first], rejected.ids[:first])
        return cls(chosen.ids[:border], _answer(chosen, border), _answer(rejected, border))

    @property
    def length(self) -> int:
        """Tokens of the longer sequence."""
        return len(self.prompt) + self._longer

    @property
    def _longer(self) -> int:
        return max(len(self.chosen.ids), len(self.rejected.ids))

    def cut(self, max_length: int, special_ids: frozenset[int]) -> Pair:
        """Return the pair with neither sequence over `max_length`.

        The prompt loses its beginning, but not a special token that it starts with; both answers see the same
        rest of it. Only an answer that leaves no room for a prompt is cut itself, at its end.
        """
        lead = self.prompt[:1] if self.prompt and self.prompt[0] in special_ids else []
        least = min(len(self.prompt), len(lead) + 1)
        room = min(len(self.prompt), max(max_length - self._longer, least))
        rest = room - len(lead)
        prompt = self.prompt if room == len(self.prompt) else [*lead, *self.prompt[len(self.prompt) - rest :]]
        left = max_length - len(prompt)
        return Pair(prompt, self.chosen.cut(left), self.rejected.cut(left))

    def sequences(self) -> tuple[tuple[list[int], list[int]], tuple[list[int], list[int]]]:
        """Return ids and labels of the chosen and of the rejected sequence; a sequence's first token has no label."""
        ignored = [IGNORED] * len(self.prompt)
        chosen, rejected = (
            (self.prompt + answer.ids, _without_first(ignored + answer.labels))
            for answer in (self.chosen, self.rejected)
        )
        return chosen, rejected


def _answer(encoded: Encoded, border: int) -> Answer:
    labels = encoded.labels()
    start = encoded.learned[0][0]
    labels[border:start] = encoded.ids[border:start]
    return Answer(encoded.ids[border:], labels[border:])


def _without_first(labels: Sequence[int]) -> list[int]:
    return [IGNORED, *labels[1:]]
