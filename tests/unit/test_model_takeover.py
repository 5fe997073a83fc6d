"""Going on from another run's checkpoint: which one it is, what is refused, and what a kill in between leaves."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from model import exits
from model.exits import FailureError
from model.files import RunDirectory, publish_directory
from model.training.loop import fingerprint, takeover
from model.training.loop.checkpoint import CheckpointStore, RunState
from model.training.loop.takeover import OtherRun
from model.training.output import metrics

FILES = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
FINGERPRINT: dict[str, Any] = {"learning_rate": 1e-4, "lora_rank": 8, "dataset": "abc", "tokens": "t"}


def write_files(directory: Path) -> None:
    for name in FILES:
        (directory / name).write_text(f"{name} of {directory.name}")


@pytest.fixture
def other(tmp_path: Path) -> OtherRun:
    """A run with checkpoints of steps 4 and 6; the earlier one is the best so far."""
    run = OtherRun("support-7", RunDirectory(tmp_path / "other"))
    store = CheckpointStore(run.directory.checkpoints, FINGERPRINT)
    for step in (4, 6):
        store.save(step, RunState(tokens=step, best_step=4), write_files)
    return run


@pytest.fixture
def own(tmp_path: Path) -> RunDirectory:
    (tmp_path / "own").mkdir()
    return RunDirectory(tmp_path / "own")


def take(other: OtherRun, own: RunDirectory, **changes: Any) -> tuple[int, dict[str, str]]:
    skipped: dict[str, str] = {}
    step = takeover.take_over(other, own, FINGERPRINT | changes, 1, skipped.__setitem__)
    return step, skipped


def newest(own: RunDirectory) -> tuple[int, int] | None:
    found = CheckpointStore(own.checkpoints, FINGERPRINT).newest(lambda *_: None)
    return (found.step, found.state.tokens) if found else None


def names(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


def test_the_newest_is_taken_with_the_best(other: OtherRun, own: RunDirectory) -> None:
    before = {path: path.read_bytes() for path in other.directory.path.rglob("*") if path.is_file()}
    assert take(other, own) == (6, {})
    assert newest(own) == (6, 6)
    assert names(own.checkpoints) == {"checkpoint-4", "checkpoint-6"}
    assert takeover.read_record(own) == {"run": "support-7", "step": 6}
    assert before == {path: path.read_bytes() for path in other.directory.path.rglob("*") if path.is_file()}
    shutil.rmtree(other.directory.path)
    assert newest(own) == (6, 6)


def test_without_early_stopping_one_is_enough(tmp_path: Path, own: RunDirectory) -> None:
    other = OtherRun("a", RunDirectory(tmp_path / "a"))
    for step in (1, 2):
        CheckpointStore(other.directory.checkpoints, FINGERPRINT).save(step, RunState(), write_files)
    assert take(other, own) == (2, {})
    assert names(own.checkpoints) == {"checkpoint-2"}


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: (path / "optimizer.pt").write_text("x"), "optimizer.pt has 1 bytes"),
        (lambda path: (path / "scheduler.pt").unlink(), "lacks scheduler.pt"),
        (lambda path: (path / "checkpoint.json").write_text("{"), "Expecting"),
        (lambda path: (path / "checkpoint.json").write_text("{}"), "fingerprint"),
        (lambda path: (path / "checkpoint.json").write_text('{"fingerprint": 1, "files": {}}'), "no trainer"),
        (lambda path: (path / "checkpoint.json").write_text("[]"), ""),
        (lambda path: (path / "checkpoint.json").unlink(), "No such file"),
    ],
    ids=["cut", "lacking", "half-manifest", "empty-manifest", "strange-manifest", "list", "no-manifest"],
)
def test_a_broken_one_is_left_out(other: OtherRun, own: RunDirectory, damage: Any, reason: str) -> None:
    damage(other.directory.checkpoints / "checkpoint-6")
    step, skipped = take(other, own)
    assert (step, [*skipped]) == (4, ["checkpoint-6"])
    assert reason in skipped["checkpoint-6"] or reason == "no trainer"
    assert names(own.checkpoints) == {"checkpoint-4"}


def test_when_the_best_one_is_broken_what_refers_to_it_is_left_out(other: OtherRun, own: RunDirectory) -> None:
    (other.directory.checkpoints / "checkpoint-4" / "optimizer.pt").write_text("x")
    with pytest.raises(FailureError) as caught:
        take(other, own)
    assert (caught.value.code, caught.value.reason) == (exits.DOES_NOT_EXIST, "CheckpointUnavailable")
    for words in ("run support-7", str(other.directory.checkpoints), "checkpoint-6: optimizer.pt has 1 bytes"):
        assert words in caught.value.message
    assert not names(own.checkpoints)
    assert takeover.read_record(own) is None


@pytest.mark.parametrize(
    ("left", "words"),
    [("", "other does not exist"), ("empty", "checkpoints does not exist"), ("checkpoints", "checkpoints holds none")],
)
def test_where_there_is_none_the_place_is_named(other: OtherRun, own: RunDirectory, left: str, words: str) -> None:
    shutil.rmtree(other.directory.path)
    if left:
        (other.directory.path / left).mkdir(parents=True)
    with pytest.raises(
        FailureError, match=f"run support-7 has no whole checkpoint .*{words}; leave spec.resumeFrom"
    ) as it:
        take(other, own)
    assert (it.value.code, it.value.reason) == (exits.DOES_NOT_EXIST, "CheckpointUnavailable")


def test_everything_that_differs_is_told_at_once(other: OtherRun, own: RunDirectory) -> None:
    with pytest.raises(FailureError) as caught:
        takeover.take_over(other, own, {**FINGERPRINT, "learning_rate": 2e-4, "lora_rank": None}, 2, lambda *_: None)
    assert (caught.value.code, caught.value.reason) == (exits.INVALID_CONFIGURATION, "InvalidSpec")
    for words in (
        "spec.training.learningRate (--learning-rate) is 0.0002 here and 0.0001 in run support-7",
        "spec.lora.rank (--lora-rank) is not set here and 8 in run support-7",
        "spec.resources.gpus (--gpus, --processes) is 2 here and 1 in run support-7",
    ):
        assert words in caught.value.message
    assert not own.checkpoints.exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, []),
        ({"seed": 2}, ["spec.training.seed"]),
        ({"tokens": "u"}, ["the digest of the rows as tokens"]),
        ({"tokens": "u", "dataset": "x"}, ["the digest of spec.dataset's rows"]),
        ({"tokens": "u", "max_length": 9}, ["spec.training.maxLength"]),
        ({"base_model": "b", "base_model_files": "y"}, ["spec.baseModel"]),
        ({"total_steps": 60}, ["the number of steps"]),
        ({"lora_target_modules": ["q_proj", "k_proj"]}, ["spec.lora.targetModules"]),
    ],
)
def test_what_follows_from_another_difference_is_not_told(changes: dict[str, Any], told: list[str]) -> None:
    there = {
        "seed": 1, "tokens": "t", "dataset": "d", "max_length": 8, "base_model": "a", "base_model_files": "x",
        "total_steps": 55, "lora_target_modules": ["all-linear"],
    }  # fmt: skip
    found = fingerprint.differences({**there, **changes}, there, "run a")
    assert [one.split(" (")[0].split(" by ")[0] for one in found] == told


def test_everything_that_a_fingerprint_may_hold_has_a_name() -> None:
    from model.training.config import TrainSettings

    settings = TrainSettings.model_validate({"method": "SFT", "run_directory": "r", "run_uid": "u", "base_model": "b"})
    for name in (*fingerprint.of_settings(settings), *fingerprint._FOUND):
        (phrase,) = fingerprint.differences({name: 1}, {name: 2}, "run a")
        assert "--" in phrase
        assert phrase.endswith(" is 1 here and 2 in run a")


def test_a_finished_run_has_nothing_to_resume(other: OtherRun, own: RunDirectory) -> None:
    other.directory.training_config.write_text("{}")
    with pytest.raises(
        FailureError, match=r"run support-7 has finished, its adapter is .*/other/adapter: .*parentAdapter"
    ) as it:
        take(other, own)
    assert it.value.code == exits.INVALID_CONFIGURATION


def test_a_full_disk_leaves_nothing_half_done(
    other: OtherRun, own: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = []

    def fill(source: Path, target: Path) -> None:
        copied.append(target)
        if len(copied) == 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        target.write_bytes(source.read_bytes())

    monkeypatch.setattr(shutil, "copyfile", fill)
    with pytest.raises(OSError, match="No space left"):
        take(other, own)
    assert not names(own.checkpoints)


@pytest.mark.parametrize("published", [0, 1])
def test_a_kill_in_between_leaves_what_can_be_gone_on_from(
    other: OtherRun, own: RunDirectory, published: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing, or the best one; the next attempt removes what is half done, and takes the checkpoint over again."""
    done: list[Path] = []

    def killed(temporary: Path, final: Path) -> None:
        if len(done) == published:
            raise KeyboardInterrupt
        done.append(final)
        publish_directory(temporary, final)

    monkeypatch.setattr(takeover, "publish_directory", killed)
    with pytest.raises(KeyboardInterrupt):
        take(other, own)
    monkeypatch.undo()
    CheckpointStore(own.checkpoints, {}).remove_leftovers()
    assert newest(own) == ((4, 4) if published else None)
    assert take(other, own) == (6, {})
    assert newest(own) == (6, 6)


