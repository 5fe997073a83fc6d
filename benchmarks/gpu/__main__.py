"""Measures the trainer beside TRL on one CUDA GPU and writes the figures as one JSON document.

    python -m benchmarks.gpu --output=out/bench-gpu.json         a model of Llama 3.1 8B's shape; 20 GB of disk
    python -m benchmarks.gpu --output=out/smoke.json --smoke     a tiny one on the CPU: shows that the script works

Four cases: SFT packed to 4,096 tokens and DPO, each with bfloat16 weights and with NF4. In each case this project's
command and TRL as it comes train the same rows, one after the other, several times in turn. Utilisation counts what has
to be computed and not what a trainer computes twice (`benchmarks.gpu.shape`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import figure
from benchmarks.gpu.base import make_model, make_rows
from benchmarks.gpu.shape import LLAMA_8B, TINY, Shape, operations_per_token, peak_tflops, utilisation
from benchmarks.race import Contestant
from benchmarks.rows import REPOSITORY
from benchmarks.training import about_this_machine, allocator_settings, environment, tell

RANK = 16
SAMPLE_SECONDS = 0.2


@dataclass(frozen=True)
class Case:
    """What is trained.

    Attributes
    ----------
    method, quantization
        The trainer's words.
    batch_rows
        Rows or pairs of a step.
    prompt, answer
        Tokens of each, the end token included.
    """

    method: str
    quantization: str
    batch_rows: int
    prompt: int
    answer: int

    @property
    def name(self) -> str:
        """The case's name in the document."""
        return self.method.lower() + ("Bfloat16" if self.quantization == "None" else self.quantization)

    @property
    def row_tokens(self) -> int:
        """Tokens of a sequence."""
        return self.prompt + self.answer


@dataclass(frozen=True)
class Setting:
    """How large everything is: the real one, or the smoke test's."""

    shape: Shape
    cases: tuple[Case, ...]
    rounds: int
    warm_up: int
    steps: int


FULL = Setting(
    shape=LLAMA_8B,
    cases=(
        Case("SFT", "None", batch_rows=8, prompt=128, answer=384),
        Case("SFT", "NF4", batch_rows=8, prompt=128, answer=384),
        Case("DPO", "None", batch_rows=2, prompt=512, answer=512),
        Case("DPO", "NF4", batch_rows=2, prompt=512, answer=512),
    ),
    rounds=3,
    warm_up=5,
    steps=20,
)
SMOKE = Setting(
    shape=TINY,
    cases=(
        Case("SFT", "None", batch_rows=2, prompt=8, answer=24),
        Case("DPO", "None", batch_rows=2, prompt=8, answer=24),
    ),
    rounds=1,
    warm_up=1,
    steps=2,
)


class MemoryPeak:
    """The most memory of the GPU that was in use while something ran, over what was in use before, in MiB.

    Seen from outside, so that it means the same for every trainer; None without a GPU.
    """

    def __init__(self, read: Callable[[], int | None]) -> None:
        self._read = read
        self._before = self._peak = read()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryPeak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def mib(self) -> int | None:
        """The peak so far."""
        return None if self._peak is None or self._before is None else self._peak - self._before

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            now = self._read()
            if now is not None:
                self._peak = max(self._peak or 0, now)


def gpu_query(field: str) -> str | None:
    """Return what the driver's tool says about the first GPU, None without one."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    argv = [tool, "--id=0", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)  # noqa: S603 - the driver's own tool
    return done.stdout.strip() if done.returncode == 0 else None


def memory_in_use() -> int | None:
    """Return the first GPU's memory in use in MiB, None without a GPU."""
    answer = gpu_query("memory.used")
    return None if answer is None else int(answer)


