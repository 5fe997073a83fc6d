"""A container registry: Debian's docker-registry, of this machine or unpacked into the cache, with nothing installed.

python -m tests.support.oci     # fetch it, where apt-get can; tests without it are skipped
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import yaml

from images import shell
from tests.support import debian
from tests.support.ports import free_port

PACKAGE = PROGRAM = "docker-registry"
START_SECONDS = 30


def find() -> Path | None:
    """The program on PATH, else in the cache."""
    return debian.find(PACKAGE, PROGRAM)


def fetch() -> None:
    """Unpack Debian's package into the cache, unless the program is there. Raises shell.CommandError."""
    debian.fetch(PACKAGE, [PROGRAM])


@contextmanager
def serving(folder: Path, *, passwords: Path | None = None) -> Iterator[str]:
    """A registry on a loopback port, with its files in `folder`; gives HOST:PORT. `passwords`: of `htpasswd -B`."""
    port = free_port()
    config = {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    if passwords is not None:
        config["auth"] = {"htpasswd": {"realm": "tests", "path": str(passwords)}}
    file = folder / "registry.yml"
    file.write_text(yaml.safe_dump(config))
    log = folder / "registry.log"
    with log.open("wb") as out:
        process = subprocess.Popen([str(find()), "serve", str(file)], stdout=out, stderr=out)
    try:
        _await(f"http://127.0.0.1:{port}/v2/", process, log)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _await(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            httpx.get(url)
        except httpx.TransportError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"docker-registry did not start: {log.read_text()}") from None
            time.sleep(0.02)
        else:
            return


if __name__ == "__main__":
    try:
        fetch()
    except shell.CommandError as problem:
        sys.exit(f"the tests with an OCI registry are skipped: {problem}")
