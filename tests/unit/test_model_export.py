"""The export as a process sees it: files, last words and exit codes."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from model.data import export
from model.data.sources import FileSource
from model.files import RunDirectory

LINES = [json.dumps({"prompt": f"p{number}", "completion": f"c{number}"}) for number in range(1, 41)]


@pytest.fixture
def termination_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "termination.log"
    monkeypatch.setenv("TERMINATION_LOG", str(path))
    return path


class Exporter:
    """Runs the export over a file of lines."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.source = folder / "train.jsonl"
        self.directory = RunDirectory(folder / "output")
        self.log = log

    def __call__(self, *flags: str, lines: list[str] | None = None) -> int:
        if lines is not None:
            self.source.write_text("".join(line + "\n" for line in lines))
        usual = [f"--run-directory={self.directory.path}", "--source=configMap", f"--path={self.source}"]
        if not any(flag.startswith("--method") for flag in flags):
            usual.append("--method=SFT")
        return export.main([*usual, *flags])

    def said(self) -> Any:
        return json.loads(self.log.read_text())

    def rows(self) -> tuple[list[int], list[int]]:
        """Row numbers of the training rows and of the held-out ones."""
        paths = (self.directory.train_rows, self.directory.evaluation_rows)
        train, evaluation = ([json.loads(line)["row"] for line in path.read_text().splitlines()] for path in paths)
        return train, evaluation


@pytest.fixture
def run(tmp_path: Path, termination_log: Path) -> Exporter:
    return Exporter(tmp_path, termination_log)


def test_rows_are_written_with_their_numbers_and_a_manifest(run: Exporter) -> None:
    assert run("--evaluation-percent=10", "--seed=3", lines=LINES) == 0
    train, evaluation = run.rows()
    assert sorted(train + evaluation) == list(range(1, 41))
    assert evaluation
    contents = run.directory.train_rows.read_bytes() + run.directory.evaluation_rows.read_bytes()
    manifest = json.loads(run.directory.manifest.read_text())
    assert manifest["sha256"] == hashlib.sha256(contents).hexdigest()
    assert manifest["bytes"] == len(contents)
    assert (manifest["rows"], manifest["evaluationRows"]) == (len(train), len(evaluation))
    assert (manifest["shape"], manifest["seed"], manifest["version"]) == ("prompt-completion", 3, None)
    keys = ("rows", "evaluationRows", "dropped", "duplicates", "bytes", "sha256")
    assert run.said() == {"dataset": {key: manifest[key] for key in keys}}
    assert not list(run.directory.dataset.glob("*.tmp"))


def test_a_number_of_rows_is_held_out(run: Exporter) -> None:
    assert run("--evaluation-max-rows=7", lines=LINES) == 0
    train, evaluation = run.rows()
    assert len(evaluation) == 7
    assert train == sorted(set(range(1, 41)) - set(evaluation))
    assert {path.name for path in run.directory.dataset.iterdir()} - {export.LOCK} == {
        "train.jsonl", "evaluation.jsonl", "manifest.json", "report.json",
    }  # fmt: skip


@pytest.mark.parametrize(("rows", "flags", "held_out"), [
    (30, ("--evaluation-percent=10",), 3),
    (30, (), 2),
    (2, (), 0),
    (2, ("--evaluation-percent=10",), 0),
    (2000, ("--evaluation-percent=10",), 200),
    (11_000, (), 500),
])  # fmt: skip
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_share_of_few_rows_is_no_luck(
    run: Exporter, rows: int, flags: tuple[str, ...], held_out: int, seed: int
) -> None:
    lines = [f'{{"prompt": "{number}", "completion": "c"}}' for number in range(rows)]
    assert run(f"--seed={seed}", *flags, lines=lines) == 0
    train, evaluation = run.rows()
    assert (len(train), len(evaluation)) == (rows - held_out, held_out)
    assert sorted(train + evaluation) == list(range(1, rows + 1))


def test_a_share_of_many_rows_is_decided_by_each_rows_hash(run: Exporter) -> None:
    lines = [f'{{"prompt": "{number}", "completion": "c"}}' for number in range(2300)]
    assert run("--evaluation-percent=10", lines=lines) == 0
    first = run.rows()
    assert 150 <= len(first[1]) <= 310
    run.directory.manifest.unlink()
    assert run("--evaluation-percent=10", lines=[*lines, '{"prompt": "new", "completion": "c"}']) == 0
    assert first[1] == [row for row in run.rows()[1] if row <= 2300]


