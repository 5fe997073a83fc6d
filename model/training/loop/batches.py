"""Which rows a step trains on, how they are laid out, and how many go through the model at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from model.training.processes.parallel import World
from model.training.rows.tokens import IGNORED

ALONE = World()
WINDOW_BATCHES = 8
"""Rows are sorted by length within this many batches: little padding, and still a random order."""


class LengthGroupedBatches(Sampler[list[int]]):
    """Micro-batches of rows of similar length; their order depends on the seed and the epoch alone.

    Each optimizer step takes `batch_size` rows in micro-batches of `micro_batch_size`, the last of them smaller
    when it does not divide. Only the last step of an epoch has fewer rows. A resumed run therefore sees the same
    rows in the same order without anything being stored about them.

    Parameters
    ----------
    lengths
        Tokens of each row.
    batch_size, micro_batch_size
        Rows of an optimizer step and of a forward pass.
    seed
        Seed of the order.
    world
        Which of several processes this is: a step's rows are dealt over them one by one, from the longest on. All
        make the same number of micro-batches; where rows do not divide, the last ones of some are smaller or empty.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        world: World = ALONE,
    ) -> None:
        self._world = world
        self.lengths = lengths
        self._batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self._seed = seed
        self.epoch = 0

    @property
    def rows_per_step(self) -> int:
        """The rows of a full step that are this process's, at most."""
        return math.ceil(self._batch_size / self._world.size)

    @property
    def steps_per_epoch(self) -> int:
        """The optimizer steps of one pass over the rows."""
        return math.ceil(len(self.lengths) / self._batch_size)

    @property
    def micro_batches_per_step(self) -> int:
        """The forward passes of a full step."""
        return math.ceil(self.rows_per_step / self.micro_batch_size)

    def __len__(self) -> int:
        full, rest = divmod(len(self.lengths), self._batch_size)
        last = math.ceil(math.ceil(rest / self._world.size) / self.micro_batch_size)
        return full * self.micro_batches_per_step + last

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._batches():
            share = batch[self._world.rank :: self._world.size]
            for start in range(0, math.ceil(len(batch) / self._world.size), self.micro_batch_size):
                yield share[start : start + self.micro_batch_size]

    def of_all(self) -> Iterator[list[int]]:
        """Return the micro-batches of all processes that have a row."""
        for batch in self._batches():
            for rank in range(self._world.size):
                share = batch[rank :: self._world.size]
                for start in range(0, len(share), self.micro_batch_size):
                    yield share[start : start + self.micro_batch_size]

    def _batches(self) -> list[list[int]]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        window = self._batch_size * WINDOW_BATCHES
        grouped: list[int] = []
        for start in range(0, len(order), window):
            grouped += sorted(order[start : start + window], key=lambda row: -self.lengths[row])
        batches = [grouped[i : i + self._batch_size] for i in range(0, len(grouped), self._batch_size)]
        last = [batches.pop()] if len(batches[-1]) < self._batch_size else []
        shuffled = torch.randperm(len(batches), generator=generator).tolist()
        return [batches[index] for index in shuffled] + last


