"""What the tokenised rows are like: how many, how long, how much of them is learned, what was cut or left out.

    token_report(settings, tokenizer, rows, held_out) -> TokenReport
    token_report(settings, tokenizer, rows, held_out, batches=sampler)     with the padding of one epoch's micro-batches

`rows` and `held_out` are both `TokenRows`, or both `PreferenceRows`. `TokenReport.document()` is the JSON form, kept
in `dataset/tokens.json` by `TokenReport.write(directory)`; `TokenReport.render(color=...)` is the form for a person.
Nothing here imports torch: `PreTrainedTokenizerFast.from_pretrained(directory)` is enough of a tokenizer.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

from model.files import RunDirectory, write_json
from model.training.config import TrainSettings
from model.training.rows.outcomes import MAX_LENGTH, Outcomes, Tally
from model.training.rows.tokens import IGNORED, PreferenceRows, TokenRows, sequences_of

Rows = TokenRows | PreferenceRows

SCHEMA_VERSION = 1
PERCENTILES = (50, 90, 95, 99)
LEARNED_MARKS = ("⟦", "⟧")
LEARNED_COLOR = ("\x1b[32m", "\x1b[0m")

_FILE_NAME = "tokens.json"
_SHOWN_CHARACTERS = 600
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Side:
    """The figures of the rows to train on, or of those held out; a pair is a row, and has two sequences."""

    rows: int
    tokens: int
    learned_tokens: int
    lengths: dict[str, int]
    duplicates: int
    outcomes: Outcomes
    desirable: int | None = None
    """Rows with a good answer, where answers have labels."""

    @property
    def learned_share(self) -> float:
        """Learned tokens among all."""
        return self.learned_tokens / self.tokens if self.tokens else 0.0

    def document(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "rows": self.rows,
            "tokens": self.tokens,
            "learnedTokens": self.learned_tokens,
            "learnedShare": round(self.learned_share, 4),
            "lengths": self.lengths,
            "duplicates": self.duplicates,
            **({} if self.desirable is None else {"desirable": self.desirable}),
            **self.outcomes.document(),
        }

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Side:
        """Return what `document` was made of."""
        keys = {"rows": "rows", "tokens": "tokens", "learned_tokens": "learnedTokens", "lengths": "lengths"}
        values = {key: document[name] for key, name in (keys | {"duplicates": "duplicates"}).items()}
        return cls(**values, outcomes=Outcomes.read(document), desirable=document.get("desirable"))


@dataclass(frozen=True)
class Figures:
    """The figures of the rows to train on and of those held out.

    Parameters
    ----------
    training, held_out
        Figures of the two sides.
    also_trained_on
        Held-out rows that have the same tokens as a row to train on.
    """

    training: Side
    held_out: Side
    also_trained_on: int

    @classmethod
    def of(cls, rows: Rows, held_out: Rows) -> Figures:
        """Measure tokenised rows."""
        import numpy

        trained_on, others = _digests(rows), _digests(held_out)
        return cls(
            training=_side(rows, len(trained_on) - len(numpy.unique(trained_on))),
            held_out=_side(held_out, len(others) - len(numpy.unique(others))),
            also_trained_on=int(numpy.isin(others, trained_on).sum()),
        )

    def document(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "training": self.training.document(),
            "evaluation": self.held_out.document(),
            "alsoTrainedOn": self.also_trained_on,
        }

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Figures:
        """Return what `document` was made of."""
        return cls(Side.read(document["training"]), Side.read(document["evaluation"]), document["alsoTrainedOn"])


@dataclass(frozen=True)
class TokenReport:
    """The figures of both sides, and one row as the model sees it.

    Parameters
    ----------
    figures
        Those of both sides.
    padding_share
        Padding among all that goes through the model in an epoch; None when the batches are not known.
    example
        Ids and labels of the first row's sequences.
    moment
        When the rows were rendered; None when that is not known.
    """

    settings: TrainSettings
    tokenizer: Any
    figures: Figures
    padding_share: float | None
    example: list[tuple[Sequence[int], Sequence[int]]]
    moment: datetime | None = None

    def document(self) -> dict[str, Any]:
        """Return the JSON form; shares are fractions of 1, lengths are tokens of a sequence."""
        padding = {} if self.padding_share is None else {"paddingShare": round(self.padding_share, 4)}
        return {
            "schemaVersion": SCHEMA_VERSION,
            "method": self.settings.method,
            "maxLength": self.settings.max_length,
            "tooLong": self.settings.too_long,
            **self.figures.document(),
            **padding,
            **({} if self.moment is None else {"renderedTime": self.moment.isoformat()}),
            "warnings": self.warnings,
            "example": [render_mask(self.tokenizer, *row) for row in self.example],
        }

    def write(self, directory: RunDirectory) -> None:
        """Write the JSON form beside the rows."""
        write_json(directory.dataset / _FILE_NAME, self.document())

    @property
    def warnings(self) -> list[str]:
        """What a person should look at before time is spent on training."""
        limit, training, held_out = self.settings.max_length, self.figures.training, self.figures.held_out
        found = _losses(training.outcomes, "row", limit) + _losses(held_out.outcomes, "held-out row", limit)
        if number := training.duplicates:
            found.append(f"{number} row{'s have' if number > 1 else ' has'} the same tokens as an earlier one")
        if number := self.figures.also_trained_on:
            are = "s are" if number > 1 else " is"
            found.append(f"{number} held-out row{are} trained on too: their loss looks better than it is")
        if training.desirable is not None and (text := _imbalance(training.desirable, training.rows, self.settings)):
            found.append(text)
        return found

    def render(self, *, color: bool = False) -> str:
        """Return the form for a person; what is learned is green, or between marks without `color`."""
        training = self.figures.training
        learned = f"{training.learned_tokens:,} ({training.learned_share:.0%})"
        lengths = ", ".join(f"{name} {length:,}" for name, length in training.lengths.items())
        lines = [
            f"rows        {training.rows:,} to train on, {self.figures.held_out.rows:,} held out",
            f"tokens      {training.tokens:,}, of which {learned} are learned",
            f"lengths     {lengths}; at most {self.settings.max_length:,}",
        ]
        if self.padding_share is not None:
            lines.append(f"padding     {self.padding_share:.1%} of what goes through the model")
        lines += [f"warning     {warning}" for warning in self.warnings]
        names = ("chosen", "rejected") if len(self.example) > 1 else ("first row",)
        marks = "green is learned" if color else f"{LEARNED_MARKS[0]}this{LEARNED_MARKS[1]} is learned"
        for name, row in zip(names, self.example, strict=False):
            lines += [
                f"{name} as the model sees it, {marks}:",
                _indented(render_mask(self.tokenizer, *row, color=color)),
            ]
        return "\n".join(lines)


def token_report(
    settings: TrainSettings,
    tokenizer: Any,
    rows: Rows,
    held_out: Rows,
    *,
    batches: Iterable[Sequence[int]] | None = None,
    figures: Figures | None = None,
    moment: datetime | None = None,
) -> TokenReport:
    """Report on tokenised rows.

    Parameters
    ----------
    settings
        The run's settings.
    tokenizer
        What the rows were tokenised with; to show a row.
    rows, held_out
        The rows to train on and those held out, of the same kind.
    batches
        The row numbers, from 0, of each micro-batch of an epoch; a pair's sequences are padded to the same length.
    figures
        Those of the rows, when they have been measured.
    moment
        When the rows were rendered, as the chat template saw it, when that is known.
    """
    return TokenReport(
        settings=settings,
        tokenizer=tokenizer,
        figures=figures or Figures.of(rows, held_out),
        padding_share=None if batches is None else _padding_share(rows, batches),
        example=[part.row(0) for part in sequences_of(rows)] if len(rows) else [],
        moment=moment,
    )


def render_mask(
    tokenizer: Any, ids: Sequence[int], labels: Sequence[int], *, color: bool = False, limit: int = _SHOWN_CHARACTERS
) -> str:
    """Return a row as text with what is learned between ⟦ and ⟧, or in green.

    Parameters
    ----------
    tokenizer
        What the row was tokenised with.
    ids, labels
        The row's tokens, and their labels.
    color
        Green, by an escape sequence of terminals, instead of marks.
    limit
        Characters shown of each stretch; of a longer one the middle is left out.
    """
    before, after = LEARNED_COLOR if color else LEARNED_MARKS
    parts: list[str] = []
    shown = end = 0
    for learned, stretch in groupby(labels, lambda label: label != IGNORED):
        end += len(list(stretch))
        # Decoded from the start each time: what a token reads like can depend on those before it.
        text = tokenizer.decode(list(ids[:end]), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        part = _shortened(_UNPRINTABLE.sub(lambda match: repr(match.group())[1:-1], text[shown:]), limit)
        parts.append(f"{before}{part}{after}" if learned else part)
        shown = len(text)
    return "".join(parts)


def percentile(ordered: Sequence[int], share: int) -> int:
    """Return the smallest of the ascending numbers that `share` percent of them do not exceed."""
    return ordered[max(math.ceil(len(ordered) * share / 100), 1) - 1]


def _side(rows: Rows, duplicates: int) -> Side:
    sequences = sequences_of(rows)
    lengths = sorted(length for part in sequences for length in part.lengths)
    summary = (
        {f"p{share}": percentile(lengths, share) for share in PERCENTILES} | {"max": lengths[-1]} if lengths else {}
    )
    return Side(
        rows=len(rows),
        tokens=sum(lengths),
        learned_tokens=sum(_learned(part) for part in sequences),
        lengths=summary,
        duplicates=duplicates,
        outcomes=rows.outcomes,
        desirable=sum(rows.desirable) if isinstance(rows, TokenRows) and len(rows.desirable) else None,
    )


def _learned(rows: TokenRows) -> int:
    import numpy

    return int(numpy.count_nonzero(numpy.frombuffer(rows.labels, numpy.int32) != IGNORED)) if len(rows) else 0


def _digests(rows: Rows) -> Any:
    """Return a number of eight bytes for each row that tells its tokens from any other's, as an array."""
    import numpy

    return numpy.fromiter((int.from_bytes(digest) for digest in _row_digests(rows)), numpy.uint64, len(rows))


