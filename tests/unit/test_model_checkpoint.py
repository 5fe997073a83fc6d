"""Which checkpoint a run goes on from, and what a run remembers."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from model.exits import FailureError
from model.files import sha256_of_files
from model.training.loop.checkpoint import CheckpointStore, RunState, history_steps

FILES = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
FINGERPRINT = {"seed": 1, "dataset": "abc"}


def write_files(directory: Path) -> None:
    for name in FILES:
        (directory / name).write_text(name)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path, FINGERPRINT)


def newest(store: CheckpointStore) -> tuple[int | None, dict[str, str]]:
    skipped: dict[str, str] = {}
    checkpoint = store.newest(skipped.__setitem__)
    return checkpoint.step if checkpoint else None, skipped


def test_without_a_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert newest(CheckpointStore(tmp_path / "none", FINGERPRINT)) == (None, {})


def test_the_newest_by_number_wins_and_brings_its_state(store: CheckpointStore) -> None:
    for step in (9, 10):
        store.save(step, RunState(tokens=step * 100, last_steps=[(step, 1.5, 20)]), write_files)
    checkpoint = store.newest(lambda name, reason: pytest.fail(f"{name}: {reason}"))
    assert checkpoint is not None
    assert checkpoint.step == 10
    assert checkpoint.state == RunState(tokens=1000, last_steps=[(10, 1.5, 20)])


def test_two_are_kept(store: CheckpointStore, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        store.save(step, RunState(), write_files)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2", "checkpoint-3"}


def test_what_a_crash_left_behind_is_no_checkpoint_and_does_not_disturb(store: CheckpointStore, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-5.tmp").mkdir()
    (tmp_path / "checkpoint-5.tmp" / "optimizer.pt").write_text("half")
    assert newest(store) == (None, {})
    store.save(5, RunState(), write_files)
    assert newest(store) == (5, {})


@pytest.mark.parametrize("name", [*FILES, "run_state.json"])
def test_a_changed_file_makes_it_broken(store: CheckpointStore, tmp_path: Path, name: str) -> None:
    store.save(1, RunState(), write_files)
    store.save(2, RunState(), write_files)
    (tmp_path / "checkpoint-2" / name).write_text("")
    step, skipped = newest(store)
    assert step == 1
    assert name in skipped["checkpoint-2"]


def test_a_missing_file_and_a_missing_manifest_make_it_broken(store: CheckpointStore, tmp_path: Path) -> None:
    for step in (1, 2):
        store.save(step, RunState(), write_files)
    (tmp_path / "checkpoint-2" / "rng_state.pth").unlink()
    (tmp_path / "checkpoint-3").mkdir()
    step, skipped = newest(store)
    assert step == 1
    assert skipped["checkpoint-2"] == "lacks rng_state.pth"
    assert "checkpoint.json" in skipped["checkpoint-3"]


def test_a_checkpoint_without_a_part_that_resuming_needs_is_broken(store: CheckpointStore) -> None:
    store.save(1, RunState(), lambda directory: (directory / "optimizer.pt").write_text("x") and None)
    assert newest(store)[1]["checkpoint-1"].startswith("lacks adapter_model.safetensors")


def test_other_settings_are_not_continued(store: CheckpointStore, tmp_path: Path) -> None:
    store.save(1, RunState(), write_files)
    other = CheckpointStore(tmp_path, {**FINGERPRINT, "dataset": "xyz"})
    assert newest(other) == (None, {"checkpoint-1": "made with dataset abc, the run has xyz"})


def names(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


def test_a_broken_one_takes_no_whole_ones_place(store: CheckpointStore, tmp_path: Path) -> None:
    store.save(4, RunState(), write_files)
    (tmp_path / "checkpoint-7").mkdir()
    assert newest(store)[0] == 4
    store.save(6, RunState(), write_files)
    assert names(tmp_path) == {"checkpoint-4", "checkpoint-6", "checkpoint-7"}
    store.save(8, RunState(), write_files)
    assert names(tmp_path) == {"checkpoint-6", "checkpoint-8"}


def test_the_best_one_is_kept_as_long_as_one_that_is_kept_refers_to_it(store: CheckpointStore, tmp_path: Path) -> None:
    for step, best in ((2, 2), (4, 2), (6, 2), (8, 8)):
        store.save(step, RunState(best_step=best), write_files)
    assert names(tmp_path) == {"checkpoint-2", "checkpoint-6", "checkpoint-8"}
    store.save(10, RunState(best_step=8), write_files)
    assert names(tmp_path) == {"checkpoint-8", "checkpoint-10"}


def test_a_checkpoint_whose_best_one_is_broken_is_not_continued(store: CheckpointStore, tmp_path: Path) -> None:
    store.save(2, RunState(best_step=2), write_files)
    for step in (3, 4):
        store.save(step, RunState(best_step=2), write_files)
    (tmp_path / "checkpoint-2" / "adapter_model.safetensors").write_text("")
    step, skipped = newest(store)
    assert step is None
    assert "the best one so far, checkpoint-2, is broken: adapter_model.safetensors" in skipped["checkpoint-4"]


@pytest.mark.parametrize("processes", [1, 2])
def test_another_number_of_processes_is_refused(tmp_path: Path, processes: int) -> None:
    def write(directory: Path) -> None:
        write_files(directory)
        for rank in range(2):
            (directory / f"rng_state_{rank}.pth").write_text("")

    CheckpointStore(tmp_path, FINGERPRINT, processes=2).save(3, RunState(), write)
    store = CheckpointStore(tmp_path, FINGERPRINT, processes=processes)
    if processes == 2:
        assert newest(store) == (3, {})
        return
    with pytest.raises(FailureError, match="made by 2 processes and this run has 1 process") as caught:
        newest(store)
    assert (caught.value.code, caught.value.reason) == (2, "InvalidSpec")


def test_each_process_must_have_left_its_random_numbers(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, FINGERPRINT, processes=2)
    store.save(3, RunState(), write_files)
    assert newest(store) == (None, {"checkpoint-3": "lacks rng_state_0.pth, rng_state_1.pth"})


def test_a_full_disk_leaves_the_older_one_and_nothing_half_done(store: CheckpointStore, tmp_path: Path) -> None:
    def fill(directory: Path) -> None:
        write_files(directory)
        with Path("/dev/full").open("w") as full:
            full.write("x")

    store.save(1, RunState(), write_files)
    with pytest.raises(OSError, match="No space left on device"):
        store.save(2, RunState(), fill)
    assert names(tmp_path) == {"checkpoint-1"}
    assert newest(store) == (1, {})


def test_leftovers_are_removed_and_the_newest_is_known_by_its_name(store: CheckpointStore, tmp_path: Path) -> None:
    assert store.newest_step() == 0
    store.save(1, RunState(), write_files)
    (tmp_path / "checkpoint-5.tmp").mkdir()
    (tmp_path / "checkpoint-5.tmp" / "optimizer.pt").write_text("half")
    store.remove_leftovers()
    assert names(tmp_path) == {"checkpoint-1"}
    assert store.newest_step() == 1


def test_a_broken_one_of_the_same_step_is_replaced(store: CheckpointStore, tmp_path: Path) -> None:
    store.save(2, RunState(), write_files)
    (tmp_path / "checkpoint-2" / "optimizer.pt").unlink()
    store.save(2, RunState(tokens=5), write_files)
    assert newest(store) == (2, {})


def test_the_final_loss_weighs_tokens_of_the_last_ten_steps() -> None:
    state = RunState()
    for step in range(1, 13):
        state.record_step(step, loss=float(step), weight=step, total_steps=12)
    steps = range(3, 13)
    assert state.final_loss() == pytest.approx(sum(step * step for step in steps) / sum(steps))


def test_the_final_loss_of_a_short_run_is_that_of_its_steps() -> None:
    state = RunState()
    state.record_step(1, loss=3.0, weight=1, total_steps=2)
    state.record_step(2, loss=1.0, weight=3, total_steps=2)
    assert state.final_loss() == pytest.approx(1.5)


@pytest.mark.parametrize("total", [1, 31, 32, 33, 100, 100_000])
def test_the_history_has_at_most_32_points_with_both_ends(total: int) -> None:
    steps = history_steps(total)
    assert len(steps) == min(total, 32)
    assert (min(steps), max(steps)) == (1, total)


def test_after_an_early_stop_the_last_step_closes_the_history() -> None:
    state = RunState()
    for step in range(1, 51):
        state.record_step(step, loss=1.0, weight=1, total_steps=1000)
    assert [step for step, _ in state.history()] == [1, 33, 50]


def test_evaluations_without_a_new_best_are_counted() -> None:
    state = RunState(evaluation_due=True)
    assert [state.record_evaluation(loss) for loss in (3.0, 2.0, 2.5, 2.0)] == [True, True, False, False]
    assert (state.best_evaluation_loss, state.evaluations_without_best, state.evaluation_due) == (2.0, 2, False)
    state.record_evaluation(1.9)
    assert state.evaluations_without_best == 0


@pytest.fixture
def of_others(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of directories that are another user's: they can be renamed and not removed."""
    names: set[str] = set()
    remove = shutil.rmtree

    def refuse(path: Path, ignore_errors: bool = False) -> None:
        if Path(path).name.partition(".")[0] not in names:
            remove(path, ignore_errors)
        elif not ignore_errors:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    return names


