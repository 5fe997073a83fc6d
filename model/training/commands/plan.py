"""What a run will need on this machine: parameters, memory by part, tokens, steps and time.

Weights, adapter and optimizer follow from the headers of the model's files. What a token costs in the forward and
backward pass is measured by two real steps on the longest rows (`model.training.commands.probe`), or estimated from
the shape.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model import exits
from model.exits import FailureError
from model.files import RunDirectory, write_json
from model.training import local
from model.training.config import TrainSettings
from model.training.local import PlanCommand
from model.training.loop.footprint import (
    HEAP,
    LIBRARY_BYTES,
    LOGITS_CHUNK_BYTES,
    OPTIMIZER_BYTES,
    Passes,
    choose_micro_batch_size,
)
from model.training.loop.memory import GPU_GROWTH, HostMemory, container_limit, free_bytes
from model.training.loop.schedule import evaluation_interval, evaluation_tokens, evaluation_warning
from model.training.output import terminal
from model.training.processes import parallel, process
from model.training.weights.files import FilesError, ModelFiles, lora_parameters, read_json

CUDA_CONTEXT_BYTES = 600 << 20
ADAPTER_BYTES = 4
"""Adapters are trained in float32, whatever the base's type."""
CHARACTERS_PER_TOKEN = 3.5
"""Of text, for the estimate without a tokenizer."""
TEMPLATE_TOKENS = 30
"""What a chat template adds to a row."""
PROBE_SECONDS = 1800


@dataclass(frozen=True)
class Amounts:
    """How much is to be done."""

    rows: int
    tokens: int
    held_out_rows: int
    held_out_tokens: int
    longest_row: int
    longest_example: int
    """Positions that it takes of a forward pass: both rows of a pair."""
    micro_batch_size: int
    exact: bool


@dataclass(frozen=True)
class Plan:
    """What a run needs; sizes in bytes, times in seconds, None for what is not known."""

    command: PlanCommand
    files: ModelFiles
    trainable: int
    amounts: Amounts
    memory: dict[str, int]
    available: int | None
    steps: int
    seconds: float | None
    measured: bool
    device: str
    processes: int
    """How many processes train together; `amounts.micro_batch_size`, `memory` and `available` are those of one."""
    warnings: list[str] = field(default_factory=list)

    @property
    def peak(self) -> int:
        """The most memory that is held at once."""
        return sum(self.memory.values())

    def document(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "parameters": {"total": self.files.parameters, "trainable": self.trainable},
            "rows": self.amounts.rows,
            "tokens": self.amounts.tokens,
            "tokensAreExact": self.amounts.exact,
            "longestRow": self.amounts.longest_row,
            "microBatchSize": self.amounts.micro_batch_size,
            "steps": self.steps,
            "processes": self.processes,
            "device": self.device,
            "measured": self.measured,
            "memoryBytes": self.memory,
            "peakBytes": self.peak,
            "availableBytes": self.available,
            "seconds": None if self.seconds is None else round(self.seconds, 1),
            "warnings": self.warnings,
        }

    def text(self) -> str:
        """Return the form for a person."""
        about = "" if self.amounts.exact else "about "
        share = 100 * self.trainable / self.files.parameters
        size, at_once = self.command.batch_size, self.amounts.micro_batch_size
        each = "" if self.processes == 1 else f" in each of {self.processes} processes"
        lines = [
            f"parameters  {self.files.parameters:,}, of which {self.trainable:,} are trained ({share:.2f} % more)",
            f"dataset     {self.amounts.rows:,} rows, {about}{self.amounts.tokens:,} tokens",
            f"longest row {about}{self.amounts.longest_row:,} tokens",
            f"steps       {self.steps:,} of {size} rows, {at_once} at once{each}",
            f"device      {self.device}",
        ]
        lines += [f"  {name:32}{terminal.size(value):>12}" for name, value in self.memory.items()]
        available = "" if self.available is None else f" of {terminal.size(self.available)}"
        how = "" if self.measured else ", estimated"
        lines.append(f"peak memory {terminal.size(self.peak)}{available}{each}{how}")
        if self.seconds is not None:
            lines.append(f"time        about {terminal.duration(self.seconds)}")
        return "\n".join([*lines, *(f"warning     {text}" for text in self.warnings)])


