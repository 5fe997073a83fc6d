"""What a trainer is built of."""

from __future__ import annotations

from dataclasses import dataclass

from model.training.config import TrainSettings
from model.training.loop.batches import StepBatches
from model.training.loop.checkpoint import CheckpointStore, RunState
from model.training.loop.layout import Collator
from model.training.output.progress import PeerLog, ProgressLog, StatusPoster


class StepGivenUpError(Exception):
    """SIGTERM came and the step in progress does not end in time: what it has done so far is thrown away."""


@dataclass(frozen=True)
class TrainerParts:
    """What a trainer works with, apart from the model and the rows."""

    settings: TrainSettings
    total_steps: int
    batches: StepBatches
    collator: Collator
    checkpoints: CheckpointStore
    log: ProgressLog | PeerLog
    poster: StatusPoster | None
    state: RunState
