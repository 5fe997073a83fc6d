"""A run without Kubernetes: what a dataset may be called, and which directory a run gets."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from model import exits, flags, locks
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


def trained(place: local.Place) -> local.Place:
    """Leave in a run's directory what the first checkpoint leaves there."""
    (RunDirectory(place.directory).checkpoints / "checkpoint-1").mkdir(parents=True)
    return place


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a lock as another process would: such locks belong to the opened file, not to the process."""
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory / local.LOCK, os.O_WRONLY | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


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
        ("data/mix.yaml", {"config": "data/mix.yaml"}),
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
    first = trained(local.find_place(command()))
    second = local.find_place(command("--learning-rate=1e-3"))
    assert second.directory == Path("runs/rows-tiny-1-sft-2")
    assert second.uid != first.uid
    assert "learningRate 0.0002, now 0.001" in second.note
    assert trained(local.find_place(command("--learning-rate=1e-3"))).uid == second.uid
    with rows.open("a") as file:
        file.write(ROW)
    assert "the dataset's files" in local.find_place(command()).note


def test_a_named_run_is_never_continued_with_other_settings(rows: Path) -> None:
    del rows
    assert trained(local.find_place(command("--name=mine"))).directory == Path("runs/mine")
    with pytest.raises(FailureError, match=r"runs/mine belongs to a run with other settings \(seed 42, now 7\)"):
        local.find_place(command("--name=mine", "--seed=7"))
    with pytest.raises(FailureError, match="other settings"):
        local.find_place(command("--run-directory=runs/mine", "--seed=7"))


def test_the_flags_of_a_job_are_taken_as_they_are(tmp_path: Path) -> None:
    arguments = ["--method=SFT", "--base-model=/models/base", f"--run-directory={tmp_path}/a/b", "--run-uid=u"]
    place = local.find_place(flags.parse(TrainCommand, arguments))
    assert (place.directory, place.uid) == (tmp_path / "a/b", "u")
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == [local.LOCK]


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


def test_a_mix_is_a_file_that_lists_sources(rows: Path) -> None:
    other = rows.with_name("other.jsonl")
    other.write_bytes(rows.read_bytes().replace(b'"prompt": "', b'"prompt": "x'))
    first, second = ({"source": "volume", "path": path.name, "weight": 1} for path in (rows, other))
    Path("mix.yaml").write_text(json.dumps({"mix": [first, second]}))
    place = local.find_place(command(dataset="mix.yaml"))
    manifest = local.export_dataset(command(dataset="mix.yaml"), place.directory)
    assert [source["name"] for source in manifest["sources"]] == [rows.name, "other.jsonl"]
    assert manifest["sources"][0]["rows"] + manifest["sources"][0]["evaluationRows"] > 0
    trained(place)
    assert local.find_place(command(dataset="mix.yaml")) == place
    other.write_bytes(other.read_bytes() + b"\n")
    assert local.find_place(command(dataset="mix.yaml")).directory != place.directory


def test_two_processes_cannot_train_in_one_directory(rows: Path) -> None:
    del rows
    with locked(Path("runs/rows-tiny-1-sft")):
        with pytest.raises(FailureError, match="another process is training in runs/rows-tiny-1-sft"):
            local.find_place(command())
        assert not Path("runs/rows-tiny-1-sft/run.json").exists()  # its uid would be another than that of the training
    place = local.find_place(command("--name=mine"))
    with pytest.raises(BlockingIOError), locked(place.directory):
        pass


def test_a_pod_waits_for_the_one_before_it_and_says_who_is_in_its_way(
    rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del rows
    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.1)
    told = ["--method=SFT", "--base-model=models/tiny-1", "--run-directory=runs/pod", "--run-uid=u"]
    with locked(Path("runs/pod")):
        with pytest.raises(FailureError, match="an earlier pod of the run") as caught:
            local.find_place(flags.parse(TrainCommand, told))
        # Another attempt may find the directory free.
        assert (caught.value.code, caught.value.reason) == (exits.CRASH, "DirectoryLocked")
    assert local.find_place(flags.parse(TrainCommand, told)).uid == "u"
    with pytest.raises(BlockingIOError), locked(Path("runs/pod")):
        pass


def test_a_volume_without_locks_keeps_nobody_out(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del rows

    def refuse(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert local.find_place(command("--name=nolocks")).directory == Path("runs/nolocks")


def test_a_lock_on_smb_is_held_by_another_and_not_forbidden(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Azure Files answers EACCES where others say EAGAIN."""
    del rows

    def refuse(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(FailureError, match="another process is training in"):
        local.find_place(command("--name=smb"))


def test_settings_that_another_version_knows_change_nothing(rows: Path) -> None:
    del rows
    first = trained(local.find_place(command()))
    recorded = json.loads((first.directory / local.RUN_FILE).read_text())
    assert recorded["settings"]["weightDecay"] == 0
    older = {key: value for key, value in recorded["settings"].items() if key not in ("weightDecay", "packing")}
    for settings in (older, older | {"evaluationSteps": 200}, recorded["settings"] | {"settingToCome": "Fast"}):
        (first.directory / local.RUN_FILE).write_text(json.dumps({**recorded, "settings": settings}))
        assert local.find_place(command()) == first
    (first.directory / local.RUN_FILE).write_text(json.dumps({**recorded, "settings": older}))
    assert "weightDecay 0.0, now 0.1" in local.find_place(command("--weight-decay=0.1")).note


def test_settings_with_which_nothing_was_trained_give_way(rows: Path) -> None:
    first = local.find_place(command())
    local.export_dataset(command(), first.directory)
    rows.write_text(ROW * 3)  # the mended rows
    second = local.find_place(command("--seed=7"))
    assert (second.directory, second.note) == (first.directory, "")
    assert second.uid != first.uid
    assert local.find_place(command("--seed=7")) == second
    assert not RunDirectory(second.directory).manifest.exists()  # nor are the old rows trained on


def test_nothing_gives_way_while_another_process_is_there(rows: Path) -> None:
    del rows
    first = Path("runs/rows-tiny-1-sft")
    first.mkdir(parents=True)
    (first / local.RUN_FILE).write_text(json.dumps({"uid": "u", "settings": {"seed": 1}}))
    with locked(first):
        assert local.find_place(command()).directory == Path("runs/rows-tiny-1-sft-2")
    assert json.loads((first / local.RUN_FILE).read_text())["uid"] == "u"


def test_one_place_may_be_spelled_in_several_ways(rows: Path) -> None:
    Path("models/Tiny-1").mkdir(parents=True)
    first = trained(local.find_place(command()))
    assert local.find_place(command(dataset=str(rows))) == first
    assert local.find_place(command(dataset="./rows.jsonl")) == first
    arguments = ["--method=SFT", "--base-model=models/../models/Tiny-1/", "--dataset=rows.jsonl"]
    assert local.find_place(flags.parse(TrainCommand, arguments)) == first


def test_a_run_may_be_named_as_the_parent(rows: Path) -> None:
    del rows
    Path("runs/sft/adapter").mkdir(parents=True)
    settings = command("--parent-adapter=runs/sft").settings(Path("runs/x"), "u")
    assert settings.parent_adapter == Path("runs/sft/adapter")
    Path("runs/sft/adapter/adapter_config.json").touch()
    settings = command("--parent-adapter=runs/sft/adapter").settings(Path("runs/x"), "u")
    assert settings.parent_adapter == Path("runs/sft/adapter")


def test_a_file_is_no_place_for_a_run(rows: Path) -> None:
    del rows
    with pytest.raises(FailureError, match=r"rows\.jsonl cannot be a run's directory"):
        local.find_place(command("--run-directory=rows.jsonl"))


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
        (["--dataset=r", "--dataset-split=test"], "--dataset-split is for a dataset on the hub, which --dataset=r is"),
        (["--dataset=a/b", "--dataset-endpoint=http://x"], "--dataset-endpoint is for an object store"),
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
