"""Bad datasets, each with the exact words in which the export refuses it."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from model.data import export
from model.files import RunDirectory
from tests.unit.corpus import (
    bad_beside,
    bad_conversations,
    bad_fields,
    bad_labels,
    bad_spellings,
    bad_texts,
    good,
    good_spellings,
)
from tests.unit.corpus.cases import ANSWER, PAIR, USER, Case, rows
from tests.unit.corpus.good import Good


def parquet(**columns: Any) -> bytes:
    """Return a Parquet file of the columns given."""
    return table(pa.table(columns))


def table(rows: pa.Table) -> bytes:
    """Return a table as a Parquet file."""
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(rows, buffer)
    return buffer.getvalue()


PARQUET = (
    Case(
        "Parquet: a null",
        parquet(prompt=["a", "c"], completion=["b", None]),
        "rows.parquet row 2: completion: must not be null",
        row=2,
        file="rows.parquet",
    ),
    Case(
        "Parquet: numbers",
        parquet(prompt=[1, 2], completion=["b", "c"]),
        "rows.parquet row 1: prompt: must be a string, is a number (also row 2)",
        row=1,
        file="rows.parquet",
    ),
    Case(
        "Parquet: bytes",
        parquet(prompt=[b"\xff"], completion=["b"]),
        "rows.parquet row 1: prompt: must be a string, is bytes: store it as text, in Parquet with pyarrow's "
        "`column.cast('string')`, in SQL with convert_from",
        row=1,
        file="rows.parquet",
    ),
    Case(
        "Parquet: turns with a null content",
        parquet(messages=[[{"role": "user", "content": None}, ANSWER]]),
        "rows.parquet row 1: messages[0].content: must be a string, is null",
        row=1,
        file="rows.parquet",
    ),
    Case(
        "Parquet: NaN in a call",
        parquet(messages=[[USER, {**ANSWER, "tool_calls": [{"name": "f", "arguments": {"a": float("nan")}}]}]]),
        "rows.parquet row 1: messages[1].tool_calls[0].arguments: holds what JSON cannot: NaN, an infinite "
        "number, a date or bytes",
        row=1,
        file="rows.parquet",
    ),
    Case(
        "Parquet: a column twice",
        table(pa.table([["a"], ["b"], ["c"]], ["prompt", "completion", "completion"])),
        "rows.parquet has the column 'completion' more than once: name each column once",
        file="rows.parquet",
    ),
    Case(
        "Parquet: no rows",
        parquet(prompt=pa.array([], pa.string())),
        "rows.parquet has no rows: check that it is the right one",
        file="rows.parquet",
    ),
)
CASES = [
    *bad_texts.CASES,
    *bad_fields.CASES,
    *bad_conversations.CASES,
    *bad_beside.CASES,
    *bad_labels.CASES,
    *bad_spellings.CASES,
    *PARQUET,
]
GOOD_CASES = [*good.CASES, *good_spellings.CASES]


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "termination.log"
    monkeypatch.setenv("TERMINATION_LOG", str(path))
    return path


def run(folder: Path, path: Path, *flags: str) -> int:
    method = () if any(flag.startswith("--method") for flag in flags) else ("--method=SFT",)
    return export.main([f"--run-directory={folder}/run", "--source=volume", f"--path={path}", *method, *flags])


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_bad_dataset_is_refused_in_these_words(case: Case, tmp_path: Path, log: Path) -> None:
    (tmp_path / case.file).write_bytes(case.content)
    assert run(tmp_path, tmp_path / case.file, *case.flags) == case.code
    failure = json.loads(log.read_text())["failure"]
    assert failure["message"].replace(str(tmp_path), "DIR") == case.message
    assert failure.get("row") == case.row
    assert failure["reason"] == ("InvalidSpec" if case.code == 2 else "DatasetInvalid")
    directory = RunDirectory(tmp_path / "run")
    left = {path.name for path in directory.dataset.iterdir()} if directory.dataset.exists() else set()
    assert left <= {"report.json", export.LOCK}


@pytest.mark.parametrize("case", GOOD_CASES, ids=[case.name for case in GOOD_CASES])
def test_a_good_dataset_is_learned_like_this(case: Good, tmp_path: Path, log: Path) -> None:
    (tmp_path / case.file).write_bytes(case.content)
    assert run(tmp_path, tmp_path / case.file, "--evaluation-percent=0", *case.flags) == 0, log.read_text()
    lines = RunDirectory(tmp_path / "run").train_rows.read_text(encoding="utf-8").split("\n")[:-1]
    written = [{key: held for key, held in json.loads(line).items() if key not in ("row", "file")} for line in lines]
    assert written == case.expected


def test_the_corpus_is_large_and_every_case_has_a_name_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 330
    assert len({case.name for case in GOOD_CASES}) == len(GOOD_CASES) >= 190


def test_a_problem_in_one_of_several_files_names_the_file(tmp_path: Path, log: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(rows(PAIR))
    (tmp_path / "b.jsonl").write_bytes(rows(PAIR, {"prompt": "a"}))
    assert run(tmp_path, tmp_path / "*.jsonl") == 3
    failure = json.loads(log.read_text())["failure"]
    assert "b.jsonl row 2: completion: is missing" in failure["message"]
    assert failure["row"] == 2


def csv_text(*values: dict[str, Any]) -> bytes:
    """Return rows as a CSV file, lists as JSON."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(values[0]))
    writer.writeheader()
    for value in values:
        writer.writerow({key: item if isinstance(item, str) else json.dumps(item) for key, item in value.items()})
    return text.getvalue().encode()


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
OTHER_CALL = {"id": "2", "type": "function", "function": {"name": "g", "arguments": '{"b": {"c": [1]}}'}}
GOOD = [
    {"messages": [USER, ANSWER], "tools": [{"type": "function", "function": {"name": "f"}}]},
    {
        "messages": [USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "2"}, ANSWER],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    },
    {
        "messages": [USER, {"role": "assistant", "tool_calls": [OTHER_CALL]}],
        "tools": [{"type": "function", "function": {"name": "g", "parameters": {"type": "object"}}}],
    },
]


def objects(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with the arguments of their calls as objects."""
    copied: list[dict[str, Any]] = json.loads(json.dumps(rows))
    for row in copied:
        for turn in row["messages"]:
            for call in turn.get("tool_calls", ()):
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return copied


def test_the_same_rows_come_out_of_every_format(tmp_path: Path, log: Path) -> None:
    columns = {name: [row[name] for row in objects(GOOD)] for name in GOOD[0]}
    contents = {
        "rows.jsonl": rows(*GOOD),
        "rows.json": json.dumps(GOOD, indent=1).encode(),
        "rows.csv": csv_text(*GOOD),
        "rows.parquet": parquet(**columns),
    }
    written = set()
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert run(tmp_path, tmp_path / name, "--evaluation-percent=0") == 0, log.read_text()
        written.add(RunDirectory(tmp_path / "run").train_rows.read_bytes())
    assert len(written) == 1
    message = json.loads(written.pop().splitlines()[1])["messages"][1]
    assert message["content"] == ""
    assert message["tool_calls"][0]["function"]["arguments"] == {"a": 1}