def make_plan(command: PlanCommand, *, probe: bool) -> Plan:
    """Return the plan of a run.

    Raises
    ------
    FailureError
        When the base model or the dataset is not there or not right, or the probe fails.
    """
    from model.training.weights import hub, origin

    if origin.check(command.base_model) is None:
        raise FailureError(
            exits.INVALID_CONFIGURATION,
            "InvalidSpec",
            f"--base-model={command.base_model}: a plan needs the model's directory; get it first with "
            f"hf download {command.base_model} --local-dir DIRECTORY",
        )
    files = hub.check_base(command)
    assert files is not None
    with tempfile.TemporaryDirectory(prefix="plan-") as scratch:
        run = RunDirectory(Path(scratch))
        bring_dataset(command, run)
        settings = with_parent(command.settings(run.path, "plan"))
        measured = _probe(settings, run) if probe else None
        return _put_together(command, settings, files, estimate_amounts(settings, files, run), measured)


def with_parent(settings: TrainSettings) -> TrainSettings:
    """Return the settings with all defaults; the adapter's shape is the parent's when there is one."""
    if settings.parent_adapter is None:
        return settings.resolved()
    from model.training.weights import adapters

    return adapters.with_parent(settings.resolved())


def bring_dataset(command: PlanCommand, run: RunDirectory) -> None:
    """Put a dataset into the scratch directory: the given one, the run's own, or rows of the greatest length."""
    if command.dataset is not None:
        local.export_dataset(command, run.path)
    elif (exported := RunDirectory(command.run_directory)).manifest.is_file():
        run.dataset.mkdir()
        for name in ("train_rows", "evaluation_rows", "manifest"):  # file by file: what is made goes beside the links
            getattr(run, name).symlink_to(getattr(exported, name).resolve())
    else:
        run.dataset.mkdir()
        text = "a " * (4 * command.max_length)
        answers: dict[str, tuple[str, dict[str, Any]]] = {
            "SFT": ("prompt-completion", {"completion": text}),
            "DPO": ("preference", {"chosen": text, "rejected": text + "b"}),
            "KTO": ("unpaired", {"completion": text, "label": True}),
        }
        shape, answer = answers[command.method]
        line = json.dumps({"prompt": "a", **answer, "row": 1})
        run.train_rows.write_text("".join(line + "\n" for _ in range(command.batch_size)), encoding="utf-8")
        run.evaluation_rows.touch()
        from model.files import sha256_of_files

        manifest = {
            "schemaVersion": 1, "rows": command.batch_size, "evaluationRows": 0, "dropped": 0, "duplicates": 0,
            "bytes": run.train_rows.stat().st_size, "sha256": sha256_of_files([run.train_rows, run.evaluation_rows]),
            "shape": shape, "seed": command.seed, "version": None,
        }  # fmt: skip
        write_json(run.manifest, manifest)


def estimate_amounts(settings: TrainSettings, files: ModelFiles, run: RunDirectory) -> Amounts:
    """Return the amounts as the rows' characters suggest them."""
    sequences = 2 if settings.method == "DPO" else 1

    def lengths(path: Path) -> list[int]:
        with path.open(encoding="utf-8") as file:
            return [min(settings.max_length * sequences, _row_tokens(line)) for line in file]

    rows, held_out = lengths(run.train_rows), lengths(run.evaluation_rows)
    longest = max(rows, default=1)
    return Amounts(
        rows=len(rows),
        tokens=sum(rows),
        held_out_rows=len(held_out),
        held_out_tokens=sum(held_out),
        longest_row=math.ceil(longest / sequences),
        longest_example=longest,
        micro_batch_size=rows_at_once(settings, files, longest, cuda=settings.gpus > 0, room=share_of_memory(settings)),
        exact=False,
    )


def rows_at_once(settings: TrainSettings, files: ModelFiles, longest: int, *, cuda: bool, room: int | None) -> int:
    """Return the micro-batch with which each process of a run would begin here.

    Parameters
    ----------
    settings
        The run's settings, with all defaults.
    files
        The base model's.
    longest
        Positions that the longest example takes of a forward pass: those of both rows of a pair.
    cuda
        Whether the training will be on GPUs.
    room
        Memory that one process may take on a CPU, in bytes; None where that is not known.
    """
    count = parallel.planned(settings)
    rows = settings.micro_batch_size or choose_micro_batch_size(
        math.ceil(settings.batch_size / count), longest, cuda=cuda
    )
    if settings.micro_batch_size or cuda or room is None:
        return rows
    fixed = sum(fixed_memory(settings, files, cuda=False).values())
    return HostMemory(room, fixed, _passes(settings, files, cuda=False), longest).rows(rows)


