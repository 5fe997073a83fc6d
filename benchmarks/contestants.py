"""Those whom this project's trainer is compared with: TRL, and a loop without anything around it.

    python -m benchmarks.contestants stock --method=SFT --base-model=... --run-directory=... --steps=52

stock     TRL as it comes; on a CPU that cannot multiply bfloat16, in float32, without which it would be useless there
literal   TRL as it comes, bfloat16 or not
tuned     TRL with what its own flags offer for this: weights in the fitting type, nothing computed twice
floor     a plain loop over the same modules, rows and layers as the trainer's: no trainer, no metrics

Each prints a JSON line a step, as the trainer does, and goes through the same batches in the same order.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.rows import BATCH_ROWS, LEARNING_RATE, SEED, Task, batches, count_tokens

RANK, ALPHA = 16, 32
BETA = 0.1
IGNORED = -100


def say(**fields: Any) -> None:
    """Print an event as one JSON line."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def train_with_trl(task: Task, steps: int, *, kind: str) -> None:
    """Train with TRL: `kind` is literal, stock or tuned."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    rows = list(repeated(batches(task), steps))

    class Report(TrainerCallback):  # type: ignore[misc]
        """Tells of each step."""

        def on_step_end(self, _args: Any, state: Any, _control: Any, **_rest: Any) -> None:
            say(event="train", step=state.global_step, tokens=count_tokens(rows[state.global_step - 1]))

        def on_log(self, _args: Any, state: Any, _control: Any, logs: Any = None, **_rest: Any) -> None:
            if logs and "loss" in logs:
                say(event="loss", step=state.global_step, loss=float(logs["loss"]))

    class Preferences(DPOTrainer):  # type: ignore[misc]
        """TRL's trainer for rows that are tokens already, which it takes for SFT only."""

        def _prepare_dataset(self, dataset: Any, *_rest: Any) -> Any:
            return dataset

    own: dict[str, Any] = {}
    if kind == "tuned" or (kind == "stock" and not has_bfloat16()):
        own |= {"bf16": False, "model_init_kwargs": {"dtype": "bfloat16" if has_bfloat16() else "float32"}}
    if kind == "tuned":
        own |= {"gradient_checkpointing": False}
    config, trainer = (SFTConfig, SFTTrainer) if task.method == "SFT" else (DPOConfig, Preferences)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = config(
            output_dir=scratch,
            max_steps=steps,
            per_device_train_batch_size=BATCH_ROWS[task.method],
            learning_rate=LEARNING_RATE[task.method],
            train_sampling_strategy="sequential",  # the order of the rows is everybody's
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            seed=SEED,
            **own,
        )
        lora = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules="all-linear")
        lora.lora_dropout = task.dropout_percent / 100
        trainer(
            model=str(task.base_model),
            args=arguments,
            train_dataset=Dataset.from_list([row for batch in rows for row in batch]),
            peft_config=lora,
            callbacks=[Report()],
        ).train()


def train_bare(task: Task, steps: int) -> None:
    """Train in a plain loop."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, get_linear_schedule_with_warmup

    from model.training.loop.attention import use_segments
    from model.training.weights import adapter_trial

    torch.manual_seed(SEED)
    dtype = torch.bfloat16 if has_bfloat16() else torch.float32
    base = AutoModelForCausalLM.from_pretrained(task.base_model, dtype=dtype)
    lora = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules="all-linear")
    lora.lora_dropout = task.dropout_percent / 100
    model = get_peft_model(base, lora)
    adapter_trial.fuse(model)
    if reason := use_segments(model, longest_row=1):
        raise SystemExit(f"{task.base_model} does not attend by segments ({reason}): loop and trainer would differ")
    model.train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE[task.method], weight_decay=0.0, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, steps)
    loss_of = supervised_loss if task.method == "SFT" else preference_loss
    for step, batch in enumerate(repeated(batches(task), steps), 1):
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        say(event="train", step=step, tokens=count_tokens(batch))
        say(event="loss", step=step, loss=loss.item())


def supervised_loss(model: Any, batch: list[dict[str, Any]]) -> Any:
    """Return the mean loss of the learned tokens."""
    from model.training.loop.layout import Collator, Layout
    from model.training.loop.scoring import token_losses

    return token_losses(model, Collator(0, Layout.SEGMENTED)(batch)).mean()


def preference_loss(model: Any, batch: list[dict[str, Any]]) -> Any:
    """Return the mean sigmoid loss of the pairs; the reference is the model without its adapter."""
    import torch

    from model.training.loop.layout import Collator, Layout, PairCollator
    from model.training.loop.scoring import sequence_logps

    pairs = PairCollator(Collator(0, Layout.SEGMENTED))(
        [
            {
                f"{side}_{name}": [*filler, *pair[f"{side}_ids"]]
                for side in ("chosen", "rejected")
                for name, filler in (("input_ids", pair["prompt_ids"]), ("labels", [IGNORED] * len(pair["prompt_ids"])))
            }
            | {"pair": number}
            for number, pair in enumerate(batch)
        ]
    )
    with torch.no_grad(), model.disable_adapter():
        reference = sequence_logps(model, pairs)[0]
    gain = (sequence_logps(model, pairs)[0] - reference).view(-1, 2)
    return -torch.nn.functional.logsigmoid(BETA * (gain[:, 0] - gain[:, 1])).mean()


def repeated(given: list[list[Any]], steps: int) -> Iterator[list[Any]]:
    """Yield `steps` batches, from the first again after the last."""
    return (given[step % len(given)] for step in range(steps))


def has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 itself, by the trainer's own rule."""
    from model.training.processes.process import cpu_has_bfloat16

    return cpu_has_bfloat16()


def main(arguments: Iterable[str] | None = None) -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("literal", "stock", "tuned", "floor"))
    parser.add_argument("--method", choices=("SFT", "DPO"), required=True)
    parser.add_argument("--base-model", type=Path, required=True)
    parser.add_argument("--run-directory", type=Path, required=True, help="where the exported rows are")
    parser.add_argument("--dropout-percent", type=int, default=0)
    parser.add_argument("--steps", type=int, required=True)
    options = parser.parse_args(None if arguments is None else list(arguments))
    task = Task(options.method, options.base_model, options.run_directory, options.dropout_percent)
    if options.kind == "floor":
        train_bare(task, options.steps)
    else:
        train_with_trl(task, options.steps, kind=options.kind)


if __name__ == "__main__":
    main()
