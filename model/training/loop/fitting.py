"""How many examples go through the model at once: found with a trainer that is ready, before its first step."""

from __future__ import annotations

import contextlib
from typing import Any

from model.training.loop import generators, memory
from model.training.loop.footprint import LOGITS_BYTES, activation_bytes_per_token
from model.training.loop.parts import StepGivenUpError
from model.training.processes import hang, interruption, parallel


def on_cpu(trainer: Any, tokens: int) -> str | None:
    """Lower the micro-batch until it fits the container's memory; return a warning when nothing fits.

    Parameters
    ----------
    trainer
        The `TrainingLoop`.
    tokens
        Those of the longest example, of both rows of a pair.
    """
    config = trainer.model.config.get_text_config().to_dict()
    per_token = LOGITS_BYTES * int(config["vocab_size"]) + activation_bytes_per_token(
        config,
        item_bytes=trainer.model.get_input_embeddings().weight.element_size(),
        dropout=bool(trainer.parts.settings.lora_dropout_percent),
        checkpointing=trainer.args.gradient_checkpointing,
    )
    found = memory.host_memory(trainer.model, row_tokens=tokens, per_token=per_token, processes=parallel.world().size)
    if found is None:
        return None
    trainer.use_micro_batches(min(parallel.gather(found.rows(trainer.batches.micro_batch_size))))
    return found.warning()


def on_gpu(trainer: Any) -> None:
    """Find the micro-batch with the longest examples; weights, gradients and random numbers stay as they are.

    Raises
    ------
    StepGivenUpError
        When SIGTERM came.
    FailureError
        When not even one example fits.
    """
    batches, device = trainer.batches, memory.CudaDevice()
    longest = sorted(range(len(batches.lengths)), key=lambda row: -batches.lengths[row])

    def attempt(rows: int) -> None:
        if interruption.requested():
            raise StepGivenUpError
        try:
            trainer.try_backward(longest[:rows])
        finally:
            hang.alive()

    start = batches.micro_batch_size
    most = min(batches.rows_per_step, memory.GPU_GROWTH * start)
    reserve = sum(8 * parameter.numel() for parameter in trainer.trained)  # Adam's two moments, in float32
    size = 0
    with generators.untouched(), contextlib.suppress(StepGivenUpError):
        size = memory.find_rows(attempt, device, start=start, most=most, reserve=reserve)
    if parallel.interrupted():
        raise StepGivenUpError
    size = min(parallel.gather(size))
    if not size:
        raise memory.too_large(trainer.parts.settings.max_length)
    trainer.use_micro_batches(size)
    trainer.parts.log.emit("probe", microBatchSize=size, availableBytes=device.total())
