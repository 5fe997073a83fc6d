"""Starts programs that outlive this one, remembers them on disk, and ends exactly those."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.cluster.base import ClusterError

STOP_SECONDS = 3.0
PROC = Path("/proc")


@dataclass(frozen=True)
class Identity:
    """A process that cannot be mistaken for another one, not even after its number was used again or a reboot."""

    pid: int
    start_ticks: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """The identity of a living process; None when there is none (a zombie counts as gone)."""
        try:
            text = (PROC / str(pid) / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        fields = text.rpartition(")")[2].split()  # the command's name may hold anything, brackets too
        if fields[0] in {"Z", "X"}:
            return None
        return cls(pid=pid, start_ticks=int(fields[19]), boot_id=_boot_id())

    def is_alive(self) -> bool:
        """Whether exactly this process still runs."""
        return Identity.of(self.pid) == self


def _boot_id() -> str:
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


@dataclass
class Supervisor:
    """The processes of one state folder: ``records`` holds one file for each, ``logs`` their output."""

    records: Path
    logs: Path
    children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(
        self, name: str, argv: Sequence[str | Path], *, env: Mapping[str, str], pass_fds: Sequence[int] = ()
    ) -> None:
        """Start a program in a session of its own, so that this one's terminal and end do not touch it."""
        self.records.mkdir(parents=True, exist_ok=True)
        self.logs.mkdir(parents=True, exist_ok=True)
        words = [str(word) for word in argv]
        with (self.logs / f"{name}.log").open("wb") as log:
            child = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(env),
                cwd="/",
                start_new_session=True,
                pass_fds=pass_fds,
            )
        self.children[name] = child
        identity = Identity.of(child.pid)
        if identity is None:
            raise ClusterError(f"{name} ended at once:\n{self.tail(name)}")
        (self.records / f"{name}.json").write_text(json.dumps(asdict(identity)))

    def recorded(self) -> dict[str, Identity]:
        """Every process that was ever started here and not stopped, alive or not."""
        if not self.records.is_dir():
            return {}
        return {path.stem: Identity(**json.loads(path.read_text())) for path in sorted(self.records.glob("*.json"))}

    def is_alive(self, name: str) -> bool:
        """Whether the process that was started under this name still runs."""
        identity = self.recorded().get(name)
        return identity is not None and identity.is_alive()

    def check_alive(self) -> None:
        """Raise a ClusterError with the end of its log for the first process that has died."""
        for name, identity in self.recorded().items():
            if not identity.is_alive():
                raise ClusterError(f"{name} ended; see {self.logs / f'{name}.log'}:\n{self.tail(name)}")

    def tail(self, name: str, lines: int = 15) -> str:
        """The last lines of a process's output."""
        log = self.logs / f"{name}.log"
        if not log.is_file():
            return ""
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])

    def stop_all(self) -> None:
        """End every recorded process and forget it."""
        stop(self.recorded().values())
        for child in self.children.values():
            child.wait(timeout=STOP_SECONDS)
        self.children.clear()
        if self.records.is_dir():
            for path in self.records.glob("*.json"):
                path.unlink()


def stop(identities: Iterable[Identity], *, seconds: float = STOP_SECONDS) -> None:
    """Ask processes to end (SIGTERM), all at once, and kill those that still run after some seconds."""
    for number, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, seconds)):
        handles = _signal_all(identities, number)
        try:
            _wait_for_end(handles, patience)
        finally:
            for handle in handles:
                os.close(handle)


def _signal_all(identities: Iterable[Identity], number: signal.Signals) -> list[int]:
    handles = []
    for identity in identities:
        try:
            handle = os.pidfd_open(identity.pid)
        except ProcessLookupError:
            continue
        # The handle pins the process, so this comparison cannot be outrun by a new process with the same number.
        if not identity.is_alive():
            os.close(handle)
            continue
        signal.pidfd_send_signal(handle, number)
        handles.append(handle)
    return handles


def _wait_for_end(handles: Sequence[int], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    waiting = select.poll()
    left = set(handles)
    for handle in left:
        waiting.register(handle, select.POLLIN)
    while left and (remaining := deadline - time.monotonic()) > 0:
        for handle, _ in waiting.poll(remaining * 1000):
            waiting.unregister(handle)
            left.discard(handle)


def find(*, programs: frozenset[str], argument_prefix: str) -> list[Identity]:
    """Processes called by one of these names with an argument that names a path under ``argument_prefix``.

    Finds what no record tells of: a container shim, or a program whose starter was killed before it could note it.
    """
    found = []
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if Path(words[0]).name in programs and any(argument_prefix in word for word in words[1:]):
            identity = Identity.of(int(entry.name))
            if identity is not None:
                found.append(identity)
    return found
