"""Commands and folders of this machine that building images takes; standard library only."""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


class CommandError(Exception):
    """A command failed, or something that a build needs is missing; the message says what to do."""


def cache_dir() -> Path:
    """The folder outside the clone for everything that is slow to make: ``FINETUNE_CACHE`` or ~/.cache/finetune."""
    configured = os.environ.get("FINETUNE_CACHE")
    base = Path(configured) if configured else Path.home() / ".cache" / "finetune"
    return base.expanduser().resolve()


def run(
    argv: Sequence[str | Path],
    *,
    timeout: float = 600,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | None = None,
) -> str:
    """Run a command to its end.

    Args:
        argv: the command and its arguments; no shell.
        timeout: seconds.
        env: variables added to this process's own.
        cwd: the folder to run in.
        stdin: text for its standard input.

    Returns:
        Its standard output.

    Raises:
        CommandError: it failed, could not be started or ran too long; with the end of its output.
    """
    words = [str(word) for word in argv]
    line = shlex.join(words)
    try:
        done = subprocess.run(
            words,
            env=dict(os.environ) | dict(env or {}),
            cwd=cwd,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise CommandError(f"{words[0]} is not installed on this machine (wanted for: {line})") from error
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"{line} did not end within {timeout:g} s") from error
    if done.returncode != 0:
        output = "\n".join((done.stdout + done.stderr).strip().splitlines()[-30:])
        raise CommandError(f"{line} ended with code {done.returncode}:\n{output}")
    return done.stdout


def succeeds(argv: Sequence[str | Path], *, timeout: float = 60) -> bool:
    """Whether a command can be started and ends with code 0 in time."""
    try:
        run(argv, timeout=timeout)
    except CommandError:
        return False
    return True


@contextmanager
def lock(name: str) -> Iterator[None]:
    """Let one process of this machine at a time do something, e.g. write to the image store; waits for its turn."""
    folder = cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def install(packages: Mapping[str, str]) -> None:
    """Install the Debian packages whose program is missing.

    Args:
        packages: the package that brings each program (a name on PATH, or an absolute path).

    Raises:
        CommandError: something is missing and there is no apt-get, or it failed.
    """
    missing = sorted({package for program, package in packages.items() if not _exists(program)})
    if not missing:
        return
    if not _exists("apt-get"):
        raise CommandError(
            f"missing {', '.join(missing)} (Debian's names), and there is no apt-get to install them: "
            "install what this system calls them"
        )
    print(f"installing {' '.join(missing)} ...", file=sys.stderr, flush=True)
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update", "-q"], env=environment)
    run(["apt-get", "install", "-y", "-q", "--no-install-recommends", *missing], env=environment, timeout=1800)


def _exists(program: str) -> bool:
    if program.startswith("/"):
        return Path(program).exists()
    folders = [*os.environ.get("PATH", "").split(os.pathsep), "/usr/sbin", "/sbin"]
    return any((Path(folder) / program).is_file() for folder in folders)
