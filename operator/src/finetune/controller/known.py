"""What the watches have told of runs, as far as it saves passes: who has ended, who trains, what we wrote ourselves.

Nothing is decided by it: a pass reads what it decides from. It only says which events are not worth one.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

from .core import names
from .core.mark import is_settled
from .core.views import job_view
from .workqueue import Key

Document = Mapping[str, Any]

ECHOES_SIZE = 4096
"""Own writes that are remembered until a watch tells of them; forgetting one costs a pass."""


class Echoes:
    """The versions of objects that our own writes have made: a watch that tells of them tells nothing new."""

    def __init__(self, size: int = ECHOES_SIZE) -> None:
        self._versions: OrderedDict[str, str] = OrderedDict()
        self._size = size

    def note(self, written: Document) -> None:
        """Remember the answer of a write of ours."""
        metadata = written.get("metadata") or {}
        uid, version = metadata.get("uid"), metadata.get("resourceVersion")
        if not uid or not version:
            return
        self._versions[uid] = version
        self._versions.move_to_end(uid)
        if len(self._versions) > self._size:
            self._versions.popitem(last=False)

    def is_own(self, seen: Document) -> bool:
        """Whether this very version is our own."""
        metadata = seen["metadata"]
        return bool(self._versions.get(metadata["uid"]) == metadata.get("resourceVersion"))


class KnownRuns:
    """Which runs have not ended, and which train, as the watches and the lists have told."""

    def __init__(self) -> None:
        self.training: dict[str, Key] = {}
        """By uid, for the progress poller."""
        self._unfinished: dict[Key, tuple[str, str]] = {}
        """With their uids, and the version that was seen last."""
        self._phases: dict[Key, tuple[str, str]] = {}

    def note(self, run: Document, *, gone: bool, finished: bool) -> Key:
        """A run was seen as it is now, or for the last time; returns its key."""
        metadata, status = run["metadata"], run.get("status") or {}
        phase = status.get("phase")
        key, uid = Key(metadata["namespace"], metadata["name"]), metadata["uid"]
        if gone or finished:
            self._forget(key, uid)
            return key
        self._unfinished[key] = (uid, metadata.get("resourceVersion", ""))
        self._phases[key] = (sys.intern(phase or ""), sys.intern((status.get("waiting") or {}).get("reason") or ""))
        if phase in ("Exporting", "Training"):
            self.training[uid] = key
        else:
            self.training.pop(uid, None)
        return key

    def phases(self) -> Iterable[tuple[str, str]]:
        """Phase, and reason of waiting or "", of every unfinished run."""
        return self._phases.values()

    def is_unfinished(self, key: Key) -> bool:
        """The run is there and has not ended."""
        return key in self._unfinished

    def unfinished_in(self, namespace: str | None) -> dict[Key, tuple[str, str]]:
        """The unfinished runs of a namespace, with uid and version; of all for None."""
        return {key: seen for key, seen in self._unfinished.items() if namespace in (None, key.namespace)}

    def missed(self, key: Key, uid: str) -> None:
        """A list does not have this run any more: its end, or its deletion, was missed."""
        self._forget(key, uid)

    def _forget(self, key: Key, uid: str) -> None:
        if self._unfinished.get(key, ("", ""))[0] == uid:
            del self._unfinished[key]
            self._phases.pop(key, None)
        self.training.pop(uid, None)


def run_needs_a_pass(run: Document) -> bool:
    """Whether there may be something to do for a run: not where its end is stored, marked and of this generation."""
    return not is_settled(run)


def job_needs_a_pass(job: Document, *, unfinished: bool) -> bool:
    """Whether a Job's event may matter: not where its run and itself have ended, and its time to live is set."""
    if unfinished:
        return True
    view = job_view(job)
    return not (view.ended and view.ttl_set)


def run_of(child: Document) -> Key | None:
    """The run that a Job or a pod belongs to by its label."""
    name = (child["metadata"].get("labels") or {}).get(names.RUN_LABEL)
    return Key(child["metadata"]["namespace"], name) if name else None
