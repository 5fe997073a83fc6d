"""Checkpoints that are whole or absent, and the choice of the one to go on from.

A checkpoint is written under a temporary name, brought to the disk, and renamed. `checkpoint.json` in it holds
the SHA-256 of each file and the settings that must not differ for it to be continued.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from model import exits
from model.exits import FailureError
from model.files import digest_directory, publish_directory, write_json
from model.training.loop.fingerprint import changed
from model.training.processes import parallel

KEPT = 2
MANIFEST = "checkpoint.json"
RUN_STATE = "run_state.json"
HISTORY_POINTS = 32
FINAL_STEPS = 10

UNREADABLE = (OSError, ValueError, KeyError, TypeError)
"""What reading a checkpoint raises that is not whole."""

_UNFINISHED = ".tmp"
_NAME = re.compile(r"checkpoint-(\d+)")
_REQUIRED = (
    "adapter_model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "trainer_state.json",
)


@dataclass
class RunState:
    """What a run knows about its past beyond the weights: it goes into each checkpoint and comes back with it."""

    tokens: int = 0
    """Tokens that went through the model, padding not counted."""
    learned_tokens: int = 0
    """Those of them that had a loss."""
    padded_tokens: int = 0
    """All positions that went through the model, padding among them."""
    last_steps: list[tuple[int, float, int]] = field(default_factory=list)
    """Step, loss and weight of the last `FINAL_STEPS` steps: the learned tokens, or the pairs."""
    loss_history: list[tuple[int, float]] = field(default_factory=list)
    """Step and loss at `HISTORY_POINTS` evenly spaced steps, the first and the last among them."""
    timings: dict[str, str] = field(default_factory=dict)
    """Moments of the run's start, those of the first attempt that made a step."""
    best_evaluation_loss: float | None = None
    best_step: int | None = None
    """With early stopping, the step of that evaluation; its checkpoint is kept."""
    evaluations_without_best: int = 0
    base_evaluation_loss: float | None = None
    """The base model's, once it was measured."""
    evaluation_due: bool = False
    """An interruption cut this step's evaluation short."""
    stopped_early: bool = False
    micro_batch_size: int | None = None
    """Examples per forward pass, the longest ones. How a step is cut decides the last bits of its sums."""
    micro_batch_tokens: int | None = None
    """Tokens per forward pass, however many examples they are; None where examples are counted."""
    recompute: str | None = None
    """Which layers are computed again on the way back, see `recompute.Recompute`."""
    parts_per_batch: int = 1
    """Parts that each forward pass is cut into since the memory ran out."""
    left_out: int = 0
    """Steps whose loss or gradient was no number; they taught nothing."""
    left_out_in_a_row: list[int] = field(default_factory=list)
    """Those among them that were made last, without another in between."""
    arithmetic: dict[str, Any] = field(default_factory=dict)
    """How the attempt that saved it computed: device, precision, layout, threads."""

    def record_step(self, step: int, loss: float, weight: int, total_steps: int) -> None:
        """Take a finished step into account."""
        self.left_out_in_a_row = []
        self.last_steps = [*self.last_steps, (step, loss, weight)][-FINAL_STEPS:]
        if step in history_steps(total_steps):
            self.loss_history.append((step, loss))

    def record_left_out(self, step: int) -> int:
        """Take a step into account that taught nothing, and return how many of them there were in a row."""
        self.left_out += 1
        self.left_out_in_a_row = [*self.left_out_in_a_row, step]
        return len(self.left_out_in_a_row)

    def record_evaluation(self, loss: float) -> bool:
        """Take an evaluation into account, and return whether it is the best so far."""
        self.evaluation_due = False
        if self.best_evaluation_loss is None or loss < self.best_evaluation_loss:
            self.best_evaluation_loss = loss
            self.evaluations_without_best = 0
            return True
        self.evaluations_without_best += 1
        return False

    def final_loss(self) -> float:
        """Return the mean loss of the last steps, each learned token or pair counting the same."""
        total = sum(weight for _, _, weight in self.last_steps)
        return sum(loss * weight for _, loss, weight in self.last_steps) / total

    def history(self) -> list[tuple[int, float]]:
        """Return the loss history; after an early stop, the last step closes it."""
        step, loss, _ = self.last_steps[-1]
        if self.loss_history and self.loss_history[-1][0] == step:
            return self.loss_history
        return [*self.loss_history[: HISTORY_POINTS - 1], (step, loss)]


