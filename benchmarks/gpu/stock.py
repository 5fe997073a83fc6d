"""TRL on one GPU: one JSON line a step, its tokens without padding, and its loss.

    python -m benchmarks.gpu.stock --method=SFT --base-model=... --rows=rows.jsonl --steps=25 --batch-rows=8 [--best]

Its defaults stay, gradient checkpointing and bfloat16 among them, but for the order of the rows, which is the file's.
`--best` adds what its own flags offer: weights in bfloat16 without autocast, nothing computed twice.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gpu.base import count_tokens

RANK, ALPHA = 16, 32


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=("SFT", "DPO"), required=True)
    parser.add_argument("--base-model", required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch-rows", type=int, required=True, help="rows or pairs of a step")
    parser.add_argument("--micro-batch-rows", type=int, help="rows or pairs at once; all of a step if left out")
    parser.add_argument("--packed-tokens", type=int, help="join rows up to so many tokens, a micro-batch row each")
    parser.add_argument("--quantization", choices=("None", "NF4"), default="None")
    parser.add_argument("--best", action="store_true", help="with what TRL's own flags offer")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        build(options, scratch).train()


def build(options: argparse.Namespace, scratch: str) -> Any:
    """Return TRL's trainer."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig, TrainerCallback
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    rows = [json.loads(line) for line in options.rows.read_text(encoding="utf-8").splitlines()]
    cuda = torch.cuda.is_available()

    class Report(TrainerCallback):  # type: ignore[misc]
        """Tells of each step."""

        def on_step_end(self, _args: Any, state: Any, _control: Any, **_rest: Any) -> None:
            if cuda:
                torch.cuda.synchronize()
            step = state.global_step
            if options.packed_tokens:  # rows of equal length fill each sequence
                tokens = options.batch_rows * options.packed_tokens
            else:
                tokens = sum(map(count_tokens, rows[(step - 1) * options.batch_rows : step * options.batch_rows]))
            say(event="train", step=step, tokens=tokens)

        def on_log(self, _args: Any, state: Any, _control: Any, logs: Any = None, **_rest: Any) -> None:
            if logs and "loss" in logs:
                say(event="loss", step=state.global_step, loss=float(logs["loss"]))

    at_once = options.micro_batch_rows or options.batch_rows
    own: dict[str, Any] = {"max_length": max(map(count_tokens, rows))}
    if options.packed_tokens:
        own = {"packing": True, "max_length": options.packed_tokens}
    loading: dict[str, Any] = {"dtype": "bfloat16"} if cuda else {}
    if options.best:
        own |= {"gradient_checkpointing": False}
        if cuda:
            own["bf16"] = False  # the weights are; autocast would cast them again and again
    if options.quantization == "NF4":
        loading["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    if not cuda:
        own["bf16"] = False
    config, trainer = (SFTConfig, SFTTrainer) if options.method == "SFT" else (DPOConfig, DPOTrainer)
    arguments = config(
        output_dir=scratch,
        max_steps=options.steps,
        model_init_kwargs=loading,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=options.batch_rows // at_once,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not cuda,
        **own,
    )
    lora = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules="all-linear")
    return trainer(
        model=options.base_model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        peft_config=lora,
        callbacks=[Report()],
    )


def say(**fields: Any) -> None:
    """Print an event as one JSON line."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
