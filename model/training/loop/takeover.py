"""Goes on from the checkpoint of another run (`--resume-from`), where a run has none of its own yet.

The newest whole checkpoint is copied into the run's own directory, and from then on it is the run's own: what the next
attempts go on from, whatever becomes of the other run. A process that is killed while it copies leaves nothing that
could be taken for a checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model import exits
from model.exits import FailureError
from model.files import RunDirectory, publish_directory, write_json
from model.training.config import TrainSettings
from model.training.loop import fingerprint
from model.training.loop.checkpoint import UNREADABLE, CheckpointStore, read_manifest, read_whole

RECORD = "resumed_from.json"
"""In the run's directory: which run's checkpoint it began with."""


@dataclass(frozen=True)
class OtherRun:
    """The run to go on from."""

    name: str
    directory: RunDirectory

    @property
    def title(self) -> str:
        """What to call it in a sentence."""
        return f"run {self.name}"


def other_run(settings: TrainSettings) -> OtherRun | None:
    """Return the run that the settings say to go on from, None without one."""
    path = settings.resume_from
    return None if path is None else OtherRun(settings.resume_from_run or path.resolve().name, RunDirectory(path))


def read_record(directory: RunDirectory) -> dict[str, Any] | None:
    """Return which run's checkpoint this run began with, as `{"run": name, "step": number}`; None with its own."""
    try:
        document = json.loads((directory.path / RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return document if isinstance(document, dict) and {"run", "step"} <= document.keys() else None


def look(other: OtherRun, here: Mapping[str, Any], processes: int) -> list[tuple[int, Path]]:
    """Return the steps and places of what may be a checkpoint to go on from, the newest first; nothing is copied.

    Parameters
    ----------
    other
        The run to go on from.
    here
        This run's fingerprint, or a part of it.
    processes
        How many processes train.

    Raises
    ------
    FailureError
        When the other run has finished, differs, or has saved nothing.
    """
    if other.directory.training_config.exists():
        raise _refused(
            f"{other.title} has finished, its adapter is {other.directory.adapter}: nothing is left to resume; name "
            "the adapter in spec.parentAdapter (--parent-adapter) to train it further, or leave spec.resumeFrom "
            "(--resume-from) out"
        )
    found = CheckpointStore(other.directory.checkpoints, {}).candidates()
    if not found:
        raise _unavailable(other, _nothing(other.directory))
    for _, path in found:
        with contextlib.suppress(*UNREADABLE):
            manifest = read_manifest(path)
            there = manifest["fingerprint"] | {"processes": manifest["processes"]}
            if told := fingerprint.differences({**here, "processes": processes}, there, other.title):
                raise _refused(
                    f"{'; '.join(told)}: to resume {other.title} all of that must be as it was there; set it so, or "
                    "leave spec.resumeFrom (--resume-from) out to train from the start"
                )
    return found


def take_over(
    other: OtherRun,
    directory: RunDirectory,
    here: Mapping[str, Any],
    processes: int,
    skipped: Callable[[str, str], None],
) -> int:
    """Copy the newest whole checkpoint of another run into a run's directory, and return its step.

    Parameters
    ----------
    other
        The run to go on from.
    directory
        This run's directory.
    here
        This run's fingerprint.
    processes
        How many processes train.
    skipped
        Is told the name of each checkpoint that is not whole, and why.

    Raises
    ------
    FailureError
        When there is none, or it was made with other settings.
    """
    reasons = []
    store = CheckpointStore(directory.checkpoints, {})
    for step, path in look(other, here, processes):
        try:
            steps = _copy(path, step, other, store)
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            skipped(path.name, str(error))
            reasons.append(f"{path.name}: {error}")
            continue
        write_json(directory.path / RECORD, {"run": other.name, "step": step})
        for one in steps:
            publish_directory(store.unfinished(one), store.path(one))
        return step
    raise _unavailable(other, f"none in {other.directory.checkpoints} is whole ({'; '.join(reasons)})")


def _copy(path: Path, step: int, other: OtherRun, store: CheckpointStore) -> list[int]:
    """Copy a checkpoint, and the best one that it refers to, under names that nobody takes for theirs.

    Returns their steps in the order in which they are to be published: when the process is killed in between, what is
    there already can be gone on from.
    """
    theirs = CheckpointStore(other.directory.checkpoints, {})
    made: list[int] = []
    try:
        state = _copy_one(path, step, store, made)
        if state.best_step not in (None, step):
            _copy_one(theirs.path(state.best_step), state.best_step, store, made)
    except BaseException:
        for one in made:
            shutil.rmtree(store.unfinished(one), ignore_errors=True)
        raise
    return made[::-1]


def _copy_one(path: Path, step: int, store: CheckpointStore, made: list[int]) -> Any:
    temporary = store.unfinished(step)
    shutil.rmtree(temporary, ignore_errors=True)
    made.append(step)
    temporary.mkdir(parents=True)
    for file in path.iterdir():
        shutil.copyfile(file, temporary / file.name)  # without the modes of a read-only volume
    return read_whole(temporary, read_manifest(temporary)["processes"])


def _nothing(directory: RunDirectory) -> str:
    if directory.checkpoints.is_dir():
        return f"{directory.checkpoints} holds none"
    missing = directory.checkpoints
    while not missing.parent.is_dir():
        missing = missing.parent
    return f"{missing} does not exist"


def _unavailable(other: OtherRun, why: str) -> FailureError:
    return FailureError(
        exits.DOES_NOT_EXIST,
        "CheckpointUnavailable",
        f"{other.title} has no whole checkpoint to resume from: {why}; leave spec.resumeFrom (--resume-from) out to "
        "train from the start",
    )


def _refused(text: str) -> FailureError:
    return FailureError(exits.INVALID_CONFIGURATION, "InvalidSpec", text)
