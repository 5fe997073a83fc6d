"""How a run computes: how rows are laid out, how much goes through the model at once, what is computed again.

What an earlier attempt has settled stays, for it decides the last bits of what is learned; else the model, the device
and its memory are asked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from model import exits
from model.exits import FailureError
from model.training.config import TrainSettings
from model.training.loop import attention, fitting, head
from model.training.loop.batches import MicroBatch
from model.training.loop.checkpoint import RunState
from model.training.loop.footprint import choose_micro_batch_size
from model.training.loop.layout import GPU_WIDTH, Collator, Layout
from model.training.loop.recompute import Recompute, choices, use
from model.training.processes import parallel
from model.training.weights import adapter_trial


def make_collator(model: Any, settings: TrainSettings, tokenizer: Any, longest_row: int, *, cuda: bool) -> Collator:
    """Return what lays rows out: joined where model and device keep them apart, which a trial shows, else padded.

    Raises
    ------
    FailureError
        When joined rows were asked for and cannot be had, or when padding would change what the model says.
    """
    pad, width = _pad_token_id(tokenizer), GPU_WIDTH if cuda else 1
    if cuda and model.get_input_embeddings().weight.device.type == "cpu":
        model.cuda()  # where the trainer takes it in any case: the kernels can be tried nowhere else
    if settings.packing != "Disabled":
        # cuDNN's attention plans anew for each new length, half a second each; torch's own does not.
        torch.backends.cuda.enable_cudnn_sdp(False)
        reason = attention.use_segments(model, longest_row=longest_row)
        if reason is None:
            return Collator(pad, Layout.SEGMENTED)
        torch.backends.cuda.enable_cudnn_sdp(True)
    if settings.packing == "Enabled":
        text = (
            f"--packing=Enabled: {settings.base_model} cannot train on joined rows here, {reason}: set "
            "training.packing (--packing) to Auto or Disabled"
        )
    elif attention.sees_what_follows(model):
        text = (
            f"{settings.base_model} is no causal language model: what it says after a token depends on the tokens "
            "that follow; name a model that predicts the next token (spec.baseModel, --base-model)"
        )
    else:
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        return Collator(pad, Layout.PADDED, width=width, positions=positions)
    raise FailureError(exits.INVALID_CONFIGURATION, "InvalidSpec", text)


def first_micro_batch(
    settings: TrainSettings, state: RunState, lengths: Sequence[int], *, width: int, cuda: bool
) -> MicroBatch:
    """Return how much goes through the model at once to begin with.

    That is what was given, what an earlier attempt had, or else as many tokens as keep the device busy. How a step is
    cut decides the last bits of its sums: an earlier attempt's choice stays, unless told otherwise. `width` is that of
    `MicroBatch`.
    """
    if settings.micro_batch_size is not None:
        state.micro_batch_size, state.micro_batch_tokens = settings.micro_batch_size, None
    elif state.micro_batch_size is None:
        share, longest = math.ceil(settings.batch_size / parallel.world().size), max(lengths)
        state.micro_batch_size = choose_micro_batch_size(share, longest, cuda=cuda)
        state.micro_batch_tokens = state.micro_batch_size * MicroBatch(1, width=width).filled(longest)
    return MicroBatch(state.micro_batch_size, state.micro_batch_tokens, width)


def fit(trainer: Any, *, cuda: bool, resumed: bool) -> str | None:
    """Let the memory have a say in what goes through the model at once, unless an earlier attempt or a person had it.

    Parameters
    ----------
    trainer
        The `TrainingLoop`.
    cuda
        Whether it trains on a GPU.
    resumed
        Whether an earlier attempt has settled it.

    Returns
    -------
    A warning when not even one example fits a CPU's memory.
    """
    settings, state = trainer.parts.settings, trainer.run_state
    possible = choices(settings.gradient_checkpointing, trainer.model, cuda=cuda)
    if state.recompute is None and (resumed or not cuda):
        state.recompute = str(possible[-1])  # of older trainers, too
    if state.recompute is not None:
        use(trainer.model, Recompute(state.recompute))
    if resumed:
        return None
    if cuda:
        fitting.on_gpu(trainer, possible)
        return None
    if settings.micro_batch_size is not None:
        return None
    return fitting.on_cpu(trainer)


def compare_arithmetic(trainer: Any, *, cuda: bool) -> str | None:
    """Note how this attempt computes; return a warning when the one before did otherwise."""
    state: RunState = trainer.run_state
    now = {
        "adapterLayers": adapter_trial.description(trainer.model),
        "lossLayout": head.description(trainer.model),
        "device": "GPU" if cuda else "CPU",
        "precision": trainer.parts.settings.precision,
        "layout": str(trainer.parts.collator.layout),
        "attention": attention.name_of(trainer.model),
        "recompute": state.recompute,
        "threads": torch.get_num_threads(),
    }
    before, state.arithmetic = state.arithmetic, now
    changed = [f"{key} {before[key]} then, {now[key]} now" for key in now if before.get(key, now[key]) != now[key]]
    if not changed:
        return None
    return f"the checkpoint was made in another way ({', '.join(changed)}): the result will not be the same to the bit"


def how_computed(state: RunState) -> dict[str, Any]:
    """Return for the log and the record how an attempt computes: the micro-batch, and the paths that were taken."""
    tokens = {} if state.micro_batch_tokens is None else {"microBatchTokens": state.micro_batch_tokens}
    return {"microBatchSize": state.micro_batch_size, **tokens, **state.arithmetic}


def _pad_token_id(tokenizer: Any) -> int:
    token = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return int(token or 0)