def _put_together(
    command: PlanCommand, settings: TrainSettings, files: ModelFiles, amounts: Amounts, probe: dict[str, Any] | None
) -> Plan:
    cuda = probe["gpu"] is not None if probe else settings.gpus > 0
    if probe is not None:
        amounts = Amounts(
            rows=probe["rows"],
            tokens=probe["tokens"],
            held_out_rows=probe["heldOutRows"],
            held_out_tokens=probe["heldOutTokens"],
            longest_row=probe["longestRow"],
            longest_example=probe["longestExample"],
            micro_batch_size=probe["microBatchSize"],
            exact=True,
        )
    memory = memory_by_part(settings, files, amounts.micro_batch_size * amounts.longest_example, cuda=cuda)
    if probe is not None:
        memory = calibrate(memory, probe)
    steps = settings.max_steps or (settings.epochs or 1) * math.ceil(amounts.rows / settings.batch_size)
    available = probe["gpu"]["totalBytes"] if probe and probe["gpu"] else None if cuda else share_of_memory(settings)
    plan = Plan(
        command=command,
        files=files,
        trainable=trained_parameters(settings, files),
        amounts=amounts,
        memory=memory,
        available=available,
        steps=steps,
        seconds=_seconds(settings, amounts, steps, probe) if probe else None,
        measured=probe is not None,
        device=_device(settings, probe, cuda=cuda),
        processes=parallel.planned(settings),
    )
    if cuda and not settings.micro_batch_size:
        plan.warnings.append(
            f"on a GPU the training tries up to {GPU_GROWTH} times as many rows at once, and keeps what fits: its "
            "probe line tells how many; --micro-batch-size settles it"
        )
    if evaluations := _evaluation_warning(settings, amounts, steps):
        plan.warnings.append(evaluations)
    if available is not None and plan.peak > available:
        plan.warnings.append(
            "it does not fit: lower --micro-batch-size or --max-length, or use --precision=BFloat16"
            if not cuda
            else "it does not fit: lower --micro-batch-size or --max-length, or use --quantization=NF4"
        )
    return plan


def share_of_memory(settings: TrainSettings) -> int | None:
    """Return the memory that one of the processes may take."""
    available = available_bytes()
    return None if available is None else available // parallel.planned(settings)


def trained_parameters(settings: TrainSettings, files: ModelFiles) -> int:
    """Return how many parameters the adapter has."""
    targets, rank = settings.lora_target_modules or [], settings.lora_rank or 0
    return lora_parameters(files, targets, rank, dora=settings.lora_variant == "DoRA")


def memory_by_part(settings: TrainSettings, files: ModelFiles, tokens: int, *, cuda: bool) -> dict[str, int]:
    """Return what a process holds, by part, while so many tokens go through the model at once."""
    passes, held = _passes(settings, files, cuda=cuda), 1.0 if cuda else HEAP
    return {
        **fixed_memory(settings, files, cuda=cuda),
        "activations": round(held * passes.activations(tokens)),
        "logits": round(held * passes.logits(tokens)),
    }


def fixed_memory(settings: TrainSettings, files: ModelFiles, *, cuda: bool) -> dict[str, int]:
    """Return what a process holds, by part, however many tokens go through the model."""
    trainable = trained_parameters(settings, files)
    copies = 1 if settings.parent_adapter is None or settings.method == "SFT" else 2
    return {
        "libraries": CUDA_CONTEXT_BYTES if cuda else LIBRARY_BYTES,
        "weights": weight_bytes(files, settings.quantization, _item_bytes(settings, cuda=cuda)),
        "adapter": ADAPTER_BYTES * trainable * copies,
        "gradients and optimizer": OPTIMIZER_BYTES * trainable,
    }


def _item_bytes(settings: TrainSettings, *, cuda: bool) -> int:
    auto = settings.precision == "Auto" and (cuda or process.cpu_has_bfloat16())
    return 2 if auto or settings.precision == "BFloat16" else 4


def _passes(settings: TrainSettings, files: ModelFiles, *, cuda: bool) -> Passes:
    setting = settings.gradient_checkpointing
    return Passes.of(
        files.text_config,
        item_bytes=_item_bytes(settings, cuda=cuda),
        rank=settings.lora_rank or 0,
        dropout=bool(settings.lora_dropout_percent),
        checkpointing=setting == "Enabled" or (setting == "Auto" and cuda),
        chunk=LOGITS_CHUNK_BYTES[cuda],
    )


