"""What is measured on one GPU, in parts that each fit a few minutes of it.

paths      each path once, on four layers of an 8B model: SFT, DPO, probe, too little memory, SIGTERM and resumption,
           evaluation; 40 steps of ragged rows with each one's time; where the time of a step goes
ablation   on the same slice, microseconds a token and layer: ours, ours with each fast path off in turn, TRL as it
           comes and with its best flags; DPO, ours and TRL
shapes     the whole shapes of Qwen3 8B and 0.6B, ragged and packed: ours and TRL, peak memory
llama      the whole shape of Llama 8B, packed to 4,096, in bfloat16 and on NF4: ours and TRL

Every speed has its losses beside it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu import shape as shapes
from benchmarks.gpu.base import make_rows
from benchmarks.gpu.machine import gpu_query
from benchmarks.gpu.programs import Followed, figures, follow, last_words, losses, stop_after
from benchmarks.gpu.shape import Shape, operations_per_token, peak_tflops, utilisation
from benchmarks.rows import REPOSITORY
from benchmarks.training import environment, tell

RANK = 16


@dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes
    ----------
    name
        What to call it.
    shape
        The model.
    rows
        Rows or pairs of a step.
    prompt, answer
        Mean tokens of each, the end token included.
    method, quantization
        The trainer's words.
    ragged
        Whether lengths vary; else rows are all alike.
    packed
        Tokens up to which TRL joins rows, None without.
    at_once
        Rows that TRL sends through the model at once; ours finds that out by itself.
    """

    name: str
    shape: Shape
    rows: int
    prompt: int
    answer: int
    method: str = "SFT"
    quantization: str = "None"
    ragged: bool = True
    packed: int | None = None
    at_once: int | None = None


@dataclass(frozen=True)
class Size:
    """How large everything is: for a GPU, or for the smoke test on a CPU."""

    paths: Task
    pairs: Task
    ablation: Task
    whole: tuple[Task, ...]
    llama: tuple[Task, ...]
    many: int
    """Steps with each one's time."""
    few: int
    """Steps of a run that is to show something else than speed."""
    warm_up: int
    steps: int
    variants: Sequence[str]
    """Of ours, in the ablation."""


ABLATION: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "ours": ((), ()),
    "adaptersAsPeftHasThem": (("--without=adapters",), ()),
    "inputsNotShared": (("--without=inputs",), ()),
    "lossAtOnce": (("--without=chunks",), ()),
    "padded": ((), ("--packing=Disabled",)),
    "recomputed": ((), ("--gradient-checkpointing=Enabled",)),
}
"""Variants of our trainer: flags of `benchmarks.gpu.ours`, and the trainer's."""

FULL = Size(
    paths=Task("sft", shapes.SLICE, 16, 128, 384),
    pairs=Task("dpo", shapes.SLICE, 8, 384, 256, method="DPO"),
    ablation=Task("sft", shapes.SLICE, 32, 128, 384, at_once=16),
    whole=(
        Task("qwen3-8b-packed", shapes.QWEN3_8B, 32, 128, 384, ragged=False, packed=2048, at_once=2),
        Task("qwen3-8b-ragged", shapes.QWEN3_8B, 32, 128, 384, at_once=8),
        Task("qwen3-0.6b-packed", shapes.QWEN3_06B, 32, 128, 384, ragged=False, packed=2048, at_once=8),
        Task("qwen3-0.6b-ragged", shapes.QWEN3_06B, 32, 128, 384, at_once=16),
    ),
    llama=(
        Task("llama-8b-packed", shapes.LLAMA_8B, 32, 128, 384, ragged=False, packed=4096, at_once=1),
        Task("llama-8b-nf4", shapes.LLAMA_8B, 32, 128, 384, "SFT", "NF4", ragged=False, packed=4096, at_once=1),
    ),
    many=40,
    few=6,
    warm_up=5,
    steps=15,
    variants=tuple(ABLATION),
)
SMOKE = Size(
    paths=Task("sft", shapes.TINY, 4, 8, 24),
    pairs=Task("dpo", shapes.TINY, 2, 8, 24, method="DPO"),
    ablation=Task("sft", shapes.TINY, 4, 8, 24, at_once=2),
    whole=(Task("ragged", shapes.TINY_QWEN3, 4, 8, 24, at_once=2),),
    llama=(Task("packed", shapes.TINY, 4, 8, 24, ragged=False, packed=64, at_once=1),),  # NF4 takes a GPU
    many=4,
    few=8,
    warm_up=1,
    steps=2,
    variants=("ours", "adaptersAsPeftHasThem", "padded"),
)