def test_the_steps_told_so_far_come_along(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs.jsonl", tmp_path / "ours.jsonl"
    lines = [
        {"event": "start"}, {"event": "train", "step": 1}, {"event": "train", "step": 2},
        {"event": "checkpoint", "step": 2}, {"event": "train", "step": 3}, {"event": "error", "reason": "OutOfMemory"},
    ]  # fmt: skip
    theirs.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"event": "tra')
    ours.write_text('{"event": "start"}\n{"event": "train", "step": 1}\n')
    metrics.carry_over(theirs, ours, 2)
    told = [json.loads(line) for line in ours.read_text().splitlines()]
    assert told == [*lines[1:4], {"event": "start"}]
    metrics.carry_over(tmp_path / "nowhere", ours, 2)
    assert len(ours.read_text().splitlines()) == 4


def test_the_name_is_that_of_the_directory_when_nothing_is_said(tmp_path: Path) -> None:
    from model.training.config import TrainSettings

    values = {"method": "SFT", "run_directory": "r", "run_uid": "u", "base_model": "b", "resume_from": tmp_path / "old"}
    assert takeover.other_run(TrainSettings.model_validate(values)) == OtherRun("old", RunDirectory(tmp_path / "old"))
    named = takeover.other_run(TrainSettings.model_validate({**values, "resume_from_run": "support-7"}))
    assert named is not None
    assert named.name == "support-7"
    with pytest.raises(ValueError, match="--resume-from-run needs --resume-from"):
        TrainSettings.model_validate({**values, "resume_from": None, "resume_from_run": "support-7"})
