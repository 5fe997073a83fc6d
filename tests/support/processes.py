"""The project's own servers as processes, the way the images start them."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]


class Server:
    """One `finetune ...` process; its output goes to a log file.

    Parameters
    ----------
    arguments: what follows `finetune`.
    environment: added to this process's own.
    skew: seconds by which its clock is ahead.
    """

    def __init__(self, *arguments: str, environment: Mapping[str, str], log: Path, skew: float = 0.0) -> None:
        program = ["tests.support.skewed", str(skew)] if skew else ["finetune.cli.main"]
        self._arguments = (*program, *arguments)
        self.environment = dict(environment)
        self._process: asyncio.subprocess.Process | None = None
        self.log = log

    @property
    def running(self) -> bool:
        """The process has been started and has not ended."""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        """The process's number. Raises RuntimeError when it does not run."""
        if self._process is None or self._process.returncode is not None:
            raise RuntimeError(f"{self._arguments} does not run")
        return self._process.pid

    async def start(self) -> None:
        """Start the process; its log is appended to."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                *self._arguments,
                cwd=ROOT,
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=log,
            )

    async def kill(self, signal_number: int = signal.SIGKILL) -> int:
        """Send a signal and wait for the end; returns the exit code."""
        if self._process is None:
            return 0
        if self._process.returncode is None:
            self._process.send_signal(signal_number)
        return await self._process.wait()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Server]:
        """Run the process for the time of the block."""
        await self.start()
        try:
            yield self
        finally:
            await self.kill()


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
