"""The project's own servers as processes, mostly as copies of one that has imported everything already.

Such a copy starts in hundredths of a second, where an interpreter of its own takes a second of a core for the imports.
"""

from __future__ import annotations

import asyncio
import base64
import multiprocessing
import os
import signal
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn

import yaml

from finetune.cli.main import main

ROOT = Path(__file__).parents[2]
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.support.preloaded"])


class Server:
    """One `finetune ...` process; its output goes to a log file.

    Parameters
    ----------
    arguments: what follows `finetune`.
    environment: added to this process's own.
    skew: seconds by which its clock is ahead.
    fresh: in an interpreter of its own, as the images start it.
    """

    def __init__(
        self, *arguments: str, environment: Mapping[str, str], log: Path, skew: float = 0.0, fresh: bool = False
    ) -> None:
        self._arguments = arguments
        self.environment = dict(environment)
        self._process: BaseProcess | None = None
        self.log = log
        self._skew = skew
        self._fresh = fresh

    @property
    def running(self) -> bool:
        """The process has been started and has not ended."""
        return self._process is not None and self._process.exitcode is None

    @property
    def pid(self) -> int:
        """The process's number. Raises RuntimeError when it does not run."""
        if self._process is None or self._process.pid is None or not self.running:
            raise RuntimeError(f"{self._arguments} does not run")
        return self._process.pid

    async def start(self) -> None:
        """Start the process; its log is appended to."""
        given = ({**os.environ, **self.environment}, self.log, self._skew, self._fresh)
        self._process = PROCESSES.Process(target=_be_finetune, args=(self._arguments, *given), daemon=True)
        self._process.start()

    async def kill(self, signal_number: int = signal.SIGKILL) -> int:
        """Send a signal and wait for the end; returns the exit code."""
        if self._process is None:
            return 0
        if self._process.exitcode is None and self._process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal_number)
        while (code := self._process.exitcode) is None:  # noqa: ASYNC110 - multiprocessing tells it to nobody else
            await asyncio.sleep(0.01)
        return code

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Server]:
        """Run the process for the time of the block."""
        await self.start()
        try:
            yield self
        finally:
            await self.kill()


def _be_finetune(
    arguments: Sequence[str], environment: Mapping[str, str], log: Path, skew: float, fresh: bool
) -> NoReturn:
    """Be `finetune ARGUMENTS` from here on, with this environment and no more of it."""
    with log.open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    if fresh:
        os.execv(sys.executable, [sys.executable, "-m", "finetune.cli.main", *arguments])
    if skew:
        from tests.support.skewed import shift

        shift(skew)
    sys.exit(main(arguments))


def client_tls(kubeconfig: Path) -> tuple[str, ssl.SSLContext]:
    """The API server's URL and a TLS context with the administrator's certificate, from a kubeconfig file."""
    config = yaml.safe_load(kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    context = ssl.create_default_context(cadata=_pem(cluster, "certificate-authority").decode())
    with tempfile.TemporaryDirectory() as folder:
        certificate, key = Path(folder, "client.crt"), Path(folder, "client.key")
        certificate.write_bytes(_pem(user, "client-certificate"))
        key.write_bytes(_pem(user, "client-key"))
        context.load_cert_chain(certificate, key)
    return cluster["server"], context


def plain_kubeconfig(path: Path, server: str) -> Path:
    """A kubeconfig file for a server that asks for nothing, such as a proxy on the loopback."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "proxy", "cluster": {"server": server}}],
        "users": [{"name": "nobody", "user": {}}],
        "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "nobody"}}],
        "current-context": "proxy",
    }
    path.write_text(yaml.safe_dump(document))
    return path


def _pem(section: Mapping[str, Any], name: str) -> bytes:
    data = section.get(f"{name}-data")
    return base64.b64decode(data) if data else Path(section[name]).read_bytes()
