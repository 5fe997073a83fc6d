"""How far the plan's memory is from what a run takes on a CPU, for two shapes of models with random weights.

Each shape is trained by the trainer's own command, once with few and once with many rows at once. What a run held at
most is compared with what `plan` says for it, and so is what each further token adds. `calculated` is what the plan
makes of the model's files alone, which is also what the trainer goes by to keep to a container's memory.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.rows import REPOSITORY

ROW_TOKENS = 128
END = "<end>"
FEW, MANY = 2, 16
"""Rows of a step, which all go through the model at once."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama, as in its configuration."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int


SHAPES = {
    "deep": Shape(384, 1024, 8, 6, 2, 512),
    "wide": Shape(256, 512, 3, 4, 4, 60_000),
}


ERRORS = (
    "planErrorPercent",
    "calculatedErrorPercent",
    "planErrorPercentOfToken",
    "calculatedErrorPercentOfToken",
)
"""By how many percent plans are off: of a run with many rows at once, and of each further token."""


@dataclass(frozen=True)
class Run:
    """What a run takes, in bytes: seen, planned with its two steps, and calculated only."""

    tokens: int
    seen: int
    planned: int
    calculated: int


def measure(work: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return for each shape by how many percent the plan is off: of a whole run, and of each further token."""
    return {name: errors(*runs_of(shape, work / f"memory-{name}", environment)) for name, shape in SHAPES.items()}


def errors(few: Run, many: Run) -> dict[str, float]:
    """Return `ERRORS` of two runs of a shape, and the kilobytes that a further token takes."""

    def a_token(held: str) -> float:
        added: int = getattr(many, held) - getattr(few, held)
        return added / (many.tokens - few.tokens)

    seen = a_token("seen")
    pairs = [
        (many.planned, many.seen),
        (many.calculated, many.seen),
        (a_token("planned"), seen),
        (a_token("calculated"), seen),
    ]
    found = {name: round(100 * (said / took - 1), 1) for name, (said, took) in zip(ERRORS, pairs, strict=True)}
    return found | {"tokenKilobytes": round(seen / 1000, 1)}


def runs_of(shape: Shape, work: Path, environment: Mapping[str, str]) -> list[Run]:
    """Return what runs with few and with many rows at once take."""
    shutil.rmtree(work, ignore_errors=True)  # a run that has finished would only say so again
    work.mkdir(parents=True)
    write_base(work / "base", shape)
    write_rows(work / "rows.jsonl", MANY)
    runs = []
    for rows in (FEW, MANY):
        flags = [
            *("--method=SFT", f"--base-model={work / 'base'}", f"--dataset={work / 'rows.jsonl'}"),
            *(f"--batch-size={rows}", f"--micro-batch-size={rows}", "--evaluation-max-rows=0", "--precision=Float32"),
        ]
        planned = json.loads(run(work, environment, "plan", *flags)[0])["peakBytes"]
        _, seen = run(work, environment, "train", *flags, "--max-steps=2", "--samples=0", f"--name=of-{rows}")
        runs.append(Run(rows * ROW_TOKENS, seen, planned, calculated(work, rows * ROW_TOKENS)))
    return runs


def calculated(work: Path, tokens: int) -> int:
    """Return what the plan makes of the model's files for so many tokens at once, without a step."""
    from model.training.commands.plan import memory_by_part
    from model.training.config import TrainSettings
    from model.training.weights.files import read_model

    values = {"method": "SFT", "run_directory": work, "run_uid": "benchmark", "base_model": str(work / "base")}
    settings = TrainSettings.model_validate(values | {"precision": "Float32"}).resolved()
    return sum(memory_by_part(settings, read_model(work / "base"), tokens, cuda=False).values())


def run(work: Path, environment: Mapping[str, str], *arguments: str) -> tuple[str, int]:
    """Run the trainer's program; return what it said and the most memory that it held.

    Raises
    ------
    CalledProcessError
        When it fails.
    """
    argv = [sys.executable, "-m", "model.training.cli", *arguments]
    log = work / "log.txt"
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [environment.get("PYTHONPATH")])])
    with log.open("w") as errors_to, (work / "said.json").open("w+") as said:
        process = subprocess.Popen(  # noqa: S603 - our own program
            argv, cwd=work, env={**environment, "PYTHONPATH": path}, stdout=said, stderr=errors_to
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, argv, stderr=log.read_text()[-2000:])
        said.seek(0)
        return said.read(), usage.ru_maxrss * 1024


def write_base(directory: Path, shape: Shape) -> None:
    """Write a model with random weights, and a tokenizer for which a letter is a token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={text: index for index, text in enumerate([END, *letters])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END)
    tokenizer.save_pretrained(directory)
    config = LlamaConfig(**vars(shape), max_position_embeddings=4 * ROW_TOKENS, eos_token_id=0)
    LlamaForCausalLM(config).save_pretrained(directory)


def write_rows(path: Path, count: int) -> None:
    """Write rows of `ROW_TOKENS` letters, the end token included."""
    draw = random.Random(3)  # noqa: S311 - rows, no secrets
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            letters = "".join(draw.choices("abcdefgh", k=ROW_TOKENS - 1))
            file.write(json.dumps({"prompt": letters[:8], "completion": letters[8:]}) + "\n")
