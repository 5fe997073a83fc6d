"""Whatever a file holds, the export takes it or says which row or file is to blame; it never breaks down."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.export import ExportSettings, export
from model.data.forms import CANONICAL_FIELDS
from model.data.report import render
from model.exits import FailureError
from model.files import RunDirectory
from tests.unit.corpus import bad_conversations, bad_fields, bad_texts
from tests.unit.corpus.cases import ANSWER, OTHER, PAIR, PREFERENCE, SYSTEM, USER, rows

BOUNDED = settings(deadline=None, derandomize=True, max_examples=100)
METHODS = st.sampled_from(["SFT", "DPO"])
SEEDS = [
    rows(PAIR, {**PAIR, "prompt": "ü😀"}),
    rows({"messages": [SYSTEM, USER, ANSWER]}, {"messages": [USER, ANSWER], "tools": [{"name": "f"}]}),
    rows(PREFERENCE, {"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]}),
    rows({"instruction": "a", "input": "", "output": "b"}),
    rows({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}),
    *(
        case.content
        for case in (*bad_texts.CASES, *bad_fields.CASES, *bad_conversations.CASES)
        if len(case.content) < 1000
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)  # no power is cut here, and a disk takes its time
        yield tmp_path_factory.mktemp("fuzz")


def outcome(arguments: ExportSettings) -> dict[str, Any] | FailureError:
    try:
        return export(arguments)
    except FailureError as failure:
        return failure


def check(folder: Path, name: str, content: bytes, method: str, invalid_rows: str) -> None:
    """Export a file, and check what comes out, or that the failure can be acted on."""
    (folder / name).write_bytes(content)
    directory = RunDirectory(folder / "run")
    directory.manifest.unlink(missing_ok=True)
    directory.report.unlink(missing_ok=True)
    result = outcome(
        ExportSettings.model_validate(
            {
                "run_directory": directory.path,
                "source": "volume",
                "path": folder / name,
                "method": method,
                "invalid_rows": invalid_rows,
                "evaluation_percent": 20,
            }
        )
    )
    if isinstance(result, FailureError):
        assert (result.code, result.reason) == (3, "DatasetInvalid")
        assert result.row is not None or result.message.startswith(name)
        result.message.encode()
    else:
        lines = directory.train_rows.read_bytes().splitlines() + directory.evaluation_rows.read_bytes().splitlines()
        assert len(lines) == result["rows"] + result["evaluationRows"]
        assert all(json.loads(line)["row"] >= 1 for line in lines)
    if directory.report.exists():
        render(json.loads(directory.report.read_text())).encode()


PARTS = st.sampled_from(
    [b"", b"\xff", b"\\ud800", b"\0", b"\n", b"null", b"1e999", b"[[", b'"', b"}{", b"\xef\xbb\xbf"]
) | st.binary(max_size=6)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A dataset of which some bytes were replaced, removed or repeated."""
    content = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 12)))
        content[start:end] = draw(PARTS | st.just(bytes(content[start:end]) * 2))
    return bytes(content)


ROLES = st.sampled_from(["system", "user", "assistant", "tool", "gpt", "human"])
TEXTS = st.text(st.characters(exclude_categories=()), max_size=8)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
TURNS = st.dictionaries(
    st.sampled_from(["role", "content", "from", "value", "tool_calls", "name", "weight", "reasoning_content"]),
    ROLES | SCALARS,
    max_size=4,
)
VALUES = st.recursive(
    SCALARS | st.lists(TURNS, max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS | st.just("function"), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from([*CANONICAL_FIELDS, "system", "id"])
ROWS = st.lists(st.dictionaries(FIELDS | TEXTS, VALUES, max_size=5) | VALUES, min_size=1, max_size=5)

CELLS = {
    pa.string(): st.text(max_size=8),
    pa.binary(): st.binary(max_size=8),
    pa.int64(): st.integers(-5, 5),
    pa.float64(): st.floats(),
    pa.bool_(): st.booleans(),
    pa.timestamp("s"): st.integers(0, 10),
    pa.decimal128(5, 2): st.decimals(-9, 9, places=2),
    pa.list_(pa.string()): st.lists(st.text(max_size=4), max_size=3),
    pa.map_(pa.string(), pa.int64()): st.dictionaries(st.text(max_size=3), st.integers(0, 9), max_size=2).map(
        lambda value: list(value.items())
    ),
    pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("name", pa.string())])): st.lists(
        st.fixed_dictionaries({"role": ROLES, "content": st.text(max_size=4) | st.none()}), max_size=3
    ),
}


@st.composite
def tables(draw: st.DrawFn) -> Any:
    """A Parquet table of columns of any types."""
    length = draw(st.integers(0, 4))
    columns = {}
    for name in draw(st.lists(FIELDS, unique=True, min_size=1, max_size=4)):
        kind = draw(st.sampled_from(list(CELLS)))
        cells = draw(st.lists(st.none() | CELLS[kind], min_size=length, max_size=length))
        columns[name] = pa.array(cells, kind)
    return pa.table(columns)


@BOUNDED
@given(content=damaged(), method=METHODS, invalid_rows=st.sampled_from(["Fail", "Drop"]))
def test_damaged_json_lines(folder: Path, content: bytes, method: str, invalid_rows: str) -> None:
    check(folder, "train.jsonl", content, method, invalid_rows)


@BOUNDED
@given(values=ROWS, method=METHODS, invalid_rows=st.sampled_from(["Fail", "Drop"]))
def test_any_json(folder: Path, values: list[Any], method: str, invalid_rows: str) -> None:
    check(folder, "train.jsonl", rows(*values), method, invalid_rows)


@BOUNDED
@given(table=tables(), method=METHODS, invalid_rows=st.sampled_from(["Fail", "Drop"]))
def test_any_parquet(folder: Path, table: Any, method: str, invalid_rows: str) -> None:
    pyarrow.parquet.write_table(table, folder / "made.parquet")
    check(folder, "rows.parquet", (folder / "made.parquet").read_bytes(), method, invalid_rows)