def _row_digests(rows: Rows) -> Iterator[bytes]:
    sequences = sequences_of(rows)
    for index in range(len(rows)):
        digest = hashlib.blake2b(digest_size=8)
        for part in sequences:
            ids, labels = part.row(index)
            digest.update(len(ids).to_bytes(4, "little") + ids.tobytes() + labels.tobytes())
            digest.update(bytes(part.desirable[index : index + 1]))
        yield digest.digest()


def _padding_share(rows: Rows, batches: Iterable[Sequence[int]]) -> float:
    lengths = [part.lengths for part in sequences_of(rows)]
    total = used = 0
    for batch in batches:
        its = [length[row] for length in lengths for row in batch]
        total += max(its) * len(its)
        used += sum(its)
    return 1 - used / total if total else 0.0


def _losses(outcomes: Outcomes, noun: str, limit: int) -> list[str]:
    """Say how many rows were cut or left out, each kind in a sentence."""
    kinds = (
        (outcomes.truncated, f"cut at {limit} tokens: {MAX_LENGTH} {outcomes.longest} would keep all"),
        (outcomes.too_long, f"longer than {limit} tokens and left out"),
        (outcomes.no_learnable_token, f"left out: nothing to learn is left within {limit} tokens"),
        (outcomes.equal_answers, "left out: chosen and rejected are the same tokens"),
        (outcomes.refused, f"left out, for they cannot be trained on: {'; '.join(outcomes.reasons[:1])}"),
        (outcomes.chunked, f"longer than {limit} tokens and made into {outcomes.chunked_rows} rows of that length"),
        (
            outcomes.split,
            f"made into {outcomes.split_rows} rows: the chat template rewrites earlier turns once others follow",
        ),
        (outcomes.system_folded, "has its system turn in the first user turn: the chat template has no system role"),
        (
            outcomes.special_tokens,
            "with special tokens or turn headers of the base model in a text: it sees them as such",
        ),
    )
    return [f"{_counted(tally, noun)} {what}" for tally, what in kinds if tally.count]


