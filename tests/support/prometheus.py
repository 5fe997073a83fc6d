"""Prometheus and promtool: those of this machine, or Debian's package unpacked into the cache, with nothing installed.

python -m tests.support.prometheus     # fetch them, where apt-get can; tests without them are skipped
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from images import shell
from tests.support import debian
from tests.support.ports import free_port

PACKAGE = "prometheus"
PROGRAMS = ("prometheus", "promtool")


def find(program: str) -> Path | None:
    """A program on PATH, else in the cache."""
    return debian.find(PACKAGE, program)


def fetch() -> None:
    """Unpack Debian's package into the cache, unless both programs are there. Raises shell.CommandError."""
    debian.fetch(PACKAGE, PROGRAMS)


def promtool(*arguments: str | Path, stdin: str | None = None) -> str:
    """What promtool says. Raises AssertionError with it when it is not content."""
    command = [str(find("promtool")), *map(str, arguments)]
    done = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@asynccontextmanager
async def scraping(targets: dict[str, str], folder: Path, *, rules: Path | None = None) -> AsyncIterator[str]:
    """A Prometheus that scrapes `targets` (job: host:port) every second; gives its URL."""
    port = free_port()
    config: dict[str, Any] = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)] if rules else [],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [target]}]} for job, target in targets.items()
        ],
    }
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    with (folder / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            str(find("prometheus")),
            f"--config.file={file}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
            stdout=log,
            stderr=log,
            env={**os.environ, "GOMAXPROCS": "1"},
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


if __name__ == "__main__":
    try:
        fetch()
    except shell.CommandError as problem:
        sys.exit(f"the tests with Prometheus are skipped: {problem}")
