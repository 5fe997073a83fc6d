"""Checkpoints that are whole or absent, and the choice of the one to go on from.

A checkpoint is written under a temporary name, brought to the disk, and renamed. `checkpoint.json` in it holds
the SHA-256 of each file and the settings that must not differ for it to be continued.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from model.files import digest_directory, publish_directory, write_json

KEPT = 2
MANIFEST = "checkpoint.json"
RUN_STATE = "run_state.json"
HISTORY_POINTS = 32
FINAL_STEPS = 10

_NAME = re.compile(r"checkpoint-(\d+)")
_REQUIRED = (
    "adapter_model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    RUN_STATE,
)


@dataclass
class RunState:
    """What a run knows about its past beyond the weights: it goes into each checkpoint and comes back with it."""

    tokens: int = 0
    """Tokens that went through the model, padding not counted."""
    last_steps: list[tuple[int, float, int]] = field(default_factory=list)
    """Step, loss and learned tokens of the last `FINAL_STEPS` steps."""
    loss_history: list[tuple[int, float]] = field(default_factory=list)
    """Step and loss at `HISTORY_POINTS` evenly spaced steps, the first and the last among them."""
    timings: dict[str, str] = field(default_factory=dict)
    """Moments of the run's start, those of the first attempt that made a step."""
    best_evaluation_loss: float | None = None
    evaluations_without_best: int = 0
    evaluation_due: bool = False
    """An interruption cut this step's evaluation short."""
    stopped_early: bool = False

    def record_step(self, step: int, loss: float, learned_tokens: int, total_steps: int) -> None:
        """Take a finished step into account."""
        self.last_steps = [*self.last_steps, (step, loss, learned_tokens)][-FINAL_STEPS:]
        if step in history_steps(total_steps):
            self.loss_history.append((step, loss))

    def record_evaluation(self, loss: float) -> None:
        """Take an evaluation into account."""
        self.evaluation_due = False
        if self.best_evaluation_loss is None or loss < self.best_evaluation_loss:
            self.best_evaluation_loss = loss
            self.evaluations_without_best = 0
        else:
            self.evaluations_without_best += 1

    def final_loss(self) -> float:
        """Return the mean loss of the last steps, each learned token counting the same."""
        total = sum(tokens for _, _, tokens in self.last_steps)
        return sum(loss * tokens for _, loss, tokens in self.last_steps) / total

    def history(self) -> list[tuple[int, float]]:
        """Return the loss history; after an early stop, the last step closes it."""
        step, loss, _ = self.last_steps[-1]
        if self.loss_history[-1][0] == step:
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
    """

    def __init__(self, directory: Path, fingerprint: Mapping[str, Any]) -> None:
        self._directory = directory
        self._fingerprint = dict(fingerprint)

    def newest(self, skipped: Callable[[str, str], None]) -> Checkpoint | None:
        """Return the newest whole checkpoint; `skipped` is told the name of each broken one and why."""
        for step, path in self._candidates():
            try:
                return Checkpoint(path, step, self._validate(path))
            except (OSError, ValueError, KeyError, TypeError) as error:
                skipped(path.name, str(error))
        return None

    def save(self, step: int, state: RunState, write: Callable[[Path], None]) -> Path:
        """Save a checkpoint: `write` puts the trainer's files into the directory it is given."""
        final = self._directory / f"checkpoint-{step}"
        temporary = final.with_name(final.name + ".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write(temporary)
        write_json(temporary / RUN_STATE, asdict(state))
        files = {file.path: {"bytes": file.bytes, "sha256": file.sha256} for file in digest_directory(temporary)}
        write_json(temporary / MANIFEST, {"step": step, "fingerprint": self._fingerprint, "files": files})
        publish_directory(temporary, final)
        self._remove_old(step)
        return final

    def _candidates(self) -> list[tuple[int, Path]]:
        if not self._directory.is_dir():
            return []
        found = [(match, path) for path in self._directory.iterdir() if (match := _NAME.fullmatch(path.name))]
        return sorted(((int(match[1]), path) for match, path in found), reverse=True)

    def _validate(self, path: Path) -> RunState:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        for key, value in self._fingerprint.items():
            if manifest["fingerprint"].get(key) != value:
                raise ValueError(f"made with {key} {manifest['fingerprint'].get(key)}, the run has {value}")
        if absent := [name for name in _REQUIRED if name not in manifest["files"]]:
            raise ValueError(f"lacks {', '.join(absent)}")
        found = {file.path: file for file in digest_directory(path)}
        for name, expected in manifest["files"].items():
            if name not in found:
                raise ValueError(f"lacks {name}")
            if found[name].sha256 != expected["sha256"]:
                raise ValueError(f"{name} has {found[name].bytes} bytes and not the content that was saved")
        return _read_state(path / RUN_STATE)

    def _remove_old(self, newest: int) -> None:
        whole = [(step, path) for step, path in self._candidates() if step <= newest]
        for _, path in whole[KEPT:]:
            shutil.rmtree(path)


def _read_state(path: Path) -> RunState:
    values = json.loads(path.read_text(encoding="utf-8"))
    state = RunState(**values)
    state.last_steps = [(step, loss, tokens) for step, loss, tokens in state.last_steps]
    state.loss_history = [(step, loss) for step, loss in state.loss_history]
    return state