def test_no_row_is_held_out_on_request(run: Exporter) -> None:
    assert run("--evaluation-percent=0", lines=LINES) == 0
    assert run.rows() == (list(range(1, 41)), [])
    assert run("--evaluation-max-rows=0", lines=LINES) == 0
    assert run.rows() == (list(range(1, 41)), [])


def test_a_second_start_does_nothing(run: Exporter) -> None:
    run("--evaluation-percent=10", lines=LINES)
    said, written = run.said(), run.directory.manifest.stat().st_mtime_ns
    assert run("--evaluation-percent=10", lines=LINES[:5]) == 0  # the first export is what the run is made of
    assert run.said() == said
    assert run.directory.manifest.stat().st_mtime_ns == written


def cut_off(directory: RunDirectory) -> None:
    directory.train_rows.write_bytes(directory.train_rows.read_bytes()[:-1])


def remove(directory: RunDirectory) -> None:
    directory.evaluation_rows.unlink()


def spoil(directory: RunDirectory) -> None:
    directory.manifest.write_text("{")


@pytest.mark.parametrize("damage", [cut_off, remove, spoil])
def test_a_damaged_export_is_made_again(run: Exporter, damage: Callable[[RunDirectory], None]) -> None:
    run(lines=LINES)
    before = run.directory.train_rows.read_bytes(), run.directory.evaluation_rows.read_bytes()
    damage(run.directory)
    assert run() == 0
    assert (run.directory.train_rows.read_bytes(), run.directory.evaluation_rows.read_bytes()) == before


def test_a_refused_dataset_leaves_no_manifest_of_an_earlier_request(run: Exporter) -> None:
    assert run(lines=LINES) == 0
    assert run("--method=DPO") == 3
    assert not run.directory.manifest.exists()


def test_another_request_is_exported_anew(run: Exporter) -> None:
    run("--evaluation-percent=10", lines=LINES)
    assert run("--evaluation-percent=0") == 0
    assert run.rows()[1] == []


@pytest.mark.parametrize("text", ["[]", "{}", '{"schemaVersion": 1, "source": [], "seed": 42}', "null"])
def test_a_manifest_that_is_none_counts_as_missing(run: Exporter, text: str) -> None:
    assert run(lines=LINES) == 0
    whole = run.directory.manifest.read_text()
    run.directory.manifest.write_text(text)
    assert run() == 0
    assert run.directory.manifest.read_text() == whole


def test_a_second_export_waits_for_the_first_and_takes_what_it_left(run: Exporter) -> None:
    assert run(lines=LINES) == 0
    finished = run.directory.manifest.rename(run.source.with_name("manifest.json"))
    before = run.directory.train_rows.stat()
    command = [sys.executable, "-m", "model.data.export", f"--run-directory={run.directory.path}", "--method=SFT"]
    with (run.directory.dataset / export.LOCK).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with subprocess.Popen(
            [*command, "--source=configMap", f"--path={run.source}"], stderr=subprocess.PIPE, text=True
        ) as second:
            assert second.stderr is not None
            assert second.stderr.readline() == f"waiting for another export into {run.directory.dataset}\n"
            finished.rename(run.directory.manifest)
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert second.stderr.readline().startswith("exported before, for the same request")
            assert second.wait(timeout=30) == 0
    assert run.directory.train_rows.stat().st_ino == before.st_ino


def test_messages_and_mapped_columns(run: Exporter) -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert run("--column=messages=turns", "--evaluation-percent=0", lines=[json.dumps({"turns": chat})]) == 0
    assert json.loads(run.directory.train_rows.read_text()) == {"messages": chat, "row": 1}
    assert json.loads(run.directory.manifest.read_text())["shape"] == "messages"


def test_blank_lines_and_a_byte_order_mark_are_no_rows(run: Exporter) -> None:
    assert run("--evaluation-percent=0", lines=["\ufeff" + LINES[0], "", LINES[1], "  "]) == 0
    assert run.rows()[0] == [1, 3]


def test_a_malformed_line_is_named(run: Exporter) -> None:
    lines = LINES.copy()
    lines[6] = '{"prompt": "x", "completion" "y"}'
    assert run(lines=lines) == 3
    assert run.said() == {
        "failure": {
            "reason": "DatasetInvalid",
            "message": "train.jsonl row 7: not valid JSON: Expecting ':' delimiter at character 30",
            "row": 7,
        }
    }
    assert not run.directory.train_rows.exists()
    assert not run.directory.manifest.exists()


