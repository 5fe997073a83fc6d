"""Kills runs of the trainer at random moments, and compares what the resumed ones end with.

A plan follows from its seed alone: what is trained, how the processes are started, and at which share of an
uninterrupted run's time which signal comes, once or several times. Once a run has its tokens, its next processes see
another date, as after midnight, and one of the chat templates prints it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from model import exits
from model.files import RunDirectory
from model.training import cli
from model.training.processes import interruption
from model.training.rows.store import kept_moment, tokens_directory
from tests.training.conftest import CHATML, make_rows
from tests.training.harness import DEADLINE_SECONDS, PROCESSES, TERMINATION_LOG, Run, finish

STEPS = 24
STOP_SECONDS = 20.0
"""How long a trainer may take to end after SIGTERM, apart from a micro-batch, which here takes no time."""

FRESH_SHARE = 0.12
"""Share of the plans whose processes import everything themselves, so that a signal meets the imports too."""

DATED = CHATML.replace("Be brief.", "Today is {{ strftime_now('%d %b %Y') }}.")
"""A template that prints the date, as Llama 3.2's does."""

_USUAL: dict[str, Any] = {"max_steps": STEPS, "micro_batch_size": 2, "lora_dropout_percent": 20}

SCENARIOS: dict[str, dict[str, Any]] = {
    "sft": {"evaluation_steps": 3, "checkpoint_steps": 4},
    "packing": {"packing": "Enabled", "micro_batch_size": 3, "evaluation_steps": 5, "lora_variant": "RSLoRA"},
    "early-stopping": {
        "learning_rate": "0.05", "evaluation_steps": 2, "early_stopping_patience": 3, "checkpoint_steps": 5,
        "max_steps": 60, "schedule": "Linear",
    },
    "dpo": {"method": "DPO", "learning_rate": "1e-2", "evaluation_steps": 5, "dpo_sft_weight": 0.1},
    "dpo-early-stopping": {
        "method": "DPO", "learning_rate": "0.05", "evaluation_steps": 2, "early_stopping_patience": 2,
        "dpo_loss": "IPO", "micro_batch_size": 1, "warmup_percent": 30,
    },
    "kto": {"method": "KTO", "learning_rate": "1e-2", "evaluation_steps": 5},
    "dated": {"chat_template": DATED, "samples": 1, "evaluation_steps": 6, "checkpoint_steps": 3},
}  # fmt: skip
"""Flags by what they are for; rows have different lengths, so each groups rows by length."""

SAME_RESULTS = ("finalLoss", "evaluationLoss", "baseEvaluationLoss", "steps", "bestStep", "rewardAccuracy",
                "rewardMargin", "desirableReward", "kl", "tokens", "learnedTokens", "paddedTokens",
                "adapter")  # fmt: skip
SAME_OF_STEPS = ("step", "loss", "learningRate", "gradientNorm", "tokens", "epoch")


@dataclass(frozen=True)
class Kill:
    """A signal, and when it comes: the share of the time that an uninterrupted run takes."""

    moment: float
    number: signal.Signals


@dataclass(frozen=True)
class Plan:
    """What happens to one run.

    Parameters
    ----------
    seed: what all else follows from.
    scenario: a key of SCENARIOS.
    fresh: whether the processes import everything themselves.
    hurried: whether a step in progress is given up at once, as one is that takes too long.
    kills: one for each process but the last.
    """

    seed: int
    scenario: str
    fresh: bool
    hurried: bool
    kills: tuple[Kill, ...]

    @staticmethod
    def of(seed: int) -> Plan:
        """Return the plan of a seed."""
        draw = random.Random(seed)
        fresh = draw.random() < FRESH_SHARE
        count = draw.choices((1, 2, 4), weights=(80, 15, 5))[0]
        kills = tuple(Kill(draw.uniform(0, 1.05), draw.choice((signal.SIGTERM, signal.SIGKILL))) for _ in range(count))
        return Plan(seed, draw.choice(sorted(SCENARIOS)), fresh, not fresh and draw.random() < 0.4, kills)


