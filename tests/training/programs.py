"""The program as a person or a launcher starts it, mostly as a copy of a process that has imported torch already."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from model.training import cli
from model.training.processes import interruption
from tests.training.harness import PROCESSES, finish

PROGRAM = ["-m", "model.training.cli"]
REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Done:
    """A program that has ended: its exit code and what it wrote."""

    code: int
    output: str
    errors: str


def run_program(directory: Path, *arguments: str) -> Done:
    """Run the program where there is no terminal."""
    with Path(os.devnull).open() as nothing, tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = start_program(directory, arguments, [nothing.fileno(), output.fileno(), errors.fileno()])
        code = finish(process)
        for file in (output, errors):
            file.seek(0)
        return Done(code, output.read().decode(), errors.read().decode())


def start_program(
    directory: Path, arguments: Sequence[str], streams: Sequence[int], *, fresh: bool = False
) -> BaseProcess:
    """Start the program.

    Parameters
    ----------
    directory: where.
    arguments: the command line.
    streams: descriptors of its standard input, output and errors.
    fresh: whether an interpreter of its own imports everything.
    """
    passed_on = [Connection(os.dup(stream)) for stream in streams]
    process = PROCESSES.Process(target=_be_program, args=([*arguments], passed_on, fresh))
    with contextlib.chdir(directory):
        process.start()
    for stream in passed_on:
        stream.close()
    return process


def _be_program(arguments: list[str], streams: Sequence[Connection], fresh: bool) -> None:
    for number, stream in enumerate(streams):
        os.dup2(stream.fileno(), number)
        stream.close()
    if os.isatty(1):
        os.environ |= {"TERM": "xterm", "COLUMNS": "100"}
    if fresh:
        os.environ |= {"PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "ignore"}
        os.execv(sys.executable, [sys.executable, *PROGRAM, *arguments])
    sys.stdin = os.fdopen(0)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))
    cli.run(arguments)


def copied(command: list[str], *, env: Mapping[str, str], **given: Any) -> subprocess.Popen[bytes]:
    """Start the program like `subprocess.Popen`, but as a copy of this process, which has imported everything."""
    assert command[:3] == [sys.executable, *PROGRAM]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        begin = functools.partial(_begin, command[3:], dict(env), mask, _open_files())
        return subprocess.Popen(command, env=env, preexec_fn=begin, **given)  # noqa: PLW1509 - other threads only wait
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _begin(arguments: list[str], environment: dict[str, str], mask: Any, kept: set[int]) -> None:
    """Begin as an interpreter does: without the handlers and the environment of the process that was copied.

    Its open files stay, for its libraries know their numbers. The pipe at whose end `Popen` learns that the program has
    begun is none of them.
    """
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for number in _open_files() - kept - {0, 1, 2}:
        with contextlib.suppress(OSError):  # one of them was open for this list
            os.close(number)
    interruption._phase = interruption._Phase()
    os.environ.clear()
    os.environ.update(environment)
    gc.enable()
    cli.run(arguments)


def _open_files() -> set[int]:
    return {int(path.name) for path in Path("/proc/self/fd").iterdir()}