def history_steps(total_steps: int) -> set[int]:
    """Return the steps whose losses make the history."""
    if total_steps <= HISTORY_POINTS:
        return set(range(1, total_steps + 1))
    return {1 + round(index * (total_steps - 1) / (HISTORY_POINTS - 1)) for index in range(HISTORY_POINTS)}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been found whole."""

    path: Path
    step: int
    state: RunState


class CheckpointStore:
    """The checkpoints of one run.

    Parameters
    ----------
    directory
        Where they lie.
    fingerprint
        What must be the same for a checkpoint to be continued: settings, data, base model.
    processes
        How many processes train; each has random numbers of its own in a checkpoint.
    """

    def __init__(self, directory: Path, fingerprint: Mapping[str, Any], *, processes: int = 1) -> None:
        self._directory = directory
        self._fingerprint = dict(fingerprint)
        self._processes = processes
        self._broken: set[Path] = set()
        self._kept: set[Path] = set()
        self.troubles: list[str] = []
        """What went wrong and ends nothing: a person may want to know. Whoever tells it empties the list."""

    def path(self, step: int) -> Path:
        """Return where the checkpoint of a step lies."""
        return self._directory / f"checkpoint-{step}"

    def unfinished(self, step: int) -> Path:
        """Return where a step's checkpoint is made, before it gets its name."""
        return self._directory / f"checkpoint-{step}{_UNFINISHED}"

    def remove_leftovers(self) -> None:
        """Remove what a process left behind that was killed while it saved, as far as it is ours."""
        for path in self._directory.glob(f"*{_UNFINISHED}"):
            shutil.rmtree(path, ignore_errors=True)

    def newest_step(self) -> int:
        """Return the step of the newest checkpoint by its name, 0 without one; nothing is read."""
        return max((step for step, _ in self.candidates()), default=0)

    def newest(self, skipped: Callable[[str, str], None]) -> Checkpoint | None:
        """Return the newest checkpoint that is whole; `skipped` is told the name of each other one and why.

        Several processes look at those that the first one sees, and go on from one that each of them can read.

        Raises
        ------
        FailureError
            When it was made by another number of processes.
        """
        for step, path in parallel.gather(self.candidates())[0]:
            state, reason = self._look(path, step)
            reasons = parallel.gather(reason)
            if state is not None and not any(reasons):
                return Checkpoint(path, step, state)
            self._broken.add(path)
            rank, first = next((rank, text) for rank, text in enumerate(reasons) if text)
            skipped(path.name, first if rank == 0 else f"process {rank} of {len(reasons)} finds: {first}")
        return None

    def _look(self, path: Path, step: int) -> tuple[RunState | None, str]:
        """Return a checkpoint's state, or why it cannot be gone on from."""
        try:
            state = self._validate(path)
            if state.best_step not in (None, step):
                self._validate_best(state.best_step)
        except UNREADABLE as error:
            return None, str(error) or type(error).__name__
        return state, ""

    def save(self, step: int, state: RunState, write: Callable[[Path], None]) -> Path:
        """Save a checkpoint: `write` puts the trainer's files into the directory it is given.

        When that fails, the earlier checkpoints are as they were.
        """
        final = self.path(step)
        temporary = self.unfinished(step)
        shutil.rmtree(temporary, ignore_errors=True)
        if temporary.exists():  # another user's, but the directory that it lies in is ours
            temporary.rename(self.unfinished(step).with_name(f"{temporary.name}.{os.getpid()}{_UNFINISHED}"))
        temporary.mkdir(parents=True)
        try:
            write(temporary)
            write_json(temporary / RUN_STATE, asdict(state))
            files = {file.path: {"bytes": file.bytes, "sha256": file.sha256} for file in digest_directory(temporary)}
            write_json(
                temporary / MANIFEST,
                {"step": step, "processes": self._processes, "fingerprint": self._fingerprint, "files": files},
            )
            publish_directory(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)  # on a full disk, somebody may need the space
            raise
        self._broken.discard(final)
        self._remove_old(step)
        return final

    def candidates(self) -> list[tuple[int, Path]]:
        """Return step and place of all that are called checkpoints, the newest first; nothing is read."""
        if not self._directory.is_dir():
            return []
        found = [(match, path) for path in self._directory.iterdir() if (match := _NAME.fullmatch(path.name))]
        return sorted(((int(match[1]), path) for match, path in found), reverse=True)

    def _validate(self, path: Path) -> RunState:
        manifest = read_manifest(path)
        for key in changed(self._fingerprint, manifest["fingerprint"]):
            there, here = manifest["fingerprint"].get(key), self._fingerprint[key]
            raise ValueError(f"made with {key} {there}, the run has {here}")
        if manifest["processes"] != self._processes:
            raise FailureError(
                exits.INVALID_CONFIGURATION,
                "InvalidSpec",
                f"{path} was made by {_count(manifest['processes'])} and this run has {_count(self._processes)}: what "
                "comes next depends on that; train with as many GPUs or processes (--gpus, --processes) as "
                "before, or start a new run",
            )
        return read_whole(path, self._processes)

    def _validate_best(self, step: int | None) -> None:
        path = self.path(step or 0)
        try:
            self._validate(path)
        except UNREADABLE as error:
            raise ValueError(f"the best one so far, {path.name}, is broken: {error}") from error

    def _remove_old(self, newest: int) -> None:
        """Keep the newest whole ones and the best ones they refer to; a broken one takes no whole one's place."""
        older = [(step, path) for step, path in self.candidates() if step <= newest]
        kept = [(step, path) for step, path in older if path not in self._broken][:KEPT]
        wanted = {step for step, _ in kept} | {_best_step(path) for _, path in kept}
        for step, path in older:
            if step not in wanted and path not in self._kept:
                self._remove(path)

    def _remove(self, path: Path) -> None:
        """Remove a checkpoint; one that cannot be, because it is another user's, costs space and nothing else."""
        try:
            shutil.rmtree(path)
        except OSError as error:
            self._kept.add(path)
            self.troubles.append(
                f"the old checkpoint {path} cannot be removed ({error.strerror}) and takes space: remove it yourself"
            )
        else:
            self._broken.discard(path)


