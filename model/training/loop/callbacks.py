"""What happens at each step's end: the checkpoint that is due, the evaluation that is due, and SIGTERM."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class StepEnd(TrainerCallback):
    """Decides after each optimizer step what the trainer does next.

    Parameters
    ----------
    trainer
        The trainer that runs the loop.
    checkpoint_steps
        Steps between checkpoints.
    evaluation_steps
        Steps between evaluations, None for none.
    evaluate_last
        Whether the last step is evaluated like any other, because it may be the best; else the run's end does it.
    """

    def __init__(
        self, trainer: Any, *, checkpoint_steps: int, evaluation_steps: int | None, evaluate_last: bool
    ) -> None:
        self._trainer = trainer
        self._checkpoint_steps = checkpoint_steps
        self._evaluation_steps = evaluation_steps
        self._evaluate_last = evaluate_last

    def on_epoch_begin(
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_rest: Any
    ) -> None:
        """Give the rows the order of this epoch."""
        batches = self._trainer.batches
        batches.epoch = state.global_step // batches.steps_per_epoch

    def on_step_begin(
        self, _args: TrainingArguments, _state: TrainerState, _control: TrainerControl, **_rest: Any
    ) -> None:
        """Let the trainer note where the step starts."""
        self._trainer.start_step()

    def on_step_end(self, _args: TrainingArguments, state: TrainerState, control: TrainerControl, **_rest: Any) -> None:
        """Let the step be told, and ask for what is due; the trainer evaluates and saves in this order."""
        self._trainer.stop_clock()
        self._trainer.finish_step()
        last = state.global_step >= state.max_steps
        due = self._evaluation_is_due(state.global_step, last=last)
        if self._trainer.interrupted():
            self._trainer.run_state.evaluation_due = due
            control.should_save = True
            control.should_training_stop = True
            return
        control.should_save = last or state.global_step % self._checkpoint_steps == 0
        control.should_evaluate = due

    def _evaluation_is_due(self, step: int, *, last: bool) -> bool:
        if self._evaluation_steps is None:
            return False
        return self._evaluate_last if last else step % self._evaluation_steps == 0
