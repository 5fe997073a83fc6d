"""Methods that compare the policy with what it was: the parent adapter before the run, or the plain base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from model.training.loop.layout import Batch, to_device
from model.training.loop.parts import TrainerParts
from model.training.loop.scoring import sequence_logps
from model.training.loop.trainer import TrainingLoop
from model.training.processes import parallel
from model.training.weights.adapters import Reference

REFERENCE_FILE = "reference.safetensors"


class ReferenceLogps:
    """The reference's log-probabilities of examples that have been seen; they stay on the device that computes them.

    Parameters
    ----------
    examples
        How many examples there are; 0 to remember none.
    device
        Where they are computed.
    """

    def __init__(self, examples: int, device: torch.device) -> None:
        self._examples, self._device = examples, device
        self._values: torch.Tensor | None = None
        self._seen: set[int] = set()

    def get(self, numbers: list[int]) -> torch.Tensor | None:
        """Return the log-probabilities of these examples' rows, (examples, rows); None when one has not been seen."""
        if self._values is None or not self._seen.issuperset(numbers):
            return None
        return self._values[self._places(numbers)]

    def put(self, numbers: list[int], logps: torch.Tensor) -> None:
        """Remember the log-probabilities of these examples' rows, (examples, rows)."""
        if not self._examples:
            return
        if self._values is None:
            self._values = logps.new_full((self._examples, logps.shape[1]), torch.nan)
        self._values[self._places(numbers)] = logps
        self._seen.update(numbers)

    def _places(self, numbers: list[int]) -> torch.Tensor:
        places: torch.Tensor = to_device({"places": torch.tensor(numbers)}, self._device)["places"]
        return places

    def save(self, path: Path) -> None:
        """Write what has been seen, so that a resumed run goes on with the same numbers."""
        if self._values is not None:
            save_file({"logps": self._values.cpu()}, path)

    def load(self, path: Path) -> None:
        """Read what `save` wrote, if it did."""
        if self._examples and path.is_file():
            values = load_file(path)["logps"]
            self._seen = set(values.isnan().any(dim=1).logical_not().nonzero().flatten().tolist())
            self._values = values.to(self._device)


class ComparingLoop(TrainingLoop):
    """The training loop with a reference, which draws no noise and whose numbers are computed once where that pays."""

    def start(self, parts: TrainerParts, examples: Any, held_out: Any) -> None:
        """Take over, see `TrainingLoop.start`."""
        super().start(parts, examples, held_out)
        self._as_reference = Reference(self.model)
        # The reference's numbers never change: those of an example that comes again are remembered.
        comes_again = parts.total_steps > parts.batches.steps_per_epoch and parallel.world().size == 1
        self._reference = ReferenceLogps(len(self.examples) if comes_again else 0, self.args.device)
        self._held_out_reference = ReferenceLogps(len(held_out), self.args.device)

    def compared(
        self, model: Any, batch: Batch, numbers: list[int], known: ReferenceLogps
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return log-probabilities of a batch's learned tokens by row: the policy's, the reference's, and their number.

        Parameters
        ----------
        model
            The policy.
        batch
            Rows that are laid out.
        numbers
            Which examples these are, for `known`.
        known
            What the reference has said before.

        Returns
        -------
        Three tensors, each (examples, rows of an example).
        """
        expected = known.get(numbers)
        if expected is None:
            with self._as_reference():
                expected = sequence_logps(self.model, batch)[0].view(-1, self.rows_per_example)
            known.put(numbers, expected)
        policy, tokens = sequence_logps(model, batch)
        return policy.view(expected.shape), expected, tokens.view(expected.shape)

    def _write_checkpoint(self, directory: Path) -> None:
        super()._write_checkpoint(directory)
        self._reference.save(directory / REFERENCE_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._reference.load(Path(resume_from_checkpoint) / REFERENCE_FILE)