def read_manifest(path: Path) -> dict[str, Any]:
    """Return what a checkpoint says of itself: step, processes, fingerprint, files.

    Raises
    ------
    OSError, ValueError, KeyError, TypeError
        When there is no manifest, or it is not what `CheckpointStore.save` writes (`UNREADABLE`).
    """
    manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    if not (isinstance(manifest["fingerprint"], dict) and isinstance(manifest["files"], dict)):
        raise TypeError(f"{MANIFEST} is not what a trainer writes")
    return manifest


def read_whole(path: Path, processes: int) -> RunState:
    """Return a checkpoint's state, after comparing each file's digest with the manifest.

    Raises
    ------
    OSError, ValueError, KeyError, TypeError
        When something is missing or other than it was saved (`UNREADABLE`).
    """
    files = read_manifest(path)["files"]
    if absent := [name for name in _required(processes) if name not in files]:
        raise ValueError(f"lacks {', '.join(absent)}")
    found = {file.path: file for file in digest_directory(path)}
    for name, expected in files.items():
        if name not in found:
            raise ValueError(f"lacks {name}")
        if found[name].sha256 != expected["sha256"]:
            raise ValueError(f"{name} has {found[name].bytes} bytes and not the content that was saved")
    return _read_state(path / RUN_STATE)


def _best_step(path: Path) -> int | None:
    try:
        return _read_state(path / RUN_STATE).best_step
    except UNREADABLE:
        return None  # it is broken, and whoever wants to go on from it will be told


def generator_name(rank: int, processes: int) -> str:
    """Return the name of the file with the random numbers of one of the processes."""
    return "rng_state.pth" if processes == 1 else f"rng_state_{rank}.pth"


def _required(processes: int) -> list[str]:
    return [*_REQUIRED, *(generator_name(rank, processes) for rank in range(processes)), RUN_STATE]


def _count(processes: int) -> str:
    return "1 process" if processes == 1 else f"{processes} processes"


def _read_state(path: Path) -> RunState:
    """Return a state that any version of the trainer has saved: what is not known here is passed over."""
    saved: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    known = {one.name for one in fields(RunState)}
    state = RunState(**{name: value for name, value in saved.items() if name in known})
    state.last_steps = [(step, loss, weight) for step, loss, weight in state.last_steps]
    state.loss_history = [(step, loss) for step, loss in state.loss_history]
    return state
