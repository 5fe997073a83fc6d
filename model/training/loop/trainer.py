"""The training loop that the methods share: TRL's, with what it leaves to wish for put right.

Losses are means over tokens, within a step and over the held-out rows. A step is redone in smaller parts when
the GPU's memory does not suffice. Checkpoints are whole or absent, progress is told in JSON lines.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerState, set_seed

from model import gpus
from model.training.loop import fitting, generators, memory, nonfinite
from model.training.loop.callbacks import StepEnd
from model.training.loop.checkpoint import Checkpoint, generator_name
from model.training.loop.held_out import HeldOut, check_finite
from model.training.loop.layout import count_rows, count_tokens, split
from model.training.loop.parts import StepGivenUpError, TrainerParts
from model.training.loop.schedule import share_of_peak
from model.training.output.progress import RunStatus
from model.training.processes import hang, interruption, parallel
from model.training.weights import adapter_layers


class TrainingLoop(Trainer):
    """What a method's trainer has beside its loss. It stands before TRL's class in the list of bases.

    Call `start` at the end of the construction. A method gives `compute_loss`, `measure` and `mean_loss`.
    """

    rows_per_example = 1
    lr_scheduler: Any

    def start(self, parts: TrainerParts, held_out: Any, lengths: Sequence[int]) -> None:
        """Take over: from now on the loop follows `parts`.

        Parameters
        ----------
        parts
            What the loop works with.
        held_out
            Examples to evaluate on, a `datasets.Dataset` whose items the collator takes.
        lengths
            The number of tokens of each of them.
        """
        # Our loss is divided by the step's items, whatever the model's own and TRL's do.
        self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = True
        adapter_layers.fuse(self.model)
        self.parts = parts
        self.batches = parts.batches
        self.run_state = parts.state
        self._held_out = HeldOut(held_out, lengths, rows_per_example=self.rows_per_example)
        self._status = RunStatus(parts.poster, parts.log.attempt)
        self._saved_step = 0
        self._step_items = self._step_tokens = self._learned_tokens = self._padded_tokens = 0
        self._step_started = self._step_seconds = 0.0
        self._step_generators: tuple[Any, ...] = ()
        self._measured: list[dict[str, Any]] = []
        self._step_loss: Any = 0.0
        self._left_out = False
        self._given_up = self._interrupted = False
        parallel.share(self.trained)
        if not parallel.world().first:
            set_seed((parts.settings.seed + parallel.world().rank) % 2**32)  # noise of its own
        settings = parts.settings
        self.add_callback(
            StepEnd(
                self,
                checkpoint_steps=settings.checkpoint_steps,
                evaluation_steps=settings.evaluation_steps if len(held_out) else None,
                evaluate_last=settings.early_stopping_patience is not None,
            )
        )

    def train_from(self, checkpoint: Checkpoint | None) -> None:
        """Train until the last step, an early stop or SIGTERM; afterwards all that was made is on the disk."""
        self._saved_step = checkpoint.step if checkpoint else 0
        self._status.started(self._saved_step)
        try:
            self.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)
        except StepGivenUpError:
            self.model.zero_grad()
            if self.state.global_step > self._saved_step:
                generators.restore(self._step_generators)
                self.save_checkpoint()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take the adapter and the step of a checkpoint that is only to be evaluated or finished."""
        self._load_from_checkpoint(str(checkpoint.path))
        self.state = TrainerState.load_from_json(str(checkpoint.path / "trainer_state.json"))

    def take_best(self) -> int | None:
        """With early stopping, take the adapter of the best evaluation and return its step; else None."""
        best = self.run_state.best_step
        if best is not None and best != self.state.global_step:
            self._load_from_checkpoint(str(self.parts.checkpoints.path(best)))
        return best

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of micro-batches; its own generator keeps it from drawing from the training's.

        The loop asks for it when the model is as it will be trained, and before it counts micro-batches: what fits a
        GPU is found here.
        """
        if self.parts.probe:
            fitting.on_gpu(self)
        return DataLoader(
            self.train_dataset,
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            generator=torch.Generator(),
            pin_memory=self.args.device.type == "cuda",
        )

    def use_micro_batches(self, size: int) -> None:
        """Send that many examples through the model at once from now on; not to be called during training."""
        self.batches.micro_batch_size = self.run_state.micro_batch_size = size
        settings = self.parts.settings.model_copy(update={"micro_batch_size": size})
        self.parts = dataclasses.replace(self.parts, settings=settings)
        self.args.per_device_train_batch_size = self._train_batch_size = size
        self.args.gradient_accumulation_steps = self.batches.micro_batches_per_step

    def try_backward(self, rows: Sequence[int]) -> None:
        """Send examples forward and backward, and leave nothing of it behind but random numbers that were drawn."""
        batch = self.data_collator([self.train_dataset[row] for row in rows])
        try:
            super().training_step(self.model, batch, len(rows))
        finally:
            self.model.zero_grad()
            self._measured.clear()

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Let the learning rate follow the settings' schedule."""
        if self.lr_scheduler is None:
            share = functools.partial(
                share_of_peak,
                schedule=self.parts.settings.schedule,
                warmup_steps=self.args.get_warmup_steps(num_training_steps),
                total_steps=num_training_steps,
            )
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, share)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """Return the micro-batches of a step and the number of items that its loss is divided by.

        Items are the tokens that it learns; a method whose items are others counts those tokens besides.
        """
        self.start_clock()
        samples, items = super().get_batch_samples(*args, **kwargs)
        self._measured.clear()
        self._step_loss = 0.0
        full = [batch for batch in samples if count_rows(batch)]
        self._step_items, self._step_tokens, self._padded_tokens = parallel.totals(
            int(items),
            sum(count_tokens(batch) for batch in full),
            sum(batch["input_ids"].numel() for batch in full),
        )
        self._learned_tokens = self._step_items
        return samples, items if parallel.world().size == 1 else self._step_items

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Go forward and backward; when the GPU's memory does not suffice, again in halves, and so from then on.

        The loss is divided by the step's tokens whatever the parts, so that the gradient stays the same.
        """
        if self._given_up or not count_rows(inputs):
            return torch.zeros((), device=self.args.device)  # and take part in what all do at the step's end
        try:
            loss = self._step_in_parts(model, inputs, num_items_in_batch)
        except StepGivenUpError:
            if parallel.world().size == 1:
                raise
            self._given_up = True  # the others are to hear of it
            return torch.zeros((), device=self.args.device)
        self._step_loss = self._step_loss + loss
        return loss

    def _step_in_parts(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any) -> torch.Tensor:
        before = [None if p.grad is None else p.grad.clone() for p in self.trained]
        measured = len(self._measured)
        while True:
            with_generators = generators.states()
            loss = self._try_in_parts(model, inputs, num_items_in_batch)
            if loss is not None:
                return loss
            # Only now is the exception gone, and with it the traceback that kept the activations alive.
            for parameter, gradient in zip(self.trained, before, strict=True):
                parameter.grad = None if gradient is None else gradient.clone()
            generators.restore(with_generators)
            del self._measured[measured:]
            if self.args.device.type == "cuda":
                torch.cuda.empty_cache()  # blocks of other sizes would stand in the way
            self.run_state.parts_per_batch *= 2
            self.parts.log.emit(
                "outOfMemory", step=self.state.global_step + 1, partsPerBatch=self.run_state.parts_per_batch
            )

    def _clip_grad_norm(self, model: Any) -> Any:
        """Add up the gradients of all processes first; throw them away afterwards when they are no numbers."""
        self._agree()
        parallel.add_gradients(self.trained)
        norm = super()._clip_grad_norm(model)
        self._left_out = not (math.isfinite(norm) and math.isfinite(self._step_loss))
        if self._left_out:
            for parameter in self.trained:
                parameter.grad = None  # the optimizer passes over what has none: no weight and no moment changes
        return norm

    def _agree(self) -> None:
        """Let all processes know of each one's share of the step, and do the same from here on.

        Raises
        ------
        StepGivenUpError
            When one of them has given the step up.
        """
        self._interrupted = interruption.requested()
        if parallel.world().size == 1:
            return
        measured = [{name: float(value) for name, value in part.items()} for part in self._measured]
        mine = self._given_up, self._interrupted, self.run_state.parts_per_batch, float(self._step_loss), measured
        given_up, interrupted, parts, losses, parts_measured = zip(*parallel.gather(mine), strict=True)
        if self._interrupted or any(interrupted):
            self._interrupted = True
            interruption.request()
        self._given_up = False
        if any(given_up):
            raise StepGivenUpError
        if max(parts) > self.run_state.parts_per_batch:  # so that the next attempt cuts as this one does
            self.run_state.parts_per_batch = max(parts)
            self.parts.log.emit("outOfMemory", step=self.state.global_step + 1, partsPerBatch=max(parts))
        self._step_loss = sum(losses)
        self._measured[:] = [part for share in parts_measured for part in share]

    def interrupted(self) -> bool:
        """Whether the run is to stop after the step in progress; all processes get the same answer."""
        return self._interrupted if parallel.world().size > 1 else interruption.requested()

    @functools.cached_property
    def trained(self) -> list[torch.nn.Parameter]:
        """The adapter's weights; found once, for looking through all modules takes a percent of a small step."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _try_in_parts(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any) -> torch.Tensor | None:
        parts = split(inputs, self.run_state.parts_per_batch, rows_per_example=self.rows_per_example)
        total: Any = 0.0
        try:
            for part in parts:
                if interruption.overdue():
                    raise StepGivenUpError
                total = total + super().training_step(model, part, num_items_in_batch)
                hang.alive()
        except RuntimeError as error:
            if not gpus.out_of_memory(error):
                raise
            if len(parts) * self.rows_per_example >= count_rows(inputs):
                raise memory.too_large(self.parts.settings.max_length) from error
            return None
        loss: torch.Tensor = total
        return loss

    def start_step(self) -> None:
        """Note the random numbers that the step starts with."""
        self._step_generators = generators.states()
        if parallel.world().size == 1 and interruption.requested():
            raise StepGivenUpError

    def start_clock(self) -> None:
        """Start the step's clock, before its rows are loaded."""
        self._step_started = time.monotonic()

    def stop_clock(self) -> None:
        """Stop the step's clock, before evaluation and checkpoint."""
        if self.args.device.type == "cuda":
            torch.cuda.synchronize()  # the way back is still going on there
        self._step_seconds = time.monotonic() - self._step_started

    def log(self, logs: dict[str, float], *_start_time: float | None) -> None:
        """Record and report a finished step; what the trainer logs besides is left out.

        Raises
        ------
        FailureError
            When steps without a finite loss and gradient end the run; what was learned before is saved.
        """
        if "loss" not in logs:
            return
        step, loss, norm = self.state.global_step, float(self._step_loss), logs["grad_norm"]
        if "firstStepTime" not in self.run_state.timings:
            from model.training.processes.process import timestamp

            self.run_state.timings["firstStepTime"] = timestamp()
        self.run_state.tokens += self._step_tokens
        self.run_state.learned_tokens += self._learned_tokens
        self.run_state.padded_tokens += self._padded_tokens
        hang.step_made(step, self._step_seconds)
        if self._left_out:
            nonfinite.leave_out(self, step, loss, norm)
            return
        self.run_state.record_step(step, loss, self._step_items, self.parts.total_steps)
        self._report(step, loss, norm, logs["learning_rate"])

    def _report(self, step: int, loss: float, norm: float, learning_rate: float) -> None:
        measured = {
            "loss": loss,
            "learningRate": learning_rate,
            "gradientNorm": norm,
            "tokensPerSecond": round(self._step_tokens / self._step_seconds, 1),
            **self.step_metrics(),
        }
        total_steps, epoch = self.parts.total_steps, step / self.batches.steps_per_epoch
        self.parts.log.emit(
            "train",
            step=step,
            totalSteps=total_steps,
            epoch=round(epoch, 4),
            tokens=self._step_tokens,
            learnedTokens=self._learned_tokens,
            paddedTokens=self._padded_tokens,
            **measured,
        )
        self._status.step_made(step, total_steps, {"epoch": epoch, **measured})

    def evaluate(self, *_args: Any, **_kwargs: Any) -> dict[str, float]:
        """Evaluate in the middle of training, record it, and stop early when it is time for that."""
        self.control.should_evaluate = False  # else the end of the epoch would ask for it again
        self.run_state.evaluation_due = True
        loss = self.held_out_loss(stop_when_interrupted=True)
        if loss is None:
            self.control.should_save = self.control.should_training_stop = True
            return {}
        step = self.state.global_step
        self.parts.log.emit("evaluation", step=step, loss=loss)
        check_finite(loss, step)
        self._status.evaluated(loss)
        is_best = self.run_state.record_evaluation(loss)
        patience = self.parts.settings.early_stopping_patience
        if patience is not None and is_best:
            self.run_state.best_step = step
            self.control.should_save = True
        learned = bool(self.run_state.last_steps)  # steps that were left out could not make it any better
        if patience is not None and learned and self.run_state.evaluations_without_best >= patience:
            self.run_state.stopped_early = True
            self.control.should_save = self.control.should_training_stop = True
        return {"eval_loss": loss}

    def measure(self, batch: dict[str, torch.Tensor]) -> dict[str, float]:
        """Return a held-out batch's share of the sums that `mean_loss` divides; gradients are off."""
        raise NotImplementedError

    def mean_loss(self, sums: Mapping[str, float]) -> float:
        """Return the loss over all held-out examples from the sums over their batches."""
        raise NotImplementedError

    def step_metrics(self) -> dict[str, float]:
        """Return what the method tells of a step beside its loss."""
        return {}

    def final_evaluation(self) -> dict[str, float]:
        """Return what the result says about the held-out examples, by the result's keys."""
        with self.model.disable_adapter():
            base = self.mean_loss(self.held_out_sums())
        return {"evaluationLoss": self.mean_loss(self.held_out_sums()), "baseEvaluationLoss": base}

    def held_out_loss(self, *, stop_when_interrupted: bool = False) -> float | None:
        """Return the loss over all held-out examples, None when SIGTERM came in between and `stop_when_interrupted`."""
        sums = self.held_out_sums(stop_when_interrupted=stop_when_interrupted)
        return self.mean_loss(sums) if sums else None

    def held_out_sums(self, *, stop_when_interrupted: bool = False) -> dict[str, float]:
        """Measure all held-out examples; nothing when SIGTERM came in between and `stop_when_interrupted`."""
        batches = self._held_out.batches(self.data_collator, self.args.per_device_train_batch_size)
        with hang.during("in an evaluation"):
            sums = self.sums_over(batches, self.measure, lambda: stop_when_interrupted and interruption.requested())
        if stop_when_interrupted and parallel.interrupted():
            return {}
        return parallel.total_sums(sums)

    def sums_over(
        self,
        batches: Iterable[dict[str, torch.Tensor]],
        measure: Callable[[dict[str, torch.Tensor]], dict[str, float]],
        stop: Callable[[], bool],
    ) -> dict[str, float]:
        """Add up what this process measures, without gradients and dropout; the random numbers stay the training's.

        Parameters
        ----------
        batches
            This process's.
        measure
            Returns a batch's share of the sums, by name.
        stop
            Is asked before each batch whether to leave out the rest.
        """
        training, limit = self.model.training, self.parts.settings.max_length
        self.model.eval()
        sums: dict[str, float] = {}
        try:
            with generators.untouched(), torch.no_grad(), self.compute_loss_context_manager():
                for batch in batches:
                    if stop():
                        break
                    found = self._held_out.measure(
                        batch, lambda part: measure(self._prepare_inputs(part)), max_length=limit
                    )
                    sums = {name: sums.get(name, 0.0) + value for name, value in found.items()}
                    hang.alive()
        finally:
            self.model.train(training)
        return sums

    def _save_checkpoint(self, *_model_and_trial: Any) -> None:
        self.save_checkpoint()

    def save_checkpoint(self) -> None:
        """Save a checkpoint of the step just made."""
        step, began = self.state.global_step, time.monotonic()
        with hang.during("in a checkpoint"):
            self._generator_files = parallel.gather(self._generator_file())
            if parallel.world().first:
                self.parts.checkpoints.save(step, self.run_state, self._write_checkpoint)
            parallel.wait()
        self._saved_step = step
        interruption.note_saved(step)
        for text in self.parts.checkpoints.troubles:
            self.parts.log.emit("warning", step=step, message=text)
        self.parts.checkpoints.troubles.clear()
        self.parts.log.emit("checkpoint", step=step, seconds=round(time.monotonic() - began, 3))
        self._status.saved(step)

    def _write_checkpoint(self, directory: Path) -> None:
        self.model.save_pretrained(directory, selected_adapters=["default"], save_embedding_layers=False)
        self._save_optimizer_and_scheduler(str(directory))
        for rank, content in enumerate(self._generator_files):
            (directory / generator_name(rank, len(self._generator_files))).write_bytes(content)
        self.state.save_to_json(str(directory / "trainer_state.json"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Take the adapter's weights, the same in all processes."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        parallel.share(self.trained)

    def _generator_file(self) -> bytes:
        """Return what the trainer saves of this process's random numbers."""
        with tempfile.TemporaryDirectory() as directory:
            self._save_rng_state(directory)
            return (Path(directory) / generator_name(0, 1)).read_bytes()

    def _load_rng_state(self, checkpoint: str | None) -> None:
        world = parallel.world()
        if checkpoint is None or world.size == 1:
            super()._load_rng_state(checkpoint)
            return
        with tempfile.TemporaryDirectory() as directory:
            shutil.copy(
                Path(checkpoint) / generator_name(world.rank, world.size), Path(directory) / generator_name(0, 1)
            )
            super()._load_rng_state(directory)
