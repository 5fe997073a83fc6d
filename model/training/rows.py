"""From text rows to token rows: which tokens a model sees, and which of them it learns."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from model import exits
from model.exits import FailureError

IGNORED = -100
"""Label of a token that is seen but not learned."""

_ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class TextRow:
    """One rendered conversation.

    Parameters
    ----------
    text
        All of it.
    learned
        Pairs of prefixes of `text`: what lies between the two ends is learned.
    number
        1-based row of the dataset's source.
    """

    text: str
    learned: tuple[tuple[str, str], ...]
    number: int


@dataclass
class TokenRows:
    """Tokenised rows in flat arrays, 8 bytes a token; `offsets[i]` to `offsets[i + 1]` is row i."""

    ids: array[int] = field(default_factory=lambda: array("i"))
    labels: array[int] = field(default_factory=lambda: array("i"))
    offsets: array[int] = field(default_factory=lambda: array("q", [0]))
    truncated: int = 0
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def append(self, ids: Sequence[int], labels: Sequence[int]) -> None:
        """Add a row."""
        self.ids.extend(ids)
        self.labels.extend(labels)
        self.offsets.append(len(self.ids))

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each row."""
        return [end - start for start, end in pairwise(self.offsets)]

    def as_dataset(self) -> Any:
        """Return the rows as a `datasets.Dataset` with input_ids and labels, without copying them."""
        import pyarrow
        from datasets import Dataset

        return Dataset(pyarrow.table(self.as_columns()), fingerprint="rows")

    def as_columns(self) -> dict[str, Any]:
        """Return input_ids and labels as pyarrow's arrays of lists, without copying them."""
        import pyarrow

        offsets = pyarrow.array(self.offsets, pyarrow.int64())
        return {
            name: pyarrow.LargeListArray.from_arrays(
                offsets, pyarrow.Array.from_buffers(pyarrow.int32(), len(values), [None, pyarrow.py_buffer(values)])
            )
            for name, values in (("input_ids", self.ids), ("labels", self.labels))
        }


@dataclass
class PreferenceRows:
    """Tokenised preference pairs: row i of `chosen` and row i of `rejected` are whole sequences with the same prompt.

    Labels are on the answers alone. `truncated` and `dropped` count pairs.
    """

    chosen: TokenRows = field(default_factory=TokenRows)
    rejected: TokenRows = field(default_factory=TokenRows)
    truncated: int = 0
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each pair: those of the chosen and those of the rejected sequence."""
        return [a + b for a, b in zip(self.chosen.lengths, self.rejected.lengths, strict=True)]

    def as_dataset(self) -> Any:
        """Return the pairs as a `datasets.Dataset`: pair, its number, and both rows' input_ids and labels."""
        import pyarrow
        from datasets import Dataset

        columns = {"pair": pyarrow.array(range(len(self)), pyarrow.int64())}
        for side, rows in (("chosen", self.chosen), ("rejected", self.rejected)):
            columns |= {f"{side}_{name}": column for name, column in rows.as_columns().items()}
        return Dataset(pyarrow.table(columns), fingerprint="pairs")