@dataclass
class Uninterrupted:
    """Runs that nobody interrupts, one for each scenario, and how long they take.

    Parameters
    ----------
    path: where they go.
    base_model: directory of the base model.
    """

    path: Path
    base_model: Path
    _runs: dict[str, tuple[Run, float]] = field(default_factory=dict)
    _import_seconds: float | None = None

    def __post_init__(self) -> None:
        hour = datetime.now(UTC).hour
        self.noon = 12 - hour
        self.another_day = self.noon - 13 if self.noon > 0 else self.noon + 12

    def run(self, scenario: str) -> tuple[Run, float]:
        """Return a scenario's run, and the seconds that its process took without the imports."""
        if scenario not in self._runs:
            run = self._make(self.path / scenario, scenario)
            began = time.monotonic()
            assert finish(run.start(at, self.noon)) == exits.OK
            self._runs[scenario] = run, time.monotonic() - began
        return self._runs[scenario]

    def copy(self, path: Path, scenario: str) -> Run:
        """Return the same run before its first process, which makes the tokens."""
        original, _ = self.run(scenario)
        (path / "output").mkdir()
        made = shutil.ignore_patterns("tokens*")
        shutil.copytree(original.directory / "dataset", path / "output" / "dataset", ignore=made)
        run = Run(path, self.base_model)
        run.flags = original.flags | {"run_directory": run.directory}
        return run

    def offset(self, run: Run) -> int:
        """Return how many hours a run's next process sees the clock ahead of UTC: another date once it has tokens."""
        return self.noon if kept_moment(tokens_directory(RunDirectory(run.directory))) is None else self.another_day

    def seconds(self, plan: Plan) -> float:
        """Return how long the plan's run takes when nobody interrupts it."""
        _, seconds = self.run(plan.scenario)
        return seconds + (self.import_seconds() if plan.fresh else 0)

    def import_seconds(self) -> float:
        """Return how long the imports take."""
        if self._import_seconds is None:
            began = time.monotonic()
            subprocess.run(
                [sys.executable, "-c", "import model.training.run, model.training.loop.sft, model.training.loop.dpo"],
                check=True,
                env=environment(),
            )
            self._import_seconds = time.monotonic() - began
        return self._import_seconds

    def _make(self, path: Path, scenario: str) -> Run:
        path.mkdir()
        flags = _USUAL | SCENARIOS[scenario]
        if "chat_template" in flags:
            (path / "template.jinja").write_text(flags["chat_template"])
            flags |= {"chat_template": path / "template.jinja"}
        run = Run(path, self.base_model, **flags)
        make = {"SFT": make_rows, "DPO": make_preferences, "KTO": make_labelled}[str(run.flags["method"])]
        return run.export(make(30))


def make_preferences(count: int) -> list[dict[str, Any]]:
    """Pairs that all differ, with answers of one to seven words."""
    return [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": " ".join(["No idea,", *["sorry"] * (n % 5)])}
        for n, row in enumerate(make_rows(count))
    ]


def make_labelled(count: int) -> list[dict[str, Any]]:
    """Answers that all differ, every second of them a good one."""
    return [
        {
            "prompt": row["prompt"],
            "completion": row["completion"] if n % 2 else f"No idea of {n}.",
            "label": bool(n % 2),
        }
        for n, row in enumerate(make_rows(count))
    ]