def test_what_was_found_out_is_told_and_kept(run: Exporter, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [*LINES[:3], LINES[0], '{"prompt": "a"}', '{"prompt": "b", "completion": "c", "id": 1}']
    assert run("--invalid-rows=Drop", "--evaluation-percent=1", lines=lines) == 0
    said = capsys.readouterr()
    event = json.loads(said.out)
    assert (event["event"], event["detected"], event["duplicates"]) == ("export", "prompt and completion", 1)
    assert said.err == (
        "train.jsonl: prompt and completion\n"
        "warning: 1 invalid row is left out: row 5: completion: is missing\n"
        "warning: 1 row repeats another: row 4 repeats row 1\n"
        "warning: no row is held out: 5 are too few for that, there will be no evaluation loss\n"
    )
    report = json.loads(run.directory.report.read_text())
    assert (report["rows"], report["dropped"], report["duplicates"]) == (5, 1, 1)
    assert report["problems"] == {"missing": 1}
    assert report["example"] == {"prompt": "p1", "completion": "c1", "row": 1}
    assert report["characters"]["prompt"] == {"p50": 2, "p90": 2, "p99": 2, "max": 2}
    manifest = json.loads(run.directory.manifest.read_text())
    assert (manifest["detected"], manifest["duplicates"]) == ("prompt and completion", 1)


def test_what_is_noticed_about_good_rows_is_a_warning_with_its_rows(
    run: Exporter, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f'{{"prompt": "p{n}", "completion": "c", "context": {json.dumps("x" * n)}, "": 1}}' for n in range(9)]
    assert run(lines=lines) == 0
    said = capsys.readouterr().err
    assert "prompt and completion; not used: context, ''\n" in said
    warning = (
        "the column context is not used, though the answers may need it: map it (input=context beside instruction and "
        "output), write it into the prompt, or leave the column out with --ignore-column=context (ignoredColumns in a "
        "TrainingRun) (row 2 and 7 more)"
    )
    assert f"warning: {warning}\n" in said
    assert warning in json.loads(run.directory.report.read_text())["warnings"]
    assert run("--ignore-column=context", lines=lines) == 0
    assert json.loads(run.directory.manifest.read_text())["source"]["ignoredColumns"] == ["context"]
    assert len(json.loads(run.directory.report.read_text())["warnings"]) == 1  # none is held out


def test_rows_of_other_splits_and_words_for_nothing_are_told(run: Exporter) -> None:
    lines = [
        '{"prompt": "a", "completion": "NULL", "split": "train"}',
        '{"prompt": "a", "completion": "b", "split": "Test"}',
        '{"prompt": "a", "completion": "c", "split": "validation"}',
        '{"prompt": "a", "completion": "d", "split": "validation"}',
    ]
    assert run(lines=lines) == 0
    warnings = json.loads(run.directory.report.read_text())["warnings"][:3]
    assert [warning.partition(":")[0] for warning in warnings] == [
        "completion is NULL, as tables write where nothing is, and learned as it stands (row 1)",
        "rows whose split is Test are trained on like all others",
        "rows whose split is validation are trained on like all others",
    ]
    assert warnings[2].endswith(" (row 3 and 1 more)")


def test_arguments_that_are_null_are_told(run: Exporter) -> None:
    call = {"role": "assistant", "tool_calls": [{"name": "add", "arguments": {"a": 1, "city": None}}]}
    assert run(lines=[json.dumps({"messages": [{"role": "user", "content": "a"}, call]})]) == 0
    assert json.loads(run.directory.report.read_text())["warnings"][0] == (
        "arguments of calls are null, and learned so: leave them out where a table has added the arguments of other "
        "calls (row 1)"
    )


def test_rows_of_text_become_turns_where_more_stands_beside_them(run: Exporter) -> None:
    lines = ['{"prompt": "a", "completion": "b", "system": null}', '{"prompt": "c", "completion": "d", "system": "e"}']
    assert run("--evaluation-percent=0", lines=lines) == 0
    manifest = json.loads(run.directory.manifest.read_text())
    assert manifest["shape"] == "messages"
    assert manifest["detected"] == "prompt and completion; as turns where there is system"


def test_the_report_is_printed_on_request(run: Exporter, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # the second time it is done already, and what was found out is still known
        assert run("--report", lines=LINES) == 0
        assert "A row as the trainer sees it (prompt-completion)" in capsys.readouterr().out
    assert run("--report", "--seed=7", lines=["{"]) == 3
    out = capsys.readouterr().out
    assert "            row 1: not valid JSON" in out


def test_invalid_rows_are_dropped_on_request(run: Exporter) -> None:
    lines = [*LINES, "{", '{"prompt": "a", "completion": ""}']
    assert run("--invalid-rows=Drop", "--evaluation-percent=0", lines=lines) == 0
    assert run.said()["dataset"]["dropped"] == 2
    assert run.rows()[0] == list(range(1, 41))


@pytest.mark.parametrize(
    ("lines", "flags", "message"),
    [
        ([""], [], "train.jsonl has no rows: check that it is the right one"),
        (
            ["{", "["],
            ["--invalid-rows=Drop"],
            (
                "train.jsonl has no usable row, 2 invalid: row 1: not valid JSON: Expecting property name enclosed "
                "in double quotes at character 3; row 2: not valid JSON: Expecting value at character 3"
            ),
        ),
    ],
)
def test_a_dataset_without_rows(run: Exporter, lines: list[str], flags: list[str], message: str) -> None:
    assert run(*flags, lines=lines) == 3
    assert run.said()["failure"]["message"] == message


def test_a_file_that_is_not_there_is_named_with_its_neighbours(run: Exporter) -> None:
    (run.source.parent / "rows.jsonl").write_text("")
    assert run() == 10
    failure = run.said()["failure"]
    assert failure["reason"] == "DatasetUnavailable"
    assert f"{run.source} does not exist" in failure["message"]
    assert "rows.jsonl" in failure["message"]


def test_a_directory_is_no_file(run: Exporter) -> None:
    run.source.mkdir()
    assert run() == 10
    assert "is a directory" in run.said()["failure"]["message"]


def test_an_output_that_cannot_be_written(run: Exporter) -> None:
    run.directory.path.write_text("a file where a directory should be")
    assert run(lines=LINES) == 1
    assert run.said()["failure"]["reason"] == "InternalError"


def test_a_file_name_that_is_not_utf8(run: Exporter) -> None:
    run.source = run.source.with_name(os.fsdecode(b"\xff.jsonl"))
    assert run("--evaluation-percent=0", lines=["{", *LINES]) == 3
    assert run.said()["failure"]["message"].startswith("?.jsonl row 1: not valid JSON")
    for _ in range(2):
        assert run("--evaluation-percent=0", lines=LINES) == 0
    assert run.rows()[0] == list(range(1, 41))
    assert json.loads(run.directory.report.read_text())["source"] == "\\udcff.jsonl"


def test_memory_does_not_grow_with_the_dataset(run: Exporter) -> None:
    line = json.dumps({"prompt": "{}", "completion": "x" * 8000})
    run.source.write_text("".join(line.replace("{}", str(number)) + "\n" for number in range(2000)))  # 16 MB
    tracemalloc.start()
    try:
        assert run("--evaluation-max-rows=100") == 0
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_full_volume(run: Exporter) -> None:
    run.directory.dataset.mkdir(parents=True)
    (run.directory.dataset / "train.jsonl.tmp").symlink_to("/dev/full")
    assert run("--evaluation-percent=0", lines=LINES) == 7
    assert run.said()["failure"]["reason"] == "StorageFull"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--evaluation-percent=5", "--evaluation-max-rows=5"], "not both"),
        (["--evaluation-percent=90"], "less than or equal to 50"),
        (["--column=question=prompt"], "no such field"),
        (["--column=prompt"], "must be name=value"),
        (["--column=prompt=text", "--column=completion=text"], "several fields are mapped to the column text"),
        (["--source=registry"], "needs --registry-url"),
        (["--method=PPO"], "--method=PPO"),
    ],
)
def test_wrong_flags(run: Exporter, flags: list[str], said: str) -> None:
    assert run(*flags, lines=LINES) == 2
    assert run.said()["failure"]["reason"] == "InvalidSpec"
    assert said in run.said()["failure"]["message"]


def test_outside_a_pod_there_are_no_last_words(
    run: Exporter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TERMINATION_LOG")
    assert run(lines=LINES) == 0
    assert json.loads(capsys.readouterr().out)["event"] == "export"


def test_a_person_may_stop_it(
    run: Exporter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_source: FileSource) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(FileSource, "records", interrupted)
    assert run(lines=LINES) == 130
    assert capsys.readouterr().err == "\nstopped: nothing was exported\n"
    assert [path.name for path in run.directory.dataset.iterdir()] == [export.LOCK]


def test_sigterm_ends_it_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "endless"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "model.data.export", f"--run-directory={tmp_path}/output"]
    with subprocess.Popen([*command, "--source=volume", f"--path={pipe}"]) as process:
        writer = os.open(pipe, os.O_WRONLY)  # returns when the export opens its end
        process.terminate()
        assert process.wait(timeout=10) == 143
    os.close(writer)
    assert not (tmp_path / "output" / "dataset" / "manifest.json").exists()
