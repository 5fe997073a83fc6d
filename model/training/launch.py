"""Starts the processes that train a run together, and ends as they do.

The command's own process becomes their parent. It loads no library, hands SIGTERM on, ends them when it ends, and says
their last words: those of the first one, or of the one that failed.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from model import exits
from model.exits import FailureError
from model.files import RunDirectory, write_json
from model.result import write_termination_message
from model.training.config import TrainSettings
from model.training.loop.checkpoint import CheckpointStore
from model.training.processes import interruption, parallel, process

PEERS_SECONDS = 10.0
"""How long the others may take to end by themselves when one has failed."""
QUIET = (exits.OK, exits.INTERRUPTED, exits.LOST_PEERS)
"""Exit codes of processes that are not to blame."""


def train(settings: TrainSettings, count: int) -> None:
    """Train in `count` processes; return when the run is done and its last words are said.

    Raises
    ------
    FailureError
        The failure of the process that failed first. After SIGTERM this process ends as interrupted.
    """
    with tempfile.TemporaryDirectory(prefix="train-") as name:
        scratch = Path(name)
        config = {key: value for key, value in settings.document().items() if value is not None}
        write_json(scratch / "config.json", config)
        family = Family(scratch, settings.gpus, count)
        code, rank = verdict(family.run(), interrupted=family.interrupted)
        words = _words(scratch, rank)
    if code == exits.OK:
        write_termination_message(words)
        interruption.finish()
        return
    if code == exits.INTERRUPTED:
        saved = CheckpointStore(RunDirectory(settings.run_directory).checkpoints, {}).newest_step()
        interruption.note_saved(words.get("interrupted", {}).get("step", saved))
        interruption.leave()
    failure = words.get("failure", {})
    if code == exits.LOST_PEERS:
        code = exits.CRASH  # of a whole family, nobody is left to be blamed
    raise FailureError(
        code,
        failure.get("reason", "InternalError"),
        failure.get("message", f"process {rank} of {count} ended with {_how(code)}"),
        row=failure.get("row"),
    )


def verdict(ends: Sequence[tuple[int, int]], *, interrupted: bool) -> tuple[int, int]:
    """Return the exit code for all, and the process whose last words count.

    Parameters
    ----------
    ends
        Process and exit code in the order in which they ended, the negative number of the signal that ended it;
        without those that had to be killed. The first that failed is to blame: others may have crashed for want of it.
    interrupted
        Whether SIGTERM was handed on.
    """
    codes: dict[int, int] = {}
    for rank, end in ends:
        code = end if end >= 0 else 128 - end
        # One that SIGTERM itself ended had no handler yet, and nothing to lose. An exit code of 143 is another matter.
        codes[rank] = exits.INTERRUPTED if interrupted and end == -signal.SIGTERM else code
        if codes[rank] not in QUIET:
            return codes[rank], rank
    if codes.get(0) != exits.OK and exits.INTERRUPTED in codes.values():
        return exits.INTERRUPTED, 0
    return codes.get(0, exits.LOST_PEERS), 0


class Family:
    """The processes that train together.

    Parameters
    ----------
    scratch
        A directory with the settings in `config.json`, for what the processes leave there.
    gpus
        GPUs to train on, one for each process; 0 for the CPU.
    count
        How many processes there are.
    """

    def __init__(self, scratch: Path, gpus: int, count: int) -> None:
        self._scratch, self._count = scratch, count
        self._gpus = parallel.visible_gpus(gpus) if gpus > 0 else []
        self._children: list[subprocess.Popen[bytes]] = []
        self._ended: queue.Queue[tuple[int, int]] = queue.Queue()
        self.interrupted = False

    def run(self) -> list[tuple[int, int]]:
        """Start all, wait for all, and return how they ended, see `verdict`."""
        interruption.defer(saved_step=0)
        signal.signal(signal.SIGTERM, self._hand_on)
        for rank in range(self._count):
            child = subprocess.Popen(  # noqa: S603 - this interpreter, this package
                [sys.executable, "-m", "model.training.cli", "train", f"--config={self._scratch / 'config.json'}"],
                env=os.environ | self._environment(rank),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C on the terminal comes to this process, which hands it on
            )
            self._children.append(child)
            threading.Thread(target=self._wait, args=(rank, child), daemon=True).start()
        if self.interrupted:
            self._signal(signal.SIGTERM)
        return self._collect()

    def _collect(self) -> list[tuple[int, int]]:
        ends: list[tuple[int, int]] = []
        failed = False
        while len(ends) < self._count:
            try:
                rank, code = self._ended.get(timeout=PEERS_SECONDS if failed else None)
            except queue.Empty:
                self._signal(signal.SIGKILL)
                break
            ends.append((rank, code))
            if code == exits.INTERRUPTED:
                self._signal(signal.SIGTERM)  # in case that it alone was told to stop
            elif code != exits.OK:
                failed = True
        for child in self._children:
            child.wait()
        return ends

    def _environment(self, rank: int) -> dict[str, str]:
        threads = max(1, process.usable_cpus() // self._count)
        return {
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(self._count),
            "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
            parallel.RENDEZVOUS: str(self._scratch / "rendezvous"),
            parallel.PARENT: str(os.getpid()),
            "TERMINATION_LOG": str(_words_file(self._scratch, rank)),
            **({"CUDA_VISIBLE_DEVICES": ",".join(self._gpus)} if self._gpus else {}),
        }

    def _wait(self, rank: int, child: subprocess.Popen[bytes]) -> None:
        self._ended.put((rank, child.wait()))

    def _hand_on(self, _number: int, _frame: FrameType | None) -> None:
        self.interrupted = True
        self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        for child in self._children:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, number)


def _words_file(scratch: Path, rank: int) -> Path:
    return scratch / f"termination-{rank}.json"


def _words(scratch: Path, rank: int) -> dict[str, Any]:
    """Return the last words of a process, nothing when it had no time for any."""
    try:
        document: dict[str, Any] = json.loads(_words_file(scratch, rank).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return document


def _how(code: int) -> str:
    if code == 128 + signal.SIGKILL:
        return f"signal {signal.SIGKILL}, most likely for want of memory"
    return f"exit code {code}" if code < 128 else f"signal {code - 128}"