def test_an_old_one_that_cannot_be_removed_ends_nothing(
    store: CheckpointStore, tmp_path: Path, of_others: set[str]
) -> None:
    of_others |= {"checkpoint-1"}
    for step in (1, 2, 3, 4, 5):
        store.save(step, RunState(), write_files)
    assert names(tmp_path) == {"checkpoint-1", "checkpoint-4", "checkpoint-5"}
    (trouble,) = store.troubles  # once
    assert "checkpoint-1 cannot be removed (Permission denied)" in trouble


def test_one_that_cannot_be_removed_does_not_keep_a_step_from_being_saved(
    store: CheckpointStore, tmp_path: Path, of_others: set[str]
) -> None:
    store.save(2, RunState(), write_files)
    (tmp_path / "checkpoint-2" / "optimizer.pt").unlink()
    (tmp_path / "checkpoint-3.tmp").mkdir()
    of_others |= {"checkpoint-2", "checkpoint-3"}
    store.remove_leftovers()
    store.save(2, RunState(tokens=5), write_files)
    store.save(3, RunState(tokens=7), write_files)
    assert newest(store) == (3, {})
    assert {"checkpoint-2", "checkpoint-3"} <= names(tmp_path)


def test_states_of_other_versions_are_read(store: CheckpointStore, tmp_path: Path) -> None:
    store.save(1, RunState(tokens=5, last_steps=[(1, 1.5, 20)]), write_files)
    state = json.loads((tmp_path / "checkpoint-1" / "run_state.json").read_text())
    del state["left_out"], state["left_out_in_a_row"], state["arithmetic"]
    for changed in (state, state | {"a_field_to_come": [1, 2]}):
        rewrite(tmp_path / "checkpoint-1", {"run_state.json": changed})
        checkpoint = store.newest(lambda name, reason: pytest.fail(f"{name}: {reason}"))
        assert checkpoint is not None
        assert checkpoint.state == RunState(tokens=5, last_steps=[(1, 1.5, 20)])


def test_a_setting_that_came_later_had_its_default(tmp_path: Path) -> None:
    CheckpointStore(tmp_path, FINGERPRINT).save(1, RunState(), write_files)
    now = FINGERPRINT | {"weight_decay": 0.0, "max_gradient_norm": 1.0}
    assert newest(CheckpointStore(tmp_path, now)) == (1, {})
    reason = "made with weight_decay None, the run has 0.1"
    assert newest(CheckpointStore(tmp_path, now | {"weight_decay": 0.1})) == (None, {"checkpoint-1": reason})


def rewrite(checkpoint: Path, documents: dict[str, Any]) -> None:
    """Replace documents of a checkpoint as if they had been saved so."""
    manifest = json.loads((checkpoint / "checkpoint.json").read_text())
    for name, document in documents.items():
        (checkpoint / name).write_text(json.dumps(document))
        manifest["files"][name]["sha256"] = sha256_of_files([checkpoint / name])
    (checkpoint / "checkpoint.json").write_text(json.dumps(manifest))
