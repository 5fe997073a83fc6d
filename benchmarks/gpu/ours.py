"""Our trainer with some of its fast paths off, with less memory, or with one step profiled.

    python -m benchmarks.gpu.ours --without=adapters,inputs,chunks --profile=FILE --out-of-memory -- train ...

adapters   LoRA's layers as peft computes them
inputs     each of LoRA's layers by itself, also where several share an input
chunks     the model's own logits, all at once

Behind -- stands the command line of `model.training.cli`.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
from pathlib import Path
from typing import Any

PATHS = ("adapters", "inputs", "chunks")
FULL_PRECISION = re.compile(r"sgemm|simt|_f32f32_f32f32|_s1688|tf32|dgemm", re.IGNORECASE)
"""Kernels that multiply matrices in float32, by the names that the libraries give them."""
COPIES = re.compile(r"memcpy|copy_device_to_device", re.IGNORECASE)
PROFILED_STEP = 2
SMALL_MEMORY_SHARE = 0.08
"""Of an H100's 80 GB that is the slice with a few thousand tokens."""


def switch_off(names: list[str]) -> None:
    """Let the trainer do without some of its fast paths."""
    from model.training.loop import head
    from model.training.weights import adapter_trial

    fuse = adapter_trial.fuse
    if "adapters" in names:
        replace(adapter_trial, "fuse", lambda _model: None)
    if "inputs" in names:
        replace(adapter_trial, "fuse", functools.partial(fuse, join=False))
    if "chunks" in names:
        replace(head, "in_chunks", lambda _model: None)


def replace(module: Any, name: str, function: Any) -> None:
    """Let a module have another function under a name."""
    setattr(module, name, function)


def run_out_of_memory() -> None:
    """Let the memory not suffice: little of a GPU's, or else one forward pass that fails."""
    import torch

    from model.training.loop import head

    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(SMALL_MEMORY_SHARE)
        return
    plain = head.losses
    failed: list[bool] = []

    def once(*args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() and not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("as on a GPU")
        return plain(*args, **kwargs)

    replace(head, "losses", once)


def profile(path: Path) -> None:
    """Let one step be profiled, and its table written."""
    from transformers import TrainerCallback

    from model.training import build

    class OneStep(TrainerCallback):  # type: ignore[misc]
        """Profiles a step from its first micro-batch to the optimizer's end."""

        def on_step_begin(self, _args: Any, state: Any, _control: Any, **_rest: Any) -> None:
            if state.global_step + 1 == PROFILED_STEP:
                from torch.profiler import profile as profiler

                self.profiler = profiler()
                self.profiler.__enter__()

        def on_step_end(self, _args: Any, state: Any, _control: Any, **_rest: Any) -> None:
            if state.global_step == PROFILED_STEP:
                self.profiler.__exit__(None, None, None)
                path.write_text(json.dumps(table(self.profiler.key_averages())), encoding="utf-8")

    plain = build.build_trainer

    def with_profile(**parts: Any) -> Any:
        trainer = plain(**parts)
        trainer.add_callback(OneStep())
        return trainer

    replace(build, "build_trainer", with_profile)


def table(averages: Any) -> dict[str, Any]:
    """Return where a step's time goes, what multiplies in float32, and what is copied."""
    on_device = any(event.self_device_time_total for event in averages)

    def micros(event: Any) -> float:
        return float(event.self_device_time_total if on_device else event.self_cpu_time_total)

    rows = sorted(averages, key=micros, reverse=True)
    lines = [{"name": row.key[:120], "calls": row.count, "microseconds": round(micros(row), 1)} for row in rows]
    return {
        "device": "GPU" if on_device else "CPU",
        "microseconds": round(sum(map(micros, rows)), 1),
        "top": lines[:40],
        "float32Products": [line for line in lines if on_device and FULL_PRECISION.search(line["name"])],
        "copies": [line for line in lines if COPIES.search(line["name"])],
        "calls": sum(line["calls"] for line in lines),
    }


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without", default="", help=f"some of {', '.join(PATHS)}, with commas between them")
    parser.add_argument("--profile", type=Path, help="file for the table of one step")
    parser.add_argument("--out-of-memory", action="store_true", help="let the memory not suffice")
    border = sys.argv.index("--")
    options = parser.parse_args(sys.argv[1:border])
    from model.training import cli

    switch_off([name for name in options.without.split(",") if name])
    if options.out_of_memory:
        run_out_of_memory()
    if options.profile:
        profile(options.profile)
    cli.run(sys.argv[border + 1 :])


if __name__ == "__main__":
    main()
