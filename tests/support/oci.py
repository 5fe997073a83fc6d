"""A container registry: Debian's docker-registry, of this machine or unpacked into the cache, with nothing installed.

python -m tests.support.oci     # fetch it, where apt-get can; tests without it are skipped
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import yaml

from images import shell
from tests.support.ports import free_port

PACKAGE = PROGRAM = "docker-registry"
START_SECONDS = 30


def find() -> Path | None:
    """The program on PATH, else in the cache."""
    on_path = shutil.which(PROGRAM)
    if on_path is not None:
        return Path(on_path)
    cached = _cached() / PROGRAM
    return cached if cached.exists() else None


def fetch() -> None:
    """Unpack Debian's package into the cache, unless the program is there. Raises shell.CommandError."""
    if find():
        return
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise shell.CommandError("no docker-registry on PATH and no apt-get: install it to run its tests")
    target = _cached()
    with shell.lock(PACKAGE), tempfile.TemporaryDirectory(dir=target.parent) as name:
        if target.exists():
            return
        folder = Path(name)
        try:
            shell.run(["apt-get", "download", "-q", PACKAGE], cwd=folder)
        except shell.CommandError:  # no lists yet, or old ones
            shell.run(["apt-get", "update", "-q"], timeout=600)
            shell.run(["apt-get", "download", "-q", PACKAGE], cwd=folder)
        (package,) = folder.glob("*.deb")
        shell.run(["dpkg-deb", "--extract", package, folder / "x"])
        (folder / "x" / "usr" / "bin").rename(target)


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


def _cached() -> Path:
    return shell.cache_dir() / PACKAGE


if __name__ == "__main__":
    try:
        fetch()
    except shell.CommandError as problem:
        sys.exit(f"the tests with an OCI registry are skipped: {problem}")
