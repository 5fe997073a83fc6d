"""What the watches and our own requests have told of each run that has not ended: one entry a run.

It saves passes, for the echo of an own write is no news; and it saves reads, for a pass that finds nothing to do needs
none. Three rules keep that safe:

- Nothing here goes back: what is not newer than what is known is passed over, also where an own request was faster
  than the watch.
- It never says that something is not there. That is read, and so is everything again after two minutes: a watch may
  have missed a deletion.
- Nothing is done and no run ends by it: `reconcile` reads everything before either. The one exception, a suspension, is
  refused by the API server where the Job is not as it is known.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from finetune.api.registry import TrainerStatus

from .core import names
from .core.mark import has_finished, is_settled
from .core.views import JobView, PodView, job_view, pod_view
from .workqueue import Key

Document = Mapping[str, Any]

NEVER = float("-inf")
ABSENT_SECONDS = 5.0
"""How long after everything was read a Job without pods is believed to have none."""
PROGRESS_SECONDS = 60.0
"""How old the progress in a status may be while it does not move by a percent."""
PODS_KEPT = 32
"""Of one run, with those that are gone but had last words: more attempts than a status describes."""


class Children(NamedTuple):
    """A run's Job, and its pods; those that are gone but had last words are among them."""

    job: JobView
    pods: tuple[PodView, ...]


@dataclass(slots=True)
class _Pod:
    view: PodView
    version: str
    gone: bool = False

    @property
    def counts(self) -> bool:
        """It exists, or had last words."""
        return self.view.finished or not self.gone


@dataclass(slots=True)
class _Run:
    """A run that has not ended, or whose end is not marked yet."""

    uid: str
    version: str = ""
    phase: str = ""
    waits_for: str = ""
    finished: bool = False
    settled: bool = False
    """Its end is marked, and only its Job is left to be seen to."""
    born: bool = False
    """It was made while we watched, and nothing was done for it: it has no children."""
    content: bytes = b""
    """The object as JSON, a tenth of its size as dictionaries; empty where it has to be read."""
    job: JobView | None = None
    job_version: str = ""
    """The newest that is known of the Job, its deletion included."""
    pods: dict[str, _Pod] = field(default_factory=dict)
    read_at: float = NEVER
    """When all of its children were read."""
    posted: TrainerStatus | None = None
    told: tuple[TrainerStatus, float] | None = None
    """The progress that its status was to have, and since when."""