class Attempt:
    """One process that trains a run.

    Parameters
    ----------
    run: the run.
    plan: how to start the process.
    offset: how many hours ahead of UTC it sees the clock.
    """

    def __init__(self, run: Run, plan: Plan, offset: int) -> None:
        self._run = run
        (run.path / TERMINATION_LOG).unlink(missing_ok=True)
        self.began = time.monotonic()
        with contextlib.chdir(run.path):
            if plan.fresh:
                command = [sys.executable, "-m", "model.training.cli", *run.arguments()]
                output = (run.path / "output.log").open("a")
                self._popen = subprocess.Popen(
                    command, stdout=output, stderr=output, env=environment() | {"TZ": zone(offset)}
                )
                self._process = None
                return
            target = hurried if plan.hurried else at
            self._process = PROCESSES.Process(target=target, args=(run.arguments(), offset))
            self._process.start()

    def wait(self, seconds: float) -> int | None:
        """Wait for the process to end, and return its exit code, None when it goes on."""
        if self._process is not None:
            self._process.join(max(0.0, seconds))
            return self._process.exitcode
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._popen.wait(max(0.0, seconds))
        return None

    def send(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        pid = self._popen.pid if self._process is None else self._process.pid
        assert pid is not None
        os.kill(pid, number)

    def kill_at(self, moment: float, number: signal.Signals) -> int:
        """Send a signal so many seconds after the start, and return the exit code."""
        code = self.wait(self.began + moment - time.monotonic())
        if code is not None:
            return code
        self.send(number)
        sent = time.monotonic()
        code = self.wait(DEADLINE_SECONDS)
        assert code is not None, f"the process goes on {DEADLINE_SECONDS:.0f} s after {number.name}"
        assert time.monotonic() - sent < STOP_SECONDS
        return code


def zone(offset: int) -> str:
    """Return the time zone in which it is so many hours later than in UTC; POSIX counts the other way."""
    return f"XXX{-offset:+d}"


def at(arguments: list[str], offset: int) -> None:
    """Train where it is so many hours later than in UTC."""
    os.environ["TZ"] = zone(offset)
    time.tzset()
    cli.run(arguments)


def hurried(arguments: list[str], offset: int) -> None:
    """As `at`, but give up the step in progress as soon as SIGTERM comes."""
    interruption.STEP_SECONDS = 0.0
    at(arguments, offset)


def carry_out(plan: Plan, runs: Uninterrupted, path: Path) -> None:
    """Kill a run as planned, let it come to its end, and compare that with the uninterrupted run's."""
    run = runs.copy(path, plan.scenario)
    for kill in plan.kills:
        attempts = len(run.events("start"))
        code = Attempt(run, plan, runs.offset(run)).kill_at(kill.moment * runs.seconds(plan), kill.number)
        print(
            f"{plan.scenario}: {kill.number.name} at {kill.moment:.0%} -> {code} at step {max(run.steps(), default=0)}"
        )
        check_interrupted(run, kill.number, code, attempts)
        if code == exits.OK:
            break
    # A machine that is busy with much else must not fail the comparison.
    assert Attempt(run, plan, runs.offset(run)).wait(4 * DEADLINE_SECONDS) == exits.OK
    check_same(run, runs.run(plan.scenario)[0])


def check_interrupted(run: Run, number: signal.Signals, code: int, attempts: int) -> None:
    """Check what a process left behind that got a signal: `attempts` is how often the run had started before it."""
    if number == signal.SIGKILL:
        assert code in (exits.OK, -signal.SIGKILL)
    elif code == -signal.SIGTERM:
        # The very first moments, before there is a handler.
        assert len(run.events("start")) == attempts
    else:
        assert code in (exits.OK, exits.INTERRUPTED)
    if code == exits.INTERRUPTED:
        saved = [int(path.name.rpartition("-")[2]) for path in run.directory.glob("checkpoints/checkpoint-*[0-9]")]
        said = run.said()
        assert said == {"interrupted": {"step": said["interrupted"]["step"]}}
        # What ends before the flags are read knows of no checkpoint.
        assert said["interrupted"]["step"] in (max(saved, default=0), 0)


def check_same(run: Run, expected: Run) -> None:
    """Check that two runs ended with the same bits and told the same of each step."""
    result, wanted = run.said()["result"], expected.said()["result"]
    assert {key: result.get(key) for key in SAME_RESULTS} == {key: wanted.get(key) for key in SAME_RESULTS}
    assert run.said()["lossHistory"] == expected.said()["lossHistory"]
    for name in ("adapter_model.safetensors", "adapter_config.json", "README.md"):
        assert (run.directory / "adapter" / name).read_bytes() == (expected.directory / "adapter" / name).read_bytes()
    assert list(_told(run, "train", SAME_OF_STEPS)) == list(_told(expected, "train", SAME_OF_STEPS))
    evaluations = ("step", "loss", "baseLoss", "final")
    assert list(_told(run, "evaluation", evaluations)) == list(_told(expected, "evaluation", evaluations))
    assert not [str(path) for path in run.directory.rglob("*.tmp")]


def _told(run: Run, event: str, keys: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for line in (run.directory / "metrics.jsonl").read_text().splitlines():
        document = json.loads(line)
        if document["event"] == event:
            yield {key: document.get(key) for key in keys}


def environment() -> dict[str, str]:
    """Return the environment for a process of its own."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
