"""The order of the rows and their layout."""

from __future__ import annotations

import random
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from model.training.loop.batches import MicroBatch, StepBatches  # noqa: E402 - torch first, or there is nothing to import
from model.training.loop.footprint import choose_micro_batch_size  # noqa: E402 - as above
from model.training.loop.layout import Collator, Layout, PairCollator, shared_prompt  # noqa: E402 - as above
from model.training.rows.tokens import IGNORED  # noqa: E402 - as above

END = 2
LENGTHS = random.Random(1).choices(range(5, 90), k=100)


def make(lengths: list[int] = LENGTHS, batch_size: int = 8, seed: int = 1) -> StepBatches:
    return StepBatches(lengths, batch_size=batch_size, micro_batch=MicroBatch(3), seed=seed)


def test_every_row_comes_once_an_epoch() -> None:
    batches = make()
    assert sorted(row for step in batches for row in step) == list(range(100))
    assert [len(step) for step in batches] == [8] * 12 + [4]
    assert len(batches) == batches.steps_per_epoch == 13


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    first, again, other_seed = make(), make(), make(seed=2)
    again.epoch = 5
    assert list(again) != list(first)
    again.epoch = 0
    assert list(again) == list(first)
    assert list(other_seed) != list(first)


@pytest.mark.parametrize(
    ("micro_batch", "parts", "expected"),
    [
        (MicroBatch(3), 1, [[0, 1, 2], [3, 4, 5], [6]]),
        (MicroBatch(3), 2, [[0, 1], [2], [3, 4], [5], [6]]),
        (MicroBatch(3), 4, [[0], [1], [2], [3], [4], [5], [6]]),
        (MicroBatch(1, 100), 1, [[0], [1, 2], [3, 4, 5, 6]]),  # 100, 60 + 40, 30 + 20 + 10 + 5
        (MicroBatch(1, 100), 2, [[0], [1], [2], [3, 4], [5, 6]]),  # what fits nowhere is alone
        (MicroBatch(1, 100, width=1), 1, [[0], [1], [2, 3], [4, 5, 6]]),  # 2 x 40 and 3 x 20, not 3 x 40
        (MicroBatch(1, 128, width=64), 1, [[0], [1, 2], [3, 4], [5, 6]]),  # each of the short ones is filled up to 64
        (MicroBatch(2, 1000), 1, [[0, 1, 2, 3, 4, 5, 6]]),  # short rows are as many as fit
    ],
)
def test_what_goes_through_the_model_at_once(micro_batch: MicroBatch, parts: int, expected: list[list[int]]) -> None:
    lengths = [100, 60, 40, 30, 20, 10, 5]
    assert micro_batch.cut(range(7), lengths, parts=parts) == expected
    assert micro_batch.cut([], lengths) == []


def test_a_token_weighs_as_much_in_each_step_as_chance_has_it() -> None:
    """A step's loss is a mean over its tokens: steps of short rows would give theirs a multiple of the weight."""
    draw = random.Random(7)
    lengths = [round(draw.lognormvariate(5.3, 0.8)) for _ in range(16_000)]
    batches = make(lengths, batch_size=16)
    tokens = sorted(sum(lengths[row] for row in rows) for rows in batches)
    order = draw.sample(range(16_000), 16_000)
    by_chance = sorted(sum(lengths[row] for row in order[start : start + 16]) for start in range(0, 16_000, 16))
    assert spread(tokens) == pytest.approx(spread(by_chance), rel=0.15)
    assert spread(tokens) < 3
    sorted_lengths = sorted(lengths)
    assert spread([sum(sorted_lengths[start : start + 16]) for start in range(0, 16_000, 16)]) > 10


