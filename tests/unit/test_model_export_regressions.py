"""Mistakes that other trainers make with their data, each kept from coming here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model.data import export
from model.data.export import ExportSettings, examine
from model.data.parts import Part
from model.data.report import KINDS, Report
from model.data.shapes import Shaper
from model.data.source_settings import DATABASE_VARIABLE
from model.data.sources import FileSource, HubSource, ObjectStoreSource, RegistrySource, SqlSource
from model.exits import FailureError
from model.files import RunDirectory
from tests.unit.corpus import bad_beside, bad_conversations, bad_fields, bad_labels, bad_texts
from tests.unit.corpus.cases import rows

ROWS = [{"prompt": f"p{number}", "completion": f"c{number}"} for number in range(200)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TERMINATION_LOG", str(tmp_path / "termination.log"))
    return tmp_path


def run(folder: Path, *flags: str, path: str = "train.jsonl") -> int:
    return export.main([f"--run-directory={folder}/run", "--source=volume", f"--path={folder}/{path}", *flags])


def sides(folder: Path) -> tuple[list[Any], list[Any]]:
    """The prompts of the training rows and of the held-out rows."""
    directory = RunDirectory(folder / "run")
    train, held_out = (
        [json.loads(line)["prompt"] for line in path.read_text().splitlines()]
        for path in (directory.train_rows, directory.evaluation_rows)
    )
    return train, held_out


def test_the_evaluation_rows_are_not_the_training_rows(folder: Path) -> None:
    (folder / "train.jsonl").write_bytes(rows(*ROWS))
    assert run(folder, "--evaluation-percent=20") == 0
    train, held_out = sides(folder)
    assert held_out
    assert not set(train) & set(held_out)
    assert sorted(train + held_out) == sorted(row["prompt"] for row in ROWS)


@pytest.mark.parametrize(
    ("flags", "kind", "facts"),
    [
        (["registry", "--registry-url=http://r", "--namespace=n", "--run-uid=u"], RegistrySource, {}),
        (["configMap", "--path=/source/a"], FileSource, {"kind": "configMap", "path": Path("/source/a")}),
        (["volume", "--path=/source/*.csv"], FileSource, {"kind": "volume", "path": Path("/source/*.csv")}),
        (["sql", "--query=select 1"], SqlSource, {"url": "sqlite:///rows.db", "query": "select 1"}),
        (["objectStore", "--uri=s3://b/k", "--endpoint=http://e"], ObjectStoreSource,
         {"uri": "s3://b/k", "endpoint": "http://e"}),
        (["hub", "--repository=o/d", "--revision=v1", "--split=test"], HubSource,
         {"repository": "o/d", "revision": "v1", "split": "test"}),
        (["hub", "--repository=o/d"], HubSource, {"repository": "o/d", "revision": None, "split": "train"}),
    ],
)  # fmt: skip
def test_the_source_that_was_asked_for_is_read(
    flags: list[str], kind: type, facts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATABASE_VARIABLE, "sqlite:///rows.db")
    settings = export.flags.parse(ExportSettings, ["--run-directory=run", f"--source={flags[0]}", *flags[1:]])
    source = settings.sources()[0]
    assert type(source) is kind
    assert {name: getattr(source, name) for name in facts} == facts


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--source=sql"], "--source=sql needs --query; --source=sql needs the environment variable DATASET_URL"),
        (["--source=sql", "--query=q", "--path=a"], "--path: is for --source=configMap or volume only"),
        (["--source=volume", "--path=a", "--split=test", "--uri=u"],
         "--uri: is for --source=objectStore only; --split: is for --source=hub only"),
        (["--source=hub"], "--source=hub needs --repository"),
        ([], "--source: is required"),
    ],
)  # fmt: skip
def test_a_flag_for_another_source_is_not_passed_over(
    flags: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(DATABASE_VARIABLE, raising=False)
    with pytest.raises(FailureError) as caught:
        export.flags.parse(ExportSettings, ["--run-directory=run", *flags])
    assert said in caught.value.message


def test_all_files_that_match_are_read(folder: Path) -> None:
    (folder / "part-1.jsonl").write_bytes(rows(*ROWS[:10]))
    (folder / "part-2.jsonl").write_bytes(rows(*ROWS[10:20]))
    assert run(folder, "--evaluation-percent=0", path="part-*.jsonl") == 0
    assert sides(folder)[0] == [row["prompt"] for row in ROWS[:20]]
    lines = RunDirectory(folder / "run").train_rows.read_text().splitlines()
    assert [(json.loads(line)["file"], json.loads(line)["row"]) for line in (lines[9], lines[10])] == [
        ("part-1.jsonl", 10),
        ("part-2.jsonl", 1),
    ]


def test_a_row_keeps_its_side_whatever_file_it_stands_in(folder: Path) -> None:
    (folder / "train.jsonl").write_bytes(rows(*ROWS))
    assert run(folder, "--evaluation-percent=20") == 0
    before = sides(folder)[1]
    (folder / "train.jsonl").unlink()
    (folder / "b.jsonl").write_bytes(rows(*ROWS[:90]))
    (folder / "a.jsonl").write_bytes(rows(*ROWS[90:]))
    assert run(folder, "--evaluation-percent=20", path="*.jsonl") == 0
    assert sorted(sides(folder)[1]) == sorted(before)


@pytest.mark.parametrize("share", ["--evaluation-percent=20", "--evaluation-max-rows=40"])
def test_the_seed_decides_the_split(folder: Path, share: str) -> None:
    (folder / "train.jsonl").write_bytes(rows(*ROWS))
    found = []
    for seed in (1, 2, 1):
        assert run(folder, share, f"--seed={seed}") == 0
        found.append(sides(folder)[1])
    assert found[0] == found[2] != found[1]


def test_the_method_decides_what_is_accepted(folder: Path) -> None:
    (folder / "train.jsonl").write_bytes(rows(*({**row, "chosen": "a", "rejected": "b"} for row in ROWS)))
    shapes = []
    for method in ("SFT", "DPO"):
        assert run(folder, f"--method={method}") == 0
        shapes.append(json.loads(RunDirectory(folder / "run").manifest.read_text())["shape"])
    assert shapes == ["prompt-completion", "preference"]


def corpus_kinds(folder: Path) -> Iterator[str]:
    for case in (*bad_texts.CASES, *bad_fields.CASES, *bad_conversations.CASES, *bad_beside.CASES, *bad_labels.CASES):
        if case.code == 3 and case.file.endswith(".jsonl"):
            (folder / case.file).write_bytes(case.content)
            method = next((flag.removeprefix("--method=") for flag in case.flags if "--method=" in flag), "SFT")
            try:
                source = FileSource("volume", folder / case.file)
                report = Report([Part(source, Shaper(source.name, method, {}))])
                examine(report, lambda *_: None)
                yield from report.problems.kinds
            except FailureError:
                continue  # refused as a whole


def test_every_check_is_called(folder: Path) -> None:
    assert set(corpus_kinds(folder)) == set(KINDS) - {"unreadable"}