class Collator:
    """Lays rows out for one forward pass: padded to the longest, or joined into one sequence.

    Padding is told by length, never by the token: many tokenizers pad with the end token, which must be learned.
    Joined rows keep their own positions, from which attention sees where each begins.

    Parameters
    ----------
    pad_token_id
        What stands in the padding; it is never looked at.
    packed
        Whether to join.
    """

    def __init__(self, pad_token_id: int, *, packed: bool) -> None:
        self._pad_token_id = pad_token_id
        self.packed = packed

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return input_ids, labels, and attention_mask or position_ids, each (rows, tokens)."""
        return self._join(rows) if self.packed and rows else self._pad(rows)

    def _pad(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        width = max((len(row["input_ids"]) for row in rows), default=1)
        batch = {
            "input_ids": torch.full((len(rows), width), self._pad_token_id),
            "labels": torch.full((len(rows), width), IGNORED),
            "attention_mask": torch.zeros((len(rows), width), dtype=torch.long),
        }
        for index, row in enumerate(rows):
            length = len(row["input_ids"])
            batch["input_ids"][index, :length] = torch.tensor(row["input_ids"])
            batch["labels"][index, :length] = torch.tensor(row["labels"])
            batch["attention_mask"][index, :length] = 1
        return batch

    def _join(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        # A row's first token is never learned: what precedes it here is another row.
        labels = [torch.tensor([IGNORED, *row["labels"][1:]]) for row in rows]
        return {
            "input_ids": torch.cat([torch.tensor(row["input_ids"]) for row in rows])[None],
            "labels": torch.cat(labels)[None],
            "position_ids": torch.cat([torch.arange(len(row["input_ids"])) for row in rows])[None],
        }


class PairCollator:
    """Lays out pairs: each one's chosen row and, right behind it, its rejected row, and the pairs' numbers."""

    def __init__(self, rows: Collator) -> None:
        self._rows = rows

    def __call__(self, pairs: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return what `Collator` does for both rows of each pair, and pair, (pairs,)."""
        rows = [
            {"input_ids": pair[f"{side}_input_ids"], "labels": pair[f"{side}_labels"]}
            for pair in pairs
            for side in ("chosen", "rejected")
        ]
        return self._rows(rows) | {"pair": torch.tensor([pair["pair"] for pair in pairs])}


def count_rows(batch: dict[str, torch.Tensor]) -> int:
    """Return the number of rows in a padded or joined batch."""
    if "position_ids" in batch:
        return int((batch["position_ids"] == 0).sum())
    return len(batch["input_ids"])


def split(batch: dict[str, torch.Tensor], parts: int, *, rows_per_example: int = 1) -> list[dict[str, torch.Tensor]]:
    """Cut a batch between examples into at most `parts` parts of nearly the same number of examples.

    Parameters
    ----------
    batch
        Padded or joined rows; a tensor of one dimension holds one value per example.
    parts
        How many parts to make at most.
    rows_per_example
        Rows that stay together: 2 for pairs.
    """
    rows = count_rows(batch)
    size = math.ceil(rows // rows_per_example / parts) * rows_per_example
    begins, width = list(range(rows)), rows
    if "position_ids" in batch:
        begins, width = (batch["position_ids"][0] == 0).nonzero().flatten().tolist(), batch["input_ids"].shape[1]

    def cut(tensor: torch.Tensor, first: int) -> torch.Tensor:
        last = min(first + size, rows)
        if tensor.ndim == 1:
            return tensor[first // rows_per_example : last // rows_per_example]
        start, stop = begins[first], begins[last] if last < rows else width
        return tensor[:, start:stop] if "position_ids" in batch else tensor[start:stop]

    return [{name: cut(tensor, first) for name, tensor in batch.items()} for first in range(0, rows, size)]


def mixes_joined_rows(model: Any) -> str | None:
    """Try whether a model keeps joined rows apart; return in words why not, None when it does.

    A token of the first row is changed, which must change nothing in the second; and the second alone must get the
    logits that it gets behind the first. The model is left as it was and draws no random numbers.
    """
    device = model.get_input_embeddings().weight.device
    first, other, second = ([2, 3, 5, 7, 11], [2, 3, 6, 7, 11], [3, 2, 13, 4])
    join = Collator(0, packed=True)
    training = model.training
    model.eval()

    def last_logits(*rows: list[int]) -> torch.Tensor:
        batch = join([{"input_ids": row, "labels": row} for row in rows])
        del batch["labels"]
        inputs = {name: tensor.to(device) for name, tensor in batch.items()}
        logits: torch.Tensor = model(**inputs, use_cache=False).logits[0, -len(second) :]
        return logits.double()

    try:
        with torch.no_grad():
            joined, changed, alone = last_logits(first, second), last_logits(other, second), last_logits(second)
    except TypeError as error:
        return f"it takes no positions ({error})"
    finally:
        model.train(training)
    spread = float(alone.std())
    if float((joined - changed).abs().max()) > 1e-6 * spread:
        return "a row's tokens change what the model says about the next row"
    if float((joined - alone).abs().max()) > 0.1 * spread:
        return "a row's logits depend on where in the joined sequence it stands"
    return None
