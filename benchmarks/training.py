"""Measures the trainer beside TRL and beside a bare loop, and writes the figures as one JSON document.

    make bench-training                                                              # in the trainer's image
    python -m benchmarks.training --base-model=<directory> --output=out/bench-training.json [--quick]

Four trainers go through the same rows in the same order and batches: this project's command, TRL as it comes, TRL
tuned by its own flags, and a bare loop (`benchmarks.contestants`). Each runs on one pinned CPU with one thread. What
counts is tokens without padding per second of CPU time, because the clock of a machine that others use says little.
Beside it stands the clock, with all CPUs. `docs/performance.md` says more.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import memory, startup
from benchmarks.figures import beside_targets, figure, speeds
from benchmarks.race import Block, Contestant, race
from benchmarks.rows import REPOSITORY, Task, export_rows

DROPOUT_PERCENT = {"SFT": 5, "DPO": 0}
"""The trainer's defaults; the same for everybody."""


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes
    ----------
    rounds, steps
        Rounds with one pinned thread, and steps of each trainer in one.
    wall_rounds, wall_steps
        The same with all CPUs.
    repetitions
        Starts of the trainer, and checkpoints.
    """

    rounds: int
    steps: int
    wall_rounds: int
    wall_steps: int
    repetitions: int


FULL = Plan(rounds=5, steps=5, wall_rounds=5, wall_steps=2, repetitions=5)
QUICK = Plan(rounds=2, steps=3, wall_rounds=1, wall_steps=2, repetitions=1)
WARM_UP_STEPS = 2
STEPS_AT_ONCE = 2


@dataclass(frozen=True)
class Bench:
    """Where the benchmark works, and with what.

    Attributes
    ----------
    base_model
        Directory of the model.
    work
        Folder for rows, runs and logs.
    """

    base_model: Path
    work: Path

    def task(self, method: str, name: str = "rows") -> Task:
        """Return a task with a run directory of its own."""
        task = Task(method, self.base_model, self.work / f"{method}-{name}", DROPOUT_PERCENT[method])
        if name == "rows":
            export_rows(task)
            return task
        shutil.rmtree(task.run_directory, ignore_errors=True)
        shutil.copytree(self.task(method).run_directory / "dataset", task.run_directory / "dataset")
        return task

    def contestant(self, name: str, method: str, *, steps: int, threads: int) -> Contestant:
        """Return one of ours, stock, tuned, literal and floor, not started."""
        if name == "ours":
            argv = startup.trainer_command(self.task(method, f"ours-{threads}"), steps=steps)
        else:
            task = self.task(method)
            argv = [
                *(sys.executable, "-m", "benchmarks.contestants", name, f"--method={method}"),
                *(f"--base-model={task.base_model}", f"--run-directory={task.run_directory}"),
                *(f"--dropout-percent={task.dropout_percent}", f"--steps={steps}"),
            ]
        own = allocator_settings() if name in ("ours", "floor") else {}
        log = self.work / f"{method}-{name}-{threads}.log"
        return Contestant(name, argv, environment(threads) | own, log)


def measure_method(bench: Bench, method: str, plan: Plan) -> tuple[dict[str, Any], float]:
    """Return a method's figures, and the peak of our trainer's memory in MiB."""
    cpus = os.sched_getaffinity(0)
    steps = WARM_UP_STEPS + plan.rounds * plan.steps + 1
    contestants = [
        bench.contestant(name, method, steps=steps, threads=1) for name in ("ours", "floor", "stock", "tuned")
    ]
    tell(f"{method}: {plan.rounds} rounds of {plan.steps} steps with one pinned thread")
    blocks = run_race(contestants, plan.rounds, plan.steps, cpus={max(cpus)})
    steps = WARM_UP_STEPS + plan.wall_rounds * plan.wall_steps + 1
    walkers = [bench.contestant(name, method, steps=steps, threads=len(cpus)) for name in ("ours", "floor", "stock")]
    tell(f"{method}: {plan.wall_rounds} rounds of {plan.wall_steps} steps by the clock")
    walls = run_race(walkers, plan.wall_rounds, plan.wall_steps, cpus=cpus)
    told = min(len(contestant.losses) for contestant in contestants)  # the last one's may not have been waited for
    losses = {contestant.name: round(fmean(contestant.losses[:told]), 4) for contestant in contestants}
    tell(f"{method}: mean losses {losses}")
    return speeds(blocks, walls) | {"meanLoss": losses}, contestants[0].peak_mib


def run_race(contestants: Sequence[Contestant], rounds: int, steps: int, *, cpus: set[int]) -> dict[str, list[Block]]:
    """Run a race as all of them are run here."""
    return race(contestants, cpus=cpus, rounds=rounds, steps=steps, warm_up=WARM_UP_STEPS, at_once=STEPS_AT_ONCE)


def measure_waiting(bench: Bench, plan: Plan) -> dict[str, Any]:
    """Return the figures of starts and checkpoints."""
    own = environment(len(os.sched_getaffinity(0))) | allocator_settings()
    task = bench.task("SFT", "waiting")
    check = ["validate", *task.flags(steps=10)]
    tell("starts and checkpoints")
    percents, seconds = startup.checkpoint_percents(task, own, bench.work, checkpoints=plan.repetitions)
    task = bench.task("SFT", "first-step")
    figures = {"checkpointPercent": figure(percents), "checkpointSeconds": figure(seconds)}
    for name, taken in (
        ("firstStep", startup.first_steps(task, own, bench.work, times=plan.repetitions)),
        ("help", startup.seconds(["train", "--help"], own, times=plan.repetitions)),
        ("validate", startup.seconds(check, own, times=plan.repetitions)),
    ):
        figures |= {f"{name}Seconds": figure(taken.wall), f"{name}CpuSeconds": figure(taken.cpu)}
    return figures


def environment(threads: int) -> dict[str, str]:
    """Return the environment of a trainer, without settings of the allocator."""
    kept = {name: value for name, value in os.environ.items() if name not in ("GLIBC_TUNABLES", "OMP_NUM_THREADS")}
    fixed = {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH")))),
        "HF_HUB_OFFLINE": "1",
    }
    return kept | fixed


def allocator_settings() -> dict[str, str]:
    """Return the settings of the C library's allocator that the trainer's image has."""
    dockerfile = (REPOSITORY / "images" / "trainer" / "Dockerfile").read_text(encoding="utf-8")
    found = re.search(r"\bGLIBC_TUNABLES=(\S+)", dockerfile)
    if found is None:
        raise SystemExit(
            "images/trainer/Dockerfile sets no GLIBC_TUNABLES: the benchmark cannot tell what the trainer uses"
        )
    return {"GLIBC_TUNABLES": found[1]}


def about_this_machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    from model.training.processes.process import cpu_has_bfloat16

    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    packages = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": model[1] if model else platform.machine(),
            "cpus": len(os.sched_getaffinity(0)),
            "memoryMiB": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
            "bfloat16": cpu_has_bfloat16(),
            "loadAverageBefore": round(os.getloadavg()[0], 2),
        },
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
    }


def measure(bench: Bench, plan: Plan, parts: Sequence[str]) -> dict[str, Any]:
    """Return the whole document, or the parts of it that are asked for."""
    document = about_this_machine() | {"plan": vars(plan)}
    if "waiting" in parts:
        document |= measure_waiting(bench, plan)
    for method in ("SFT", "DPO"):
        if method.lower() in parts:
            figures, peak = measure_method(bench, method, plan)
            document |= {method.lower(): figures}
            if method == "SFT":
                document |= {"peakMiB": figure([peak], 0)}
    if "export" in parts:
        from benchmarks.export import measure as measure_export

        tell("export")
        document |= measure_export()
    if "memory" in parts:
        tell("memory, planned and taken")
        document |= {"memory": memory.measure(bench.work, environment(1) | allocator_settings())}
    return document


def tell(text: str) -> None:
    """Say on standard error what is going on."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")