def weight_bytes(files: ModelFiles, quantization: str, item_bytes: int) -> int:
    """Return what the base's weights take; a quantized layer has a scale for every 64 (NF4) or every row (Int8)."""
    linear = sum(tensor.elements for tensor in files.linear.values())
    per_element = {"NF4": 0.5 + 4 / 64, "Int8": 1.0}.get(quantization, float(item_bytes))
    return round(linear * per_element) + (files.parameters - linear) * item_bytes


def calibrate(memory: dict[str, int], probe: dict[str, Any]) -> dict[str, int]:
    """Return the parts with those that only a measurement tells: libraries, and what the passes hold."""
    gpu = probe["gpu"]
    libraries: int = gpu["contextBytes"] if gpu else probe["librariesBytes"]
    peak = gpu["contextBytes"] + gpu["peakBytes"] if gpu else probe["peakBytes"]
    fixed = {**memory, "libraries": libraries}
    passes = [name for name in ("activations", "logits") if name in memory]
    rest = peak - sum(value for name, value in fixed.items() if name not in passes)
    estimated = sum(memory[name] for name in passes) or 1
    shares: dict[str, int] = {name: round(max(0, rest) * memory[name] / estimated) for name in passes}
    return {**fixed, **shares}


def available_bytes(root: Path = Path("/sys/fs/cgroup"), meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Return how much memory a process may take here: what is free, or what the container's limit leaves."""
    amounts = [amount for amount in (free_bytes(meminfo), container_limit(root)) if amount is not None]
    return min(amounts, default=None)


def _probe(settings: TrainSettings, run: RunDirectory) -> dict[str, Any]:
    """Make the heaviest steps in a process of their own and return what they cost."""
    path = run.path / "plan.json"
    write_json(path, {key: value for key, value in settings.document().items() if value is not None})
    command = [sys.executable, "-m", "model.training.commands.probe", f"--config={path}"]
    environment = {**os.environ, "TERMINATION_LOG": str(run.path / "probe.log"), "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter, this package
            command, env=environment, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        text = (
            f"two steps on the longest rows were not done after {terminal.duration(PROBE_SECONDS)}: lower --max-length "
            "or --micro-batch-size; --no-probe only calculates"
        )
        raise FailureError(exits.CRASH, "ProbeFailed", text) from error
    try:
        measured = read_json(run.path / "probe.json")
    except FilesError:
        killed = done.returncode in (-9, 137)
        why = "it was killed, most likely for want of memory" if killed else f"it ended with {done.returncode}"
        last = done.stderr.strip().rpartition("\n")[2]
        raise FailureError(
            exits.CRASH, "ProbeFailed", f"the probe told nothing: {why}. {last}; --no-probe only calculates"
        ) from None
    if failure := measured.get("failure"):
        raise FailureError(failure["code"], failure["reason"], failure["message"])
    return measured


def _evaluation_warning(settings: TrainSettings, amounts: Amounts, steps: int) -> str | None:
    if not amounts.held_out_rows:
        return None
    return evaluation_warning(
        trained_tokens=amounts.tokens * steps * settings.batch_size / max(1, amounts.rows),
        held_out_tokens=amounts.held_out_tokens,
        held_out_rows=amounts.held_out_rows,
        steps=steps,
        interval=settings.evaluation_steps or evaluation_interval(steps),
    )


def _seconds(settings: TrainSettings, amounts: Amounts, steps: int, probe: dict[str, Any]) -> float:
    """Return the time of all steps and evaluations, at the speed of the probe's last step."""
    last = probe["steps"][-1]
    per_token = last["seconds"] / last["tokens"]
    share = steps * settings.batch_size / max(1, amounts.rows)
    interval = settings.evaluation_steps or evaluation_interval(steps)
    forward = evaluation_tokens(amounts.held_out_tokens, steps=steps, interval=interval)
    # GPUs work side by side; processes on the CPU have the same cores between them as the probe had.
    return probe["startSeconds"] + per_token * (amounts.tokens * share + forward) / (
        parallel.planned(settings) if settings.gpus else 1
    )


def _device(settings: TrainSettings, probe: dict[str, Any] | None, *, cuda: bool) -> str:
    if probe is not None and probe["gpu"]:
        return str(probe["gpu"]["name"])
    if cuda:
        return f"{settings.gpus} GPU"
    threads = probe["threads"] if probe is not None else process.usable_cpus()
    return f"CPU, {threads} thread{'' if threads == 1 else 's'}"


def _row_tokens(line: str) -> int:
    row = json.loads(line)
    texts = sum(len(json.dumps(value, ensure_ascii=False)) for key, value in row.items() if key not in ("row", "file"))
    return round(texts / CHARACTERS_PER_TOKEN) + TEMPLATE_TOKENS