class Bench:
    """Runs the cases.

    Parameters
    ----------
    setting
        What to run.
    work
        Folder for the model, rows, runs and logs.
    cuda
        Whether there is a GPU to run on.
    """

    def __init__(self, setting: Setting, work: Path, *, cuda: bool) -> None:
        self._setting = setting
        self._work = work
        self._cuda = cuda
        self._model = work / f"model-{setting.shape.layers}x{setting.shape.hidden}"

    def run(self) -> dict[str, Any]:
        """Return the figures of all cases."""
        tell(f"making {self._model}")
        make = "from benchmarks.gpu.__main__ import make_from_arguments; make_from_arguments()"
        shape = "tiny" if self._setting.shape is TINY else "8b"
        # In a process of its own, which gives the GPU's memory back.
        argv = [sys.executable, "-c", make, str(self._model), shape, "cuda" if self._cuda else "cpu"]
        subprocess.run(argv, check=True, cwd=REPOSITORY)  # noqa: S603 - our own program
        return {case.name: self._case(case) for case in self._setting.cases}

    def _case(self, case: Case) -> dict[str, Any]:
        rows = self._work / f"{case.name}.jsonl"
        steps = self._setting.warm_up + self._setting.steps + 1
        make_rows(rows, method=case.method, rows=steps * case.batch_rows, prompt=case.prompt, answer=case.answer)
        speeds: dict[str, list[float]] = {"ours": [], "stock": []}
        peaks: dict[str, list[int]] = {"ours": [], "stock": []}
        for _ in range(self._setting.rounds):
            for name, argv in (("ours", self._ours(case, rows, steps)), ("stock", self._stock(case, rows, steps))):
                tell(f"{case.name}: {name}")
                speed, peak = self._time(name, argv, case)
                speeds[name].append(speed)
                peaks[name] += [] if peak is None else [peak]
        return self._figures(case, speeds, peaks)

    def _figures(self, case: Case, speeds: dict[str, list[float]], peaks: dict[str, list[int]]) -> dict[str, Any]:
        operations = operations_per_token(
            self._setting.shape,
            method=case.method,
            rank=RANK,
            row_tokens=case.row_tokens,
            learned_share=case.answer / case.row_tokens,
        )
        peak = peak_tflops(gpu_query("name") or "")
        ratios = [our / stock for our, stock in zip(speeds["ours"], speeds["stock"], strict=True)]
        figures: dict[str, Any] = {"oursOverStock": figure(ratios), "gigaflopPerToken": round(operations / 1e9, 3)}
        for name, values in speeds.items():
            shares = [share for speed in values if (share := utilisation(speed, operations, peak)) is not None]
            figures[f"{name}TokensPerSecond"] = figure(values, 1)
            figures[f"{name}UtilisationPercent"] = figure(shares, 1) if shares else None
            figures[f"{name}PeakMiB"] = figure(peaks[name], 0) if peaks[name] else None
        return figures

    def _time(self, name: str, argv: list[str], case: Case) -> tuple[float, int | None]:
        """Return tokens per second after the warm-up, and the peak of the GPU's memory in MiB."""
        own = environment(len(os.sched_getaffinity(0))) | (allocator_settings() if name == "ours" else {})
        trainer = Contestant(name, argv, own, self._work / f"{case.name}-{name}.log")
        with MemoryPeak(memory_in_use) as memory:
            try:
                trainer.start(os.sched_getaffinity(0))
                for _ in range(self._setting.warm_up):
                    trainer.wait_for("train")
                started, tokens = time.monotonic(), 0
                for _ in range(self._setting.steps):
                    tokens += int(trainer.wait_for("train")["tokens"])
                speed = tokens / (time.monotonic() - started)
            finally:
                trainer.end()
            return speed, memory.mib

    def _ours(self, case: Case, rows: Path, steps: int) -> list[str]:
        run = self._work / f"{case.name}-ours"
        shutil.rmtree(run, ignore_errors=True)
        subprocess.run(  # noqa: S603 - our own program
            [
                *(sys.executable, "-m", "model.data.export", "--source=volume", f"--path={rows}"),
                *(f"--run-directory={run}", f"--method={case.method}"),
            ],
            check=True,
            cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
        )
        length = case.batch_rows * case.row_tokens if case.method == "SFT" else case.row_tokens
        return [
            *(sys.executable, "-m", "model.training.cli", "train", f"--method={case.method}"),
            *(f"--run-directory={run}", "--run-uid=benchmark", f"--base-model={self._model}"),
            *(f"--batch-size={case.batch_rows}", f"--micro-batch-size={case.batch_rows}", f"--max-steps={steps}"),
            *(f"--max-length={length}", f"--packing={'Enabled' if case.method == 'SFT' else 'Auto'}"),
            *(f"--lora-rank={RANK}", "--lora-dropout-percent=0", f"--quantization={case.quantization}"),
            *(f"--gpus={1 if self._cuda else 0}", "--checkpoint-steps=1000000"),
        ]

    def _stock(self, case: Case, rows: Path, steps: int) -> list[str]:
        return [
            *(sys.executable, "-m", "benchmarks.gpu.stock", f"--method={case.method}", f"--rows={rows}"),
            *(f"--base-model={self._model}", f"--steps={steps}", f"--batch-rows={case.batch_rows}"),
            *(f"--row-tokens={case.row_tokens}", f"--quantization={case.quantization}"),
        ]


def make_from_arguments() -> None:
    """Make the model's directory; directory, shape and device come as arguments."""
    directory, shape, device = sys.argv[1:]
    make_model(Path(directory), TINY if shape == "tiny" else LLAMA_8B, device=device)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="file for the JSON document")
    parser.add_argument("--work", type=Path, help="folder for the model, rows and logs; beside the output if left out")
    parser.add_argument("--smoke", action="store_true", help="a tiny model on the CPU")
    options = parser.parse_args(arguments)
    device = None if options.smoke else gpu_query("name")
    if device is None and not options.smoke:
        raise SystemExit("no NVIDIA GPU is usable here: run it on a machine with one, or with --smoke")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that trainers are ended
    work = (options.work or options.output.parent / "bench-gpu").resolve()
    work.mkdir(parents=True, exist_ok=True)
    document = about_this_machine() | {"gpu": device, "smoke": options.smoke}
    document |= Bench(SMOKE if options.smoke else FULL, work, cuda=device is not None).run()
    options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{options.output}\n")


if __name__ == "__main__":
    main()
