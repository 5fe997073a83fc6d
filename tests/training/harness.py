"""Runs the trainer in processes of their own, which start quickly because torch is imported once for all of them."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from model.data import export
from model.training import cli

DEADLINE_SECONDS = 120.0
TERMINATION_LOG = "termination.log"
BASE_MODEL_NAME = "example/tiny-llama"

# The server of new processes keeps the environment that it was started with; each process has its own directory.
os.environ |= {"TERMINATION_LOG": TERMINATION_LOG, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.training.preloaded"])


class Run:
    """A run's directory and the processes that train it.

    Parameters
    ----------
    path: where its files go; the working directory of its processes.
    base_model: directory of the base model.
    flags: flags for the trainer beyond the usual ones; None leaves out a usual one.
    """

    def __init__(self, path: Path, base_model: Path, **flags: Any) -> None:
        self.path = path
        self.directory = path / "output"
        self.flags = {
            "run_directory": self.directory,
            "run_uid": "uid-1",
            "method": "SFT",
            "base_model": base_model,
            "base_model_name": BASE_MODEL_NAME,
            "batch_size": 4,
            "lora_rank": 8,
            "lora_dropout_percent": 10,
            "learning_rate": "1e-2",
            "checkpoint_steps": 4,
            "evaluation_steps": 3,
            "samples": 0,  # they would take longer than the training
            **flags,
        }

    def export(self, rows: list[dict[str, Any]], percent: int = 20) -> Run:
        """Export rows for the run."""
        path = self.path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        flags = [f"--run-directory={self.directory}", "--source=volume", f"--path={path}"]
        flags.append(f"--method={self.flags['method']}")
        with contextlib.chdir(self.path):
            assert export.main([*flags, f"--evaluation-percent={percent}"]) == 0
        return self

    def arguments(self) -> list[str]:
        """The command line of the trainer."""
        given = [(name, value) for name, value in self.flags.items() if value is not None]
        return ["train", *(f"--{name.replace('_', '-')}={value}" for name, value in given)]

    def start(self, target: Callable[..., None] = cli.run, *given: Any) -> BaseProcess:
        """Start a trainer, or what stands for one."""
        (self.path / TERMINATION_LOG).unlink(missing_ok=True)
        process = PROCESSES.Process(target=target, args=(self.arguments(), *given))
        with contextlib.chdir(self.path):
            process.start()
        return process

    def train(self) -> int:
        """Train to the end and return the exit code."""
        return finish(self.start())

    def stop_at(self, step: int, number: signal.Signals) -> int:
        """Start a trainer, send it a signal once it has made this step, and return its exit code."""
        process = self.start()
        wait_for(lambda: self.steps()[-1:] >= [step] or not process.is_alive())
        assert process.pid is not None
        os.kill(process.pid, number)
        return finish(process)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The progress lines of one kind, those of all attempts."""
        path = self.directory / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        documents = [json.loads(line) for line in lines if line.endswith("\n")]
        return [document for document in documents if document["event"] == kind]

    def steps(self) -> list[int]:
        """The steps reported so far."""
        return [event["step"] for event in self.events("train")]

    def said(self) -> dict[str, Any]:
        """The last words of the newest process."""
        document: dict[str, Any] = json.loads((self.path / TERMINATION_LOG).read_text())
        return document


def finish(process: BaseProcess) -> int:
    """Wait for a process to end, and return its exit code, negative for a signal."""
    process.join(DEADLINE_SECONDS)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"the trainer did not end in {DEADLINE_SECONDS:.0f} s")
    return process.exitcode


def wait_for(condition: Callable[[], bool], seconds: float = DEADLINE_SECONDS) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"nothing happened within {seconds:.0f} s")
        time.sleep(0.01)
