"""The demo's rows: enough of them, the same each time, and fit for the export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples.dataset import make_dataset
from model.data.decode import decode_line
from model.data.records import Record
from model.data.shapes import Shaper


@pytest.mark.parametrize(
    ("documentation", "expected"),
    [
        ("Return the sum\n   of all the numbers.\n\nMore of it.", "Return the sum of all the numbers."),
        ("array(typecode [, initializer]) -> array of numbers and such", None),
        ("Too short.", None),
        ("Too long. " * 40, None),
    ],
)
def test_an_answer_is_a_first_paragraph_of_fitting_length(documentation: str, expected: str | None) -> None:
    assert make_dataset.first_paragraph(documentation) == expected


def test_every_second_labelled_answer_is_a_good_one(tmp_path: Path) -> None:
    make_dataset.main([f"--{name}={tmp_path / name}" for name in ("train", "preferences", "labelled")])
    pairs, rows = (
        [json.loads(line) for line in (tmp_path / name).read_bytes().splitlines()]
        for name in ("preferences", "labelled")
    )
    assert [row["label"] for row in rows] == [True, False] * 120
    for pair, row in zip(pairs, rows, strict=True):
        assert (row["prompt"], row["completion"]) == (pair["prompt"], pair["chosen" if row["label"] else "rejected"])
    shaper = Shaper("labelled.jsonl", "KTO", {})
    assert [shaper.content(Record(1, row)) for row in rows] == rows
    assert shaper.shape == "unpaired"


def test_the_files_are_the_same_each_time_and_share_no_row(tmp_path: Path) -> None:
    for name in ("first", "second"):
        make_dataset.main([f"--train={tmp_path / name}-train", f"--held-out={tmp_path / name}-held-out"])
    train, held_out = (
        (tmp_path / f"first-{part}").read_bytes().splitlines(keepends=True) for part in ("train", "held-out")
    )
    assert (len(train), len(held_out)) == (440, 40)
    assert b"".join(train) == (tmp_path / "second-train").read_bytes()
    assert not {json.loads(line)["completion"] for line in train} & {
        json.loads(line)["completion"] for line in held_out
    }
    shaper = Shaper("rows.jsonl", "SFT", {})
    assert all(shaper.content(Record(1, decode_line(line))) for line in train + held_out)
    assert shaper.shape == "prompt-completion"
