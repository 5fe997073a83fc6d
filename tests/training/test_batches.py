"""The order of the rows and their layout."""

from __future__ import annotations

import random
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from model.training.loop.batches import StepBatches  # noqa: E402 - torch first, or there is nothing to import
from model.training.loop.footprint import choose_micro_batch_size  # noqa: E402 - as above
from model.training.loop.layout import (  # noqa: E402 - as above
    NOT_OF_TOKENS,
    Collator,
    Layout,
    PairCollator,
    count_rows,
    count_tokens,
    learned_counts,
    learned_tokens,
    shared_prompt,
    split,
)
from model.training.rows.tokens import IGNORED  # noqa: E402 - as above

END = 2
LENGTHS = random.Random(1).choices(range(5, 90), k=100)


def make(lengths: list[int] = LENGTHS, batch_size: int = 8, micro: int = 3, seed: int = 1) -> StepBatches:
    return StepBatches(lengths, batch_size=batch_size, micro_batch_size=micro, seed=seed)


def test_every_row_comes_once_an_epoch() -> None:
    assert sorted(row for micro in make() for row in micro) == list(range(100))


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    first, again, other_seed = make(), make(), make(seed=2)
    again.epoch = 5
    assert list(again) != list(first)
    again.epoch = 0
    assert list(again) == list(first)
    assert list(other_seed) != list(first)


def test_a_step_has_its_rows_in_micro_batches_of_which_the_last_is_smaller() -> None:
    batches = make()
    sizes = [len(micro) for micro in batches]
    assert sizes[:6] == [3, 3, 2, 3, 3, 2]
    assert sizes[-2:] == [3, 1]  # 100 rows leave 4 for the last step
    assert len(batches) == len(sizes)
    assert (batches.steps_per_epoch, batches.micro_batches_per_step) == (13, 3)


def test_a_token_weighs_as_much_in_each_step_as_chance_has_it() -> None:
    """A step's loss is a mean over its tokens: steps of short rows would give theirs a multiple of the weight."""
    draw = random.Random(7)
    lengths = [round(draw.lognormvariate(5.3, 0.8)) for _ in range(16_000)]
    batches = make(lengths, batch_size=16, micro=16)
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
    batches = make(micro=8)
    batches.epoch = epoch
    return list(batches)[-1]


def test_rows_of_a_step_are_sorted_by_length_for_its_micro_batches() -> None:
    batches = list(make())
    for start in range(0, len(batches), 3):
        step = [LENGTHS[row] for micro in batches[start : start + 3] for row in micro]
        assert step == sorted(step, reverse=True)


def rows(*lengths: int) -> list[dict[str, Any]]:
    return [
        {"input_ids": [*range(10, 10 + n - 1), END], "labels": [IGNORED, *range(11, 10 + n - 1), END]} for n in lengths
    ]


def test_padding_is_masked_by_length_though_it_is_the_end_token() -> None:
    batch = Collator(END, Layout.PADDED)(rows(3, 5))
    assert batch["input_ids"].tolist() == [[10, 11, END, END, END], [10, 11, 12, 13, END]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[IGNORED, 11, END, IGNORED, IGNORED], [IGNORED, 11, 12, 13, END]]


def test_joined_rows_keep_their_positions() -> None:
    batch = Collator(END, Layout.JOINED)(rows(3, 4))
    assert batch["input_ids"].tolist() == [[10, 11, END, 10, 11, 12, END]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3]]
    assert batch["labels"].tolist() == [[IGNORED, 11, END, IGNORED, 11, 12, END]]


@pytest.mark.parametrize("layout", Layout)
def test_batches_are_split_between_rows(layout: Layout) -> None:
    batch = Collator(END, layout)(rows(3, 4, 5))
    assert count_rows(batch) == 3
    assert count_tokens(batch) == 12
    parts = split(batch, 2)
    assert [count_rows(part) for part in parts] == [2, 1]
    assert_joined(parts, batch)


def assert_joined(parts: list[dict[str, Any]], batch: dict[str, Any]) -> None:
    """The parts are the batch, cut."""
    for name, tensor in batch.items():
        along_tokens = "segments" in batch and name not in NOT_OF_TOKENS
        assert torch.equal(torch.cat([part[name] for part in parts], dim=1 if along_tokens else 0), tensor)


@pytest.mark.parametrize("layout", Layout)
def test_a_pair_stays_together_in_every_part(layout: Layout) -> None:
    batch = PairCollator(Collator(END, layout))(make_pairs(3, 9, 4, 8, 5, 7, 6, 6, 7, 5))
    assert learned_counts(batch).tolist() == [2, 8, 3, 7, 4, 6, 5, 5, 6, 4]
    for parts, expected in ((1, [10]), (2, [6, 4]), (4, [4, 4, 2]), (8, [2, 2, 2, 2, 2])):
        cut = split(batch, parts, rows_per_example=2)
        assert [count_rows(part) for part in cut] == expected
        assert [len(part["pair"]) * 2 for part in cut] == expected
        assert torch.cat([learned_counts(part) for part in cut]).tolist() == learned_counts(batch).tolist()
        assert_joined(cut, batch)


def make_pairs(*lengths: int) -> list[dict[str, Any]]:
    """Pairs from the lengths of chosen and rejected rows in turn."""
    laid_out = rows(*lengths)
    return [
        {
            "pair": number,
            **{f"{side}_{name}": row[name] for side, row in (("chosen", a), ("rejected", b)) for name in a},
        }
        for number, (a, b) in enumerate(zip(laid_out[::2], laid_out[1::2], strict=True))
    ]


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
    assert batch["segments"].tolist() == [[5, 0], [3, 3]]
    assert learned_counts(batch).tolist() == [2, 3]
    assert count_tokens(batch) == 11
    tokens, places = learned_tokens(batch)
    assert tokens.tolist() == [10, END, 11, 12, END]
    assert places.tolist() == [2, 3, 2, 5, 6]  # both first tokens are predicted at the prompt's end


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
    assert choose_micro_batch_size(16, 100, cuda=False) == 8
    assert choose_micro_batch_size(16, 1024, cuda=False) == 2
    assert choose_micro_batch_size(16, 9000, cuda=False) == 1
    assert choose_micro_batch_size(2, 100, cuda=False) == 2
    assert choose_micro_batch_size(64, 1024, cuda=True) == 16
