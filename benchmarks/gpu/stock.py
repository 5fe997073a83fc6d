"""TRL as it comes, on one GPU: one JSON line a step.

    python -m benchmarks.gpu.stock --method=SFT --base-model=... --rows=rows.jsonl --steps=25 [--quantization=NF4]

Its defaults stay, gradient checkpointing and bfloat16 among them. Packing is switched on for SFT, as the trainer that
it is compared with has it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

RANK, ALPHA = 16, 32


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=("SFT", "DPO"), required=True)
    parser.add_argument("--base-model", required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch-rows", type=int, required=True, help="rows or pairs of a step")
    parser.add_argument("--row-tokens", type=int, required=True)
    parser.add_argument("--quantization", choices=("None", "NF4"), default="None")
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

    class Report(TrainerCallback):  # type: ignore[misc]
        """Tells of each step and its tokens."""

        def on_step_end(self, _args: Any, state: Any, _control: Any, **_rest: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            sys.stdout.write(json.dumps({"event": "train", "step": state.global_step, "tokens": step_tokens}) + "\n")
            sys.stdout.flush()

    sides = 1 if options.method == "SFT" else 2
    step_tokens = sides * options.batch_rows * options.row_tokens
    own: dict[str, Any] = {}
    if options.method == "SFT":
        length = options.batch_rows * options.row_tokens
        own = {"packing": True, "max_length": length, "per_device_train_batch_size": 1}
    else:
        own = {"max_length": options.row_tokens, "per_device_train_batch_size": options.batch_rows}
    loading: dict[str, Any] = {"dtype": "bfloat16"}
    if options.quantization == "NF4":
        loading["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    config, trainer = (SFTConfig, SFTTrainer) if options.method == "SFT" else (DPOConfig, DPOTrainer)
    arguments = config(
        output_dir=scratch,
        max_steps=options.steps,
        model_init_kwargs=loading,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        **own,
    )
    rows = [json.loads(line) for line in options.rows.read_text(encoding="utf-8").splitlines()]
    lora = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules="all-linear")
    return trainer(
        model=options.base_model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        peft_config=lora,
        callbacks=[Report()],
    )


if __name__ == "__main__":
    main()
