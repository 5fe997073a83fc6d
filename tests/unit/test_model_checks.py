"""What is counted, shown and told about a dataset."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from model.data import duplicates
from model.data.checks import SHOWN_PROBLEMS, Problems, empty_failure
from model.data.duplicates import Duplicates
from model.data.lengths import Lengths
from model.data.parts import Part
from model.data.records import InvalidRowError, Problem, Record
from model.data.report import EXAMPLE_CHARACTERS, Report, render
from model.data.shapes import Shaper
from model.data.sources import FileSource


def test_a_single_problem_is_told_plainly() -> None:
    problems = Problems("train.jsonl")
    problems.add(Record(7, None), InvalidRowError([Problem("completion", "is missing", "missing")]))
    failure = problems.failure()
    assert failure.message == "train.jsonl row 7: completion: is missing"
    assert (failure.code, failure.row) == (3, 7)


def test_no_row_is_refused_without_a_reason() -> None:
    with pytest.raises(ValueError, match="at least one problem"):
        InvalidRowError([])


def test_many_problems_are_counted_and_the_first_are_shown() -> None:
    problems = Problems("train.jsonl")
    for row in range(3, 33):
        error = InvalidRowError([Problem("prompt", "is empty", "empty"), Problem("completion", "is odd", "character")])
        problems.add(Record(row, None, "a.jsonl"), error)
    message = problems.failure().message
    assert message.startswith("train.jsonl has 60 problems in 30 rows: a.jsonl row 3: prompt: is empty; ")
    assert message.count("; ") == SHOWN_PROBLEMS
    assert message.endswith("; and 40 more")
    assert problems.kinds == {"empty": 30, "character": 30}
    assert problems.failure().row == 3


def test_what_all_rows_of_a_file_lack_is_told_once_for_each_file() -> None:
    problems = Problems("*.csv")
    for file, rows in (("a.csv", 400), ("b.csv", 2), ("c.csv", 1)):
        for row in range(1, rows + 1):
            problems.add(Record(row, None, file), InvalidRowError([Problem("", "has no fields", "unknownShape")]))
    assert problems.shown == [
        "a.csv row 1: has no fields (also rows 2, 3, 4, 5, 6, 7, 8, 9, 10 and 390 more)",
        "b.csv row 1: has no fields (also row 2)",
        "c.csv row 1: has no fields",
    ]
    assert problems.failure().message == "*.csv has 403 problems in 403 rows: " + "; ".join(problems.shown)
    assert problems.first(2) == "; ".join(problems.shown[:2]) + "; ..."
    assert problems.first(3) == "; ".join(problems.shown)


def test_one_problem_of_all_rows_is_told_plainly() -> None:
    problems = Problems("train.csv")
    for row in range(1, 4):
        problems.add(Record(row, None), InvalidRowError([Problem("completion", "is missing", "missing")]))
    assert problems.failure().message == "train.csv row 1: completion: is missing (also rows 2, 3)"


def test_what_a_file_holds_cannot_disturb_a_terminal() -> None:
    problems = Problems("train.jsonl")
    problems.add(Record(1, None, "a\n.jsonl"), InvalidRowError([Problem("\x1b[2J\ud800", "is odd")]))
    assert problems.failure().message == r"train.jsonl a\n.jsonl row 1: \x1b[2J\ud800: is odd"


def test_nothing_usable() -> None:
    assert empty_failure(Problems("train.jsonl")).message == "train.jsonl has no rows: check that it is the right one"


def test_duplicates_are_counted_and_placed() -> None:
    found = Duplicates()
    generator = random.Random(1)
    hashes = [generator.getrandbits(64) for _ in range(500)]
    for number, value in enumerate([*hashes, hashes[3], hashes[7], hashes[3]], start=1):
        found.add(value, Record(number, None, "a" if number <= 500 else "b"))
    assert found.count == 3
    assert found.examples() == ["b row 501 repeats a row 4", "b row 502 repeats a row 8", "b row 503 repeats a row 4"]
    assert not found.all_equal()


@pytest.mark.parametrize(("rows", "expected"), [(1, False), (2, True), (9, True)])
def test_rows_that_are_all_the_same(rows: int, expected: bool) -> None:
    found = Duplicates()
    for number in range(1, rows + 1):
        found.add(5 << 60, Record(number, None))
    assert found.all_equal() is expected


def test_of_a_very_large_dataset_the_number_is_a_lower_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MAX_ROWS", 10)
    found = Duplicates()
    for number in range(1, 21):
        found.add(1, Record(number, None))
    assert (found.rows, found.count, found.is_lower_bound, found.all_equal()) == (20, 9, True, False)


def test_percentiles() -> None:
    lengths = Lengths()
    for length in range(1, 1001):
        lengths.add(length)
    assert lengths.summary() == {"p50": 500, "p90": 900, "p99": 990, "max": 1000}
    assert Lengths().summary() == {}


def test_long_lengths_are_kept_to_three_digits_and_the_longest_exactly() -> None:
    lengths = Lengths()
    for length in (123_456, 234_567, 345_678):
        lengths.add(length)
    assert lengths.summary() == {"p50": 234_000, "p90": 345_000, "p99": 345_000, "max": 345_678}


def test_the_report_as_people_read_it() -> None:
    content = {"messages": [{"role": "user", "content": "x" * 4000}, {"role": "assistant", "content": "\x1b b"}]}
    shaper = Shaper("train.jsonl", "SFT", {})
    shaper.content(Record(1, content))
    report = Report([Part(FileSource("volume", Path("train.jsonl")), shaper)])
    report.problems.add(Record(2, None), InvalidRowError([Problem("prompt", "is empty", "empty")]))
    report.counts = [(2, 1)]
    for number in (1, 3, 4):
        report.duplicates.add(7 if number > 1 else 1 << 60, Record(number, None))
    report.measure(content)
    report.example = content
    report.warnings = ["1 row repeats another"]
    document = report.document()
    assert document["problems"] == {"empty": 1}
    assert document["characters"]["completion"] == {"p50": 3, "p90": 3, "p99": 3, "max": 3}
    cut = "x" * EXAMPLE_CHARACTERS + "... (2000 characters more)"
    assert render(document) == (
        "Dataset     train.jsonl\n"
        "Detected    messages\n"
        "Rows        2 to train on, 1 held out\n"
        "Left out    1 invalid\n"
        "            1 x empty text\n"
        "            row 2: prompt: is empty\n"
        "Duplicates  1\n"
        "            row 4 repeats row 3\n"
        "\n"
        "Characters         p50      p90      p99      max\n"
        "  prompt           4000     4000     4000     4000\n"
        "  completion          3        3        3        3\n"
        "\n"
        "A row as the trainer sees it (messages)\n"
        "  {\n"
        '    "messages": [\n'
        "      {\n"
        '        "role": "user",\n'
        f'        "content": "{cut}"\n'
        "      },\n"
        "      {\n"
        '        "role": "assistant",\n'
        '        "content": "\\u001b b"\n'
        "      }\n"
        "    ]\n"
        "  }\n"
        "Warning: 1 row repeats another"
    )
