"""What the methods' trainers are told alike."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from model.training.processes import process

if TYPE_CHECKING:
    from model.training.loop.parts import TrainerParts


def common_arguments(parts: TrainerParts) -> dict[str, Any]:
    """Return the arguments that SFTConfig, DPOConfig and KTOConfig share."""
    settings = parts.settings
    return {
        "output_dir": str(settings.run_directory / "checkpoints"),
        "max_steps": parts.total_steps,
        # A batch is all of a step, which the loop cuts itself; TRL's KTO wants two rows in one.
        "per_device_train_batch_size": max(2, settings.batch_size),
        "gradient_accumulation_steps": 1,
        "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        # The loop asks for the norm only where something is to be clipped; ours adds up the processes' gradients then.
        "max_grad_norm": settings.max_gradient_norm or math.inf,
        "warmup_steps": -(-parts.total_steps * settings.warmup_percent // 100),
        "router_aux_loss_coef": 0.0,  # a mixture's loss that balances its experts, which are not trained
        "gradient_checkpointing": False,  # the loop does it by layer: see recompute
        "bf16": False,  # the weights have their final type; autocast would only cast them again and again
        "fp16": False,
        "use_cpu": not process.uses_cuda(settings.gpus),
        "seed": settings.seed,
        "save_strategy": "no",  # the step-end callback decides
        "eval_strategy": "no",
        "logging_strategy": "no",  # the step-end callback tells of each step
        "logging_nan_inf_filter": False,  # it would wait for the device to look for NaN
        "disable_tqdm": True,
        "report_to": "none",
    }
