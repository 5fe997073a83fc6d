"""How much goes through the model at once: found with a trainer that is ready, before its first step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from model.training.loop import generators, head, memory
from model.training.loop.footprint import LOGITS_CHUNK_BYTES, Passes
from model.training.loop.memory import CudaDevice, Device
from model.training.loop.recompute import Recompute, use
from model.training.processes import hang, parallel


def on_cpu(trainer: Any) -> str | None:
    """Lower the micro-batch of a `TrainingLoop` until it fits the container's memory; return a warning if none does."""
    settings, batches = trainer.parts.settings, trainer.batches
    passes = Passes.of(
        trainer.model.config.get_text_config().to_dict(),
        item_bytes=trainer.model.get_input_embeddings().weight.element_size(),
        rank=settings.lora_rank,
        dropout=bool(settings.lora_dropout_percent),
        checkpointing=trainer.run_state.recompute == Recompute.ALL,
        chunk=None if head.in_chunks(trainer.model) is None else LOGITS_CHUNK_BYTES[False],
    )
    longest = batches.micro_batch.filled(max(batches.lengths))
    found = memory.host_memory(trainer.model, passes, row_tokens=longest, processes=parallel.world().size)
    if found is None:
        return None
    trainer.use_micro_batches(min(parallel.gather(found.rows(batches.micro_batch.rows))))
    return found.warning()


def on_gpu(trainer: Any, choices: Sequence[Recompute], device: Device | None = None) -> None:
    """Find out what to compute again and how much goes through the model at once, with the longest examples.

    Of the choices, of which the first are the fastest, each gets as many examples as fit, and the one that trains most
    tokens a second is kept; a micro-batch that was given is not changed. Weights, gradients and random numbers stay as
    they are. All processes come to the same.

    Parameters
    ----------
    trainer
        The `TrainingLoop`.
    choices
        See `recompute.choices`.
    device
        The GPU; this process's when left out.

    Raises
    ------
    FailureError
        When not even one example fits.
    """
    device = device or CudaDevice()
    batches, given = trainer.batches, trainer.parts.settings.micro_batch_size is not None
    longest = sorted(range(len(batches.lengths)), key=lambda row: -batches.lengths[row])

    def attempt(rows: int) -> None:
        try:
            trainer.try_backward(longest[:rows])
        finally:
            hang.alive()

    start = batches.micro_batch.rows
    most = start if given else min(batches.rows_per_step, memory.GPU_GROWTH * start)
    reserve = sum(8 * parameter.numel() for parameter in trainer.trained)  # Adam's two moments, in float32
    found: list[tuple[float, int, Recompute]] = []
    with generators.untouched():
        for choice in choices:
            use(trainer.model, choice)
            last = choice is choices[-1]
            size = memory.find_rows(attempt, device, start=start, most=most, reserve=reserve, tightly=last)
            size = min(parallel.gather(size))
            full = size >= start
            if not size or (given and not full and not last):
                continue
            if full and not found:  # whoever computes anything again can only be slower
                found.append((0.0, size, choice))
                break
            seconds = max(parallel.gather(device.seconds(lambda size=size: attempt(size))))  # type: ignore[misc]
            found.append((sum(batches.lengths[row] for row in longest[:size]) / seconds, size, choice))
    if not found:
        raise memory.too_large(trainer.parts.settings.max_length)
    _, size, choice = max(found, key=lambda one: one[0])
    use(trainer.model, choice)
    trainer.run_state.recompute = str(choice)
    if not given:
        trainer.use_micro_batches(size)
    trainer.parts.log.emit(
        "probe",
        microBatchSize=batches.micro_batch.rows,
        recompute=str(choice),
        tokensPerSecond={str(one): round(speed) for speed, _, one in found if speed},
        availableBytes=device.total(),
    )
