"""Which rows are held out."""

from __future__ import annotations

from typing import Any

import pytest

from model.data.split import RowHash, Share, SmallestHashes, encode, percent_threshold

FOREVER = 0xFD4DD88267DB59B9
ROWS = [{"prompt": f"p{number}", "completion": "c"} for number in range(2000)]


def row_hash(row: dict[str, Any], seed: int) -> int:
    return RowHash(seed)(row, encode(row))[0]


def held_out(rows: list[dict[str, str]], seed: int = 1, percent: int = 10) -> list[str]:
    return [row["prompt"] for row in rows if row_hash(row, seed) < percent_threshold(percent)]


def test_the_share_is_about_right_and_depends_on_the_seed() -> None:
    assert len(held_out(ROWS)) == pytest.approx(200, abs=60)
    assert held_out(ROWS, percent=0) == []
    assert held_out(ROWS, seed=2) != held_out(ROWS)


def test_a_row_stays_on_its_side_wherever_it_stands() -> None:
    assert sorted(held_out(ROWS[::-1])) == sorted(held_out(ROWS))
    assert held_out(ROWS[:500]) == [prompt for prompt in held_out(ROWS) if int(prompt[1:]) < 500]


def test_the_order_of_a_tools_fields_does_not_matter() -> None:
    turns = [{"role": "user", "content": "a"}]
    first = {"messages": turns, "tools": [{"name": "f", "parameters": {"a": 1, "b": 2}}]}
    second = {"messages": turns, "tools": [{"parameters": {"b": 2, "a": 1}, "name": "f"}]}
    other = {"messages": turns, "tools": [{"parameters": {"b": 2, "a": 2}, "name": "f"}]}
    assert row_hash(first, 1) == row_hash(second, 1) != row_hash(other, 1)


def test_the_hash_is_the_same_forever() -> None:
    assert row_hash({"prompt": "a", "completion": "ü"}, 42) == FOREVER


def test_a_number_of_rows_is_held_out() -> None:
    smallest = SmallestHashes(5)
    values = [row_hash(row, 1) for row in ROWS]
    for value in values:
        smallest.add(value)
    assert sorted(values)[:5] == sorted(value for value in values if value < smallest.threshold(5))


@pytest.mark.parametrize(
    ("share", "held_out"),
    [
        (Share(percent=10), {2: 0, 4: 0, 5: 1, 30: 3, 34: 3, 35: 4, 2000: 200}),
        (Share(percent=5), {2: 0, 9: 0, 10: 1, 12: 1, 40: 2}),
        (Share(percent=50), {1: 0, 2: 1, 3: 1}),
        (Share(max_rows=7), {2: 1, 10: 5, 100: 7}),
        (Share(percent=5, max_rows=500), {30: 2, 9_000: 450, 1_000_000: 500}),
        (Share(percent=0), {100: 0}),
    ],
)
def test_how_many_rows_are_held_out_is_no_luck(share: Share, held_out: dict[int, int]) -> None:
    assert {rows: share.of(rows) for rows in held_out} == held_out


def test_equal_rows_stay_together() -> None:
    smallest = SmallestHashes(2)
    for value in (7, 7, 7, 9, 9, 9):
        smallest.add(value)
    assert smallest.threshold(2) == 7  # none, rather than two of three equal rows
