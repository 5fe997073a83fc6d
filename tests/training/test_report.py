"""What is told about the tokenised rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model.files import RunDirectory
from model.training.config import TrainSettings
from model.training.rows.report import TokenReport, percentile, render_mask, token_report
from model.training.rows.tokens import IGNORED, PreferenceRows, RowEncoder, TokenRows
from tests.training.chat_templates import make_tokenizer

CHATML = make_tokenizer("chatml")


def settings(tmp_path: Path, **changes: Any) -> TrainSettings:
    values = {"method": "SFT", "run_directory": tmp_path, "run_uid": "1", "base_model": "b", "max_length": 60} | changes
    return TrainSettings(**values)


def encode(*contents: dict[str, Any], max_length: int = 60, too_long: str = "Truncate") -> TokenRows:
    lines = (json.dumps({"row": number, **content}).encode() for number, content in enumerate(contents, 1))
    return RowEncoder(CHATML, max_length=max_length, too_long=too_long).encode(lines, "the dataset's")


def rows_of(*lengths: tuple[int, int]) -> TokenRows:
    rows = TokenRows()
    for number, (length, learned) in enumerate(lengths):
        rows.append([number] * length, [IGNORED] * (length - learned) + [number] * learned)
    return rows


def test_the_figures_of_both_sides(tmp_path: Path) -> None:
    rows = rows_of(*[(length, 1) for length in range(1, 101)])
    document = token_report(settings(tmp_path), CHATML, rows, rows_of((8, 4))).document()
    assert document["training"] | {"longestRow": None} == {
        "rows": 100,
        "tokens": 5050,
        "learnedTokens": 100,
        "learnedShare": 0.0198,
        "lengths": {"p50": 50, "p90": 90, "p95": 95, "p99": 99, "max": 100},
        "duplicates": 0,
        "truncated": {"rows": 0, "first": []},
        "tooLong": {"rows": 0, "first": []},
        "noLearnableToken": {"rows": 0, "first": []},
        "equalAnswers": {"rows": 0, "first": []},
        "refused": {"rows": 0, "first": []},
        "chunked": {"rows": 0, "first": []},
        "split": {"rows": 0, "first": []},
        "systemFolded": {"rows": 0, "first": []},
        "specialTokens": {"rows": 0, "first": []},
        "chunkedRows": 0,
        "splitRows": 0,
        "reasons": [],
        "longestRow": None,
    }
    assert document["evaluation"]["rows"] == 1
    assert document["evaluation"]["learnedShare"] == 0.5
    assert (document["maxLength"], document["tooLong"]) == (60, "Truncate")


@pytest.mark.parametrize(
    ("numbers", "share", "expected"), [([7], 50, 7), ([1, 2], 50, 1), ([1, 2], 51, 2), ([1, 2, 3], 99, 3)]
)
def test_a_percentile_is_a_length_that_occurs(numbers: list[int], share: int, expected: int) -> None:
    assert percentile(numbers, share) == expected


def test_what_was_cut_or_left_out_is_told_with_what_would_help(tmp_path: Path) -> None:
    rows = encode(
        {"prompt": "Hi.", "completion": "Yes?"},
        {"prompt": "Hi.", "completion": "b " * 100},
        {"prompt": "b " * 100, "completion": "Yes?"},
        {"prompt": "Hi.", "completion": "Yes?"},
    )
    held_out = encode({"prompt": "Hi.", "completion": "Yes?"}, {"prompt": "b " * 100, "completion": "Yes?"})
    report = token_report(settings(tmp_path), CHATML, rows, held_out)
    longest = rows.outcomes.longest
    assert longest > 100
    assert report.warnings == [
        f"1 row (row 2) cut at 60 tokens: training.maxLength (--max-length) {longest} would keep all",
        "1 row (row 3) left out: nothing to learn is left within 60 tokens",
        "1 held-out row (row 2) left out: nothing to learn is left within 60 tokens",
        "1 row has the same tokens as an earlier one",
        "1 held-out row is trained on too: their loss looks better than it is",
    ]
    document = report.document()
    assert document["warnings"] == report.warnings
    assert document["training"]["duplicates"] == document["alsoTrainedOn"] == 1
    assert document["training"]["truncated"] == {"rows": 1, "first": ["row 2"]}


def test_a_row_is_shown_as_the_model_sees_it(tmp_path: Path) -> None:
    report = token_report(settings(tmp_path), CHATML, encode({"prompt": "Hi.", "completion": "Yes?"}), TokenRows())
    (text,) = report.document()["example"]
    assert text.endswith("<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n⟦Yes?<|im_end|>⟧")
    assert "    ⟦Yes?<|im_end|>⟧" in report.render()
    assert "\x1b[32mYes?<|im_end|>\x1b[0m" in report.render(color=True)
    assert "⟦" not in report.render(color=True)


def test_the_form_for_a_person(tmp_path: Path) -> None:
    report = token_report(settings(tmp_path), CHATML, rows_of((10, 5), (30, 5)), rows_of((8, 4)), batches=[[0, 1]])
    assert report.render().splitlines()[:4] == [
        "rows        2 to train on, 1 held out",
        "tokens      40, of which 10 (25%) are learned",
        "lengths     p50 10, p90 30, p95 30, p99 30, max 30; at most 60",
        "padding     33.3% of what goes through the model",
    ]


def test_padding_is_that_of_the_batches(tmp_path: Path) -> None:
    rows = rows_of((10, 1), (20, 1), (40, 1))
    report = token_report(settings(tmp_path), CHATML, rows, TokenRows(), batches=[[0, 1], [2]])
    assert report.document()["paddingShare"] == round(10 / 80, 4)
    assert "paddingShare" not in token_report(settings(tmp_path), CHATML, rows, TokenRows()).document()


def test_pairs_count_as_rows_and_both_sequences_count_as_tokens(tmp_path: Path) -> None:
    pairs = PreferenceRows(rows_of((10, 4), (20, 4)), rows_of((12, 6), (40, 4)))
    report = token_report(settings(tmp_path, method="DPO"), CHATML, pairs, PreferenceRows(), batches=[[0], [1]])
    training = report.document()["training"]
    assert (training["rows"], training["tokens"], training["learnedTokens"]) == (2, 82, 18)
    assert training["lengths"]["p50"] == 12
    assert report.document()["paddingShare"] == round((2 + 20) / (24 + 80), 4)
    assert len(report.document()["example"]) == 2
    assert "rejected as the model sees it" in report.render()


def test_pairs_that_share_an_answer_are_no_duplicates(tmp_path: Path) -> None:
    one, other = [1, 2, 3], [1, 2, 4]
    pairs = PreferenceRows()
    for chosen, rejected in ((one, other), (other, one), (one, other)):
        pairs.chosen.append(chosen, chosen)
        pairs.rejected.append(rejected, rejected)
    report = token_report(settings(tmp_path, method="DPO"), CHATML, pairs, PreferenceRows())
    assert report.figures.training.duplicates == 1


def test_no_rows_have_no_figures(tmp_path: Path) -> None:
    report = token_report(settings(tmp_path), CHATML, TokenRows(), TokenRows(), batches=[])
    assert report.document()["training"]["lengths"] == {}
    assert report.document()["example"] == []
    assert report.render().startswith("rows        0 to train on")


def test_the_report_lies_beside_the_rows(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.dataset.mkdir()
    report = token_report(settings(tmp_path), CHATML, encode({"prompt": "Hi.", "completion": "Yes?"}), TokenRows())
    report.write(directory)
    assert json.loads((tmp_path / "dataset" / "tokens.json").read_text(encoding="utf-8")) == report.document()


def test_long_stretches_are_shortened_in_the_middle() -> None:
    ids = CHATML("a" * 50 + "b" * 50, add_special_tokens=False)["input_ids"]
    assert render_mask(CHATML, ids, ids, limit=10) == "⟦aaaaa [... 90 characters ...] bbbbb⟧"


def test_a_row_cannot_steer_the_terminal() -> None:
    ids = CHATML("a\x1b[2Jb\nc\t\x07", add_special_tokens=False)["input_ids"]
    assert render_mask(CHATML, ids, ids) == "⟦a\\x1b[2Jb\nc\t\\x07⟧"


def test_characters_of_several_tokens_are_shown_whole() -> None:
    ids = CHATML("é漢", add_special_tokens=False)["input_ids"]
    assert len(ids) > 2
    assert render_mask(CHATML, ids, [IGNORED, *ids[1:]]).replace("⟦", "").replace("⟧", "")[-1] == "漢"


def test_rows_are_measured_without_torch(tmp_path: Path) -> None:
    CHATML.save_pretrained(tmp_path)
    code = f"""
import sys
from transformers import PreTrainedTokenizerFast
from model.training.config import TrainSettings
from model.training.rows.report import token_report
from model.training.rows.tokens import RowEncoder, TokenRows

tokenizer = PreTrainedTokenizerFast.from_pretrained({str(tmp_path)!r})
rows = RowEncoder(tokenizer, max_length=60, too_long="Fail").encode(
    iter([b'{{"prompt": "Hi.", "completion": "Yes?", "row": 1}}']), ""
)
settings = TrainSettings(method="SFT", run_directory="r", run_uid="1", base_model="b")
print(token_report(settings, tokenizer, rows, TokenRows()).figures.training.rows, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False"]


def test_a_report_says_what_it_was_made_with(tmp_path: Path) -> None:
    report = token_report(settings(tmp_path, too_long="Drop"), CHATML, TokenRows(), TokenRows())
    assert isinstance(report, TokenReport)
    assert report.document()["tooLong"] == "Drop"