def spread(tokens: list[int]) -> float:
    """How many times more the 95th percentile is than the 5th."""
    return tokens[len(tokens) * 95 // 100] / tokens[len(tokens) * 5 // 100]


def test_the_last_step_of_an_epoch_is_no_shorter_sort_of_rows() -> None:
    last = [LENGTHS[row] for epoch in range(40) for row in last_step(epoch)]
    assert sum(last) / len(last) == pytest.approx(sum(LENGTHS) / len(LENGTHS), rel=0.1)


def last_step(epoch: int) -> list[int]:
    batches = make()
    batches.epoch = epoch
    return list(batches)[-1]


def test_rows_of_a_step_are_sorted_by_length() -> None:
    for step in make():
        assert [LENGTHS[row] for row in step] == sorted((LENGTHS[row] for row in step), reverse=True)


def rows(*lengths: int) -> list[dict[str, Any]]:
    return [
        {"input_ids": [*range(10, 10 + n - 1), END], "labels": [IGNORED, *range(11, 10 + n - 1), END]} for n in lengths
    ]


@pytest.mark.parametrize(
    ("width", "positions", "padding"), [(1, None, 0), (4, None, 3), (4, 9, 3), (4, 6, 1), (4, 5, 0), (4, 4, 0)]
)
def test_padding_is_at_the_end_and_never_learned_though_it_is_the_end_token(
    width: int, positions: int | None, padding: int
) -> None:
    batch = Collator(END, Layout.PADDED, width=width, positions=positions)(rows(3, 5))
    more = [END] * padding
    assert batch["input_ids"].tolist() == [[10, 11, END, END, END, *more], [10, 11, 12, 13, END, *more]]
    assert batch["targets"].tolist() == [11, END, 11, 12, 13, END]
    second = 5 + padding
    assert batch["places"].tolist() == [0, 1, *range(second, second + 4)]
    assert (batch["counts"].tolist(), batch["shape"].learned, batch["shape"].tokens) == ([2, 4], (2, 4), 8)
    assert "attention_mask" not in batch


def test_joined_rows_keep_their_positions() -> None:
    batch = Collator(END, Layout.SEGMENTED)(rows(3, 4))
    assert batch["input_ids"].tolist() == [[10, 11, END, 10, 11, 12, END]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3]]
    assert batch["targets"].tolist() == [11, END, 11, 12, END]
    assert batch["places"].tolist() == [0, 1, 3, 4, 5]
    segments = batch["segments"]
    assert (segments.rows, segments.queries.tolist(), segments.places) == (((3, 0), (4, 0)), [0, 3, 7], None)
    assert segments.keys is segments.queries  # by which kernels know the simple case
    assert batch["shape"].tokens == 7


def test_answers_share_their_prompt() -> None:
    pair = {
        "pair": 0,
        "chosen_input_ids": [7, 8, 9, 10, END],
        "chosen_labels": [IGNORED, IGNORED, IGNORED, 10, END],
        "rejected_input_ids": [7, 8, 9, 11, 12, END],
        "rejected_labels": [IGNORED, IGNORED, IGNORED, 11, 12, END],
    }
    batch = PairCollator(Collator(END, Layout.SEGMENTED))([pair])
    assert batch["input_ids"].tolist() == [[7, 8, 9, 10, END, 11, 12, END]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 3, 4, 5]]
    segments = batch["segments"]
    assert (segments.rows, segments.longest_own, segments.longest) == (((5, 0), (3, 3)), 5, 6)
    assert (segments.queries.tolist(), segments.keys.tolist()) == ([0, 5, 8], [0, 5, 11])
    assert segments.places.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7]
    assert (batch["shape"].learned, batch["shape"].tokens, batch["pair"]) == ((2, 3), 11, [0])
    assert batch["targets"].tolist() == [10, END, 11, 12, END]
    assert batch["places"].tolist() == [2, 3, 2, 5, 6]  # both first tokens are predicted at the prompt's end


@pytest.mark.parametrize(
    ("chosen", "rejected", "shared"),
    [
        ([7, 8, 9], [7, 8, 10], 2),
        ([7, 9, 9], [7, 8, 10], 1),  # the prompts end otherwise
        ([6, 8, 9], [7, 8, 10], 0),
        ([7, 8, 9], [7, 8, 9], 2),  # the first learned token is the answer's own though it is the same
    ],
)
def test_what_is_shared_ends_before_the_first_learned_token(
    chosen: list[int], rejected: list[int], shared: int
) -> None:
    labels = [IGNORED, IGNORED, 1]
    assert shared_prompt({"input_ids": chosen, "labels": labels}, {"input_ids": rejected, "labels": labels}) == shared


def test_the_micro_batch_follows_from_the_longest_row() -> None:
    assert choose_micro_batch_size(32, 100, cuda=False) == 20
    assert choose_micro_batch_size(16, 1024, cuda=False) == 2
    assert choose_micro_batch_size(16, 9000, cuda=False) == 1
    assert choose_micro_batch_size(2, 100, cuda=False) == 2
    assert choose_micro_batch_size(64, 1024, cuda=True) == 16
