"""The training loop that the methods share: TRL's, with what it leaves to wish for put right.

Losses are means over tokens, within a step and over the held-out rows. What the library takes for a batch is here all
rows of an optimizer step; `_forward_backward` sends them through the model in micro-batches, and again in smaller ones
when the GPU's memory does not suffice. Checkpoints are whole or absent, progress is told in JSON lines.

The host gives the device a whole step to do and waits for it once, in `_clip_grad_norm`, when the step's rows and those
of the next one are there: that is where loss and norm are read.
"""

from __future__ import annotations

import functools
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerState, set_seed

from model import gpus
from model.training.loop import generators, interim, memory, nonfinite
from model.training.loop.batches import MicroBatch
from model.training.loop.callbacks import StepEnd
from model.training.loop.checkpoint import Checkpoint, generator_name
from model.training.loop.held_out import HeldOut, check_finite, total
from model.training.loop.layout import Batch, Step, read, to_device
from model.training.loop.parts import StepGivenUpError, TrainerParts
from model.training.loop.schedule import share_of_peak
from model.training.output.interim import InterimSender
from model.training.output.progress import RunStatus
from model.training.processes import hang, interruption, parallel
from model.training.processes.process import timestamp
from model.training.weights import adapter_trial


class TrainingLoop(Trainer):
    """What a method's trainer has beside its loss. It stands before TRL's class in the list of bases.

    Call `start` at the end of the construction. A method gives `compute_loss`, `measure` and `mean_loss`, and
    `count_items` where its loss is divided by something else than the learned tokens.
    """

    rows_per_example = 1
    lr_scheduler: Any

    def start(self, parts: TrainerParts, examples: Any, held_out: Any) -> None:
        """Take over: from now on the loop follows `parts`.

        Parameters
        ----------
        parts
            What the loop works with.
        examples, held_out
            What to train on and what to evaluate on, see `examples`.
        """
        # Our loss is divided by the step's items, whatever the model's own and TRL's do.
        self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = True
        adapter_trial.fuse(self.model)
        self.parts = parts
        self.batches = parts.batches
        self.run_state = parts.state
        self.interim_sender: InterimSender | None = None
        self._held_out = HeldOut(held_out)
        self._status = RunStatus(parts.poster, parts.log.attempt)
        self._saved_step = 0
        self.examples = examples
        self._ahead: Step | None = None
        self._iterator: Iterator[list[int]] = iter(())
        self._step_items = self._step_tokens = self._learned_tokens = self._padded_tokens = 0
        self._step_started = self._step_seconds = 0.0
        self._step_generators: tuple[Any, ...] = ()
        self._measured: list[dict[str, Any]] = []
        self._sums: dict[str, float] = {}
        self._step_loss: Any = 0.0
        self._rate = self._norm = 0.0
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
        """Return the loader of the steps' rows; its own generator keeps it from drawing from the training's."""
        self._ahead = None
        rows = range(len(self.batches.lengths))
        return DataLoader(rows, batch_sampler=self.batches, collate_fn=list, generator=torch.Generator())

    def use_micro_batches(self, rows: int) -> None:
        """Send that many of the longest examples through the model at once from now on, or as many tokens."""
        before = self.batches.micro_batch
        tokens = None if before.tokens is None else rows * before.filled(max(self.batches.lengths))
        self.batches.micro_batch = MicroBatch(rows, tokens, before.width)
        self.run_state.micro_batch_size, self.run_state.micro_batch_tokens = rows, tokens

    def try_backward(self, rows: Sequence[int]) -> None:
        """Send examples forward and backward, and leave nothing of it behind but random numbers that were drawn."""
        try:
            self._train_on(self.model, self._laid_out(rows), len(rows))
        finally:
            self.model.zero_grad()
            self._measured.clear()

    def _laid_out(self, rows: Sequence[int]) -> Batch:
        batch: Batch = self.data_collator([self.examples[row] for row in rows])
        return batch

    def _train_on(self, model: Any, batch: Batch, items: Any) -> torch.Tensor:
        """Go forward and backward with a micro-batch, and return its share of the step's loss."""
        if not model.training:
            model.train()
        loss: torch.Tensor = self.compute_loss(model, to_device(batch, self.args.device), num_items_in_batch=items)
        loss.backward()
        return loss.detach()

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

    def get_batch_samples(
        self, epoch_iterator: Iterator[list[int]], _num_batches: int, _device: torch.device
    ) -> tuple[list[Any], Any]:
        """Return the step's rows, laid out, and the number of items that its loss is divided by."""
        self.start_clock()
        self._iterator = epoch_iterator
        step, self._ahead = self._ahead or self._load(next(epoch_iterator)), None
        if step.parts != self.run_state.parts_per_batch:  # another process has run out of memory since
            step = self._load(step.rows)
        self._step_loss = 0.0
        shapes = [batch["shape"] for batch in step.micro_batches]
        items, learned = self.count_items(step), sum(sum(shape.learned) for shape in shapes)
        self._step_items, self._learned_tokens, self._step_tokens, self._padded_tokens = parallel.totals(
            items,
            learned,
            sum(shape.tokens for shape in shapes),
            sum(batch["input_ids"].numel() for batch in step.micro_batches),
        )
        return [step], self._step_items

    def _load(self, rows: list[int]) -> Step:
        parts = self.run_state.parts_per_batch
        return Step(rows, parts, [self._laid_out(group) for group in self.batches.cut(rows, parts=parts)])

    def count_items(self, step: Step) -> int:
        """Return by how many items this process's share of the step's loss is divided: the tokens that it learns."""
        return sum(sum(batch["shape"].learned) for batch in step.micro_batches)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Go forward and backward with a step; when the GPU's memory does not suffice, again in smaller parts.

        From then on micro-batches are cut like that. The loss is divided by the step's items whatever the parts, so
        that the gradient stays the same.
        """
        if not self._given_up:
            try:
                self._step_loss = self._forward_backward(model, inputs, num_items_in_batch)
            except StepGivenUpError:
                if parallel.world().size == 1:
                    raise
                self._given_up = True  # the others are to hear of it, at the step's end, in which all take part
        return torch.as_tensor(self._step_loss, device=self.args.device)

    def _forward_backward(self, model: Any, step: Step, items: Any) -> Any:
        while True:
            self._measured.clear()
            loss: Any = 0.0
            try:
                for batch in step.micro_batches:
                    if interruption.overdue():
                        raise StepGivenUpError
                    loss = loss + self._train_on(model, batch, items)
                    hang.alive()
            except RuntimeError as error:
                if not gpus.out_of_memory(error):
                    raise
                if all(batch["shape"].rows <= self.rows_per_example for batch in step.micro_batches):
                    raise memory.too_large(self.parts.settings.max_length) from error
            else:
                return loss
            # Only now is the exception gone, and with it the traceback that kept the activations alive.
            self.model.zero_grad()
            generators.restore(self._step_generators)
            if self.args.device.type == "cuda":
                torch.cuda.empty_cache()  # blocks of other sizes would stand in the way
            self.run_state.parts_per_batch *= 2
            self.parts.log.emit(
                "outOfMemory", step=self.state.global_step + 1, partsPerBatch=self.run_state.parts_per_batch
            )
            step = self._load(step.rows)

    def _load_ahead(self) -> None:
        """Lay the next step's rows out, while the device is still busy with this one's."""
        if self.state.global_step + 1 < self.state.max_steps and (rows := next(self._iterator, None)) is not None:
            self._ahead = self._load(rows)

    def _clip_grad_norm(self, model: Any) -> Any:
        """Add up the gradients of all processes first; throw them away afterwards when they are no numbers."""
        del model
        self._load_ahead()
        self._agree()
        parallel.add_gradients(self.trained)
        norm = torch.nn.utils.clip_grad_norm_(self.trained, self.args.max_grad_norm)
        found = read({"loss": self._step_loss, "norm": norm, **self._sums})
        self._step_loss, self._norm, self._sums = found.pop("loss"), found.pop("norm"), found
        self._left_out = not (math.isfinite(self._norm) and math.isfinite(self._step_loss))
        if self._left_out:
            for parameter in self.trained:
                parameter.grad = None  # the optimizer passes over what has none: no weight and no moment changes
        self._rate = self._get_learning_rate()
        return self._norm

    def _agree(self) -> None:
        """Let all processes know of each one's share of the step, and do the same from here on.

        Raises
        ------
        StepGivenUpError
            When one of them has given the step up.
        """
        self._interrupted = interruption.requested()
        self._sums = total(self._measured)
        if parallel.world().size == 1:
            return
        sums = read({"loss": self._step_loss, **self._sums})
        mine = self._given_up, self._interrupted, self.run_state.parts_per_batch, sums
        given_up, interrupted, parts, shares = zip(*parallel.gather(mine), strict=True)
        if self._interrupted or any(interrupted):
            self._interrupted = True
            interruption.request()
        self._given_up = False
        if any(given_up):
            raise StepGivenUpError
        if max(parts) > self.run_state.parts_per_batch:  # so that the next attempt cuts as this one does
            self.run_state.parts_per_batch = max(parts)
            self.parts.log.emit("outOfMemory", step=self.state.global_step + 1, partsPerBatch=max(parts))
        self._sums = {name: sum(share.get(name, 0.0) for share in shares) for share in shares for name in share}
        self._step_loss = self._sums.pop("loss")

    def interrupted(self) -> bool:
        """Whether the run is to stop after the step in progress; all processes get the same answer."""
        return self._interrupted if parallel.world().size > 1 else interruption.requested()

    @functools.cached_property
    def trained(self) -> list[torch.nn.Parameter]:
        """The adapter's weights; found once, for looking through all modules takes a percent of a small step."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

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
        self._step_seconds = time.monotonic() - self._step_started

    def log(self, *_logs: Any) -> None:
        """Leave out what the library would log: `finish_step` tells of a step."""

    def floating_point_ops(self, inputs: Any) -> int:
        """Count none: the library would look through all modules for each step."""
        del inputs
        return 0

    def finish_step(self) -> None:
        """Record and report a finished step.

        Raises
        ------
        FailureError
            When steps without a finite loss and gradient end the run; what was learned before is saved.
        """
        step, loss, norm = self.state.global_step, self._step_loss, self._norm
        self.run_state.timings.setdefault("firstStepTime", timestamp())
        self.run_state.tokens += self._step_tokens
        self.run_state.learned_tokens += self._learned_tokens
        self.run_state.padded_tokens += self._padded_tokens
        hang.step_made(step, self._step_seconds)
        if self._left_out:
            nonfinite.leave_out(self, step, loss, norm)
            return
        self.run_state.record_step(step, loss, self._step_items, self.parts.total_steps)
        self._report(step, loss, norm)

    def _report(self, step: int, loss: float, norm: float) -> None:
        measured = {
            "loss": loss,
            "learningRate": self._rate,
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
        self._status.step_made(step, total_steps, {"epoch": epoch, "tokens": self.run_state.tokens, **measured})

    def evaluate(self, *_args: Any, **_kwargs: Any) -> dict[str, float]:
        """Evaluate in the middle of training, record it, and stop early when it is time for that."""
        self.control.should_evaluate = False  # else the end of the epoch would ask for it again
        self.run_state.evaluation_due = True
        sums = self.held_out_sums(stop_when_interrupted=True)
        if not sums:
            self.control.should_save = self.control.should_training_stop = True
            return {}
        step, loss = self.state.global_step, self.mean_loss(sums)
        self.parts.log.emit("evaluation", step=step, loss=loss)
        check_finite(loss, step)
        self._status.evaluated(loss)
        interim.offer(self, step, loss, sums)
        patience = self.parts.settings.early_stopping_patience
        if self.run_state.record_evaluation(loss) and patience is not None:
            self.run_state.best_step = step
            self.control.should_save = True
        learned = bool(self.run_state.last_steps)  # steps that were left out could not make it any better
        if patience is not None and learned and self.run_state.evaluations_without_best >= patience:
            self.run_state.stopped_early = True
            self.control.should_save = self.control.should_training_stop = True
        return {"eval_loss": loss}

    def measure(self, batch: Batch) -> Mapping[str, Any]:
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
        sums = self.held_out_sums()
        return {"evaluationLoss": self.mean_loss(sums), "baseEvaluationLoss": self.base_loss(sums)}

    def base_loss(self, sums: Mapping[str, float], *, stop_when_interrupted: bool = False) -> float:
        """Return the loss without the adapter, NaN when SIGTERM came; `sums` are those of an evaluation with it."""
        raise NotImplementedError

    def held_out_sums(self, *, stop_when_interrupted: bool = False) -> dict[str, float]:
        """Measure all held-out examples; nothing when SIGTERM came in between and `stop_when_interrupted`."""
        with hang.during("in an evaluation"):
            sums = self.sums_over(
                self._held_out.groups(self.batches.micro_batch),
                self.data_collator,
                self.measure,
                lambda: stop_when_interrupted and interruption.requested(),
            )
        if stop_when_interrupted and parallel.interrupted():
            return {}
        return parallel.total_sums(sums)

    def sums_over(
        self,
        groups: Iterable[Sequence[Any]],
        collate: Callable[[Sequence[Any]], Batch],
        measure: Callable[[Batch], Mapping[str, Any]],
        stop: Callable[[], bool],
    ) -> dict[str, float]:
        """Add up what this process measures, without gradients and dropout; the random numbers stay the training's.

        Parameters
        ----------
        groups
            This process's examples by forward pass.
        collate
            Lays out the examples of a forward pass.
        measure
            Returns a batch's share of the sums, by name.
        stop
            Is asked before each batch whether to leave out the rest.
        """
        training, limit = self.model.training, self.parts.settings.max_length
        self.model.eval()
        sums: dict[str, float] = {}
        try:
            with generators.untouched(), torch.no_grad():
                for group in groups:
                    if stop():
                        break
                    found = self._held_out.measure(
                        group,
                        lambda part: read(measure(to_device(collate(part), self.args.device))),
                        max_length=limit,
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
