"""A run without Kubernetes: what a dataset may be called, and which directory a run gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model import exits, flags
from model.data.settings import ExportSettings
from model.exits import FailureError
from model.files import RunDirectory
from model.training import local
from model.training.local import TrainCommand

ROW = '{"prompt": "a?", "completion": "b"}\n'


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(ROW.replace("a?", f"{n}?") for n in range(20)))
    return path


def command(*arguments: str, dataset: str = "rows.jsonl") -> TrainCommand:
    return flags.parse(TrainCommand, ["--method=SFT", "--base-model=models/Tiny-1", f"--dataset={dataset}", *arguments])


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("rows.jsonl", {"source": "volume", "path": "rows.jsonl"}),
        ("data/*.parquet", {"source": "volume", "path": "data/*.parquet"}),
        ("data/rows", {"source": "volume", "path": "data/rows"}),
        ("./a/b", {"source": "volume", "path": "a/b"}),
        ("owner/name", {"source": "hub", "repository": "owner/name"}),
        ("hub:owner/name.json", {"source": "hub", "repository": "owner/name.json"}),
        ("hf://datasets/owner/name", {"source": "hub", "repository": "owner/name"}),
        ("s3://bucket/a/*.jsonl", {"source": "objectStore", "uri": "s3://bucket/a/*.jsonl"}),
        ("sql:select a, b from t", {"source": "sql", "query": "select a, b from t"}),
    ],
)
def test_what_a_dataset_may_be_called(
    dataset: str, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/rows").mkdir(parents=True)  # a path that is there is a path, though it looks like a hub name
    assert local.source_flags(dataset) == expected


def test_the_export_understands_what_it_is_given(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATASET_URL", "sqlite://")
    for dataset in (str(rows), "owner/name", "s3://b/k", "sql:select 1"):
        arguments = command("--evaluation-max-rows=3", "--column=prompt=q", dataset=dataset).export_arguments(Path("d"))
        settings = flags.parse(ExportSettings, arguments)
        assert (settings.evaluation_max_rows, settings.column, settings.seed) == (3, {"prompt": "q"}, 42)
    hub = command("--dataset-split=test", "--dataset-revision=v1", dataset="owner/name").export_arguments(Path("d"))
    assert {"--split=test", "--revision=v1"} <= set(hub)


def test_the_same_command_finds_its_run_again(rows: Path) -> None:
    del rows
    first = local.find_place(command())
    assert first.directory == Path("runs/rows-tiny-1-sft")
    assert local.find_place(command()) == first
    assert local.find_place(command("--checkpoint-steps=3", "--micro-batch-size=2", "--plot")) == first


def test_other_settings_get_a_directory_of_their_own(rows: Path) -> None:
    first = local.find_place(command())
    second = local.find_place(command("--learning-rate=1e-3"))
    assert second.directory == Path("runs/rows-tiny-1-sft-2")
    assert second.uid != first.uid
    assert "learningRate 0.0002, now 0.001" in second.note
    assert local.find_place(command("--learning-rate=1e-3")).uid == second.uid
    with rows.open("a") as file:
        file.write(ROW)
    assert "the dataset's files" in local.find_place(command()).note


def test_a_named_run_is_never_continued_with_other_settings(rows: Path) -> None:
    del rows
    assert local.find_place(command("--name=mine")).directory == Path("runs/mine")
    with pytest.raises(FailureError, match=r"runs/mine belongs to a run with other settings \(seed 42, now 7\)"):
        local.find_place(command("--name=mine", "--seed=7"))
    with pytest.raises(FailureError, match="other settings"):
        local.find_place(command("--run-directory=runs/mine", "--seed=7"))


def test_the_flags_of_a_job_are_taken_as_they_are(tmp_path: Path) -> None:
    arguments = ["--method=SFT", "--base-model=/models/base", f"--run-directory={tmp_path}/a/b", "--run-uid=u"]
    place = local.find_place(flags.parse(TrainCommand, arguments))
    assert (place.directory, place.uid) == (tmp_path / "a/b", "u")
    assert not list(tmp_path.iterdir())


def test_the_trainer_gets_what_was_given_and_nothing_else(rows: Path) -> None:
    del rows
    settings = command("--batch-size=4").settings(Path("runs/x"), "u")
    assert (settings.run_directory, settings.run_uid, settings.batch_size) == (Path("runs/x"), "u", 4)
    assert settings.model_fields_set == {"method", "base_model", "run_directory", "run_uid", "batch_size"}


def test_the_dataset_goes_into_the_run_s_directory(rows: Path) -> None:
    del rows
    place = local.find_place(command())
    manifest = local.export_dataset(command(), place.directory)
    assert manifest["rows"] + manifest["evaluationRows"] == 20
    assert json.loads(RunDirectory(place.directory).manifest.read_text())["shape"] == "prompt-completion"


def test_two_processes_cannot_train_in_one_directory(rows: Path) -> None:
    del rows
    place = local.find_place(command())
    local.lock(place.directory)
    with pytest.raises(FailureError, match="another process is training in runs/rows-tiny-1-sft"):
        local.lock(place.directory)


def test_a_directory_without_a_dataset_is_told_and_not_made(tmp_path: Path) -> None:
    arguments = ["--method=SFT", "--base-model=m", f"--run-directory={tmp_path}/none"]
    with pytest.raises(FailureError, match=r"manifest\.json does not exist: give --dataset"):
        local.find_place(flags.parse(TrainCommand, arguments))
    assert not (tmp_path / "none").exists()


def test_a_damaged_record_is_told(rows: Path) -> None:
    del rows
    place = local.find_place(command())
    (place.directory / local.RUN_FILE).write_text("{")
    with pytest.raises(FailureError, match=r"run\.json is damaged"):
        local.find_place(command())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--dataset: is required"),
        (["--run-directory=x", "--column=prompt=q"], "--column needs --dataset"),
        (["--run-directory=x", "--name=y"], "not both"),
        (["--dataset=r", "--evaluation-percent=1", "--evaluation-max-rows=1"], "not both"),
        (["--dataset=r", "--name=a/b"], "--name=a/b"),
        (["--dataset=r", "--evaluation-percent=80", "--epochs=1", "--max-steps=2"], "give --epochs or --max-steps"),
    ],
)
def test_flags_that_do_not_go_together(arguments: list[str], said: str) -> None:
    with pytest.raises(FailureError) as caught:
        flags.parse(TrainCommand, ["--method=SFT", "--base-model=m", *arguments])
    assert caught.value.code == exits.INVALID_CONFIGURATION
    assert said in caught.value.message


def test_every_setting_stands_in_one_group_of_the_help() -> None:
    names = [name for _, group in local.GROUPS for name in group]
    assert sorted(names) == sorted(TrainCommand.model_fields)