class RowEncoder:
    """Renders rows with the tokenizer's chat template and labels what the assistant says.

    A prompt and its completion are one user turn and one assistant turn. Without a chat template the two are
    joined as they are, and the end token closes them. Learned is each assistant turn with its end token, and
    nothing after that: a model that does not learn the end token never stops.

    Parameters
    ----------
    tokenizer
        The base model's `PreTrainedTokenizerBase`.
    max_length
        Tokens per row.
    too_long
        Truncate, Drop or Fail: what to do with a longer row.
    """

    def __init__(self, tokenizer: Any, *, max_length: int, too_long: str) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._too_long = too_long
        added = tokenizer.added_tokens_decoder.items()
        self._special = {*tokenizer.all_special_ids, *(index for index, token in added if token.special)}

    def encode(self, lines: Iterator[bytes], name: str) -> TokenRows:
        """Encode exported JSON lines; `name` is what to call them in messages.

        Raises
        ------
        FailureError
            When a row does not fit the template or, with too_long Fail, the model.
        """
        rows = TokenRows()
        texts = (self._render(json.loads(line), name) for line in lines)
        while batch := list(islice(texts, _ROWS_AT_ONCE)):
            whole = self._tokenize([row.text for row in batch])
            prefixes = [prefix for row in batch for pair in row.learned for prefix in pair]
            tokenized = iter(self._tokenize(prefixes))
            for row, ids in zip(batch, whole, strict=True):
                ends = [(next(tokenized), next(tokenized)) for _ in row.learned]
                self._add(rows, ids, ends, row, name)
        return rows

    def encode_preferences(self, lines: Iterator[bytes], name: str) -> PreferenceRows:
        """Encode exported preference pairs; `name` is what to call them in messages.

        Raises
        ------
        FailureError
            When a pair does not fit the template or, with too_long Fail, the model.
        """
        pairs = PreferenceRows()
        for line in lines:
            content = json.loads(line)
            for side, rows in (("chosen", pairs.chosen), ("rejected", pairs.rejected)):
                answer = content[side]
                plain = isinstance(answer, str)
                row = {"row": content["row"]} | (
                    {"prompt": content["prompt"], "completion": answer}
                    if plain
                    else {"messages": [*content["prompt"], *answer]}
                )
                text = self._render(row, name)
                ids, before, through = self._tokenize([text.text, *text.learned[-1]])
                self._add(rows, ids, [(before, through)], text, name)
        return pairs

    def _render(self, content: dict[str, Any], name: str) -> TextRow:
        from jinja2 import TemplateError

        number = content["row"]
        if not self._tokenizer.chat_template:
            return self._render_plain(content, number, name)
        messages = content.get("messages") or [
            {"role": "user", "content": content["prompt"]},
            {"role": "assistant", "content": content["completion"]},
        ]
        try:
            text = self._apply(messages)
            learned = tuple(
                (self._apply(messages[:index], add_generation_prompt=True), self._apply(messages[: index + 1]))
                for index, message in enumerate(messages)
                if message["role"] == "assistant"
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise _invalid(name, number, f"the base model's chat template refuses it: {error}") from error
        for start, end in learned:
            if not (text.startswith(start) and text.startswith(end)):
                raise _invalid(
                    name,
                    number,
                    "the base model's chat template renders an earlier turn differently once later ones follow, so "
                    "what to learn cannot be told apart: split the conversation into one row per assistant turn",
                )
        return TextRow(text, learned, number)

    def _render_plain(self, content: dict[str, Any], number: int, name: str) -> TextRow:
        if "messages" in content:
            raise _invalid(
                name,
                number,
                "it has messages, but the base model has no chat template: use prompt and completion, or a chat model",
            )
        text = content["prompt"] + content["completion"]
        return TextRow(text, ((content["prompt"], text),), number)

    def _apply(self, messages: list[dict[str, Any]], **options: Any) -> str:
        if not messages:
            return ""
        text: str = self._tokenizer.apply_chat_template(messages, tokenize=False, **options)
        return text

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        plain = not self._tokenizer.chat_template  # a template writes the special tokens itself
        ids: list[list[int]] = self._tokenizer(texts, add_special_tokens=plain)["input_ids"]
        return ids

    def _add(
        self, rows: TokenRows, ids: list[int], learned: list[tuple[list[int], list[int]]], row: TextRow, name: str
    ) -> None:
        labels = [IGNORED] * len(ids)
        end = 0
        for before, through in learned:
            start, stop = common_prefix_length(before, ids), common_prefix_length(through, ids)
            end = self._end_token(ids, start, stop)
            labels[start:end] = ids[start:end]
        ids, labels = ids[:end], labels[:end]  # nothing after the last learned token can be learned from
        if ids[-1] not in self._special:
            ids, labels = [*ids, self._end_of_text()], [*labels, self._end_of_text()]
        if len(ids) > self._max_length:
            if self._too_long == "Fail":
                raise _invalid(
                    name, row.number, f"has {len(ids)} tokens, more than the {self._max_length} of maxLength"
                )
            ids, labels = ids[: self._max_length], labels[: self._max_length]
            if self._too_long == "Drop" or all(label == IGNORED for label in labels[1:]):
                rows.dropped += 1
                return
            rows.truncated += 1
        labels[0] = IGNORED  # nothing stands before it from which it could be told
        rows.append(ids, labels)

    def _end_token(self, ids: list[int], start: int, stop: int) -> int:
        """Return where a turn ends: after its last special token, for templates put line breaks behind that."""
        for position in range(stop, start, -1):
            if ids[position - 1] in self._special:
                return position
        return stop

    def _end_of_text(self) -> int:
        token = self._tokenizer.eos_token_id
        if token is None:
            raise FailureError(
                exits.DOES_NOT_EXIST,
                "BaseModelUnavailable",
                "the base model's tokenizer has no end token (eos_token): a model trained with it would never stop",
            )
        identifier: int = token
        return identifier


class DigestedLines:
    """The lines of some files, digested on the way, so that rows changed after the export are noticed."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def read(self, path: Path) -> Iterator[bytes]:
        """Yield the file's lines."""
        with path.open("rb") as file:
            for line in file:
                self._digest.update(line)
                yield line

    def sha256(self) -> str:
        """Return the hex SHA-256 of all lines read so far."""
        return self._digest.hexdigest()


def common_prefix_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens the two have in common from the start."""
    shorter = min(len(first), len(second))
    if first[:shorter] == second[:shorter]:
        return shorter
    return next(index for index in range(shorter) if first[index] != second[index])


def _invalid(name: str, number: int, text: str) -> FailureError:
    return FailureError(exits.DATASET_INVALID, "DatasetInvalid", f"{name} row {number}: {text}", row=number)