def _counted(tally: Tally, noun: str) -> str:
    more = "" if tally.count <= len(tally.first) else ", ..."
    return f"{tally.count} {noun}{'s' if tally.count > 1 else ''} ({', '.join(tally.first)}{more})"


def _imbalance(desirable: int, rows: int, settings: TrainSettings) -> str | None:
    """Return that one kind of answers outweighs the other, None where they are near enough.

    Ethayarajh et al. advise in https://arxiv.org/abs/2402.01306, eq. 8, that the desirable answers weigh together from
    once to 4/3 as much as the undesirable ones; more than twice or less than half is told here.
    """
    undesirable = rows - desirable
    if not desirable or not undesirable:
        kind = "good (true)" if desirable else "bad (false)"
        return f"all {rows} answers to train on are labelled {kind}: KTO learns from some of each"
    good, bad = desirable * settings.kto_desirable_weight, undesirable * settings.kto_undesirable_weight
    if 0.5 <= good / bad <= 2:
        return None
    lower, upper = bad / desirable, bad / desirable * 4 / 3
    return (
        f"{desirable} good answers and {undesirable} bad ones weigh {good:g} to {bad:g}: set kto.desirableWeight "
        f"(--kto-desirable-weight) to {lower:.2g} to {upper:.2g}, or kto.undesirableWeight (--kto-undesirable-weight) "
        f"to {good / undesirable * 3 / 4:.2g} to {good / undesirable:.2g}"
    )


def _shortened(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.split("\n"))