PARTS = ("waiting", "sft", "dpo", "export", "memory")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model", type=Path, required=True, help="directory of SmolLM2-135M-Instruct")
    parser.add_argument("--output", type=Path, required=True, help="file for the JSON document")
    parser.add_argument("--work", type=Path, help="folder for rows, runs and logs; beside the output when left out")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: minutes, and figures to be taken with salt")
    parser.add_argument("--rounds", type=int, help="rounds with one pinned thread")
    parser.add_argument("--steps", type=int, help="timed steps of each trainer in such a round")
    parser.add_argument("--parts", default=",".join(PARTS), help="what to measure (default %(default)s)")
    options = parser.parse_args(arguments)
    parts = options.parts.split(",")
    if unknown := sorted(set(parts) - set(PARTS)):
        parser.error(f"--parts: {', '.join(unknown)} is none of {', '.join(PARTS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that stopped trainers are ended
    work = options.work or options.output.parent / "bench-training"
    work.mkdir(parents=True, exist_ok=True)
    # A repository that is mounted read-only has no compiled modules, and what starts from it would seem slow.
    os.environ["PYTHONPYCACHEPREFIX"] = str(work.resolve() / "compiled")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    plan = QUICK if options.quick else FULL
    plan = replace(plan, rounds=options.rounds or plan.rounds, steps=options.steps or plan.steps)
    started = time.monotonic()
    document = measure(Bench(options.base_model.resolve(), work.resolve()), plan, parts)
    document["tookSeconds"] = round(time.monotonic() - started)
    options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write("\n".join([*beside_targets(document), f"{options.output}\n"]))


if __name__ == "__main__":
    main()