class Bench:
    """Runs the parts.

    Parameters
    ----------
    size
        How large.
    work
        Folder for models, rows, runs and logs.
    cuda
        Whether there is a GPU to run on.
    """

    def __init__(self, size: Size, work: Path, *, cuda: bool) -> None:
        self._size, self._work, self._cuda = size, work, cuda
        self._environment = environment(len(os.sched_getaffinity(0)))

    def part(self, name: str) -> dict[str, Any]:
        """Return a part's figures."""
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "paths": self._paths,
            "ablation": self._ablation,
            "shapes": lambda: self._whole(self._size.whole),
            "llama": lambda: self._whole(self._size.llama),
        }
        return parts[name]()

    def _paths(self) -> dict[str, Any]:
        task, size = self._size.paths, self._size
        found: dict[str, Any] = {}
        many = self._train(task, "sft", size.many, "--evaluation-steps=2", percent=20)
        found["sft"] = last_words(many) | {"steps": figures(many, warm_up=size.warm_up)}
        found["dpo"] = last_words(self._train(size.pairs, "dpo", size.few))
        table = self._work / "profile.json"
        table.unlink(missing_ok=True)
        plain = self._train(task, "plain", size.few, also=[f"--profile={table}"])
        found["plain"] = last_words(plain)
        found["profile"] = json.loads(table.read_text()) if table.is_file() else None
        short = self._train(task, "short", size.few, f"--micro-batch-size={task.rows}", also=["--out-of-memory"])
        found["outOfMemory"] = last_words(short) | {"lossDifference": furthest(plain, short)}
        found["resumption"] = self._interrupted(task, plain)
        return found

    def _interrupted(self, task: Task, plain: Followed) -> dict[str, Any]:
        """Send SIGTERM in the middle, start again, and compare the losses with those of a run that went through."""
        half = self._size.few // 2

        def terminate(event: dict[str, Any], process: subprocess.Popen[str]) -> None:
            if event.get("event") == "train" and event["step"] == half:
                process.send_signal(signal.SIGTERM)

        first = self._train(task, "interrupted", self._size.few, heard=terminate)
        second = self._train(task, "interrupted", self._size.few, again=True)
        both = Followed(events=[*first.events, *second.events])
        return {
            "exitCodes": [first.code, second.code],
            "resumedAt": [event.get("step") for event in second.of("resume")],
            "lossDifference": furthest(plain, both),
            "second": last_words(second),
        }

    def _ablation(self) -> dict[str, Any]:
        task, size = self._size.ablation, self._size
        found: dict[str, Any] = {}
        for name in size.variants:
            also, flags = ABLATION[name]
            found[name] = self._speed(task, self._until(task, name, *flags, also=also))
        for name, best in (("stock", False), ("stockBest", True)):
            found[name] = self._speed(task, self._stock(task, size.warm_up + size.steps, best=best))
        found["dpo"] = self._beside(size.pairs)
        return found

    def _whole(self, tasks: Sequence[Task]) -> dict[str, Any]:
        return {task.name: self._beside(task) for task in tasks}

    def _beside(self, task: Task) -> dict[str, Any]:
        ours = self._speed(task, self._until(task, "ours"))
        stock = self._speed(task, self._stock(task, self._size.warm_up + self._size.steps, best=False))
        ratio = None
        if "tokensPerSecond" in ours and "tokensPerSecond" in stock:
            ratio = round(ours["tokensPerSecond"] / stock["tokensPerSecond"], 3)
        return {"oursOverStock": ratio, "ours": ours, "stock": stock}

    def _until(self, task: Task, name: str, *flags: str, also: Sequence[str] = ()) -> Followed:
        """Run ours until the last timed step."""
        steps = self._size.warm_up + self._size.steps
        return self._train(task, name, steps + 1, *flags, also=also, heard=stop_after(steps))

    def _speed(self, task: Task, found: Followed) -> dict[str, Any]:
        known = figures(found, warm_up=self._size.warm_up)
        if "tokensPerSecond" not in known:
            return known
        speed, shape = known["tokensPerSecond"], task.shape
        operations = operations_per_token(
            shape,
            method=task.method,
            rank=RANK,
            row_tokens=task.prompt + task.answer,
            learned_share=task.answer / (task.prompt + task.answer),
        )
        share = utilisation(speed, operations, peak_tflops(gpu_query("name") or ""))
        return known | {
            "microsecondsPerTokenAndLayer": round(1e6 / speed / shape.layers, 3),
            "utilisationPercent": None if share is None else round(share, 1),
        }

    def _train(
        self,
        task: Task,
        name: str,
        steps: int,
        *flags: str,
        also: Sequence[str] = (),
        percent: int = 0,
        again: bool = False,
        heard: Callable[[dict[str, Any], subprocess.Popen[str]], None] = lambda _event, _process: None,
    ) -> Followed:
        """Run our trainer.

        Parameters
        ----------
        task, name, steps
            What, under which name, and how long.
        flags
            For the trainer.
        also
            For `benchmarks.gpu.ours`.
        percent
            Rows held out.
        again
            Whether to go on in the same directory.
        heard
            See `follow`.
        """
        tell(f"{task.name}: {name}")
        run = self._work / f"{task.name}-{name}"
        if not again:
            shutil.rmtree(run, ignore_errors=True)
            self._export(task, run, percent)
        argv = [
            *(sys.executable, "-m", "benchmarks.gpu.ours", *also, "--", "train", f"--method={task.method}"),
            *(f"--run-directory={run}", "--run-uid=benchmark", f"--base-model={self._model(task.shape)}"),
            *(f"--batch-size={task.rows}", f"--max-steps={steps}", f"--max-length={self._longest(task)}"),
            *(f"--lora-rank={RANK}", "--lora-dropout-percent=0", f"--quantization={task.quantization}"),
            *(f"--gpus={1 if self._cuda else 0}", "--checkpoint-steps=1000000", "--samples=0", *flags),
        ]
        return follow(argv, self._environment, self._work / f"{task.name}-{name}.log", heard=heard)

    def _stock(self, task: Task, steps: int, *, best: bool) -> Followed:
        name = "stock-best" if best else "stock"
        tell(f"{task.name}: {name}")
        rows = task.rows * (task.prompt + task.answer) // task.packed if task.packed else task.rows
        argv = [
            *(sys.executable, "-m", "benchmarks.gpu.stock", f"--method={task.method}", f"--rows={self._rows(task)}"),
            *(f"--base-model={self._model(task.shape)}", f"--steps={steps}", f"--batch-rows={rows}"),
            *((f"--packed-tokens={task.packed}",) if task.packed else ()),
            *((f"--micro-batch-rows={task.at_once}",) if task.at_once else ()),
            *(f"--quantization={task.quantization}", *(("--best",) if best else ())),
        ]
        return follow(argv, self._environment, self._work / f"{task.name}-{name}.log")

    def _model(self, shape: Shape) -> Path:
        """Return the model's directory; it is made in a process of its own, which gives the GPU's memory back."""
        directory = self._work / shape.name
        argv = [
            sys.executable,
            "-m",
            "benchmarks.gpu.base",
            str(directory),
            shape.name,
            "cuda" if self._cuda else "cpu",
        ]
        if not directory.is_dir():
            tell(f"making {directory}")
            subprocess.run(argv, check=True, cwd=REPOSITORY, env=self._environment)  # noqa: S603 - our own program
        return directory

    def _rows(self, task: Task) -> Path:
        path = self._work / f"{task.name}-{task.shape.name}.jsonl"
        steps = max(self._size.many, self._size.few, self._size.warm_up + self._size.steps + 1)
        if not path.is_file():
            make_rows(
                path,
                method=task.method,
                rows=(steps + 1) * task.rows * 5 // 4,  # a part of them is held out
                prompt=task.prompt,
                answer=task.answer,
                ragged=task.ragged,
            )
        return path

    @staticmethod
    def _longest(task: Task) -> int:
        return (task.prompt + task.answer) * (7 if task.ragged else 4) // 4

    def _export(self, task: Task, run: Path, percent: int) -> None:
        argv = [
            *(sys.executable, "-m", "model.data.export", "--source=volume", f"--path={self._rows(task)}"),
            *(f"--run-directory={run}", f"--method={task.method}", f"--evaluation-percent={percent}"),
        ]
        subprocess.run(argv, check=True, cwd=REPOSITORY, env=self._environment, stdout=subprocess.DEVNULL)  # noqa: S603 - our own program


def furthest(one: Followed, other: Followed) -> float | None:
    """Return the largest difference between the losses of two runs' steps, None when they made other steps."""
    first, second = losses(one), losses(other)
    if len(first) != len(second) or not first:
        return None
    return max(abs(a - b) for a, b in zip(first, second, strict=True))