class KnownRuns:
    """The runs that have not ended.

    Parameters
    ----------
    fresh_seconds: how long after everything was read the watches' word is enough.
    clock: in seconds.
    """

    def __init__(self, fresh_seconds: float = 120.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._fresh_seconds = fresh_seconds
        self._clock = clock
        self._runs: dict[Key, _Run] = {}

    # What the watches and the lists say

    def run_seen(self, run: Document, *, added: bool = False, gone: bool = False) -> bool:
        """A run as it is, or was last; whether this is news that may need a pass. `added`: it was made just now."""
        metadata, status = run["metadata"], run.get("status") or {}
        key, uid, version = key_of(run), metadata["uid"], metadata.get("resourceVersion", "")
        known = self._runs.get(key)
        if known is not None and not is_newer(version, known.version):
            return False
        settled = is_settled(run)
        if gone or (settled and (known is None or known.uid != uid or known.job is None)):
            if known is not None and (known.uid == uid or not gone):
                del self._runs[key]
            return gone and known is not None
        if known is None or known.uid != uid:
            known = self._runs[key] = _Run(uid, born=added and not status.get("phase"))
        known.version = version
        known.phase = sys.intern(status.get("phase") or "")
        known.waits_for = sys.intern((status.get("waiting") or {}).get("reason") or "")
        known.finished, known.settled = has_finished(run), settled
        if settled:  # what is left is its Job's time to live
            known.pods.clear()
        slim = {**run, "metadata": {name: each for name, each in metadata.items() if name != "managedFields"}}
        known.content = json.dumps(slim, separators=(",", ":")).encode()
        return not settled

    def job_seen(self, job: Document, *, gone: bool = False) -> bool:
        """A Job as it is, or was last; whether this is news that may need a pass.

        For an ended run it is until the Job has ended, too, and has its time to live.
        """
        key = run_of(job)
        if key is None:
            return False
        view, known = job_view(job), self._runs.get(key)
        over = gone or (view.ended and view.ttl_set)
        if known is None:
            return not over
        if view.name != names.job_name(key.name, known.uid):
            return not known.finished or not over  # the one that reads the result, which is always read
        if known.job_version and not is_newer(view.resource_version, known.job_version):
            return False
        before, known.job, known.job_version = known.job, None if gone else view, view.resource_version
        if known.settled and over:
            del self._runs[key]
        if known.finished:
            return not over
        return gone or before is None or replace(before, resource_version=view.resource_version) != view

    def pod_seen(self, pod: Document, *, gone: bool = False) -> bool:
        """A pod as it is, or was last; whether this is news that may need a pass. An ended run's are its Job's."""
        key, metadata = run_of(pod), pod["metadata"]
        known = self._runs.get(key) if key is not None else None
        if known is None or known.finished:
            return False
        labels, version = metadata["labels"], metadata.get("resourceVersion", "")
        if labels.get(names.ROLE_LABEL) != names.ROLE_TRAIN or labels.get(names.RUN_UID_LABEL) != known.uid:
            return True
        view, before = pod_view(pod), known.pods.get(metadata["uid"])
        if before is not None and not is_newer(version, before.version):
            return False
        known.pods[view.uid] = _Pod(view, version, gone)
        if len(known.pods) > PODS_KEPT:
            del known.pods[min(known.pods, key=lambda uid: known.pods[uid].view.created)]
        return before is None or before.view != view or before.gone != gone

    def written(self, answer: Document) -> None:
        """An object as it is after a write of ours."""
        match answer.get("kind"):
            case "TrainingRun":
                self.run_seen(answer)
            case "Job":
                self.job_seen(answer)

    def missed(self, key: Key, uid: str) -> None:
        """A list does not have this run any more: its end, or its deletion, was missed."""
        if (known := self._runs.get(key)) is not None and known.uid == uid and not known.finished:
            del self._runs[key]

    # What a pass needs, and what it has read

    def document(self, key: Key) -> dict[str, Any] | None:
        """The run as it is, as far as is known; None where it has to be read."""
        known = self._runs.get(key)
        if known is None or not known.content or not known.version.isdecimal():
            return None
        found: dict[str, Any] = json.loads(known.content)
        return found

    def take_born(self, key: Key, uid: str) -> bool:
        """Whether the run is so new that it has no children; true once."""
        known = self._runs.get(key)
        if known is None or known.uid != uid or not known.born:
            return False
        known.born, known.read_at = False, self._clock()
        return True

    def children(self, key: Key, uid: str) -> Children | None:
        """The Job and the pods; None where they have to be read."""
        known, now = self._runs.get(key), self._clock()
        if known is None or known.uid != uid or known.job is None or not known.job.resource_version.isdecimal():
            return None
        pods, age = tuple(pod.view for pod in known.pods.values() if pod.counts), now - known.read_at
        if age >= self._fresh_seconds or (not pods and age >= ABSENT_SECONDS):
            return None
        return Children(known.job, pods)

    def last_words(self, key: Key, uid: str) -> list[PodView]:
        """The ended pods of a run, whether they still exist or not; to lose one never changes how the run ends."""
        known = self._runs.get(key)
        if known is None or known.uid != uid:
            return []
        return [pod.view for pod in known.pods.values() if pod.view.finished]

    def pods_of(self, key: Key) -> frozenset[str]:
        """The uids of the pods that are known to exist."""
        known = self._runs.get(key)
        return frozenset(uid for uid, pod in known.pods.items() if not pod.gone) if known else frozenset()

    def was_read(
        self, key: Key, uid: str, job: Document | None, pods: Sequence[Document], before: frozenset[str]
    ) -> None:
        """The children were read just now; `before` are the pods that were known when the reading began."""
        known = self._runs.get(key)
        if known is None or known.uid != uid:
            return
        if job is None and known.settled:
            del self._runs[key]
        elif job is None:
            known.job = None
        else:
            self.job_seen(job)
        for pod in pods:
            self.pod_seen(pod)
        for missing in before - {pod["metadata"]["uid"] for pod in pods}:
            if missing in known.pods:
                known.pods[missing].gone = True
        known.read_at = self._clock()

    def doubt(self, key: Key) -> None:
        """Something was not as it is known: all of it has to be read."""
        if (known := self._runs.get(key)) is not None:
            known.content = b""
            self._forget_children(known)

    def doubt_children(self, namespace: str | None) -> None:
        """Nobody has watched a namespace, or any for None, for a moment."""
        for key, known in self._runs.items():
            if namespace in (None, key.namespace):
                self._forget_children(known)

    @staticmethod
    def _forget_children(known: _Run) -> None:
        known.job, known.born, known.read_at = None, False, NEVER

    # What is looked at again, and progress

    def is_unfinished(self, key: Key) -> bool:
        """The run is there and has not ended."""
        return (known := self._runs.get(key)) is not None and not known.finished

    def is_stale(self, key: Key) -> bool:
        """Nobody has read the run's children for a while."""
        return (known := self._runs.get(key)) is None or self._clock() - known.read_at >= self._fresh_seconds

    def unfinished_in(self, namespace: str | None) -> dict[Key, str]:
        """The unfinished runs of a namespace with their uids; of all for None."""
        runs = self._runs.items()
        return {key: each.uid for key, each in runs if namespace in (None, key.namespace) and not each.finished}

    def naming(self, namespace: str, word: str) -> list[Key]:
        """The unfinished runs of a namespace that have this word somewhere, and those that have to be read."""
        said = json.dumps(word).encode()
        return [
            key
            for key, each in self._runs.items()
            if key.namespace == namespace and not each.finished and (said in each.content or not each.content)
        ]

    def phases(self) -> Iterable[tuple[str, str]]:
        """Phase, and reason of waiting or "", of every unfinished run."""
        return [(each.phase, each.waits_for) for each in self._runs.values() if not each.finished]

    def training(self) -> dict[str, Key]:
        """The runs that may post progress, by uid."""
        return {each.uid: key for key, each in self._runs.items() if each.phase in ("Exporting", "Training")}

    def progress(self, key: Key, uid: str) -> TrainerStatus | None:
        """What the run's trainer has posted last."""
        known = self._runs.get(key)
        return known.posted if known is not None and known.uid == uid else None

    def posted(self, training: Mapping[str, Key], posted: Mapping[str, TrainerStatus]) -> list[Key]:
        """The latest posts of runs that were asked for, by uid; returns those whose status should have them now."""
        now, due = self._clock(), []
        for uid, key in training.items():
            known = self._runs.get(key)
            if known is None or known.uid != uid:
                continue
            known.posted = posted.get(uid)
            if known.posted is not None and is_worth_writing(known.posted, known.told, now):
                known.told = (known.posted, now)
                due.append(key)
        return due


def is_newer(version: str, known: str) -> bool:
    """Whether a resourceVersion is later than another. Numbers are compared; of other words the order is not known."""
    if version.isdecimal() and known.isdecimal():
        return int(version) > int(known)
    return version != known


def is_worth_writing(posted: TrainerStatus, told: tuple[TrainerStatus, float] | None, now: float) -> bool:
    """Whether a run's status should have this progress: it moved by a percent, or has changed and a minute has passed.

    The registry has all of it, and each write of a status goes to everybody who watches.
    """
    if told is None:
        return True
    before, since = told
    if posted == before:
        return False
    return posted.progress_percentage != before.progress_percentage or now - since >= PROGRESS_SECONDS


def key_of(run: Document) -> Key:
    """A run's key."""
    return Key(run["metadata"]["namespace"], run["metadata"]["name"])


def run_of(child: Document) -> Key | None:
    """The run that a Job or a pod belongs to by its label."""
    name = (child["metadata"].get("labels") or {}).get(names.RUN_LABEL)
    return Key(child["metadata"]["namespace"], name) if name else None


def is_over(child: Document) -> bool:
    """Whether a Job or a pod has ended."""
    status = child.get("status") or {}
    true = {each.get("type") for each in status.get("conditions") or [] if each.get("status") == "True"}
    return status.get("phase") in ("Succeeded", "Failed") or bool(true & {"Complete", "Failed"})
